"""A patient from scans over time to a case: `isocenter track` and the patients' API, step by step and with nothing done twice.

Every visit leaves its files under `processed/{pseudonym}/{timepoint}/`; what is already there and was made from the same
bytes, with the same settings, is taken as it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from isocenter import narrateservice
from isocenter.analysis import appearance
from isocenter.analysis.case import Case, Found, MeasuredVisit, assemble
from isocenter.analysis.case_json import as_dict
from isocenter.analysis.growth.forecast import BROAD, Population
from isocenter.analysis.lesions import Intensities, LesionSize, measure_lesion
from isocenter.analysis.narrative import prompt as prompts
from isocenter.analysis.narrative import template
from isocenter.analysis.pictures import lesion_picture, shown
from isocenter.analysis.preprocess import preprocess
from isocenter.analysis.report import formats
from isocenter.analysis.report.scans import Scans, Shots, each_lesion
from isocenter.analysis.report.told import Told
from isocenter.analysis.tracking.graph import Correction
from isocenter.analysis.tracking.register import Freedom, register
from isocenter.core.errors import IsocenterError, ModelError, UsageError
from isocenter.core.geometry import Triple, onto
from isocenter.core.model import QUIET, ModelSpec, Run, Task
from isocenter.core.patient import Identity, Patient, Timepoint
from isocenter.core.prompts import Box, Point, Prompt, Text
from isocenter.core.volume import Volume
from isocenter.io import door, uids, visits, write
from isocenter.io.visits import StudyFiles, VisitFiles
from isocenter.models._kernel_cache import compile_ahead
from isocenter.service import Service

#: Anything that changes what a visit's files hold changes this.
_VERSION = "1"
_BLOCK = 4 * 1024 * 1024


@dataclass(frozen=True)
class TrackOptions:
    """How lesions are found and what is kept. model, labels: for visits that have neither a mask nor clicks.

    registration: how visits are aligned, None for not at all. least_mm3: smaller specks are not lesions. preprocessed:
    whether scans ready for networks are written too. formats: names in `analysis.report.formats.FORMATS`. identity: whether
    outputs name the patient, as the scans' headers do. embedder: model that describes each lesion's picture by a vector; by
    default one that is installed, "none" for none.
    """

    model: str | None = None
    labels: tuple[str, ...] = ()
    least_mm3: float = 30.0
    spacing_mm: float | None = None
    preprocessed: bool = True
    registration: Freedom | None = Freedom.AFFINE
    immunotherapy: bool = False
    formats: tuple[str, ...] = formats.DEFAULT
    identity: bool = False
    embedder: str | None = None
    narrator: str | None = None


def track(
    service: Service,
    place: Path,
    out: Path,
    *,
    options: TrackOptions | None = None,
    corrections: Sequence[Correction] = (),
    population: Population = BROAD,
    run: Run = QUIET,
) -> Case:
    """The case of the patient whose study lies at `place`; its files go to `out`. Raises what reading and models raise.

    One visit that cannot be read does not stop the others: it counts as not evaluated, and says why.
    """
    options = options or TrackOptions()
    formats.chosen(options.formats)  # before any work is done
    study = visits.read(place, service.settings)
    patient = Patient(study.patient_id, tuple(Timepoint(v.id, v.day, v.scan_date, v.modality) for v in study.visits), study.therapies)
    home = out / "processed" / study.patient_id
    # While scans are read: the first time on a machine, growth would wait for its compiler.
    compiling = Thread(target=compile_ahead, args=("isocenter.analysis.warm",), daemon=True)
    compiling.start()
    steps = 2 * len(study.visits) + 2
    measured_visits: list[MeasuredVisit] = []
    for k, visit in enumerate(study.visits):
        run.check(2 * k / steps, f"{visit.id}: reading and measuring")
        measured_visits.append(measure_visit(service, study, visit, home / visit.id, options, run))
    for k, (before, after) in enumerate(_pairs(measured_visits)):
        run.check((2 * len(study.visits) + k / len(measured_visits)) / steps, f"{before.timepoint.timepoint_id}: bringing it to the next visit")
        measured_visits[measured_visits.index(before)] = _carried(service, study, before, after, home, options, run)
    describing = embedder(service, options)
    for visit, measured in zip(study.visits, measured_visits, strict=True):
        if describing is not None and measured.found:
            run.check((steps - 1.5) / steps, f"{visit.id}: describing lesions")
            _described(service, measured, home / visit.id, describing, run)
    run.check((steps - 1) / steps, "following lesions")
    compiling.join()
    case = assemble(patient, measured_visits, corrections=corrections, population=population, immunotherapy=options.immunotherapy)
    case = replace(case, notes=(*study.notes, *case.notes))
    run.check((steps - 0.7) / steps, "telling the case")
    story = _story(service, case, measured_visits, home, options, run)
    _report(service, case, study, home, out, options, story, run, (steps - 0.5) / steps)
    run.check(1.0, "done")
    return case


def told(
    service: Service, study: StudyFiles, case: Case, out: Path, *, options: TrackOptions | None = None, story: template.Narrative | None = None
) -> Told:
    """A case that `track` made into `out`, ready for `analysis.report.formats`: its story, its scans and pictures.

    story: another narrative than the template's. Patient fields are read from the scans where `options.identity` asks for them.
    """
    options = options or TrackOptions()
    files, home = {v.id: v for v in study.visits}, out / "processed" / study.patient_id

    def scan(name: str) -> Volume | None:
        visit = files.get(name)
        return None if visit is None or visit.image is None else _open(service, visit)

    who: Identity | None = None
    if options.identity:
        who = next((w for v in case.visits if v.found is not None and (s := scan(v.timepoint.timepoint_id)) and (w := uids.identity(s))), None)
        if who is None:
            raise UsageError("patient fields were asked for, but no scan says who the patient is: only DICOM headers do")
    told_by, version = story or template.write(case), metadata.version("isocenter")
    facts = {"Isocenter": version, "Narrative": told_by.model, "Appearance": f"{appearance.NAME} {appearance.VERSION}"}
    shots = Shots({name: visit.modality for name, visit in files.items()}, home)
    return Told(case, told_by, version, facts, shots, Scans(scan, home, options.least_mm3), who)


def _story(service: Service, case: Case, measured: Sequence[MeasuredVisit], home: Path, options: TrackOptions, run: Run) -> template.Narrative:
    """The case told, last of what networks do; a model's words, with prompt and check, are kept in `narrative.json` for the same case."""
    specs = [] if options.narrator == narrateservice.TEMPLATE else narrateservice.narrators(service, large=True)
    if options.narrator is None and not specs:
        return template.write(case)
    names = [(s.id, s.weights_sha256) for s in specs]
    key = blake3(repr((options.narrator, names, prompts.narrative(case, most=prompts.COMPREHENSIVE))).encode()).hexdigest()[:32]
    stored = _read_json(home / "narrative.json")
    if stored is not None and stored.get("key") == key:
        return template.Narrative(**stored["narrative"])
    pictures = []
    for visit, size in shown(case, measured) if specs else ():
        modality = next(v.timepoint.modality for v in measured if v.timepoint.timepoint_id == visit)
        pictures.append(lesion_picture(door.read_path(home / visit / "scan.nii.gz", limits=service.settings, modality=modality), size))
    told = narrateservice.tell(service, case, model=options.narrator, pictures=pictures, run=run)
    if told.provenance.prompt is not None:
        _save(home / "narrative.json", _json({"key": key, "narrative": asdict(told.story), "provenance": told.provenance.as_dict()}))
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
    _save(home / "growth.json", _json({"growth": as_dict(case)["growth"]}))
    ready, kinds = told(service, study, case, out, options=options, story=story), formats.chosen(options.formats)
    for k, kind in enumerate(kinds):
        run.check(at + (1 - at) * k / len(kinds), f"writing {kind.words}")
        for name, data in kind.write(ready):
            _save(out / name, data)


