"""Patients, visits and versions of corrections in the database, with the audit line of every change in the same transaction.

Raises `NotFoundError` for what is not there, `ConflictError` for what is there already or changed meanwhile, and `StoreError`
where the database is away.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from isocenter.core.errors import ConflictError, NotFoundError, UsageError
from isocenter.core.patient import check_id
from isocenter.jobs import needs
from isocenter.jobs.table import Job, State, Stored
from isocenter.patients import audit
from isocenter.patients.audit import Who
from isocenter.store.database import Database
from isocenter.store.tables import JOBS, NARRATIVES, PATIENT_VERSIONS, PATIENTS, TIMEPOINTS

_REASON = 500


@dataclass(frozen=True)
class PatientRow:
    """See `store.tables.PATIENTS`."""

    id: str
    created: float
    changed: float
    origin: str | None
    identity: str | None
    private: Mapping[str, Any]
    options: Mapping[str, Any]
    version: int
    revision: int


@dataclass(frozen=True)
class VisitRow:
    """See `store.tables.TIMEPOINTS`."""

    id: str
    patient_id: str
    timepoint_id: str
    day: float
    scan_date: str | None
    modality: str | None
    key: str | None
    measured: Mapping[str, Any]
    registration: Mapping[str, Any] | None
    files: tuple[Stored, ...]
    job_id: str | None

    def file(self, name: str) -> Stored | None:
        """The stored file of a name."""
        return next((f for f in self.files if f.name == name), None)


@dataclass(frozen=True)
class NewVisit:
    """A visit to keep. day or scan_date: at least one. identity: hash of the images' PatientID, where they have one."""

    timepoint_id: str
    day: float | None
    scan_date: date | None
    modality: str | None
    key: str | None
    measured: Mapping[str, Any]
    files: tuple[Stored, ...] = ()
    identity: str | None = None


@dataclass(frozen=True)
class Version:
    """A version of the corrections. edits: all of them, as plain data."""

    version: int
    at: float
    user_id: str
    action: str
    reason: str
    detail: Mapping[str, Any]
    edits: Mapping[str, Any]


def _columns(table: sa.Table, kind: type) -> list[sa.Column[Any]]:
    return [table.c[name] for name in kind.__dataclass_fields__]  # type: ignore[attr-defined]


