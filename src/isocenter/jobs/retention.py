"""What goes with age or for want of space, and what stays: jobs that have ended, uploads that nobody uses, files that nobody needs.

Nothing here decides from what it read a moment ago: each removal asks once more, in its own transaction, whether it may.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from isocenter.core.errors import ConflictError, NotFoundError
from isocenter.core.settings import Settings
from isocenter.jobs import needs
from isocenter.jobs.backend import Backend, check_installed
from isocenter.jobs.table import ENDED
from isocenter.store.artifacts import open_artifacts
from isocenter.store.database import Database, head, url_of
from isocenter.store.tables import CLICK_ORDERS, EVENTS, JOB_FILES, JOBS, STUDIES

#: Seconds for which a file stays that no row speaks of: it may be on its way, of a job whose row is not written yet.
GRACE = 86400.0
#: A kernel's folder or file, an attempt's folder: what is younger may be in use.
_SCRATCH = 2 * 86400.0


@dataclass
class Tally:
    """One kind of thing. rule: the settings that it goes by, in words."""

    what: str
    rule: str
    gone: int = 0
    gone_bytes: int = 0
    stays: int = 0
    stays_bytes: int = 0

    def add(self, bytes_: int, *, gone: bool) -> None:
        """Count one."""
        if gone:
            self.gone, self.gone_bytes = self.gone + 1, self.gone_bytes + bytes_
        else:
            self.stays, self.stays_bytes = self.stays + 1, self.stays_bytes + bytes_


@dataclass
class _Upload:
    """A file that was sent. used: when a job last ended that needed it, or it came."""

    digest: str
    bytes: int
    used: float
    pinned: bool
    studies: set[str] = field(default_factory=set)


def sweep(backend: Backend, *, dry: bool = False) -> list[Tally]:
    """Remove what is too old or too much by the settings; dry: only say what would go. Raises `StoreError`."""
    done = [_jobs(backend, dry), _uploads(backend, dry), _strays(backend, dry), _trails(backend, dry), _orders(backend, dry)]
    return [*done, *folders(backend.settings, dry=dry)]


def held(settings: Settings) -> list[tuple[str, int, int]] | None:
    """Kinds of things in the stores with their number and bytes, by the table alone; None where there is no table yet.

    Nothing is made. Raises `StoreError` where the database cannot be asked, `UsageError` for settings that cannot be meant.
    """
    check_installed(settings)
    url = url_of(settings)
    if url.get_backend_name() == "sqlite" and not (url.database and Path(url.database).is_file()):
        return None
    database = Database(url, patience=2.0)
    try:
        if database.revision() != head():
            return None
        made = sa.select(sa.func.coalesce(sa.func.sum(JOB_FILES.c.bytes), 0)).where(JOB_FILES.c.made == sa.true())
        count = sa.select(sa.func.count()).select_from(JOBS)
        jobs, results, uploads = database.read(lambda c: (int(c.scalar(count) or 0), int(c.scalar(made) or 0), _listed(c)))
    finally:
        database.close()
    return [("jobs and their results", jobs, results), ("uploaded scans and studies", len(uploads), sum(u.bytes for u in uploads))]


def _jobs(backend: Backend, dry: bool) -> Tally:
    chosen = backend.settings
    tally = Tally("jobs and their results", _rule(chosen.job_keep, chosen.job_keep_bytes))
    size = sa.select(sa.func.coalesce(sa.func.sum(JOB_FILES.c.bytes), 0)).where(JOB_FILES.c.job_id == JOBS.c.id, JOB_FILES.c.made == sa.true())
    columns = JOBS.c.id, JOBS.c.state, JOBS.c.kept, JOBS.c.finished, JOBS.c.webhook_at, size.scalar_subquery(), backend.database.now
    rows = backend.database.read(lambda c: c.execute(sa.select(*columns).order_by(JOBS.c.finished, JOBS.c.number)).all())
    held = sum(int(row[5]) for row in rows)
    for job_id, state, kept, finished, untold, bytes_, now in rows:
        old = bool(chosen.job_keep) and finished is not None and finished < now - chosen.job_keep
        much = 0 < chosen.job_keep_bytes < held and bytes_ > 0
        gone = (old or much) and state in ENDED and not kept and untold is None
        if gone and not dry:
            gone = _forget(backend, job_id)
        held -= int(bytes_) if gone else 0
        tally.add(int(bytes_), gone=gone)
    return tally


def _forget(backend: Backend, job_id: str) -> bool:
    try:
        needs.drop(backend.database, backend.objects, backend.queue.delete(job_id, old=True))
    except (ConflictError, NotFoundError):
        return False  # begun anew or kept since, or another server was first
    return True


def _uploads(backend: Backend, dry: bool) -> Tally:
    chosen = backend.settings
    tally = Tally("uploaded scans and studies", _rule(chosen.upload_keep, chosen.upload_keep_bytes))
    uploads, now = backend.database.read(lambda c: (_listed(c), float(c.scalar(sa.select(backend.database.now)) or time.time())))
    held = sum(u.bytes for u in uploads)
    for upload in sorted(uploads, key=lambda u: u.used):
        old = bool(chosen.upload_keep) and upload.used < now - chosen.upload_keep
        much = 0 < chosen.upload_keep_bytes < held
        gone = (old or much) and not upload.pinned
        if gone and not dry:
            gone = _let_go(backend, upload.digest)
        held -= upload.bytes if gone else 0
        tally.add(upload.bytes, gone=gone)
    return tally


def _listed(connection: Connection) -> list[_Upload]:
    found: dict[str, _Upload] = {}
    for study_id, digest, size, created in connection.execute(sa.select(STUDIES.c.id, STUDIES.c.digest, STUDIES.c.bytes, STUDIES.c.created)):
        upload = found.setdefault(digest, _Upload(digest, int(size), float(created), pinned=False))
        upload.studies.add(study_id)
    given = JOB_FILES.join(JOBS, JOBS.c.id == JOB_FILES.c.job_id)
    columns = JOB_FILES.c.digest, JOB_FILES.c.bytes, JOBS.c.state, JOBS.c.kept, JOBS.c.created, JOBS.c.finished
    for digest, size, state, kept, created, finished in connection.execute(
        sa.select(*columns).select_from(given).where(JOB_FILES.c.made == sa.false())
    ):
        upload = found.setdefault(digest, _Upload(digest, int(size), 0.0, pinned=False))
        upload.used = max(upload.used, float(finished or created or 0.0))
        upload.pinned = upload.pinned or bool(kept) or state not in ENDED
    return list(found.values())


def _let_go(backend: Backend, digest: str) -> bool:
    """Have nobody need an upload any more, unless somebody does who may not lose it; and remove it."""

    def work(connection: Connection) -> bool:
        needs.lock(connection, [digest])
        given = sa.and_(JOB_FILES.c.digest == digest, JOB_FILES.c.made == sa.false())
        lets_go = sa.exists().where(JOBS.c.id == JOB_FILES.c.job_id, JOBS.c.kept == sa.false(), JOBS.c.state.in_(ENDED))
        if connection.scalar(sa.select(sa.exists().where(given, sa.not_(lets_go)))):
            return False
        connection.execute(sa.delete(STUDIES).where(STUDIES.c.digest == digest))
        connection.execute(sa.delete(JOB_FILES).where(given))
        return True

    if not backend.database.write(work):
        return False
    needs.drop(backend.database, backend.objects, [digest])
    return True


def _strays(backend: Backend, dry: bool) -> Tally:
    """Files that no row speaks of, as after a crash between the file and its row."""
    tally = Tally("files that nothing needs", f"older than {_time(GRACE)}")
    known = backend.database.read(_known)
    for stored, written in backend.objects.items():
        if stored.digest not in known:
            gone = written < time.time() - GRACE
            if gone and not dry:
                gone = _sweep_away(backend, stored.digest)
            tally.add(stored.bytes, gone=gone)
    return tally


def _known(connection: Connection) -> set[str]:
    return set(connection.scalars(sa.union(sa.select(JOB_FILES.c.digest), sa.select(STUDIES.c.digest))))


def _sweep_away(backend: Backend, digest: str) -> bool:
    try:
        if backend.objects.written(digest) > time.time() - GRACE:
            return False  # somebody put it again since the list was made
    except NotFoundError:
        return True
    return bool(needs.drop(backend.database, backend.objects, [digest]))


def _trails(backend: Backend, dry: bool) -> Tally:
    """The audit trail of jobs that are gone."""
    keep = backend.settings.audit_keep
    orphan = EVENTS.c.job_id.not_in(sa.select(JOBS.c.id))
    return _rows(backend, Tally("audit trails of jobs that are gone", _rule(keep, 0)), EVENTS, orphan, EVENTS.c.at if keep else None, keep, dry)


def _orders(backend: Backend, dry: bool) -> Tally:
    """In which order prompts came, of interactive sessions that have ended."""
    keep = backend.settings.session_ttl
    return _rows(backend, Tally("orders of prompts", _rule(keep, 0)), CLICK_ORDERS, sa.true(), CLICK_ORDERS.c.used, keep, dry)


def _rows(
    backend: Backend, tally: Tally, table: sa.Table, which: sa.ColumnElement[bool], at: sa.ColumnElement[float] | None, keep: float, dry: bool
) -> Tally:
    """Remove the rows of a table that are older than `keep` seconds by their time `at`; without a time, none."""
    database = backend.database
    count = sa.select(sa.func.count()).select_from(table).where(which)
    old = at < database.now - keep if at is not None else sa.false()
    tally.gone, every = database.read(lambda c: (int(c.scalar(count.where(old)) or 0), int(c.scalar(count) or 0)))
    tally.stays = every - tally.gone
    if tally.gone and not dry:
        tally.gone = database.write(lambda c: c.execute(sa.delete(table).where(which, old)).rowcount)
    return tally


# -- this machine's own folders ----------------------------------------------------------------------------------------


def folders(settings: Settings, *, dry: bool = False) -> list[Tally]:
    """Result files under /files, what workers that were killed left behind, and compiled kernels."""
    results = Tally("result files under /files", _rule(settings.artifact_ttl, settings.artifact_bytes))
    store = open_artifacts(settings)
    over = {path for _, _, path in store.over()}
    for _, size, path in store.files():
        results.add(size, gone=path in over)
        if path in over and not dry:
            path.unlink(missing_ok=True)
    scratch = _aged("folders of attempts", settings.home / "scratch", max(_SCRATCH, 2 * settings.job_timeout + 3600), dry)
    kernels = _aged("compiled kernels", settings.home / "kernels", settings.cache_keep, dry)
    return [results, scratch, kernels]


def _aged(what: str, folder: Path, keep: float, dry: bool) -> Tally:
    """The entries of a folder, by when anything in them was last written."""
    tally = Tally(what, _rule(keep, 0))
    for entry in sorted(folder.glob("*")):
        sizes = list(_sizes(entry))
        if not sizes:
            continue  # an attempt that has ended since the list was made
        gone = bool(keep) and max(at for at, _ in sizes) < time.time() - keep
        if gone and not dry:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
            gone = not entry.exists()
        tally.add(sum(size for _, size in sizes), gone=gone)
    return tally


def _sizes(path: Path) -> Iterator[tuple[float, int]]:
    """When each thing in a folder, and itself, was written, and its bytes; what goes meanwhile is not there."""
    paths = [path]
    # Says nothing of a folder that is gone, and follows no link but the first.
    for folder, folders, files in () if path.is_symlink() else os.walk(path):
        paths += [Path(folder, name) for name in (*folders, *files)]
    for each in paths:
        with suppress(OSError):
            facts = each.lstat()
            yield facts.st_mtime, 0 if stat.S_ISDIR(facts.st_mode) else facts.st_size


def _rule(seconds: float, most: int) -> str:
    parts = [f"older than {_time(seconds)}"] if seconds else []
    parts += [f"over {most / 2**20:.0f} MiB in all"] if most else []
    return ", ".join(parts) or "never"


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:g} s"