def _pairs(found: Sequence[MeasuredVisit]) -> list[tuple[MeasuredVisit, MeasuredVisit]]:
    seen = [v for v in found if v.found is not None]
    return list(pairwise(seen))


# One visit


def measure_visit(service: Service, study: StudyFiles, visit: VisitFiles, folder: Path, options: TrackOptions, run: Run = QUIET) -> MeasuredVisit:
    """One visit's lesions; its files lie in `folder` afterwards. A visit that cannot be read counts as not evaluated, and says why.

    Raises `ModelError` where no model can find its lesions.
    """
    point = Timepoint(visit.id, visit.day, visit.scan_date, visit.modality)
    if visit.image is None:
        return MeasuredVisit(point, None, new_lesions=visit.new_lesions, reason="no scan")
    try:
        key = visit_key(service, study, visit, options)
        known = _stored(folder, key, study)
        if known is None:
            known = _measure(service, study, visit, folder, options, key, run)
    except ModelError:
        raise
    except IsocenterError as error:
        return MeasuredVisit(point, None, new_lesions=visit.new_lesions, reason=error.message)
    found, spacing, _, notes = known
    return MeasuredVisit(point, found, spacing, None, visit.new_lesions, None, notes)


def _measure(
    service: Service, study: StudyFiles, visit: VisitFiles, folder: Path, options: TrackOptions, key: str, run: Run
) -> tuple[tuple[Found, ...], Triple, str | None, tuple[str, ...]]:
    """Read, segment and measure a visit, and leave its files."""
    volume = _open(service, visit)
    mask, method, notes = _mask(service, visit, volume, options, run)
    found, vectors = _lesions(study, mask, volume, method, options)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").unlink(missing_ok=True)
    _save(folder / "scan.nii.gz", write.encode_image(volume, ".nii.gz"))
    from isocenter.io import nifti

    _save(folder / "mask.nii.gz", nifti.write(mask, volume.grid, header=write.nifti_header_of(volume), compress=True, description="isocenter track"))
    _save_array(folder / "mask.npy", mask)
    _save_array(folder / "embedding.npy", vectors)
    if options.preprocessed and volume.grid.is_orthogonal:
        _save_preprocessed(folder / "preprocessed.safetensors", volume, options)
    rows = [{**asdict(f), "appearance": None} for f in found]
    facts = {
        "lesions": rows,
        "spacing_mm": volume.spacing,
        "modality": volume.modality,
        "notes": notes,
        "embedding": f"{appearance.NAME} {appearance.VERSION}",
    }
    _save(folder / "measurements.json", _json(facts))
    # Last: a visit whose files are not all there has no state, and is made again.
    _save(folder / "state.json", _json({"key": key}))
    return found, volume.spacing, volume.modality, notes


