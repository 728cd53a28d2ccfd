"""A worker: takes jobs from the table, one a thread, gives signs of life while they run, and writes down how they end.

One more thread keeps house: it says that the worker is there, beats for jobs whose handler is silent, takes back the jobs of
workers that died, and ends what takes too long.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from isocenter.core.errors import BusyError, CancelledError, InputError, IsocenterError, MemoryLimitError, NotFoundError, StoreError
from isocenter.core.model import Run
from isocenter.jobs.handler import Handler, JobInput, JobResult, code_of
from isocenter.jobs.queue import Queue
from isocenter.jobs.table import Job, Stored
from isocenter.jobs.watch import Watch
from isocenter.store.objects import Objects

log = structlog.get_logger("isocenter.jobs")
T = TypeVar("T")
#: Seconds between two looks for a cancelled job, and between two looks into an empty queue.
POLL = 0.5
#: Seconds for which a finished job's files are held while the store is away; then it is computed again, later.
_HOLD = 120.0
#: Seconds beyond its time limit after which a job that does not listen is given up.
_GRACE = 30.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
_INTERNAL = "internal error; the worker's log says more"


class Worker:
    """`slots` threads that work on jobs of `role` ("cpu" or "gpu"), until `stop`.

    timeout: seconds for one attempt. scratch: a folder for files in work. chores: called every few seconds by the
    housekeeper. stuck: called where a job neither ends nor listens; a process of its own then exits. beats: a folder in which a file
    is touched at each sign of life.
    """

    def __init__(
        self,
        queue: Queue,
        objects: Objects,
        handler: Handler,
        *,
        scratch: Path,
        role: str = "cpu",
        device: str = "cpu",
        slots: int = 1,
        timeout: float = 3600.0,
        chores: Callable[[], None] | None = None,
        stuck: Callable[[], None] | None = None,
        beats: Path | None = None,
    ) -> None:
        self.id = f"{socket.gethostname()[:64]}:{os.getpid()}:{secrets.token_hex(3)}"
        self.role = role
        self.queue = queue
        self._objects = objects
        self._handler = handler
        self._device = device
        self._slots = slots
        self._timeout = timeout
        self._scratch = scratch
        self._chores = chores
        self._stuck = stuck
        self._beat = beats / self.id.replace(":", "-") if beats is not None else None
        self._bell = threading.Event()
        self._stopping = threading.Event()
        self._watches: dict[str, Watch] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._housekeeper: threading.Thread | None = None
        self._over = threading.Event()

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self, *, threads: bool = True) -> None:
        """Be there, and begin to work. threads: False where `work_once` is called from outside, as Celery does."""
        self._housekeeper = threading.Thread(target=self._keep_house, name="jobs-housekeeper", daemon=True)
        self._housekeeper.start()
        for number in range(self._slots if threads else 0):
            thread = threading.Thread(target=self._loop, name=f"jobs-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def wake(self) -> None:
        """There may be something to do."""
        self._bell.set()

    @property
    def busy(self) -> bool:
        """Whether a job is in work."""
        return bool(self._watches)

    def drain(self) -> None:
        """Take nothing new."""
        self._stopping.set()
        self._bell.set()

    def stop(self, patience: float = 0.0) -> bool:
        """End. What runs may finish within `patience` seconds, else it waits again, as if it had never been begun.

        Returns whether all of it finished.
        """
        self.drain()
        done = self._join(patience)
        if not done:
            self.give_back()
            if not self._join(5.0):
                # Somebody who does not listen: the fence keeps whatever it may still write from counting.
                for watch in list(self._watches.values()):
                    with contextlib.suppress(StoreError):
                        self.queue.release(watch.job, "the worker was stopped", counts=False)
        self._over.set()
        if self._housekeeper is not None:
            self._housekeeper.join(5.0)
        with contextlib.suppress(StoreError):
            self.queue.leave(self.id)
        if self._beat is not None:
            with contextlib.suppress(OSError):
                self._beat.unlink(missing_ok=True)
        return done

    def give_back(self) -> None:
        """Have what runs stop at its next step and wait again, as if it had never been begun."""
        for watch in list(self._watches.values()):
            watch.stop("drain")

    def _join(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        while self._watches and time.monotonic() < until:
            time.sleep(0.02)
        return not self._watches and not any(thread.is_alive() for thread in self._threads)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._bell.clear()
            if not self.work_once():
                self._bell.wait(POLL)

    # -- one job -------------------------------------------------------------------------------------------------------

    def work_once(self) -> bool:
        """Take the next job and work on it; False where there is none, or the table is away."""
        try:
            job = self.queue.claim(self.id, self.role)
        except StoreError as error:
            log.warning("the queue is away", reason=error.message)
            return False
        if job is None:
            return False
        watch = Watch(self.queue, job, self._timeout)
        with self._lock:
            self._watches[job.id] = watch
        started = time.perf_counter()
        try:
            self._attempt(job, watch)
        except StoreError as error:
            # Not even how it ended can be written down: its lease runs out, and somebody does it again.
            log.error("a job's end could not be recorded", job=job.id, reason=error.message)
        finally:
            with self._lock:
                self._watches.pop(job.id, None)
        log.info("job ended", job=job.id, attempt=job.attempts, how=watch.how, seconds=round(time.perf_counter() - started, 3))
        return True

    def _attempt(self, job: Job, watch: Watch) -> None:
        """Work on a job and say how it ended."""
        try:
            self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=self._scratch, ignore_cleanup_errors=True) as name:
                self._work(job, watch, Path(name))
        except CancelledError:
            self._stopped(job, watch)
        except StoreError as error:
            self._again(job, watch, error.message, counts=False)
        except (MemoryLimitError, MemoryError, BusyError) as error:
            message = error.message if isinstance(error, IsocenterError) else "there was not enough memory"
            self._again(job, watch, message, code="memory")
        except IsocenterError as error:
            watch.how = "failed"
            self.queue.fail(job, code_of(error), error.message)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                self._again(job, watch, "the worker's disk is full or cannot be written to", counts=False)
                return
            log.error("a job failed", job=job.id, error=type(error).__name__, exc_info=error)
            self._again(job, watch, _INTERNAL, code="internal")

    def _work(self, job: Job, watch: Watch, folder: Path) -> None:
        seconds: dict[str, float] = {}
        started = time.perf_counter()
        files = {stored.name: self._fetch(job, stored, folder) for stored in job.inputs}
        seconds["fetch"] = time.perf_counter() - started
        inside = folder / "work"
        inside.mkdir()
        result = self._handler(JobInput(job, files, inside, self.queue.database, self._objects), Run(watch.progress, watch.cancelled))
        if watch.cancelled():
            raise CancelledError("the job was cancelled")
        kept = time.perf_counter()
        artifacts = self._keep(result, watch)
        seconds.update(result.seconds)
        seconds["store"] = time.perf_counter() - kept
        seconds["total"] = time.perf_counter() - started
        rounded = {stage: round(value, 4) for stage, value in seconds.items()}
        self._patiently(watch, lambda: self._complete(job, watch, artifacts, result, rounded))
        for product, stored in zip(result.products, artifacts, strict=True):
            if not self._objects.has(stored.digest):  # deleted with an equal job's files, a moment after they were found there
                self._objects.put(product.data)

    def _complete(self, job: Job, watch: Watch, artifacts: list[Stored], result: JobResult, seconds: dict[str, float]) -> None:
        watch.how = "completed" if self.queue.complete(job, artifacts, result.facts, seconds) else "too late"

    def _fetch(self, job: Job, stored: Stored, folder: Path) -> Path:
        try:
            return self._objects.fetch(stored.digest, folder)
        except NotFoundError:
            if job.releases < 5:  # it may be on its way
                raise StoreError("the scan is not in the store yet") from None
            raise InputError("the uploaded scan is not in the store any more; upload it again") from None

    def _keep(self, result: JobResult, watch: Watch) -> list[Stored]:
        """Put the products into the store, which may be away for a while."""
        kept = []
        for product in result.products:
            made = self._patiently(watch, partial(self._objects.put, product.data))
            kept.append(Stored(product.name, made.digest, made.bytes, product.media_type))
        return kept

    def _patiently(self, watch: Watch, work: Callable[[], T]) -> T:
        """`work`, again and again while the store is away: what was computed is worth waiting for."""
        until = time.monotonic() + _HOLD
        pause = 0.1
        while True:
            try:
                return work()
            except StoreError:
                if time.monotonic() > until or watch.cancelled():
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 2.0)

    def _again(self, job: Job, watch: Watch, why: str, *, counts: bool = True, code: str = "store") -> None:
        """Have it tried again later, unless it was tried often enough."""
        if counts and job.attempts >= job.max_attempts:
            watch.how = "failed"
            self.queue.fail(job, code, why)
            return
        watch.how = "released"
        self.queue.release(job, why, delay=min(0.5 * 2**job.releases, 30.0), counts=counts)

    def _stopped(self, job: Job, watch: Watch) -> None:
        """The handler stopped because it was told to."""
        watch.how = watch.reason or "cancelled"
        if watch.reason == "drain":
            self.queue.release(job, "the worker was stopped", counts=False)
        elif watch.reason == "timeout":
            self.queue.fail(job, "timeout", f"it took longer than {self._timeout:g} s (ISOCENTER_JOB_TIMEOUT)")
        elif watch.reason is None:  # its own idea: nobody had asked it to stop
            self.queue.fail(job, "failed", "the work was cancelled by what it runs on")

    # -- the house -----------------------------------------------------------------------------------------------------

    def _clean(self) -> None:
        """Remove what workers left behind that were killed: folders older than any job can be."""
        oldest = time.time() - 2 * self._timeout - 3600
        for left in self._scratch.glob("*"):
            with contextlib.suppress(OSError):
                if left.stat().st_mtime < oldest:
                    shutil.rmtree(left, ignore_errors=True)

    def _keep_house(self) -> None:
        self._clean()
        period = min(max(self.queue.lease / 4, 0.05), 5.0)
        while True:
            try:
                self.queue.register(self.id, self.role, self._device, self._slots, draining=self._stopping.is_set())
                self._touch()
                self._look_after()
                if self.queue.expire():
                    self.wake()
                if self._chores is not None:
                    self._chores()
            except StoreError as error:
                log.warning("the queue is away", reason=error.message)
            except Exception as error:  # whatever it is, jobs must not lose their signs of life over it
                log.error("housekeeping failed", error=type(error).__name__, exc_info=error)
            if self._over.wait(period):
                return

    def _touch(self) -> None:
        """Show that the table has just heard of this worker."""
        if self._beat is None:
            return
        try:
            self._beat.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._beat.touch()
        except OSError as error:
            log.warning("ISOCENTER_WORKER_BEATS cannot be written to", error=type(error).__name__)

    def _look_after(self) -> None:
        """Beat for the jobs in work; give up what neither ends nor listens."""
        for watch in list(self._watches.values()):
            watch.beat_for()
            if watch.overdue > _GRACE:
                watch.stop("timeout")
                self._stopped(watch.job, watch)
                if self._stuck is not None:
                    log.error("a job does not end; the process does", job=watch.job.id)
                    self._stuck()
