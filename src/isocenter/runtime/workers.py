"""The inference threads: a bounded queue, and an end for work that nobody waits for or that never ends.

Threads cannot be stopped from outside. Work whose time is over is abandoned: its caller gets an error at once, another
thread takes its place, and what it holds stays booked until it returns. A model that runs in a child process ends it in
`abort`, so that its memory does come back.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any, TypeVar

from isocenter.core.errors import BusyError, DeadlineError
from isocenter.runtime.priority import stand_back

T = TypeVar("T")
_HERE = threading.local()
#: Seconds that running work may still take when the threads are told to stop.
_LAST_SECONDS = 30.0


class Job(Future[T]):
    """Work that was handed in. Cancelling it takes it out of the queue, or tells it, when it runs, to stop at its next step."""

    def __init__(self, work: Callable[[], T], seconds: float | None) -> None:
        super().__init__()
        self.work = work
        self.seconds = seconds
        self.unwanted = threading.Event()
        self.started: float | None = None
        self.abandoned = False
        self.on_abandon: list[Callable[[], None]] = []

    def cancel(self) -> bool:
        """As `Future.cancel`: False when it runs already, but then it is told."""
        self.unwanted.set()
        return super().cancel()

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return self.seconds is not None and self.started is not None and time.monotonic() - self.started > self.seconds


def current() -> Job[Any] | None:
    """The job that this thread works on; None outside of the inference threads."""
    job: Job[Any] | None = getattr(_HERE, "job", None)
    return job


class Workers:
    """`count` threads. Safe to use from several threads."""

    def __init__(self, count: int, queue_size: int, seconds: float | None = None) -> None:
        self.count = count
        self._most = count + queue_size
        self._seconds = seconds
        self._wake = threading.Condition()
        self._queue: deque[Job[Any]] = deque()
        self._running: list[Job[Any]] = []
        self._threads: list[threading.Thread] = []
        self._watchdog: threading.Thread | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Jobs queued or running."""
        with self._wake:
            return len(self._queue) + len(self._running)

    def submit(self, work: Callable[[], T], *, seconds: float | None = None) -> Job[T]:
        """Run `work` on a thread. Raises `BusyError` when too many wait already. seconds: its own time limit, infinite for none."""
        limit = self._seconds if seconds is None else seconds
        job = Job(work, None if limit is None or math.isinf(limit) else limit)
        with self._wake:
            if self._closed or len(self._queue) + len(self._running) >= self._most:
                raise BusyError("the server has too much work waiting; try again shortly")
            self._queue.append(job)
            if len(self._threads) < self.count:
                self._start()
            self._wake.notify_all()  # the watchdog may wait here too
        job.add_done_callback(self._forget)
        return job

    def close(self) -> None:
        """Drop what waits and finish what runs, within half a minute."""
        with self._wake:
            self._closed = True
            dropped, threads = list(self._queue), list(self._threads)
            self._wake.notify_all()
        for job in dropped:
            job.cancel()
        deadline = time.monotonic() + _LAST_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._wake:
            left = list(self._running)
        for job in left:
            job.unwanted.set()
            for abandon in tuple(job.on_abandon):
                abandon()

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=f"inference-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _forget(self, job: Future[Any]) -> None:
        with self._wake, contextlib.suppress(ValueError):
            self._queue.remove(job)  # type: ignore[arg-type]  # cancelled before its turn

    def _work(self) -> None:
        stand_back()
        while True:
            with self._wake:
                while not self._queue:
                    if self._closed:
                        return
                    self._wake.wait()
                job = self._queue.popleft()
                if not job.set_running_or_notify_cancel():
                    continue
                job.started = time.monotonic()
                self._running.append(job)
                if job.seconds is not None:
                    self._watch()
            _HERE.job = job
            settle = self._run(job)
            _HERE.job = None
            with self._wake:  # before its caller knows, who may have more to hand in
                if job in self._running:
                    self._running.remove(job)
                self._wake.notify_all()
            with contextlib.suppress(InvalidStateError):
                settle()
            if job.abandoned:
                return  # another thread took this one's place
            del job, settle  # with its work and result, while nothing is to do

    @staticmethod
    def _run(job: Job[Any]) -> Callable[[], None]:
        """Do the work; returns what tells its caller."""
        try:
            return partial(job.set_result, job.work())
        except BaseException as error:
            return partial(job.set_exception, error)

    def _watch(self) -> None:
        """Holds the lock."""
        if self._watchdog is None:
            self._watchdog = threading.Thread(target=self._abandon_late, name="inference-watchdog", daemon=True)
            self._watchdog.start()
        self._wake.notify_all()

    def _abandon_late(self) -> None:
        while True:
            with self._wake:
                ends = [job.started + job.seconds for job in self._running if job.started is not None and job.seconds is not None]
                if not ends:
                    if self._closed:
                        return
                    self._wake.wait()
                    continue
                if (left := min(ends) - time.monotonic()) > 0:
                    self._wake.wait(left)
                    continue
                late = [job for job in self._running if job.late]
                for job in late:
                    self._running.remove(job)
                    job.abandoned = True
                    job.unwanted.set()
                    self._threads = [t for t in self._threads if t.is_alive()]
                    if not self._closed:
                        self._start()
            for job in late:
                seconds = job.seconds or 0.0
                with contextlib.suppress(InvalidStateError):
                    job.set_exception(
                        DeadlineError(
                            f"the model gave no answer within {seconds:g} seconds and was given up; ISOCENTER_INFERENCE_TIMEOUT is the limit"
                        )
                    )
                for abandon in tuple(job.on_abandon):
                    abandon()