def _open(service: Service, visit: VisitFiles) -> Volume:
    if visit.image is None:
        raise UsageError("this visit has no scan")
    return service.open_path(visit.image, series_uid=visit.series_uid, modality=visit.modality)


def _mask(service: Service, visit: VisitFiles, volume: Volume, options: TrackOptions, run: Run) -> tuple[NDArray[np.generic], str, tuple[str, ...]]:
    """The label map of a visit's lesions, how it was made, and what its reader should know."""
    notes = volume.source.notes
    if visit.mask is not None:
        given = door.read_path(visit.mask, limits=service.settings)
        values = onto(given.array, given.grid, volume.grid)
        if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
            raise UsageError("the mask holds values that are no labels; give a label map")
        if float(values.min()) < 0 or float(values.max()) > 65535:
            raise UsageError("the mask's labels must lie between 0 and 65535")
        return np.ascontiguousarray(values, dtype=np.uint8 if values.max() < 256 else np.uint16), "given", notes
    if visit.clicks or visit.boxes:
        mask = np.zeros(volume.shape, np.uint8)
        clicked: list[list[Prompt]] = [[Point((z, y, x)) for x, y, z in clicks] for clicks in visit.clicks]
        boxed: list[list[Prompt]] = [[Box((c, b, a), (f + 1, e + 1, d + 1))] for a, b, c, d, e, f in visit.boxes]
        for k, prompts in enumerate((*clicked, *boxed), start=1):
            one = service.segment(volume, prompts, run=run)
            mask[(one.mask != 0) & (mask == 0)] = k
        return mask, "clicks", notes
    if options.model is None:
        raise ModelError(
            "a visit has no mask, clicks or boxes, and no model was named: give --model (`isocenter models list` shows what is installed), "
            "or list masks, clicks or boxes in a study.json"
        )
    spec = service.registry.spec(options.model)
    if spec.task is Task.SEGMENT:
        result = service.label(volume, model=spec.id, labels=options.labels or None, run=run)
    else:
        words = options.labels or ("lesion", "tumor")
        result = service.segment(volume, [Text(w) for w in words], model=spec.id, run=run)
    return result.mask, "model", (*notes, *result.provenance.notes, f"segmented by {spec.id} {spec.version}")


