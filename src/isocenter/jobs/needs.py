"""Who needs which file of the object store, and how a file goes that nobody needs.

Files are named by their content, so one that is about to go may be wanted again at that very moment, by a job that is being
submitted or completed with the same content. Both sides take turns on the file's digest: whoever comes to need it writes that
down under the lock, then looks again whether the file is there and puts it where it is not; whoever removes it holds the lock
from the look into the table to the file's end. So it is either found to be needed and stays, or is gone when they look.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from isocenter.core.errors import ConflictError, NotFoundError
from isocenter.jobs import rows
from isocenter.jobs.table import Stored
from isocenter.store.database import Database
from isocenter.store.objects import Objects
from isocenter.store.tables import JOB_FILES, JOBS, STUDIES


def lock(connection: Connection, digests: Iterable[str]) -> None:
    """Take turns on these files until the transaction ends. SQLite lets only one write in any case."""
    if connection.dialect.name == "postgresql":
        for digest in sorted(set(digests)):  # in one order, so that no two wait for each other
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(int(digest[:15], 16))))


def add(connection: Connection, job_id: str, files: Sequence[Stored], *, made: bool) -> None:
    """A job needs these. The lock on them is held."""
    sizes = {f.digest: f.bytes for f in files}
    if sizes:
        values = [{"job_id": job_id, "digest": digest, "made": made, "bytes": size} for digest, size in sizes.items()]
        connection.execute(sa.insert(JOB_FILES), values)


def remove(connection: Connection, job_id: str) -> list[str]:
    """A job needs nothing any more; what it needed before."""
    gone = sa.delete(JOB_FILES).where(JOB_FILES.c.job_id == job_id).returning(JOB_FILES.c.digest)
    return sorted(set(connection.scalars(gone)))


def needed(connection: Connection, digest: str) -> bool:
    """Whether a job or a study needs a file."""
    by_job = sa.exists().where(JOB_FILES.c.digest == digest)
    return bool(connection.scalar(sa.select(sa.or_(by_job, sa.exists().where(STUDIES.c.digest == digest)))))


def drop(database: Database, objects: Objects, digests: Iterable[str]) -> list[str]:
    """Remove those files that nobody needs; returns which."""
    return [digest for digest in digests if _drop(database, objects, digest)]


def _drop(database: Database, objects: Objects, digest: str) -> bool:
    def work(connection: Connection) -> bool:
        lock(connection, [digest])
        if needed(connection, digest):
            return False
        objects.delete(digest)
        return True

    return database.write(work)


def check_study(connection: Connection, study_id: str) -> None:
    """Raise `NotFoundError` unless the study is still there. The lock on its file is held."""
    if not connection.scalar(sa.select(sa.exists().where(STUDIES.c.id == study_id))):
        raise NotFoundError("Study not found")


def check_scan(connection: Connection, job_id: str) -> None:
    """Raise `ConflictError` where a job's scan was removed, so that it cannot begin anew."""
    job = rows.one(connection, JOBS.c.id == job_id)
    digests = {i.digest for i in job.inputs} if job is not None else set()
    lock(connection, digests)
    kept = JOB_FILES.c.job_id == job_id, JOB_FILES.c.made == sa.false()
    if digests - set(connection.scalars(sa.select(JOB_FILES.c.digest).where(*kept))):
        raise ConflictError("the job's scan was removed since; submit it again")
