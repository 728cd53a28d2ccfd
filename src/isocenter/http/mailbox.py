"""News from worker threads for the event loop: many that come at once wake it once.

A batch of texts answers dozens of requests in one moment. Waking the loop for each of them, as
`loop.call_soon_threadsafe` does, costs a write to a socket and a switch of threads every time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Mailbox:
    """Calls into one event loop, in the order in which they were posted. `post` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], None]] = deque()
        self._awake = False
        self._lock = threading.Lock()

    def post(self, call: Callable[[], None]) -> None:
        """Have the loop make a call soon; nothing happens when the loop is closed."""
        with self._lock:
            self._calls.append(call)
            if self._awake:
                return
            self._awake = True
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._open)

    def _open(self) -> None:
        with self._lock:
            self._awake = False
            calls, self._calls = self._calls, deque()
        for call in calls:
            call()

    def waiter(self, future: Future[Any]) -> asyncio.Future[None]:
        """Something to wait for that is done when `future` is, whatever came of it; others may settle it earlier."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        future.add_done_callback(lambda _: self.post(lambda: settle(waiter)))
        return waiter


def settle(waiter: asyncio.Future[None], error: Exception | None = None) -> None:
    """End a wait, with an error or without; a wait that has ended already stays as it is."""
    if waiter.done():
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)
