"""What a running job is watched by: its progress on the way out, and whether it is still wanted on the way in."""

from __future__ import annotations

import threading
import time

from isocenter.core.errors import StoreError
from isocenter.jobs.queue import Queue
from isocenter.jobs.table import Job

#: Seconds between two looks into the table while a job runs, which is also how fine its progress is.
LOOK = 0.25


class Watch:
    """One attempt at a job. `progress` and `cancelled` are its handler's `Run`.

    reason: why it is to stop: "cancelled" (also: taken away), "drain", "timeout"; None while it may go on. how: how it
    ended, for the log.
    """

    def __init__(self, queue: Queue, job: Job, timeout: float) -> None:
        self.job = job
        self.reason: str | None = None
        self.how = ""
        self._queue = queue
        self._lock = threading.Lock()
        self._fraction: float | None = None
        self._message: str | None = None
        self._looked = time.monotonic()
        self._deadline = self._looked + timeout

    def progress(self, fraction: float, message: str) -> None:
        """Note how far it is; written down with the next look."""
        self._fraction, self._message = fraction, message

    def cancelled(self) -> bool:
        """Whether it is to stop. Looks into the table, a few times a second at most."""
        if self.reason is None and time.monotonic() > self._deadline:
            self.reason = "timeout"
        if self.reason is None and time.monotonic() - self._looked > LOOK:
            self._look()
        return self.reason is not None

    def stop(self, reason: str) -> None:
        """Have it stop at its next step."""
        self.reason = self.reason or reason

    @property
    def overdue(self) -> float:
        """Seconds since its time was up; negative before."""
        return time.monotonic() - self._deadline

    def beat_for(self) -> None:
        """Beat where the handler itself has not for a while."""
        if time.monotonic() - self._looked > min(self._queue.lease / 4, 2.0):
            self._look()

    def _look(self) -> None:
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._looked = time.monotonic()
            if not self._queue.beat(self.job, self._fraction, self._message, patience=0.0):
                self.stop("cancelled")
        except StoreError:
            pass  # the table is away: go on; the fence decides in the end
        finally:
            self._lock.release()