class Records:
    """The patients of one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # -- patients

    def create(self, patient_id: str, who: Who, *, private: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None) -> PatientRow:
        """A patient without visits. Raises `UsageError` for an id that cannot be one."""
        check_id(patient_id, "a patient's id")
        now = self.database.now

        def work(connection: Connection) -> PatientRow:
            audit.turn(connection, patient_id)
            if connection.scalar(sa.select(sa.exists().where(PATIENTS.c.id == patient_id))):
                raise ConflictError("there is a patient of this id already")
            values = {"id": patient_id, "created": now, "changed": now, "private": dict(private or {}), "options": dict(options or {})}
            connection.execute(sa.insert(PATIENTS).values(**values, version=0, revision=0))
            first = {"patient_id": patient_id, "version": 0, "at": now, "user_id": who.user_id, "action": "created", "reason": ""}
            connection.execute(sa.insert(PATIENT_VERSIONS).values(**first, detail={}, edits={}))
            audit.note(connection, now, who, "create_patient", patient_id, after={"options": dict(options or {})})
            return _patient(connection, patient_id)

        return self.database.write(work)

    def get(self, patient_id: str) -> PatientRow:
        """One patient."""
        return self.database.read(lambda c: _patient(c, patient_id))

    def page(self, *, skip: int = 0, limit: int = 100) -> tuple[list[PatientRow], int]:
        """A page of the patients, newest first, and how many there are in all."""
        found = sa.select(*_columns(PATIENTS, PatientRow)).order_by(PATIENTS.c.number.desc()).offset(skip).limit(limit)
        total = sa.select(sa.func.count()).select_from(PATIENTS)
        return self.database.read(lambda c: ([PatientRow(**row) for row in c.execute(found).mappings()], int(c.scalar(total) or 0)))

    def set_private(self, patient_id: str, private: Mapping[str, str], who: Who) -> PatientRow:
        """Keep who the patient is. What is kept does not go into the audit log, only that it changed."""

        def work(connection: Connection) -> PatientRow:
            audit.turn(connection, patient_id)
            _patient(connection, patient_id)
            self._touch(connection, patient_id, private=dict(private))
            audit.note(connection, self.database.now, who, "set_patient_fields", patient_id, metadata={"fields": sorted(private)})
            return _patient(connection, patient_id)

        return self.database.write(work)

    def set_options(self, patient_id: str, options: Mapping[str, Any], who: Who) -> PatientRow:
        """Keep how the patient's scans are measured and judged from now on."""

        def work(connection: Connection) -> PatientRow:
            audit.turn(connection, patient_id)
            before = _patient(connection, patient_id).options
            self._touch(connection, patient_id, options=dict(options))
            audit.note(connection, self.database.now, who, "set_options", patient_id, before=dict(before), after=dict(options))
            return _patient(connection, patient_id)

        return self.database.write(work)

    def delete(self, patient_id: str, who: Who) -> list[str]:
        """Forget a patient; returns the digests of its files, for `needs.drop`. Its audit log stays."""

        def work(connection: Connection) -> list[str]:
            audit.turn(connection, patient_id)
            _patient(connection, patient_id)
            digests: set[str] = set()
            for visit in _visits(connection, patient_id):
                digests |= set(needs.remove(connection, visit.id))
            for table in (TIMEPOINTS, NARRATIVES, PATIENT_VERSIONS):
                connection.execute(sa.delete(table).where(table.c.patient_id == patient_id))
            connection.execute(sa.delete(PATIENTS).where(PATIENTS.c.id == patient_id))
            audit.note(connection, self.database.now, who, "delete_patient", patient_id)
            return sorted(digests)

        return self.database.write(work)

    def noted(self, patient_id: str, who: Who, action: str, **more: Any) -> None:
        """An audit line of something that changed nothing."""

        def work(connection: Connection) -> None:
            audit.turn(connection, patient_id)
            audit.note(connection, self.database.now, who, action, patient_id, **more)

        self.database.write(work)

    def _touch(self, connection: Connection, patient_id: str, **values: Any) -> None:
        changed = {"changed": self.database.now, "revision": PATIENTS.c.revision + 1, **values}
        connection.execute(sa.update(PATIENTS).where(PATIENTS.c.id == patient_id).values(**changed))

    # -- visits

    def visits(self, patient_id: str) -> list[VisitRow]:
        """A patient's visits by day."""

        def look(connection: Connection) -> list[VisitRow]:
            _patient(connection, patient_id)
            return _visits(connection, patient_id)

        return self.database.read(look)

    def visit(self, patient_id: str, timepoint_id: str) -> VisitRow:
        """One visit."""
        found = next((v for v in self.visits(patient_id) if v.timepoint_id == timepoint_id), None)
        if found is None:
            raise NotFoundError("Timepoint not found")
        return found

    def put_visit(self, patient_id: str, new: NewVisit, who: Who, *, job: Job | None = None, replace: bool = False) -> tuple[VisitRow, list[str]]:
        """Keep a visit; also the digests of files that it no longer needs. A second visit of this id is refused unless `replace`.

        job: the one that made it; nothing is written where another worker has taken that over. Raises `ConflictError` for a
        scan of another patient and for two visits on one day.
        """

        def work(connection: Connection) -> tuple[VisitRow, list[str]]:
            audit.turn(connection, patient_id)
            if job is not None:
                _check_held(connection, job)
            patient = _patient(connection, patient_id)
            if None not in (new.identity, patient.identity) and new.identity != patient.identity:
                raise ConflictError(f"the images of '{new.timepoint_id}' are of another patient: their PatientID differs from the earlier visits'")
            others = _visits(connection, patient_id)
            old = next((v for v in others if v.timepoint_id == new.timepoint_id), None)
            if old is not None and old.key == new.key and old.measured == dict(new.measured):
                return old, []
            if old is not None and not replace:
                raise ConflictError(f"there is a visit '{new.timepoint_id}' already; delete it first, or say that it is to be replaced")
            origin, day = _day(patient, new, others)
            same = next((v for v in others if v.day == day and v is not old), None)
            if same is not None:
                raise ConflictError(f"'{new.timepoint_id}' is on the day of '{same.timepoint_id}'; keep one of them, or give them different days")
            needs.lock(connection, [f.digest for f in new.files])
            freed: list[str] = []
            if old is not None:
                freed = needs.remove(connection, old.id)
                connection.execute(sa.delete(TIMEPOINTS).where(TIMEPOINTS.c.id == old.id))
            row_id = str(uuid.uuid4())
            values = {"id": row_id, "patient_id": patient_id, "timepoint_id": new.timepoint_id, "day": day, "modality": new.modality}
            values |= {"scan_date": new.scan_date.isoformat() if new.scan_date else None, "key": new.key, "measured": dict(new.measured)}
            values |= {"files": [asdict(f) for f in new.files], "job_id": job.id if job else None, "registration": None}
            connection.execute(sa.insert(TIMEPOINTS).values(**values))
            needs.add(connection, row_id, new.files, made=True)
            self._touch(connection, patient_id, origin=origin, identity=patient.identity or new.identity)
            lesions = len(new.measured.get("lesions") or ())
            facts = {"day": day, "lesions": lesions, "key": new.key, "job": job.id if job else None}
            what = "replace_timepoint" if old is not None else "add_timepoint"
            audit.note(connection, self.database.now, who, what, patient_id, timepoint_id=new.timepoint_id, after=facts)
            return _visit(connection, row_id), [d for d in freed if d not in {f.digest for f in new.files}]

        return self.database.write(work)

    def set_registration(self, patient_id: str, timepoint_id: str, registration: Mapping[str, Any], *, job: Job | None = None) -> None:
        """How the visit before lies in this one's scan."""

        def work(connection: Connection) -> None:
            audit.turn(connection, patient_id)
            if job is not None:
                _check_held(connection, job)
            which = TIMEPOINTS.c.patient_id == patient_id, TIMEPOINTS.c.timepoint_id == timepoint_id
            connection.execute(sa.update(TIMEPOINTS).where(*which).values(registration=dict(registration)))
            self._touch(connection, patient_id)

        self.database.write(work)

    def set_embedding(self, patient_id: str, timepoint_id: str, name: str, vectors: Mapping[str, Sequence[float]], *, job: Job) -> None:
        """A network's vectors of a visit's lesions, by lesion."""

        def work(connection: Connection) -> None:
            audit.turn(connection, patient_id)
            _check_held(connection, job)
            row = next((v for v in _visits(connection, patient_id) if v.timepoint_id == timepoint_id), None)
            if row is None:
                raise NotFoundError("Timepoint not found")
            embeddings = {**(row.measured.get("embeddings") or {}), name: {k: list(v) for k, v in vectors.items()}}
            which = TIMEPOINTS.c.id == row.id
            connection.execute(sa.update(TIMEPOINTS).where(which).values(measured={**row.measured, "embeddings": embeddings}))
            self._touch(connection, patient_id)

        self.database.write(work)

    def delete_visit(self, patient_id: str, timepoint_id: str, who: Who) -> list[str]:
        """Forget a visit; returns the digests of its files."""

        def work(connection: Connection) -> list[str]:
            audit.turn(connection, patient_id)
            _patient(connection, patient_id)
            found = next((v for v in _visits(connection, patient_id) if v.timepoint_id == timepoint_id), None)
            if found is None:
                raise NotFoundError("Timepoint not found")
            digests = needs.remove(connection, found.id)
            connection.execute(sa.delete(TIMEPOINTS).where(TIMEPOINTS.c.id == found.id))
            self._touch(connection, patient_id)
            before = {"day": found.day, "lesions": len(found.measured.get("lesions") or ()), "key": found.key}
            audit.note(connection, self.database.now, who, "delete_timepoint", patient_id, timepoint_id=timepoint_id, before=before)
            return digests

        return self.database.write(work)

    # -- corrections

    def versions(self, patient_id: str, *, skip: int = 0, limit: int = 100) -> tuple[list[Version], int]:
        """Versions of a patient's corrections, newest first, and how many there are."""
        of = PATIENT_VERSIONS.c.patient_id == patient_id
        found = sa.select(*_columns(PATIENT_VERSIONS, Version)).where(of).order_by(PATIENT_VERSIONS.c.version.desc()).offset(skip).limit(limit)
        total = sa.select(sa.func.count()).select_from(PATIENT_VERSIONS).where(of)

        def look(connection: Connection) -> tuple[list[Version], int]:
            _patient(connection, patient_id)
            return [Version(**row) for row in connection.execute(found).mappings()], int(connection.scalar(total) or 0)

        return self.database.read(look)

    def version(self, patient_id: str, version: int) -> Version:
        """One version."""
        which = PATIENT_VERSIONS.c.patient_id == patient_id, PATIENT_VERSIONS.c.version == version
        row = self.database.read(lambda c: c.execute(sa.select(*_columns(PATIENT_VERSIONS, Version)).where(*which)).mappings().first())
        if row is None:
            raise NotFoundError("there is no such version")
        return Version(**row)

    def correct(
        self,
        patient_id: str,
        edits: Mapping[str, Any],
        who: Who,
        *,
        base: int,
        action: str,
        reason: str = "",
        detail: Mapping[str, Any] | None = None,
    ) -> Version:
        """Another version, made from the version `base`. Raises `ConflictError` where that is not the newest any more."""

        def work(connection: Connection) -> Version:
            audit.turn(connection, patient_id)
            patient = _patient(connection, patient_id)
            if patient.version != base:
                raise ConflictError(f"somebody corrected this patient meanwhile: the newest version is {patient.version}, not {base}; look again")
            before = connection.scalar(
                sa.select(PATIENT_VERSIONS.c.edits).where(PATIENT_VERSIONS.c.patient_id == patient_id, PATIENT_VERSIONS.c.version == base)
            )
            number = base + 1
            values = {"patient_id": patient_id, "version": number, "at": self.database.now, "user_id": who.user_id, "action": action}
            values |= {"reason": reason[:_REASON], "detail": dict(detail or {}), "edits": dict(edits)}
            connection.execute(sa.insert(PATIENT_VERSIONS).values(**values))
            self._touch(connection, patient_id, version=number)
            more = {"version": number, "reason": reason[:_REASON], **(detail or {})}
            lesion = (detail or {}).get("lesion")
            where = {"timepoint_id": lesion[0], "lesion_id": lesion[1]} if isinstance(lesion, list | tuple) and len(lesion) == 2 else {}
            audit.note(connection, self.database.now, who, action, patient_id, before=before, after=dict(edits), metadata=more, **where)
            row = connection.execute(
                sa.select(*_columns(PATIENT_VERSIONS, Version)).where(
                    PATIENT_VERSIONS.c.patient_id == patient_id, PATIENT_VERSIONS.c.version == number
                )
            ).mappings()
            return Version(**row.one())

        return self.database.write(work)


