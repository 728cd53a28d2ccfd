"""The audit log: appended to, read, and checked; nothing here changes or removes a line, and the database refuses it.

Each line's hash covers the line and the hash of the patient's line before it. Whoever takes the database's refusal away and
changes the past is found out by `intact`, unless every later line is made anew as well.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from blake3 import blake3
from sqlalchemy.engine import Connection

from isocenter.store.database import Database
from isocenter.store.tables import AUDIT


@dataclass(frozen=True)
class Who:
    """Who acts. user_id: of their key, hashed, or "local" where the server asks for none. session_id: address and program, hashed."""

    user_id: str = "local"
    session_id: str = ""


@dataclass(frozen=True)
class AuditEvent:
    """A line. before_state, after_state: what it changed, where it changed something."""

    event_id: str
    timestamp: float
    user_id: str
    session_id: str
    action_type: str
    component: str
    patient_id: str
    timepoint_id: str | None
    lesion_id: str | None
    before_state: Any
    after_state: Any
    metadata: Mapping[str, Any]
    data_hash: str


_COLUMNS = [AUDIT.c[name] for name in AuditEvent.__dataclass_fields__]


def turn(connection: Connection, patient_id: str) -> None:
    """Take turns on a patient's record until the transaction ends. SQLite lets only one write in any case."""
    if connection.dialect.name == "postgresql":
        key = int.from_bytes(blake3(patient_id.encode(), derive_key_context="isocenter patient lock").digest(8), "big", signed=True)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))


def note(
    connection: Connection,
    now: sa.ColumnElement[float],
    who: Who,
    action: str,
    patient_id: str,
    *,
    component: str = "patients",
    timepoint_id: str | None = None,
    lesion_id: str | None = None,
    before: Any = None,
    after: Any = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Append a line. The caller's transaction holds the patient's turn."""
    last = connection.scalar(sa.select(AUDIT.c.data_hash).where(AUDIT.c.patient_id == patient_id).order_by(AUDIT.c.number.desc()).limit(1))
    row = {
        "event_id": str(uuid.uuid4()),
        "timestamp": connection.scalar(sa.select(now)),
        "user_id": who.user_id[:64],
        "session_id": who.session_id[:64],
        "action_type": action,
        "component": component,
        "patient_id": patient_id,
        "timepoint_id": timepoint_id,
        "lesion_id": lesion_id,
        "before_state": before,
        "after_state": after,
        "metadata": dict(metadata or {}),
    }
    connection.execute(sa.insert(AUDIT).values(**row, data_hash=_hash(row, last)))


def _hash(row: Mapping[str, Any], last: str | None) -> str:
    told = {k: v for k, v in row.items() if k != "data_hash"}
    return blake3(json.dumps([last, told], sort_keys=True, default=str).encode()).hexdigest()


def page(database: Database, patient_id: str, *, skip: int = 0, limit: int = 100) -> tuple[list[AuditEvent], int]:
    """Lines about a patient, oldest first, also about one that was deleted; and how many there are."""
    found = sa.select(*_COLUMNS).where(AUDIT.c.patient_id == patient_id).order_by(AUDIT.c.number).offset(skip).limit(limit)
    total = sa.select(sa.func.count()).select_from(AUDIT).where(AUDIT.c.patient_id == patient_id)
    return database.read(lambda c: ([AuditEvent(**row) for row in c.execute(found).mappings()], int(c.scalar(total) or 0)))


def intact(database: Database, patient_id: str) -> bool:
    """Whether no line about a patient was changed, put in or taken out since."""

    def look(connection: Connection) -> bool:
        last: str | None = None
        rows = connection.execute(sa.select(*_COLUMNS).where(AUDIT.c.patient_id == patient_id).order_by(AUDIT.c.number)).mappings()
        for row in rows:
            if row["data_hash"] != _hash(dict(row), last):
                return False
            last = row["data_hash"]
        return True

    return database.read(look)
