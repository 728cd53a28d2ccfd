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
from isocenter.runtime.sessions import PER_OWNER
from isocenter.service import Service
from isocenter.store.orders import Orders

log = structlog.get_logger("isocenter.jobs")
#: Seconds for which the answer to "can the stores be written to" holds, and between two rounds of tidying.
_FRESH, _ROUND = 2.0, 2.0


class JobDesk:
    """Made when the server starts; open once its database answers. draining: told to stop, takes nothing new."""

    def __init__(self, settings: Settings, service: Service) -> None:
        self.settings = settings
        self.service = service
        self.draining = False
        self.worker: Worker | None = None
        self._backend: Backend | None = None
        self._closed = False
        self._opening = threading.Lock()
        self._checked = (0.0, True)
        self._lock = threading.Lock()

    @property
    def backend(self) -> Backend:
        """What stands behind it. Raises `StoreError` as long as the database has not answered."""
        if self._backend is None:
            raise StoreError("the database cannot be reached yet; try again in a moment")
        return self._backend

    @property
    def studies(self) -> Studies:
        """The studies. Raises as `backend` does."""
        return Studies(self.backend, self.settings)

    @property
    def opened(self) -> bool:
        """Whether the database has answered."""
        return self._backend is not None

    def open(self, patience: float) -> None:
        """Open the stores, and begin to work. Raises `StoreError` where the database does not answer within `patience` seconds."""
        with self._opening:
            if self._backend is not None or self._closed:
                return
            settings, backend = self.settings, Backend(self.settings, patience=patience)
            slots = settings.job_workers if settings.job_workers is not None else (0 if settings.redis_url else 1)
            if slots:
                device = next((d for d in self.service.runtime.devices if d != "cpu"), "cpu")
                self.worker = backend.worker(jobservice.handler(self.service), device=device, slots=slots)
                self.worker.start()
            self._backend = backend
            if backend.database.dialect != "sqlite":  # several servers may share it
                self.service.orders = Orders(backend.database, settings.session_ttl, PER_OWNER)

    def writable(self) -> bool:
        """Whether records and files can be written; asked again after a moment."""
        with self._lock:
            at, answer = self._checked
            if time.monotonic() - at > _FRESH or not self.opened:
                answer = self.opened and self.backend.writable
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
        if not self.opened:
            return
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
        with self._opening:
            self._closed = True
        if not self.draining:
            self.drain()
        self.service.orders = None
        if self._backend is not None:
            self._backend.close()


def _desk(request: Request) -> JobDesk:
    desk: JobDesk = request.app.state.jobs
    return desk


Desk = Annotated[JobDesk, Depends(_desk)]
