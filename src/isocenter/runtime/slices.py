"""Slices, pictures and other small work of many clients in shared batches.

A request is a `Ticket` with items for one lane (a model and what is done with it). Its items wait until the lane's turn on
an inference thread comes; all that wait by then go together, in batches as large as memory allows, clients in turn. A batch
that fails is halved until the failing item stands alone: it is its request's failure and nobody else's.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from isocenter.core.errors import BusyError, CancelledError, DeadlineError, MemoryLimitError
from isocenter.runtime.workers import Job

#: The documents' rule: below so many gigabytes of free GPU memory, so many slices at once; without a GPU one.
_BY_MEMORY = ((6, 1), (8, 2), (12, 3), (16, 4), (24, 6))
_MOST = 8
#: From items, and whether nobody waits for them any more, to one result an item, in order. Raises for the whole batch.
Compute = Callable[[Sequence[Any], Callable[[], bool]], Sequence[Any]]


def batch_size(gpu_bytes: int | None) -> int:
    """How many slices at once go well with so much GPU memory (None: no GPU). Counted in 10^9 bytes, as cards are sold."""
    if gpu_bytes is None:
        return 1
    return next((size for below, size in _BY_MEMORY if gpu_bytes < below * 10**9), _MOST)


@dataclass(eq=False)
class Ticket:
    """One request's items. future: its results, in order; cancelling it takes what has not begun out of the queue."""

    items: Sequence[Any]
    deadline: float | None
    future: Future[list[Any]] = field(default_factory=Future)
    results: dict[int, Any] = field(default_factory=dict)
    queued: deque[int] = field(default_factory=deque)


@dataclass(eq=False)
class _Lane:
    compute: Compute
    most: int
    tickets: list[Ticket] = field(default_factory=list)
    running: set[Ticket] = field(default_factory=set)
    draining: bool = False


class Batches:
    """The lanes and who waits in them. submit: puts work on an inference thread. Safe to use from several threads."""

    def __init__(self, submit: Callable[[Callable[[], None]], Job[None]]) -> None:
        self._submit = submit
        self._lock = threading.Lock()
        self._lanes: dict[Hashable, _Lane] = {}
        self.batches = 0  # how many were computed: what tests and metrics look at

    def add(self, key: Hashable, items: Sequence[Any], compute: Compute, *, most: int = 32, seconds: float | None = None) -> Future[list[Any]]:
        """Queue items. key: what may share a batch; most: items in a batch; seconds: how long the request may wait to begin.

        Raises `BusyError` when the inference threads' queue is full.
        """
        ticket = Ticket(items, None if seconds is None else time.monotonic() + seconds, queued=deque(range(len(items))))
        if not items:
            ticket.future.set_result([])
            return ticket.future
        with self._lock:
            lane = self._lanes.setdefault(key, _Lane(compute, max(1, most)))
            lane.tickets.append(ticket)
            begin = not lane.draining
            lane.draining = True
        if begin:
            self._begin(key)
        return ticket.future

    def _begin(self, key: Hashable) -> None:
        try:
            job = self._submit(lambda: self._drain(key))
        except BusyError as error:
            self._fail_all(key, error)
            raise
        # Dropped or given up by the threads: nobody is left waiting.
        job.add_done_callback(lambda done: self._ended(key, done))

    def _ended(self, key: Hashable, done: Future[None]) -> None:
        if done.cancelled():
            self._fail_all(key, CancelledError("the server is stopping"))
        elif isinstance(error := done.exception(), DeadlineError):
            self._leave_behind(key, error)

    def _leave_behind(self, key: Hashable, error: Exception) -> None:
        """A batch hangs: its requests fail, the others go on in a lane of their own, which the hanging thread does not know."""
        with self._lock:
            lane = self._lanes.pop(key, None)
            if lane is None:
                return
            rest = [t for t in lane.tickets if t not in lane.running and t.queued]
            if rest:
                self._lanes[key] = _Lane(lane.compute, lane.most, rest, draining=True)
        for ticket in lane.running:
            _settle(ticket, error)
        if rest:
            with contextlib.suppress(BusyError):  # said to all that waited
                self._begin(key)

    def _fail_all(self, key: Hashable, error: Exception) -> None:
        with self._lock:
            lane = self._lanes.pop(key, None)
        for ticket in lane.tickets if lane else ():
            _settle(ticket, error)

    def _drain(self, key: Hashable) -> None:
        """Compute one batch; what is left, or came meanwhile, gets in line again behind other work."""
        with self._lock:
            lane = self._lanes.get(key)
            batch = self._next(lane) if lane is not None else []
            if lane is not None:
                lane.running = {ticket for ticket, _ in batch}
        if lane is not None and batch:
            self._compute(lane, batch)
        with self._lock:
            if self._lanes.get(key) is not lane or lane is None:
                return
            lane.tickets = [t for t in lane.tickets if t.queued and not t.future.done()]
            if not lane.tickets:
                del self._lanes[key]
                return
        with contextlib.suppress(BusyError):  # said to all that waited
            self._begin(key)

    def _next(self, lane: _Lane) -> list[tuple[Ticket, int]]:
        """Items for one batch, one of each ticket in turn. Tickets whose time is over or whose caller left are dropped."""
        now = time.monotonic()
        alive = []
        for ticket in lane.tickets:
            if ticket.deadline is not None and now > ticket.deadline and len(ticket.queued) == len(ticket.items):
                _settle(ticket, BusyError("the server has too much work waiting; try again shortly"))
            elif not ticket.future.cancelled() and not ticket.future.done():
                alive.append(ticket)
        batch: list[tuple[Ticket, int]] = []
        while len(batch) < lane.most and any(t.queued for t in alive):
            for ticket in alive:
                if ticket.queued and len(batch) < lane.most:
                    batch.append((ticket, ticket.queued.popleft()))
        return batch

    def _compute(self, lane: _Lane, batch: Sequence[tuple[Ticket, int]]) -> None:
        self.batches += 1
        try:
            results = lane.compute([ticket.items[index] for ticket, index in batch], lambda: all(ticket.future.done() for ticket, _ in batch))
            if len(results) != len(batch):
                raise ValueError(f"{len(results)} results for {len(batch)} items")
        except (MemoryLimitError, BusyError, CancelledError, DeadlineError) as error:
            for ticket, _ in batch:  # not an item's fault, and no better one by one
                _settle(ticket, error)
        except Exception as error:
            if len(batch) == 1:
                _settle(batch[0][0], error)
                return
            half = len(batch) // 2
            for part in (batch[:half], batch[half:]):
                if wanted := [entry for entry in part if not entry[0].future.done()]:
                    self._compute(lane, wanted)
        else:
            for (ticket, index), result in zip(batch, results, strict=True):
                ticket.results[index] = result
                if len(ticket.results) == len(ticket.items):
                    _settle(ticket, None)


def _settle(ticket: Ticket, error: Exception | None) -> None:
    future = ticket.future
    with contextlib.suppress(InvalidStateError):  # another thread was first
        if future.done() or not future.set_running_or_notify_cancel():
            return
        ticket.queued.clear()
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result([ticket.results[i] for i in range(len(ticket.items))])
