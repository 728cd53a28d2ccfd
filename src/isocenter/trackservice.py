"""A patient from scans over time to a case: `isocenter track` and the patients' API, step by step and with nothing done twice.

Every visit leaves its files under `processed/{pseudonym}/{timepoint}/`; what is already there and was made from the same
bytes, with the same settings, is taken as it is. The steps of one visit are in `followup`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from threading import Thread

import numpy as np
from blake3 import blake3

from isocenter import narrateservice
from isocenter.analysis import appearance, case_response
from isocenter.analysis.case import Case, MeasuredVisit, assemble
from isocenter.analysis.case_edits import Edits, edited, effective, track_names
from isocenter.analysis.case_json import as_dict
from isocenter.analysis.decisions import Together, decided
from isocenter.analysis.growth.forecast import BROAD, Population
from isocenter.analysis.merge import Merged, chosen, merge
from isocenter.analysis.narrative import prompt as prompts
from isocenter.analysis.narrative import template
from isocenter.analysis.pictures import lesion_picture, shown
from isocenter.analysis.report import formats
from isocenter.analysis.report.scans import Scans, Shots, each_lesion
from isocenter.analysis.report.told import Told
from isocenter.core.errors import UsageError
from isocenter.core.model import QUIET, Run
from isocenter.core.patient import Decision, Identity, Patient, Timepoint
from isocenter.core.volume import Volume
from isocenter.followup import describe, files
from isocenter.followup.between import Aligner, bring
from isocenter.followup.growth import save_growth
from isocenter.followup.options import TrackOptions as TrackOptions
from isocenter.followup.slips import Described, slips
from isocenter.followup.visit import measure_visit, open_scan
from isocenter.io import door, uids, visits
from isocenter.io.visits import StudyFiles
from isocenter.models._kernel_cache import compile_ahead
from isocenter.service import Service


def track(
    service: Service,
    place: Path,
    out: Path,
    *,
    options: TrackOptions | None = None,
    corrections: Sequence[Decision] = (),
    population: Population = BROAD,
    run: Run = QUIET,
) -> Case:
    """The case of the patient whose study lies at `place`; its files go to `out`. Raises what reading and models raise.

    corrections: of readers, after those of the study itself. One visit that cannot be read does not stop the others: it counts as not
    evaluated, and says why.
    """
    options = options or TrackOptions()
    formats.chosen(options.formats)  # before any work is done
    case_response.check(options.criteria)
    study = visits.read(place, service.settings)
    patient = Patient(study.patient_id, tuple(Timepoint(v.id, v.day, v.scan_date, v.modality) for v in study.visits), study.therapies)
    home = out / "processed" / study.patient_id
    # While scans are read: the first time on a machine, growth would wait for its compiler.
    compiling = Thread(target=compile_ahead, args=("isocenter.analysis.warm",), daemon=True)
    compiling.start()
    steps = 2 * len(study.visits) + 2
    freedom = options.registration
    aligner = Aligner(service, freedom, run) if freedom is not None else None
    measured_visits: list[MeasuredVisit] = []
    for k, visit in enumerate(study.visits):
        run.check(2 * k / steps, f"{visit.id}: reading and measuring")

        def opened(scan: Volume, name: str = visit.id) -> None:
            if aligner is not None:
                aligner.keep(name, scan)

        measured_visits.append(measure_visit(service, study, visit, home / visit.id, options, run, opened=opened))
    if aligner is not None and freedom is not None:
        scans = {visit.id: visit for visit in study.visits}
        for k, (before, after) in enumerate(_pairs(measured_visits)):
            run.check((2 * len(study.visits) + k / len(measured_visits)) / steps, f"{before.timepoint.timepoint_id}: bringing it to the next visit")
            measured_visits[measured_visits.index(before)] = bring(aligner, before, after, scans, home, freedom)
            aligner.forget(before.timepoint.timepoint_id)
    describing = describe.embedder(service, options)
    for visit, measured in zip(study.visits, measured_visits, strict=True):
        if describing is not None and measured.found:
            run.check((steps - 1.5) / steps, f"{visit.id}: describing lesions")
            describe.described(service, measured, home / visit.id, describing, run)
    run.check((steps - 1) / steps, "following lesions")
    compiling.join()
    together = _together(service, study, home, options)
    edits = decided(Edits(names=study.names), (*study.corrections, *corrections), measured_visits, together)
    corrected = edited(measured_visits, edits)
    holds = effective(corrected, edits)
    case = assemble(
        patient,
        corrected,
        corrections=holds.links,
        regroupings=holds.regroupings,
        inevaluable=holds.inevaluable,
        roles=holds.roles,
        population=population,
        immunotherapy=options.immunotherapy,
        criteria=options.criteria,
        uncorrected=measured_visits,
    )
    doubts = _doubts(study, measured_visits, home)
    case = replace(case, notes=(*study.notes, *doubts, *case.notes), names=track_names(edits, case.graph))
    save_growth(case, home, population, run)
    run.check((steps - 0.7) / steps, "telling the case")
    story = _story(service, case, corrected, home, options, run)
    _report(service, case, study, home, out, options, story, run, (steps - 0.5) / steps)
    run.check(1.0, "done")
    return case


def _doubts(study: StudyFiles, measured: Sequence[MeasuredVisit], home: Path) -> Iterator[str]:
    """What looks like a slip of whoever described the study."""
    described = [
        Described(visit.id, files.key_of(home / visit.id, "volume") or visit.id, visit.marks, [f.id for f in found.found])
        for visit, found in zip(study.visits, measured, strict=True)
        if found.found is not None
    ]
    yield from slips(described, study.names)


def _together(service: Service, study: StudyFiles, home: Path, options: TrackOptions) -> Together:
    """Measures lesions of a visit as one, from its files."""

    def work(name: str, lesions: Sequence[str]) -> Merged:
        visit = next(v for v in study.visits if v.id == name)
        scan, mask = open_scan(service, visit), np.load(home / name / files.MASK_ARRAY, allow_pickle=False)
        return merge(chosen(each_lesion(mask, scan.grid, options.least_mm3), lesions), lesions, scan)

    return work


def told(
    service: Service, study: StudyFiles, case: Case, out: Path, *, options: TrackOptions | None = None, story: template.Narrative | None = None
) -> Told:
    """A case that `track` made into `out`, ready for `analysis.report.formats`: its story, its scans and pictures.

    story: another narrative than the template's. Patient fields are read from the scans where `options.identity` asks for them.
    """
    options = options or TrackOptions()
    by_id, home = {v.id: v for v in study.visits}, out / "processed" / study.patient_id

    def scan(name: str) -> Volume | None:
        visit = by_id.get(name)
        return None if visit is None or visit.image is None else open_scan(service, visit)

    who: Identity | None = None
    if options.identity:
        who = next((w for v in case.visits if v.found is not None and (s := scan(v.timepoint.timepoint_id)) and (w := uids.identity(s))), None)
        if who is None:
            raise UsageError("patient fields were asked for, but no scan says who the patient is: only DICOM headers do")
    told_by, version = story or template.write(case), metadata.version("isocenter")
    facts = {"Isocenter": version, "Narrative": told_by.model, "Appearance": f"{appearance.NAME} {appearance.VERSION}"}
    shots = Shots({name: visit.modality for name, visit in by_id.items()}, home)
    return Told(case, told_by, version, facts, shots, Scans(scan, home, options.least_mm3), who)


def _story(service: Service, case: Case, measured: Sequence[MeasuredVisit], home: Path, options: TrackOptions, run: Run) -> template.Narrative:
    """The case told, last of what networks do; a model's words, with prompt and check, are kept in `narrative.json` for the same case."""
    specs = [] if options.narrator == narrateservice.TEMPLATE else narrateservice.narrators(service, large=True)
    if options.narrator is None and not specs:
        return template.write(case)
    names = [(s.id, s.weights_sha256) for s in specs]
    key = blake3(repr((options.narrator, names, prompts.narrative(case, most=prompts.COMPREHENSIVE))).encode()).hexdigest()[:32]
    stored = files.read_json(home / "narrative.json")
    if stored is not None and stored.get("key") == key:
        return template.Narrative(**stored["narrative"])
    pictures = []
    for visit, size in shown(case, measured) if specs else ():
        modality = next(v.timepoint.modality for v in measured if v.timepoint.timepoint_id == visit)
        pictures.append(lesion_picture(door.read_path(home / visit / "scan.nii.gz", limits=service.settings, modality=modality), size))
    told = narrateservice.tell(service, case, model=options.narrator, pictures=pictures, run=run)
    if told.provenance.prompt is not None:
        files.save(home / "narrative.json", files.json_bytes({"key": key, "narrative": asdict(told.story), "provenance": told.provenance.as_dict()}))
    return told.story


def _report(
    service: Service,
    case: Case,
    study: StudyFiles,
    home: Path,
    out: Path,
    options: TrackOptions,
    story: template.Narrative,
    run: Run,
    at: float,
) -> None:
    """growth.json beside the visits, and the case in every format that was asked for."""
    files.save(home / "growth.json", files.json_bytes({"growth": as_dict(case)["growth"]}))
    ready, kinds = told(service, study, case, out, options=options, story=story), formats.chosen(options.formats)
    for k, kind in enumerate(kinds):
        run.check(at + (1 - at) * k / len(kinds), f"writing {kind.words}")
        for name, data in kind.write(ready):
            files.save(out / name, data)


def _pairs(found: Sequence[MeasuredVisit]) -> list[tuple[MeasuredVisit, MeasuredVisit]]:
    seen = [v for v in found if v.found is not None]
    return list(pairwise(seen))
