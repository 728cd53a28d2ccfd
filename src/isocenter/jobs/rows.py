"""Rows of the job table, and what they are in the program."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from blake3 import blake3
from sqlalchemy.engine import Connection

from isocenter.jobs.table import Job, NewJob, State, Stored, What
from isocenter.store.tables import EVENTS, JOBS

COLUMNS = [JOBS.c[f.name] for f in fields(Job)]
#: Written out, not as parameters: only so do the partial indexes serve.
WAITING: sa.ColumnClause[str] = sa.literal_column("'pending'", sa.String())
LEASED: sa.ColumnClause[str] = sa.literal_column("'running'", sa.String())
_DETAIL = 200


def note(
    connection: Connection,
    at: sa.ColumnElement[float],
    what: What,
    job_id: str,
    state: str,
    fence: int = 0,
    worker: str | None = None,
    detail: str | None = None,
) -> None:
    """A line in a job's audit trail."""
    values = {"job_id": job_id, "what": what, "state": state, "fence": fence, "worker": worker, "detail": detail[:_DETAIL] if detail else None}
    connection.execute(_noting(at), values)


# Built once: building a statement costs more than having SQLite run it.
@lru_cache(maxsize=4)
def _noting(at: sa.ColumnElement[float]) -> sa.Insert:
    return sa.insert(EVENTS).values(at=at)


def inserted(connection: Connection, created: sa.ColumnElement[float], values: dict[str, Any]) -> bool:
    """Insert a job unless its id or its key is taken."""
    return connection.execute(_inserting(connection.dialect.name, created), values).first() is not None


@lru_cache(maxsize=4)
def _inserting(dialect: str, created: sa.ColumnElement[float]) -> sa.Executable:
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
    return insert(JOBS).values(created=created).on_conflict_do_nothing().returning(JOBS.c.number)


def one(connection: Connection, where: sa.ColumnElement[bool]) -> Job | None:
    """The newest job of which `where` is true."""
    row = connection.execute(sa.select(*COLUMNS).where(where).order_by(JOBS.c.number.desc()).limit(1)).mappings().first()
    return None if row is None else job(row)


_BY_ID = sa.select(*COLUMNS).where(JOBS.c.id == sa.bindparam("wanted"))


def by_id(connection: Connection, job_id: str) -> Job | None:
    """The job of an id."""
    row = connection.execute(_BY_ID, {"wanted": job_id}).mappings().first()
    return None if row is None else job(row)


def job(row: Mapping[Any, Any]) -> Job:
    """The job of a row."""
    values = dict(row)
    for name in ("inputs", "artifacts"):
        values[name] = tuple(Stored(**item) for item in values[name])
    values["state"] = State(values["state"])
    return Job(**values)


def digest(new: NewJob) -> str:
    """What two submissions share that ask for the same."""
    data = {**asdict(new), "inputs": [asdict(i) for i in new.inputs]}
    return blake3(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()
