"""In which order prompts came, where several servers share a database: clients send theirs sorted by kind, not by time.

A server knows that order of what it saw itself. One that a balancer sends the next click to looks here, so that it replays
what was said as it was said. Nothing is kept but digests, of who, on what and of each prompt, and only for as long as sessions are:
older ones are not told, and go with `jobs.retention`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import sqlalchemy as sa
import structlog
from blake3 import blake3
from sqlalchemy.engine import Connection

from isocenter.core.errors import StoreError
from isocenter.store.database import Database
from isocenter.store.tables import CLICK_ORDERS

log = structlog.get_logger("isocenter.sessions")
#: Seconds for which a click waits for a database that is away, and for which it is not asked again then.
_PATIENCE, _PAUSE = 0.5, 30.0

T = TypeVar("T")
History = list[str]


def digest(said: Hashable) -> str:
    """A prompt's, or a session's key's: the same in every process."""
    return blake3(repr(said).encode("utf-8", "replace")).hexdigest(16)


class Orders:
    """Histories by the digest of whose they are: several, since several people may look like one.

    A database that is away costs nobody a click: the order is then that of the server itself.
    """

    def __init__(self, database: Database, seconds: float, most: int) -> None:
        self._database, self._seconds, self._most = database, seconds, most
        self._silent_until = 0.0
        self._lock = threading.Lock()

    def recall(self, whose: str) -> list[History] | None:
        """The histories, the one that was last added to at the end; None where nobody can be asked."""

        def work(connection: Connection) -> list[History]:
            found = connection.execute(sa.select(CLICK_ORDERS.c.histories).where(self._of(whose)))
            return list(found.scalar() or ())

        return self._ask(lambda: self._database.read(work, patience=_PATIENCE))

    def note(self, whose: str, before: History | None, said: Sequence[str]) -> bool:
        """Have `said` stand in the place of the history `before`, or beside the others. False where the database is away."""

        def work(connection: Connection) -> bool:
            if connection.dialect.name == "postgresql":
                from sqlalchemy.dialects.postgresql import insert
            else:
                from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
            found = connection.execute(sa.select(CLICK_ORDERS.c.histories).where(self._of(whose)).with_for_update()).scalar() or []
            kept = [*(history for history in found if history not in (before, list(said))), list(said)][-self._most :]
            values = {"whose": whose, "histories": kept, "used": self._database.now}
            statement = insert(CLICK_ORDERS).values(values)
            fresh = {"histories": statement.excluded.histories, "used": self._database.now}
            connection.execute(statement.on_conflict_do_update(index_elements=["whose"], set_=fresh))
            return True

        return bool(self._ask(lambda: self._database.write(work, patience=_PATIENCE)))

    def _of(self, whose: str) -> sa.ColumnElement[bool]:
        return sa.and_(CLICK_ORDERS.c.whose == whose, CLICK_ORDERS.c.used >= self._database.now - self._seconds)

    def _ask(self, work: Callable[[], T]) -> T | None:
        with self._lock:
            if time.monotonic() < self._silent_until:
                return None
        try:
            return work()
        except StoreError as error:
            with self._lock:
                self._silent_until = time.monotonic() + _PAUSE
            log.warning("the order of prompts cannot be shared with other servers just now", reason=error.message)
            return None
