"""A server that nobody uses ends by itself, so that the machine that it pays for can be stopped."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

log = structlog.get_logger("isocenter.server")
#: What machines ask all the time; it keeps no server awake.
UNCOUNTED = frozenset({"/healthz", "/readyz", "/metrics"})


class Idle:
    """ASGI middleware that knows since when no request came. now: seconds, rising."""

    def __init__(self, app: ASGIApp, clock: IdleClock) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and remember it."""
        if scope["type"] != "http" or scope["path"] in UNCOUNTED:
            await self._app(scope, receive, send)
            return
        self._clock.open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._clock.open -= 1
            self._clock.last = time.monotonic()


class IdleClock:
    """Requests that are being answered, and when the last one ended."""

    def __init__(self) -> None:
        self.open = 0
        self.last = time.monotonic()

    def idle(self) -> float:
        """Seconds without a request."""
        return 0.0 if self.open else time.monotonic() - self.last


async def watch(clock: IdleClock, limit: float, busy: Callable[[], bool]) -> None:
    """End the process as a stop would, once there was no request and no job for `limit` seconds."""
    while True:
        await asyncio.sleep(min(max(limit / 4, 0.05), 30.0))
        if busy():
            clock.last = time.monotonic()
        elif clock.idle() >= limit:
            log.info("idle, so it ends", seconds=round(clock.idle()))
            signal.raise_signal(signal.SIGTERM)  # `os.kill` would end a process of Windows at once
            return
