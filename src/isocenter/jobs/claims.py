"""Which job a worker gets: one statement, so that no two get the same."""

from __future__ import annotations

import sqlalchemy as sa

from isocenter.jobs import rows
from isocenter.jobs.table import State
from isocenter.store.database import Database
from isocenter.store.tables import JOBS, WORKERS

#: A worker whose last sign of life is older than this many leases is not there.
GONE = 2.0


def statement(database: Database, role: str, lease: float, reserve: int) -> sa.Executable:
    """The claim for a role; its parameter is `claimer`. SQLite lets one write at a time; PostgreSQL skips what others hold."""
    now = database.now
    waits = JOBS.c.state == rows.WAITING
    chosen = (
        sa.select(JOBS.c.number)
        .where(waits, JOBS.c.not_before <= now, _mine(database, role, lease, reserve))
        .order_by(JOBS.c.priority.desc(), JOBS.c.number)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).scalar_subquery()
    values = {
        "state": State.RUNNING, "fence": JOBS.c.fence + 1, "attempts": JOBS.c.attempts + 1, "worker": sa.bindparam("claimer"),
        "lease_until": now + lease, "heartbeat": now, "started": now, "finished": None, "progress": 0.0, "message": "",
        "error_code": None, "error": None,
    }  # fmt: skip
    return sa.update(JOBS).where(JOBS.c.number == chosen, waits).values(values).returning(*rows.COLUMNS)


def _mine(database: Database, role: str, lease: float, reserve: int) -> sa.ColumnElement[bool]:
    """Which of the jobs that wait a worker of this role may take."""
    own = JOBS.c.queue == role
    if role == "gpu":
        return sa.or_(own, live(database, "cpu", lease) == 0)
    if not reserve:
        return sa.true()
    first = sa.alias(JOBS, "first")
    kept = (
        sa.select(first.c.number)
        .where(first.c.state == rows.WAITING, first.c.not_before <= database.now, first.c.queue == "gpu")
        .order_by(first.c.priority.desc(), first.c.number)
        .limit(live(database, "gpu", lease) * reserve)
    )
    return sa.or_(own, JOBS.c.number.not_in(kept))


def live(database: Database, role: str, lease: float) -> sa.ScalarSelect[int]:
    """How many jobs the workers of a role that are there can work on at once."""
    there = WORKERS.c.beat > database.now - GONE * lease
    slots = sa.func.coalesce(sa.func.sum(WORKERS.c.slots), 0)
    return sa.select(sa.cast(slots, sa.Integer)).where(WORKERS.c.role == role, there, WORKERS.c.draining == sa.false()).scalar_subquery()
