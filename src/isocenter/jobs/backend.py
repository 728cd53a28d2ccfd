"""What stands behind the jobs of one process, as its settings say: a database, an object store, and a bell."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from isocenter.core.errors import StoreError, UsageError
from isocenter.core.settings import Settings
from isocenter.jobs import needs
from isocenter.jobs.handler import Handler
from isocenter.jobs.queue import Queue
from isocenter.jobs.table import Job, NewJob
from isocenter.jobs.worker import Worker
from isocenter.store.database import Database, url_of
from isocenter.store.objects import Objects, open_objects
from isocenter.store.places import refusal


class Bell(Protocol):
    """Wakes workers. The table is the truth, so a ring that nobody hears delays a job and never loses it."""

    def ring(self, job: Job) -> None:
        """There is a job. Returns at once and never fails."""

    def close(self) -> None:
        """Ring no more."""


class Backend:
    """Database, queue, objects and bell. Opening brings the database's schema up to date.

    patience: seconds for which a database is waited for that does not answer; then `StoreError`.
    """

    def __init__(self, settings: Settings, *, patience: float | None = None) -> None:
        check_installed(settings)
        self.settings = settings
        self.database = Database(url_of(settings))
        try:
            self.database.migrate(patience=patience)
        except BaseException:
            self.database.close()
            raise
        self.queue = Queue(self.database, lease=settings.job_lease, gpu_reserve=settings.job_gpu_reserve, webhook=settings.webhook_url is not None)
        self.objects: Objects = open_objects(settings)
        self._workers: list[Worker] = []
        self._bell = _bell(settings)

    def submit(
        self, new: NewJob, *, key: str | None = None, same_within: float = 0.0, files: Mapping[str, BinaryIO | Path] | None = None
    ) -> tuple[Job, bool]:
        """See `Queue.submit`; wakes a worker. files: the inputs by digest, put into the store where they are not there yet."""
        for digest, file in (files or {}).items():
            self.objects.put(file, digest)
        job, made = self.queue.submit(new, key=key, same_within=same_within)
        for digest, file in (files or {}).items():
            # An equal job that was deleted just before the row was written took its files along; after it none can.
            self.objects.put(file, digest)
        if made:
            self.ring(job)
        return job, made

    def retry(self, job_id: str) -> Job:
        """See `Queue.retry`; wakes a worker."""
        job = self.queue.retry(job_id)
        self.ring(job)
        return job

    def delete(self, job_id: str) -> None:
        """See `Queue.delete`; its files go too, where nothing else needs them."""
        needs.drop(self.database, self.objects, self.queue.delete(job_id))

    def ring(self, job: Job) -> None:
        """Wake a worker for a job."""
        for worker in self._workers:
            worker.wake()
        if self._bell is not None:
            self._bell.ring(job)

    def worker(
        self,
        handler: Handler,
        *,
        device: str = "cpu",
        role: str | None = None,
        slots: int = 1,
        chores: Callable[[], None] | None = None,
        stuck: Callable[[], None] | None = None,
    ) -> Worker:
        """A worker of this process, not started yet. role: by default "gpu" on any device but "cpu"."""
        made = Worker(
            self.queue,
            self.objects,
            handler,
            scratch=self.settings.home / "scratch",
            role=role or role_of(device),
            device=device,
            slots=slots,
            timeout=self.settings.job_timeout,
            chores=chores,
            stuck=stuck,
            beats=self.settings.worker_beats,
        )
        self._workers.append(made)
        return made

    def check(self) -> None:
        """Raise `StoreError` unless records and files can be written, here and in the stores."""
        self.database.check()
        self.objects.check()
        home = self.settings.home
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            free = shutil.disk_usage(home).free
        except OSError:
            raise StoreError("the home folder cannot be written to") from None
        if free < self.settings.min_free_bytes:
            raise StoreError("the disk is nearly full")

    @property
    def writable(self) -> bool:
        """Whether `check` passes."""
        try:
            self.check()
        except StoreError:
            return False
        return True

    def close(self) -> None:
        """Close the connections. Workers are stopped by who started them."""
        if self._bell is not None:
            self._bell.close()
        self.database.close()


def role_of(device: str) -> str:
    """The queue that a device works for."""
    return "cpu" if device == "cpu" else "gpu"


def check_installed(settings: Settings) -> None:
    """Raise `UsageError` for a setting that cannot be meant, or that asks for what is not installed."""
    url = url_of(settings)
    postgres = url.get_backend_name() == "postgresql"
    if not postgres and url.database and (reason := refusal(Path(url.database).parent)):
        raise UsageError(f"{reason}, and the database lies there; set ISOCENTER_HOME to a folder that can be written, or DATABASE_URL")
    for asked, module, extra, what in (
        (postgres, "psycopg", "postgres", "PostgreSQL"),
        (settings.minio_endpoint, "obstore", "s3", "MINIO_ENDPOINT"),
        (settings.redis_url, "celery", "celery", "REDIS_URL"),
    ):
        if asked and importlib.util.find_spec(module) is None:
            raise UsageError(f"{what} needs a package that is not installed: pip install 'isocenter[{extra}]'")


def _bell(settings: Settings) -> Bell | None:
    if settings.redis_url is None:
        return None
    from isocenter.jobs.celery_app import CeleryBell

    return CeleryBell(settings.redis_url, settings)