def _lesions(
    study: StudyFiles, mask: NDArray[np.generic], volume: Volume, method: str, options: TrackOptions
) -> tuple[tuple[Found, ...], NDArray[np.float32]]:
    """Every connected lesion of every label, largest first within a label, with its appearance."""
    found: list[Found] = []
    vectors: list[NDArray[np.float32]] = []
    for label, box, inside in each_lesion(mask, volume.grid, options.least_mm3):
        size = measure_lesion(inside, box, volume.grid, volume)
        vector = appearance.vector(inside, box, size, volume)
        vectors.append(vector)
        name = f"lesion-{len(found) + 1}"
        organ = study.organs.get(label) or None
        found.append(Found(name, size, label, organ, label in study.nodes, method, tuple(float(v) for v in vector)))
    table = np.stack(vectors) if vectors else np.zeros((0, appearance.DIMENSIONS), np.float32)
    return tuple(found), table


# What lesions look like to a network


def embedder(service: Service, options: TrackOptions) -> ModelSpec | None:
    """The model that describes lesions, None where none is installed or wanted. Raises `UnknownModelError` and `UsageError`."""
    if options.embedder == "none":
        return None
    if options.embedder is None:
        return next((s for s in service.models() if s.task is Task.DESCRIBE), None)
    spec = service.registry.spec(options.embedder)
    if spec.task is not Task.DESCRIBE:
        raise UsageError(f"the model '{spec.id}' describes no pictures; `isocenter models list` shows which do")
    return spec


def embedding_name(spec: ModelSpec) -> str:
    """What a model's vectors are called in files and collections: they are compared only with those of the same weights."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{spec.id}-{(spec.weights_sha256 or spec.version)[:12]}")


def describe_lesions(service: Service, scan: Volume, found: Sequence[Found], spec: ModelSpec, run: Run = QUIET) -> NDArray[np.float32]:
    """(lesions, size): a vector of length one for each lesion of a scan."""
    pictures = [lesion_picture(scan, f.size) for f in found]
    run.check()
    return service.describe(pictures, model=spec.id)


def _described(service: Service, visit: MeasuredVisit, folder: Path, spec: ModelSpec, run: Run) -> None:
    """`embedding-{model}.npy` beside a visit's other files; its rows are the lesions in their order."""
    name, key = embedding_name(spec), _state(folder)
    file, state = folder / f"embedding-{name}.npy", folder / f"embedding-{name}.json"
    if file.is_file() and (_read_json(state) or {}).get("key") == key:
        return
    scan = door.read_path(folder / "scan.nii.gz", limits=service.settings, modality=visit.timepoint.modality)
    _save_array(file, describe_lesions(service, scan, visit.found or (), spec, run))
    _save(state, _json({"key": key, "model": spec.id, "version": spec.version, "weights_sha256": spec.weights_sha256}))


# Between visits


def _carried(
    service: Service, study: StudyFiles, before: MeasuredVisit, after: MeasuredVisit, home: Path, options: TrackOptions, run: Run
) -> MeasuredVisit:
    """`before` with its lesions' positions in the next visit's scan, or unchanged where the two cannot be registered."""
    if options.registration is None or not before.found or not after.found:
        return before
    files = {v.id: v for v in study.visits}
    name, then = before.timepoint.timepoint_id, after.timepoint.timepoint_id
    keys = [*(_state(home / n) for n in (name, then)), str(options.registration)]
    file = home / then / "registration.json"
    stored = _read_json(file)
    if stored is None or stored.get("keys") != keys:
        places = [f.size.centroid_lps_mm for f in before.found]
        stored = {"keys": keys, **registration(service, files[name], files[then], options.registration, places, run=run)}
        _save(file, _json(stored))
    return carried(before, then, stored)


def registration(
    service: Service,
    before: VisitFiles,
    after: VisitFiles,
    freedom: Freedom = Freedom.AFFINE,
    places: Sequence[Triple] = (),
    *,
    run: Run = QUIET,
) -> dict[str, Any]:
    """Where `before` lies in the scan of `after`, as `Registration.as_dict` has it; "carried" says where its `places` (LPS mm) are there."""
    fixed, moving = _open(service, after), _open(service, before)
    lungs = None
    if freedom is Freedom.DEFORMABLE and fixed.modality == moving.modality == "CT":
        lungs = (_lungs(service, fixed, run), _lungs(service, moving, run))
    done = register(fixed, moving, freedom=freedom, lungs=lungs, check=lambda share, what: run.check(None, what))
    points = done.carry(np.array(places, dtype=np.float64).reshape(-1, 3)) if done.accepted else ()
    return {**done.as_dict(), "freedom": str(freedom), "carried": [{"from": list(a), "to": b.tolist()} for a, b in zip(places, points, strict=False)]}


def _lungs(service: Service, volume: Volume, run: Run) -> NDArray[np.bool_]:
    """Both lungs, empty where there are none."""
    watched = replace(run, progress=lambda share, what: None)
    return np.asarray(service.segment(volume, [Text("lungs")], model="tissue", run=watched).mask != 0)


