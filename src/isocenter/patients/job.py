"""Following a patient as a job: scans come in, every visit is on record as soon as it is measured.

A job that is tried again, after its worker died, goes on with the first visit that is not there yet. Each write asks whether
the job is still this worker's.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from isocenter.analysis import appearance
from isocenter.analysis.case import MeasuredVisit
from isocenter.analysis.case_edits import Edits
from isocenter.analysis.decisions import decided
from isocenter.analysis.decisions import told as decision
from isocenter.core.errors import InputError, UnsupportedError, UsageError
from isocenter.core.model import Run
from isocenter.core.patient import check_id
from isocenter.followup import between, describe
from isocenter.followup import files as files_of
from isocenter.followup.between import Aligner
from isocenter.followup.visit import measure_visit, visit_key
from isocenter.io import door, unpack, visits
from isocenter.io.visits import StudyFiles, VisitFiles
from isocenter.jobs import needs
from isocenter.jobs.handler import JobInput, JobResult
from isocenter.jobs.table import Stored
from isocenter.patients import merging
from isocenter.patients.audit import Who
from isocenter.patients.cases import Cases, edits_of, measured_of
from isocenter.patients.options import options_of
from isocenter.patients.records import NewVisit, Records, VisitRow, check_day
from isocenter.patients.similar import Similar
from isocenter.service import Service

KIND = "track"
SCAN, MASK = "scan", "mask"
#: A visit's files that are kept, and what they are.
FILES: Mapping[str, str] = {
    "scan.nii.gz": "application/gzip",
    "mask.nii.gz": "application/gzip",
    "mask.npy": "application/octet-stream",
    "measurements.json": "application/json",
    "embedding.npy": "application/octet-stream",
    "slices.npz": "application/zip",
    "preprocessed.safetensors": "application/octet-stream",
}
SOURCE = "source"


@dataclass(frozen=True)
class VisitFacts:
    """What a client says of one scan. clicks: voxels (x, y, z), a list a lesion. replace: a visit of this id is made anew.

    assessment: what no image says, by `core.patient.ASSESSMENT`.
    """

    timepoint_id: str | None = None
    day: float | None = None
    scan_date: str | None = None
    modality: str | None = None
    series_uid: str | None = None
    clicks: Sequence[Sequence[Sequence[int]]] = ()
    new_lesions: bool | None = None
    assessment: Mapping[str, str] = field(default_factory=dict)
    replace: bool = False


def work(service: Service, given: JobInput, run: Run) -> JobResult:
    """Measure what was sent, visit by visit, and keep it. Raises what reading, models and `Records` raise."""
    return _Work(service, given, run).all()


class _Work:
    """One job."""

    def __init__(self, service: Service, given: JobInput, run: Run) -> None:
        self._service, self._given, self._run = service, given, run
        request = given.request
        self._records = Records(given.database)
        self._who = Who(str(request["user_id"]), str(request["session_id"]))
        self._patient = self._records.get(str(request["patient_id"]))
        self._options = options_of(self._patient.options)
        self._facts = VisitFacts(**request["visit"]) if request.get("visit") else None

    def all(self) -> JobResult:
        """Every step, in order."""
        self._run.check(0.0, "looking at what was sent")
        study, is_dicom = self._study()
        for therapy in study.therapies:
            Edits().with_therapy(therapy)  # raises, before anything is measured
        rows = []
        for k, visit in enumerate(study.visits):
            self._run.check(0.7 * k / len(study.visits), f"{visit.id}: reading and measuring")
            rows.append(self._one(study, visit, is_dicom))
        if not any(v.measured.get("lesions") is not None for v in self._records.visits(self._patient.id)):
            reasons = [r.measured["reason"] for r in rows if r.measured.get("reason")]
            raise InputError(f"no visit could be measured: {reasons[0] if reasons else 'there is no scan'}")
        self._register()
        self._therapies(study)
        self._embed()
        self._run.check(0.95, "comparing lesions")
        patient = self._patient.id
        Similar(self._given.database).index(Cases(self._records).known(patient))
        self._run.check(1.0, "done")
        facts = {"patient_id": patient, "timepoints": [r.timepoint_id for r in rows], "notes": list(study.notes)}
        return JobResult((), facts)

    # What was sent

    def _study(self) -> tuple[StudyFiles, bool]:
        """The visits in what was sent, and whether DICOM headers say whose they are."""
        limits = self._service.settings
        scan = next(path for name, path in self._given.files.items() if name.startswith(SCAN))
        mask = next((path for name, path in self._given.files.items() if name.startswith(MASK)), None)
        with scan.open("rb") as file:
            kind = door.kind_of(file.read(4096), scan.suffix)
        if kind == "zip":
            root = unpack.unpack(scan, self._given.folder / "sent", limits)
        else:
            # Named by content alone: the suffix tells NIfTI from other gzip.
            root = self._given.folder / "sent"
            root.mkdir()
            shutil.copyfile(scan, root / f"scan{str(self._given.request.get('suffix') or '')[:16]}")
        described = (root / "study.json").is_file() or any(root.glob("sub-*")) or root.name.startswith("sub-")
        if self._facts is None:
            study = visits.read(root, limits)
            return self._own_names(study, described), not described
        if described:
            raise UsageError("this is a whole study; create a patient from it, or send one visit's scan")
        try:
            study = self._own_names(visits.read(root, limits), described)
        except UnsupportedError:
            raise  # images of two patients: none of them may count as this one's
        except InputError:
            if kind == "dicom":
                raise
            image = scan if kind == "zip" else next(root.iterdir())
            study = StudyFiles(self._patient.id, (self._said(VisitFiles("visit", 0.0, None, image), mask),))
            return study, False
        if len(study.visits) != 1 and (self._facts.timepoint_id or mask or self._facts.clicks):
            raise UsageError(f"the archive holds {len(study.visits)} visits; send them one by one to name them or to give a mask or clicks")
        if len(study.visits) == 1:
            study = replace(study, visits=(self._said(study.visits[0], mask),))
        return study, True

    def _own_names(self, study: StudyFiles, described: bool) -> StudyFiles:
        """DICOM visits are called by their day in this patient's time."""
        origin = self._patient.origin
        if described or origin is None:
            return study
        named = [replace(v, id=f"day-{(v.scan_date - date.fromisoformat(origin)).days}") if v.scan_date else v for v in study.visits]
        return replace(study, visits=tuple(named))

    def _said(self, visit: VisitFiles, mask: Path | None) -> VisitFiles:
        """A visit with what the client says of it."""
        facts = self._facts or VisitFacts()
        try:
            when = date.fromisoformat(facts.scan_date) if facts.scan_date else visit.scan_date
            clicks = tuple(tuple((int(x), int(y), int(z)) for x, y, z in lesion) for lesion in facts.clicks)
        except (ValueError, TypeError):
            raise UsageError("a date is written as YYYY-MM-DD, clicks as a list of [x, y, z] for each lesion") from None
        name = facts.timepoint_id or (visit.id if visit.id != "visit" else f"visit-{len(self._records.visits(self._patient.id)) + 1}")
        return replace(
            visit,
            id=check_id(name, "a visit's id"),
            day=facts.day if facts.day is not None else visit.day,
            scan_date=when,
            series_uid=facts.series_uid or visit.series_uid,
            modality=facts.modality or visit.modality,
            mask=mask,
            clicks=clicks,
            new_lesions=facts.new_lesions,
            assessment=visits.assessment_of(facts.assessment),
        )

    # One visit

    def _one(self, study: StudyFiles, visit: VisitFiles, is_dicom: bool) -> VisitRow:
        key = visit_key(self._service, study, visit, self._options).whole if visit.image is not None else None
        there = next((v for v in self._records.visits(self._patient.id) if v.timepoint_id == visit.id), None)
        if there is not None and there.key is not None and there.key == key and there.job_id == self._given.job.id:
            return there  # by an attempt before this one
        folder = self._given.folder / "made" / visit.id
        measured = measure_visit(self._service, study, visit, folder, self._options, self._run)
        if self._facts is not None and len(study.visits) == 1 and measured.found is None:
            # It was sent for its scan; a visit that is there already stays as it is.
            raise InputError(f"'{visit.id}' was not kept, since it could not be measured: {measured.reason}")
        files = self._kept(folder)
        if measured.found is not None and (source := self._source(visit, is_dicom)) is not None:
            files.append(source)
        said = self._facts
        if said is not None:
            check_day(self._records.get(self._patient.id), said.day, visit.scan_date)
        new = NewVisit(
            visit.id,
            None if said is not None and said.day is None and visit.scan_date is None and there is None and self._has_visits() else visit.day,
            visit.scan_date,
            visit.modality,
            key,
            told(measured, visit, files_of.key_of(folder, "volume"), study.notes),
            tuple(files),
            study.patient_id if is_dicom else None,
        )
        replacing = bool(said and said.replace) or (there is not None and there.job_id == self._given.job.id)
        row, freed = self._records.put_visit(self._patient.id, new, self._who, job=self._given.job, replace=replacing)
        needs.drop(self._given.database, self._given.objects, freed)
        shutil.rmtree(folder, ignore_errors=True)
        return row

    def _source(self, visit: VisitFiles, is_dicom: bool) -> Stored | None:
        """The visit's DICOM files, which SEG and SR will refer to: what was sent, or its own part of a study with a description."""
        if is_dicom:
            sent = self._given.job.inputs[0]
            return Stored(SOURCE, sent.digest, sent.bytes, "application/octet-stream")
        if visit.image is None:
            return None
        place = visit.image
        if place.is_dir():
            place = self._given.folder / "source.zip"
            with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for k, file in enumerate(sorted(f for f in visit.image.rglob("*") if f.is_file())):
                    # Numbers for names, and no times: names may say who the patient is, and the same files give the same archive.
                    archive.writestr(zipfile.ZipInfo(f"{k:06d}"), file.read_bytes(), zipfile.ZIP_DEFLATED)
        else:
            with place.open("rb") as opened:
                if door.kind_of(opened.read(4096), place.suffix) != "dicom":
                    return None
        made = self._given.objects.put(place)
        return Stored(SOURCE, made.digest, made.bytes, "application/octet-stream")

    def _has_visits(self) -> bool:
        return bool(self._records.visits(self._patient.id))

    def _kept(self, folder: Path) -> list[Stored]:
        kept = []
        for name, media_type in FILES.items():
            if (folder / name).is_file():
                made = self._given.objects.put(folder / name)
                kept.append(Stored(name, made.digest, made.bytes, media_type))
        return kept

    # All visits

    def _register(self) -> None:
        """Neighbouring scans of the whole patient are brought onto each other, where that is not known yet."""
        freedom = self._options.registration
        if freedom is None:
            return
        rows = self._records.visits(self._patient.id)
        aligner = Aligner(self._service, freedom, self._run)
        pairs = list(pairwise([r for r in rows if r.measured.get("lesions") is not None]))
        for k, (before, after) in enumerate(pairs):
            keys = [before.key, after.key, str(freedom)]
            if (after.registration or {}).get("keys") == keys:
                continue
            self._run.check(0.7 + 0.2 * k / len(pairs), f"{before.timepoint_id}: bringing it to the next visit")
            places = [tuple(lesion["size"]["centroid_lps_mm"]) for lesion in before.measured["lesions"]]
            found = between.told(aligner.registration(self._scan(before), self._scan(after)), freedom, places)
            aligner.forget(before.timepoint_id)
            self._records.set_registration(self._patient.id, after.timepoint_id, {"keys": keys, **found}, job=self._given.job)

    def _scan(self, row: VisitRow) -> VisitFiles:
        stored = row.file("scan.nii.gz")
        if stored is None:
            raise InputError(f"the scan of '{row.timepoint_id}' is not in the store any more; send it again")
        folder = self._given.folder / "scans" / row.timepoint_id
        folder.mkdir(parents=True, exist_ok=True)
        return VisitFiles(row.timepoint_id, row.day, None, self._given.objects.fetch(stored.digest, folder), modality=row.modality)

    def _embed(self) -> None:
        """A network's vectors of all lesions that it has not described yet: after all segmentation, so that the two take turns."""
        spec = describe.embedder(self._service, self._options)
        if spec is None:
            return
        name = describe.embedding_name(spec)
        rows = [r for r in self._records.visits(self._patient.id) if r.measured.get("lesions") and name not in (r.measured.get("embeddings") or {})]
        for k, row in enumerate(rows):
            self._run.check(0.9 + 0.05 * k / len(rows), f"{row.timepoint_id}: describing lesions")
            visit = self._scan(row)
            assert visit.image is not None  # noqa: S101 - for the type checker
            scan = door.read_path(visit.image, limits=self._service.settings, modality=row.modality)
            found = measured_of([row])[0].found or ()
            table = describe.describe_lesions(self._service, scan, found, spec, self._run)
            vectors = {f.id: [float(v) for v in vector] for f, vector in zip(found, table, strict=True)}
            self._records.set_embedding(self._patient.id, row.timepoint_id, name, vectors, job=self._given.job)

    def _therapies(self, study: StudyFiles) -> None:
        """Courses, names of lesions and corrections that the study lists, where the patient has none yet."""
        patient = self._records.get(self._patient.id)
        edits = edits_of(self._records, patient)
        names = {} if edits.names else study.names
        if names:
            for node, name in names.items():
                edits = edits.named(node, name)
            told: dict[str, Any] = {"names": [[*node, name] for node, name in sorted(names.items())]}
            self._records.correct(patient.id, edits.as_dict(), self._who, base=patient.version, action="import_names", detail=told)
            patient = self._records.get(patient.id)
        if study.corrections and edits == Edits(names=edits.names):
            together = merging.together(self._records, self._given.objects, self._service.settings, patient.id)
            edits = decided(edits, study.corrections, measured_of(self._records.visits(patient.id)), together, self._who.user_id)
            told = {"corrections": [{"action": c.action, **decision(c)} for c in study.corrections]}
            self._records.correct(patient.id, edits.as_dict(), self._who, base=patient.version, action="import_corrections", detail=told)
            patient = self._records.get(patient.id)
        if not study.therapies or edits.therapies:
            return
        for therapy in study.therapies:
            edits = edits.with_therapy(therapy)
        detail = {"therapies": [asdict(t) for t in study.therapies]}
        self._records.correct(patient.id, edits.as_dict(), self._who, base=patient.version, action="import_therapies", detail=detail)


def told(measured: MeasuredVisit, visit: VisitFiles, volume: str | None = None, study: Sequence[str] = ()) -> dict[str, Any]:
    """What is kept of a measured visit, as plain data; `cases.measured_of` is the way back.

    volume: key of its scan's voxels. study: notes on the study that it came with.
    """
    lesions = None if measured.found is None else [asdict(f) for f in measured.found]
    facts = {
        "lesions": lesions,
        "spacing_mm": list(measured.spacing) if measured.spacing else None,
        "new_lesions": measured.new_lesions,
        "assessment": dict(measured.assessment),
        "reason": measured.reason,
        "notes": list(measured.notes),
        "study_notes": list(study),
        "volume": volume,
        "marks": visit.marks,
        "series_uid": visit.series_uid,
        "appearance": f"{appearance.NAME}-{appearance.VERSION}",
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts, allow_nan=False))
    return plain
