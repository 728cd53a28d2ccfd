"""Records: one database behind SQLAlchemy, SQLite in a file (WAL) or PostgreSQL, and nothing above knows which.

Times are seconds since 1970 by the database's own clock, so that machines need not agree on theirs. Imported only by what
keeps records, since SQLAlchemy takes a fifth of a second to import.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, make_url

from isocenter.core.errors import StoreError, UsageError

if TYPE_CHECKING:
    from isocenter.core.settings import Settings

T = TypeVar("T")
#: Seconds that SQLite waits for another writer.
_BUSY = 30.0
#: PostgreSQL's lock for migrations; any number that nobody else uses.
_MIGRATING = 0x15_0C_E7
_VERSIONS = Path(__file__).parent / "migrations" / "versions"
_CLOCK = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "(extract(epoch from clock_timestamp())::double precision)",
}


def url_of(settings: Settings) -> URL:
    """Where the settings say that records lie. Raises `UsageError` for a URL that is none, without repeating it."""
    if settings.database_url:
        try:
            url = make_url(settings.database_url)
        except exc.ArgumentError:
            raise UsageError("DATABASE_URL is no database URL; write postgresql://user:password@host/name or sqlite:///path") from None
        if url.drivername in ("postgres", "postgresql"):
            return url.set(drivername="postgresql+psycopg")
        if url.get_backend_name() not in _CLOCK:
            raise UsageError("DATABASE_URL must begin with postgresql:// or sqlite:///")
        return url
    if settings.postgres_server:
        return URL.create(
            "postgresql+psycopg",
            settings.postgres_user,
            settings.postgres_password or None,
            settings.postgres_server,
            settings.postgres_port,
            settings.postgres_db,
        )
    return URL.create("sqlite", database=str(settings.home / "isocenter.db"))


class Database:
    """One database. `read` and `write` run a function in a transaction, and again where the connection was lost.

    patience: seconds for which a database that is away is waited for. Safe to use from several threads, not across a fork.
    Both raise `UsageError` for a PostgreSQL database that is not of UTF8.
    """

    def __init__(self, url: URL | str, *, patience: float = 8.0) -> None:
        self.url = make_url(url)
        self.patience = patience
        self.dialect = self.url.get_backend_name()
        self._engine = _sqlite(self.url) if self.dialect == "sqlite" else _postgresql(self.url)
        #: The time now, as an SQL expression.
        self.now: sa.ColumnElement[float] = sa.literal_column(_CLOCK[self.dialect], sa.Float())

    def write(self, work: Callable[[Connection], T], *, patience: float | None = None, durable: bool = False) -> T:
        """What `work` returns, committed. `work` may run more than once, even where its first commit went through.

        durable: on the disk before this returns, also with SQLite, where otherwise a power cut (not a crash) may undo the
        last moments. Raises `StoreError` when the database stays away or is full.
        """
        kind = "DURABLE" if durable else "IMMEDIATE"
        return self._patiently(lambda: self._once(work, kind), self.patience if patience is None else patience)

    def read(self, work: Callable[[Connection], T], *, patience: float | None = None) -> T:
        """What `work` finds, as of one moment."""
        return self._patiently(lambda: self._once(work, "DEFERRED"), self.patience if patience is None else patience)

    def check(self) -> None:
        """Raise `StoreError` unless something can be written at once."""
        probe = sa.text("UPDATE probe SET at = :at WHERE one = 1")
        self.write(lambda c: c.execute(probe, {"at": time.time()}), patience=1.0)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _once(self, work: Callable[[Connection], T], kind: str) -> T:
        with self._engine.connect().execution_options(begin_kind=kind) as connection, connection.begin():
            return work(connection)

    def _patiently(self, work: Callable[[], T], patience: float) -> T:
        until = time.monotonic() + patience
        pause = 0.05
        while True:
            try:
                return work()
            except (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError):
                # The library's own words may hold the host and the statement; they are not passed on.
                if time.monotonic() + pause > until:
                    raise StoreError("the database cannot be reached or written just now") from None
            except exc.DBAPIError as error:
                if not error.connection_invalidated or time.monotonic() + pause > until:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    # -- migrations ----------------------------------------------------------------------------------------------------

    def migrate(self, revision: str = "head", *, patience: float | None = None) -> None:
        """Bring the schema to `revision`, under a lock, so that several servers may start at once. patience: as of `write`."""
        if self.dialect == "sqlite" and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = head() if revision == "head" else revision
        if self.revision(patience=patience) == target:
            return

        def upgrade(connection: Connection) -> None:
            import logging

            from alembic import command
            from alembic.config import Config

            if self.dialect == "postgresql":
                connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MIGRATING})"))
            logging.getLogger("alembic").setLevel(logging.WARNING)
            config = Config()
            config.set_main_option("script_location", str(_VERSIONS.parent).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, target)

        self.write(upgrade, patience=patience)

    def revision(self, *, patience: float | None = None) -> str | None:
        """The schema's revision, None for an empty database."""

        def look(connection: Connection) -> str | None:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            return found

        return self.read(look, patience=patience)


def head() -> str:
    """The newest revision. Revisions are numbered; their modules are called `v<number>_<what>.py`."""
    numbers = [match[1] for path in _VERSIONS.glob("v*.py") if (match := re.match(r"v(\d{4})_", path.name))]
    return max(numbers)


def _sqlite(url: URL) -> sa.Engine:
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY, "check_same_thread": False}, pool_size=8, max_overflow=24)

    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not where Python's driver guesses
        connection.execute("PRAGMA journal_mode=WAL").close()  # readers never wait, writers only for each other

    def begin(connection: Connection) -> None:
        # A writer that took its lock only at its first change could not wait for another: SQLite would refuse it.
        kind = connection.get_execution_options().get("begin_kind", "DEFERRED")
        if kind != "DEFERRED":
            connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if kind == 'DURABLE' else 'NORMAL'}")
        connection.exec_driver_sql(f"BEGIN {'DEFERRED' if kind == 'DEFERRED' else 'IMMEDIATE'}")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
    return engine


def _postgresql(url: URL) -> sa.Engine:
    engine = sa.create_engine(url, pool_size=5, max_overflow=20, pool_timeout=10, connect_args={"connect_timeout": 5})

    def encoding(connection: Any, _: Any) -> None:
        # SQL_ASCII gives bytes where text is meant, the others refuse some people's words, and each only when it is too late.
        found = connection.info.parameter_status("server_encoding")
        if found not in ("UTF8", None):
            connection.close()
            raise UsageError(
                f"the PostgreSQL database keeps text as {found}, where UTF8 is needed: make another one by "
                "CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0, and give that one's name"
            )

    event.listen(engine, "connect", encoding, insert=True)  # before SQLAlchemy itself asks for anything
    return engine
