"""Uploaded DICOM studies: the file in the object store, and what it holds in the database, but for who the patient is."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from isocenter.core.errors import ConflictError, NotFoundError
from isocenter.core.settings import Limits
from isocenter.io.archive import Part
from isocenter.io.study import SeriesFacts, describe
from isocenter.io.upload import Upload
from isocenter.jobs import needs
from isocenter.jobs.backend import Backend
from isocenter.jobs.table import ENDED
from isocenter.store.tables import JOBS, STUDIES


@dataclass(frozen=True)
class StudySeries:
    """A series of a stored study. id: this program's own."""

    id: str
    facts: SeriesFacts


@dataclass(frozen=True)
class Study:
    """A stored study. digest: of its file in the object store. created: seconds since 1970."""

    id: str
    digest: str
    bytes: int
    suffix: str
    created: float
    files: int
    study_uid: str
    date: str
    time: str
    description: str
    institution: str
    modality: str
    series: tuple[StudySeries, ...]

    def find(self, series: str) -> StudySeries:
        """The series of an id or a UID. Raises `NotFoundError`."""
        for entry in self.series:
            if series in (entry.id, entry.facts.series_uid):
                return entry
        raise NotFoundError("Series not found in study")


class Studies:
    """The studies of one backend."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self._backend = backend
        self._limits = limits

    def add(self, upload: Upload, *, named: bool = False) -> Study:
        """Keep a ZIP of one study (or one DICOM file). The same bytes are the same study. named: its images must have UIDs."""
        facts = describe(Part(upload.size, file=upload.file, name=upload.name), self._limits, named=named)
        self._backend.objects.put(upload.file, upload.digest)
        series = [{"id": str(uuid.uuid4()), **s.as_dict()} for s in facts.series]
        own = {k: v for k, v in asdict(facts).items() if k not in ("series", "files")}
        values = {"id": str(uuid.uuid4()), "digest": upload.digest, "bytes": upload.size, "suffix": upload.suffix[:16] or ".zip"}
        values |= {"created": self._backend.database.now, "files": facts.files, "facts": own, "series": series}

        def work(connection: Connection) -> Study:
            if connection.dialect.name == "postgresql":
                from sqlalchemy.dialects.postgresql import insert
            else:
                from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
            needs.lock(connection, [upload.digest])
            connection.execute(insert(STUDIES).values(values).on_conflict_do_nothing())
            return _one(connection, STUDIES.c.digest == upload.digest)

        study = self._backend.database.write(work, durable=True)
        self._backend.objects.put(upload.file, upload.digest)  # see Backend.submit
        return study

    def get(self, study_id: str) -> Study:
        """The study of this id. Raises `NotFoundError`."""
        return self._backend.database.read(lambda c: _one(c, STUDIES.c.id == study_id))

    def page(self, *, skip: int = 0, limit: int = 100) -> tuple[list[Study], int]:
        """A page of the studies, newest first, and how many there are in all."""
        found = sa.select(STUDIES).order_by(STUDIES.c.number.desc()).offset(skip).limit(limit)
        total = sa.select(sa.func.count()).select_from(STUDIES)
        return self._backend.database.read(lambda c: ([_study(r) for r in c.execute(found).mappings()], int(c.scalar(total) or 0)))

    def delete(self, study_id: str) -> None:
        """Forget a study. Raises `ConflictError` while a job works on it or waits to."""

        def work(connection: Connection) -> list[str]:
            study = _one(connection, STUDIES.c.id == study_id)
            needs.lock(connection, [study.digest])
            waiting = sa.and_(JOBS.c.study_id == study_id, JOBS.c.state.not_in(ENDED))
            if connection.scalar(sa.select(sa.exists().where(waiting))):
                raise ConflictError("a job of this study waits or runs; cancel it first")
            connection.execute(sa.delete(STUDIES).where(STUDIES.c.id == study_id))
            return [study.digest]

        needs.drop(self._backend.database, self._backend.objects, self._backend.database.write(work))


def _one(connection: Connection, where: sa.ColumnElement[bool]) -> Study:
    row = connection.execute(sa.select(STUDIES).where(where)).mappings().first()
    if row is None:
        raise NotFoundError("Study not found")
    return _study(row)


def _study(row: Any) -> Study:
    series = tuple(StudySeries(s["id"], SeriesFacts(**{k: v for k, v in s.items() if k != "id"})) for s in row["series"])
    own = {name: row[name] for name in ("id", "digest", "bytes", "suffix", "created", "files")}
    return Study(**own, **row["facts"], series=series)