def carried(before: MeasuredVisit, then: str, stored: Mapping[str, Any]) -> MeasuredVisit:
    """`before` with its lesions' positions in the scan of the visit `then`, or a note why they are not known. stored: of `registration`."""
    if not stored["accepted"]:
        return replace(before, notes=(*before.notes, f"not registered to {then}: {stored['reason']}"))
    refused = tuple(f"not deformed to {then}: {region['reason']}" for region in stored.get("regions", ()) if region["reason"])
    # A lesion that a reader has drawn anew since lies elsewhere: it goes by the matrix.
    known = {tuple(pair["from"]): pair["to"] for pair in stored.get("carried", ())}
    matrix = np.array(stored["matrix"])[:3]
    points = [known.get(f.size.centroid_lps_mm, matrix @ (*f.size.centroid_lps_mm, 1.0)) for f in before.found or ()]
    return replace(before, notes=(*before.notes, *refused), carried=tuple((float(p[0]), float(p[1]), float(p[2])) for p in points))


# Files


def visit_key(service: Service, study: StudyFiles, visit: VisitFiles, options: TrackOptions) -> str:
    """What a visit's files were made from: bytes of scan and mask, clicks, and everything that changes the answer."""
    digest = blake3()
    for path in (visit.image, visit.mask):
        for file in [path] if path is not None and path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()) if path else []:
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
    spec = service.registry.spec(options.model) if options.model and not visit.mask and not visit.clicks and not visit.boxes else None
    used = (spec.id, spec.version, spec.weights_sha256) if spec else ()
    labels = sorted(study.organs.items()), sorted(study.nodes)
    digest.update(
        repr(
            (
                _VERSION,
                visit.series_uid,
                visit.modality,
                visit.clicks,
                visit.boxes,
                used,
                options.labels,
                options.least_mm3,
                options.spacing_mm,
                options.preprocessed,
                labels,
            )
        ).encode()
    )
    return digest.hexdigest()[:32]


def _state(folder: Path) -> str | None:
    state = _read_json(folder / "state.json")
    return str(state["key"]) if state and "key" in state else None


def _stored(folder: Path, key: str, study: StudyFiles) -> tuple[tuple[Found, ...], Triple, str | None, tuple[str, ...]] | None:
    """A visit as its files have it, None where they are absent, incomplete or of something else."""
    if _state(folder) != key:
        return None
    facts = _read_json(folder / "measurements.json")
    try:
        vectors = np.load(folder / "embedding.npy", allow_pickle=False)
        if facts is None or len(vectors) != len(facts["lesions"]):
            return None
        found = tuple(found_of(row, vector) for row, vector in zip(facts["lesions"], vectors, strict=True))
        x, y, z = (float(v) for v in facts["spacing_mm"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found, (x, y, z), facts["modality"], tuple(facts["notes"])


def found_of(row: Mapping[str, Any], vector: Sequence[float] | NDArray[np.float32]) -> Found:
    """A lesion out of its JSON in measurements.json, and its appearance."""

    def deep(value: Any) -> Any:
        return tuple(deep(v) for v in value) if isinstance(value, list) else value

    size = {k: deep(v) for k, v in row["size"].items()}
    size["intensities"] = Intensities(**size["intensities"]) if size["intensities"] else None
    rest = {f.name: row[f.name] for f in fields(Found) if f.name not in ("size", "appearance")}
    return Found(size=LesionSize(**size), appearance=tuple(float(v) for v in vector), **rest)


def _save_preprocessed(file: Path, volume: Volume, options: TrackOptions) -> None:
    from safetensors.numpy import save

    ready = preprocess(volume, spacing_mm=options.spacing_mm)
    tensors = {
        "volume": ready.array,
        "spacing": np.array(ready.grid.spacing),
        "origin": np.array(ready.grid.origin),
        "direction": np.array(ready.grid.direction).reshape(9),
        "window_center": np.array([ready.centre]),
        "window_width": np.array([ready.width]),
    }
    _save(file, save(tensors))


def _save_array(file: Path, array: NDArray[np.generic]) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    _save(file, buffer.getbuffer())


def _save(file: Path, data: bytes | memoryview) -> None:
    """Write a file so that it is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_bytes(data)
    part.replace(file)


def _json(data: object) -> bytes:
    return json.dumps(data, indent=1, allow_nan=False).encode()


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