def _patient(connection: Connection, patient_id: str) -> PatientRow:
    row = connection.execute(sa.select(*_columns(PATIENTS, PatientRow)).where(PATIENTS.c.id == patient_id)).mappings().first()
    if row is None:
        raise NotFoundError("Patient not found")
    return PatientRow(**row)


def _visits(connection: Connection, patient_id: str) -> list[VisitRow]:
    found = sa.select(*_columns(TIMEPOINTS, VisitRow)).where(TIMEPOINTS.c.patient_id == patient_id).order_by(TIMEPOINTS.c.day)
    return [_visit_of(row) for row in connection.execute(found).mappings()]


def _visit(connection: Connection, row_id: str) -> VisitRow:
    return _visit_of(connection.execute(sa.select(*_columns(TIMEPOINTS, VisitRow)).where(TIMEPOINTS.c.id == row_id)).mappings().one())


def _visit_of(row: Mapping[Any, Any]) -> VisitRow:
    return VisitRow(**{**row, "files": tuple(Stored(**f) for f in row["files"])})


def _check_held(connection: Connection, job: Job) -> None:
    """Raise `ConflictError` where the job is another worker's by now, or nobody's."""
    held = JOBS.c.id == job.id, JOBS.c.fence == job.fence, JOBS.c.state == State.RUNNING
    if not connection.scalar(sa.select(sa.exists().where(*held))):
        raise ConflictError("the job was taken over, cancelled or deleted meanwhile")


def check_day(patient: PatientRow, day: float | None, scan_date: date | None) -> None:
    """Raise `UsageError` for a visit whose day is not that of its date, in the time of a patient whose visits have dates."""
    if None in (day, scan_date, patient.origin):
        return
    by_date = (scan_date - date.fromisoformat(str(patient.origin))).days if scan_date else 0
    if day != by_date:
        raise UsageError(
            f"the visit's day ({day:g}) and its date contradict: by the patient's other visits the date is day {by_date}; give one of them"
        )


def _day(patient: PatientRow, new: NewVisit, others: Sequence[VisitRow]) -> tuple[str | None, float]:
    """(origin, day): where a visit lies in the patient's time. Day 0 is the first visit that was given."""
    origin = patient.origin
    if new.scan_date is not None and origin is None and not others:
        return (new.scan_date - timedelta(days=new.day or 0.0)).isoformat(), new.day or 0.0
    if new.scan_date is not None and origin is not None:
        return origin, float((new.scan_date - date.fromisoformat(origin)).days)
    if new.day is not None:
        return origin, new.day
    raise UsageError("give this visit its day after the first one, or its date where the other visits have dates")
