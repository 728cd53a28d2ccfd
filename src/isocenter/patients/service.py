"""What people do with patients on record, in the order in which it happens: scans come in, a case is looked at, corrected, told.

Every change leaves a line in the audit log, in the transaction that makes it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from blake3 import blake3

from isocenter.analysis import decisions
from isocenter.analysis.case import NO_SCAN
from isocenter.analysis.case_edits import Edits
from isocenter.core.errors import ConflictError, NotFoundError, UsageError
from isocenter.core.model import Task
from isocenter.core.patient import Decision, TherapyEvent, check_id
from isocenter.io import visits
from isocenter.io.upload import Upload
from isocenter.jobs import needs
from isocenter.jobs.backend import Backend
from isocenter.jobs.studies import Study
from isocenter.jobs.table import NORMAL, Job, NewJob, Stored
from isocenter.patients import job as tracking
from isocenter.patients import merging
from isocenter.patients.audit import Who
from isocenter.patients.cases import Cases, Known, edits_of
from isocenter.patients.job import VisitFacts
from isocenter.patients.options import options_of
from isocenter.patients.records import NewVisit, PatientRow, Records, Version, VisitRow, check_day
from isocenter.patients.similar import Similar
from isocenter.service import Service

#: Fields of a patient that a person may keep, told only when asked for.
PRIVATE = ("patient_id", "name", "birth_date", "sex")


@dataclass(frozen=True)
class Change(Decision):
    """One correction, as a client says it: a decision about lesions (see `analysis.decisions`), or about a therapy."""

    therapy: TherapyEvent | None = None
    therapy_id: str | None = None


class Patients:
    """The patients of one server."""

    def __init__(self, service: Service, backend: Backend) -> None:
        self.service, self.backend = service, backend
        self.records = Records(backend.database)
        self.cases = Cases(self.records)
        self._similar: Similar | None = None

    @property
    def similar(self) -> Similar:
        """The vectors; opened when they are first needed."""
        if self._similar is None:
            chosen = self.backend.settings
            self._similar = Similar(self.backend.database, chosen.vector_index, chosen.vector_memory_bytes)
        return self._similar

    # 1. Somebody brings scans.

    def create(
        self, who: Who, patient_id: str | None = None, *, private: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None
    ) -> PatientRow:
        """A patient without visits, under a random pseudonym unless one is given. Raises `UsageError`, `UnknownModelError`, `ConflictError`."""
        self._check_options(options or {})
        return self.records.create(patient_id or pseudonym(), who, private=self._private(private or {}), options=options)

    def submit(
        self,
        patient_id: str,
        source: Upload | Study,
        who: Who,
        *,
        visit: VisitFacts | None = None,
        mask: Upload | None = None,
        key: str | None = None,
        priority: int = NORMAL,
    ) -> tuple[Job, bool]:
        """The job that measures what was sent, and whether it is new. visit: it is one visit; else a whole study (see docs/track.md)."""
        patient = self.records.get(patient_id)
        if mask is not None and visit is None:
            raise UsageError("a mask goes with one visit; a study.json names its visits' masks itself")
        if mask is not None and visit is not None and visit.clicks:
            raise UsageError("give the visit's lesions as a mask or as clicks, not both")
        if visit is not None:
            self._check_visit(patient, visit, again=key is not None)
        size = source.size if isinstance(source, Upload) else source.bytes
        if not size:
            raise UsageError("the file is empty")
        suffix = source.suffix[:16]
        inputs = [Stored(tracking.SCAN + suffix, source.digest, size)]
        files = {source.digest: source.file} if isinstance(source, Upload) else {}
        if mask is not None:
            inputs.append(Stored(tracking.MASK + mask.suffix[:16], mask.digest, mask.size))
            files[mask.digest] = mask.file
        options = options_of(patient.options)
        spec = self.service.registry.spec(options.model) if options.model else None
        facts = asdict(visit) if visit is not None else None
        new = NewJob(
            kind=tracking.KIND,
            request={"patient_id": patient_id, "suffix": suffix, "visit": facts, "user_id": who.user_id, "session_id": who.session_id},
            inputs=tuple(inputs),
            queue="gpu" if spec is not None and any(d != "cpu" for d in spec.devices) else "cpu",
            model=spec.id if spec else None,
            owner=who.session_id or None,
            study_id=source.id if isinstance(source, Study) else None,
            max_attempts=self.backend.settings.job_attempts,
            priority=priority,
        )
        job, made = self.backend.submit(new, key=key, same_within=self.backend.settings.job_same_within, files=files)
        if made:
            metadata = {"job": job.id, "input": source.digest, "bytes": size}
            self.records.noted(patient_id, who, "submit_scan", metadata=metadata, timepoint_id=visit.timepoint_id if visit else None)
        return job, made

    def add_without_scan(self, patient_id: str, visit: VisitFacts, who: Who) -> VisitRow:
        """A visit at which nothing was scanned: it counts as not evaluated."""
        from datetime import date

        patient = self.records.get(patient_id)
        if visit.clicks or visit.series_uid:
            raise UsageError("clicks and a series go with a scan, which is missing: send it as file, or name it as study_id")
        self._check_visit(patient, visit)
        count = len(self.records.visits(patient_id))
        if visit.day is None and visit.scan_date is None:
            raise UsageError("give the visit's day after the first one, or its date")
        said = {"new_lesions": visit.new_lesions, "assessment": dict(visit.assessment)}
        measured: dict[str, Any] = {"lesions": None, **said, "reason": NO_SCAN, "notes": []}
        when = date.fromisoformat(visit.scan_date) if visit.scan_date else None
        new = NewVisit(visit.timepoint_id or f"visit-{count + 1}", visit.day, when, visit.modality, None, measured)
        row, freed = self.records.put_visit(patient_id, new, who, replace=visit.replace)
        self._drop(freed)
        return row

    def delete_visit(self, patient_id: str, timepoint_id: str, who: Who) -> None:
        """Forget a visit and its files. Corrections that concern it are kept, and hold again where a visit of this id comes back."""
        self._drop(self.records.delete_visit(patient_id, timepoint_id, who))
        self._reindex(patient_id)

    def delete(self, patient_id: str, who: Who) -> None:
        """Forget a patient. The audit log stays, under the pseudonym."""
        self._drop(self.records.delete(patient_id, who))
        self.similar.forget(patient_id)

    # 2. Somebody looks at the case, and corrects it.

    def known(self, patient_id: str, criteria: Sequence[str] = ()) -> Known:
        """The case as it is now, without growth. criteria: to judge it by, beside those of the patient's options."""
        return self.cases.known(patient_id, criteria=criteria)

    def notes(self, patient_id: str) -> list[str]:
        """What a reader of the case should know; nothing while there is no case yet."""
        try:
            return list(self.known(patient_id).case.notes)
        except ConflictError:
            return []

    def correct(self, patient_id: str, change: Change, who: Who, *, reason: str = "", base: int | None = None) -> Version:
        """Another version with one change more. base: the version that the client saw.

        Raises `ConflictError` where that is not the newest any more, `UsageError` for what cannot be meant or contradicts, and
        `NotFoundError` for a lesion that is not there. Nothing is kept then.
        """
        patient = self.records.get(patient_id)
        if base is not None and base != patient.version:
            raise ConflictError(f"somebody corrected this patient meanwhile: the newest version is {patient.version}, not {base}; look again")
        before = edits_of(self.records, patient)
        edits, detail = self._changed(patient_id, before, change, who)
        if edits == before:
            raise ConflictError("this changes nothing: the case is so already")
        return self._keep(patient, edits, who, change.action, reason, detail)

    def go_back(self, patient_id: str, version: int, who: Who, *, reason: str = "") -> Version:
        """Another version that is as an earlier one was. Nothing between them is lost."""
        patient = self.records.get(patient_id)
        edits = Edits.of(self.records.version(patient_id, version).edits)
        return self._keep(patient, edits, who, "go_back", reason, {"to": version})

    def _keep(self, patient: PatientRow, edits: Edits, who: Who, action: str, reason: str, detail: Mapping[str, Any]) -> Version:
        therapies_only = action.endswith("_therapy")
        if not therapies_only and any(v.measured.get("lesions") is not None for v in self.records.visits(patient.id)):
            self.cases.known(patient.id, edits)  # raises where the corrections contradict each other
        version = self.records.correct(patient.id, edits.as_dict(), who, base=patient.version, action=action, reason=reason, detail=detail)
        if not therapies_only:
            self._reindex(patient.id)
        return version

    def _changed(self, patient_id: str, edits: Edits, change: Change, who: Who) -> tuple[Edits, dict[str, Any]]:
        if change.action == "put_therapy" and change.therapy is not None:
            return edits.with_therapy(change.therapy), {"therapy": asdict(change.therapy)}
        if change.action == "delete_therapy" and change.therapy_id is not None:
            return edits.without_therapy(change.therapy_id), {"therapy_id": change.therapy_id}
        measured = self.cases.known(patient_id).visits
        together = merging.together(self.records, self.backend.objects, self.service.settings, patient_id)
        return decisions.decide(edits, change, measured, together, who.user_id), decisions.told(change)

    def _reindex(self, patient_id: str) -> None:
        try:
            self.similar.index(self.cases.known(patient_id))
        except ConflictError:
            self.similar.forget(patient_id)

    def _drop(self, digests: list[str]) -> None:
        needs.drop(self.backend.database, self.backend.objects, digests)

    # What is checked before anything is done

    def _check_options(self, options: Mapping[str, Any]) -> None:
        asked = options_of(options)
        for name, tasks in ((asked.model, (Task.SEGMENT, Task.TEXT)), (asked.embedder, (Task.DESCRIBE,))):
            if name is not None and name != "none" and self.service.registry.spec(name).task not in tasks:
                raise UsageError(f"the model '{name[:60]}' cannot be used for this; its task is another one")

    def _check_visit(self, patient: PatientRow, visit: VisitFacts, *, again: bool = False) -> None:
        """again: it may have been sent before, and be there for that reason; the job decides."""
        from datetime import date

        if visit.timepoint_id is not None:
            check_id(visit.timepoint_id, "a visit's id")
        if visit.day is not None and not abs(visit.day) <= 1e5:
            raise UsageError("a visit's day lies within 100,000 days of the first one")
        try:
            if visit.scan_date is not None:
                date.fromisoformat(visit.scan_date)
        except ValueError:
            raise UsageError("a date is written as YYYY-MM-DD") from None
        visits.assessment_of(visit.assessment)
        when = date.fromisoformat(visit.scan_date) if visit.scan_date else None
        check_day(patient, visit.day, when)
        known = [] if again else self.records.visits(patient.id)
        there = [v for v in known if v.timepoint_id == visit.timepoint_id]
        day = float((when - date.fromisoformat(patient.origin)).days) if when and patient.origin else visit.day
        if same := next((v for v in known if v.day == day and v not in there), None):
            raise ConflictError(f"'{same.timepoint_id}' is on this day; keep one of them, or give them different days")
        if there and not visit.replace:
            raise ConflictError(f"there is a visit '{visit.timepoint_id}' already; delete it first, or say that it is to be replaced")

    @staticmethod
    def _private(given: Mapping[str, str]) -> dict[str, str]:
        unknown = set(given) - set(PRIVATE)
        if unknown:
            raise UsageError(f"these fields can be kept of a patient: {', '.join(PRIVATE)}")
        if any(len(v) > 200 for v in given.values()):
            raise UsageError("a patient's field has at most 200 characters")
        return dict(given)

    def set_private(self, patient_id: str, given: Mapping[str, str], who: Who) -> PatientRow:
        """Keep who the patient is; told only when asked for."""
        return self.records.set_private(patient_id, self._private(given), who)

    def set_options(self, patient_id: str, options: Mapping[str, Any], who: Who) -> PatientRow:
        """How scans are measured and the case is judged from now on; what was measured stays. Raises `UsageError`, `UnknownModelError`.

        `ConflictError` for another least size once lesions are measured: it counts them in the visits' masks, which names them.
        """
        self._check_options(options)
        now = options_of(self.records.get(patient_id).options)
        if options_of(options).least_mm3 != now.least_mm3 and any(v.key is not None for v in self.records.visits(patient_id)):
            raise ConflictError(f"least_mm3 stays {now.least_mm3:g}, since lesions were measured with it; make another patient for another one")
        return self.records.set_options(patient_id, options, who)

    def visit_file(self, patient_id: str, timepoint_id: str, name: str) -> Stored:
        """A file of a visit. Raises `NotFoundError`."""
        stored = self.records.visit(patient_id, timepoint_id).file(name)
        if stored is None:
            raise NotFoundError("this visit has no such file")
        return stored


def pseudonym(key: str | None = None) -> str:
    """A new patient's id: random, or always the same for one key."""
    text = uuid.uuid4().hex if key is None else blake3(key.encode(), derive_key_context="isocenter 2026 patient of a submission").hexdigest()
    return f"P-{text[:12]}"
