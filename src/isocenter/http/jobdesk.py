"""The jobs of one server: its backend, the worker that it runs itself, and the hand that keeps the table tidy."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Annotated

import structlog
from fastapi import Depends, Request

from isocenter import jobservice
from isocenter.core.errors import StoreError
from isocenter.core.settings import Settings
from isocenter.jobs import retention, webhook
from isocenter.jobs.backend import Backend
from isocenter.jobs.studies import Studies
from isocenter.jobs.worker import Worker
from isocenter.service import Service

log = structlog.get_logger("isocenter.jobs")
#: Seconds for which the answer to "can the stores be written to" holds, and between two rounds of tidying.
_FRESH, _ROUND = 2.0, 2.0


class JobDesk:
    """Opened when the server starts. draining: told to stop, takes nothing new."""

    def __init__(self, settings: Settings, service: Service) -> None:
        self.settings = settings
        self.service = service
        self.backend = Backend(settings)
        self.studies = Studies(self.backend, settings)
        self.draining = False
        self.worker: Worker | None = None
        slots = settings.job_workers if settings.job_workers is not None else (0 if settings.redis_url else 1)
        if slots:
            device = next((d for d in service.runtime.devices if d != "cpu"), "cpu")
            self.worker = self.backend.worker(jobservice.handler(service), device=device, slots=slots)
            self.worker.start()
        self._checked = (0.0, True)
        self._lock = threading.Lock()

    def writable(self) -> bool:
        """Whether records and files can be written; asked again after a moment."""
        with self._lock:
            at, answer = self._checked
            if time.monotonic() - at > _FRESH:
                answer = self.backend.writable
                self._checked = (time.monotonic(), answer)
            return answer

    async def tidy(self) -> None:
        """Give dead workers' jobs away and tell of jobs that ended, for ever."""
        while True:
            try:
                await asyncio.to_thread(self._round)
            except Exception as error:  # one bad round must not end them all
                log.error("tidying failed", error=type(error).__name__, exc_info=error)
            await asyncio.sleep(_ROUND)

    def _round(self) -> None:
        with contextlib.suppress(StoreError):
            if self.backend.queue.expire() and self.worker is not None:
                self.worker.wake()
            webhook.deliver(self.backend.queue, self.settings)

    def sweep(self) -> None:
        """Remove jobs, uploads and files that are too old or too much."""
        try:
            gone = {t.what: t.gone for t in retention.sweep(self.backend) if t.gone}
        except StoreError as error:
            log.warning("nothing could be removed for now", reason=error.message)
            return
        if gone:
            log.info("removed what was too old or too much", **{what.replace(" ", "_"): count for what, count in gone.items()})

    def drain(self) -> None:
        """Take nothing new, and give what runs its time. Blocks."""
        self.draining = True
        if self.worker is not None:
            self.worker.stop(self.settings.job_drain)

    def close(self) -> None:
        """End it."""
        if not self.draining:
            self.drain()
        self.backend.close()


def _desk(request: Request) -> JobDesk:
    desk: JobDesk = request.app.state.jobs
    return desk


Desk = Annotated[JobDesk, Depends(_desk)]
