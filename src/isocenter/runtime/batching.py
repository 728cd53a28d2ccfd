"""Texts of many requests in shared batches: sorted by length, padded little, each different text once, nobody starved.

A request is a `Ticket` with items (token sequences) for one engine. `slots` threads take batches: the ticket that was
served least so far gives the longest of its texts, then all tickets fill the batch with texts of about that length up to
a budget of tokens. Who comes later counts as served as much as an equal share would have given to anyone by then (the
virtual time of fair queueing: Demers, Keshav and Shenker, SIGCOMM 1989), so that new requests, however many, do not
keep a large one from its next batch. While a batch runs, the next one's texts gather; a batch only waits for company
(milliseconds) where the batches before had some, so that a client who is alone never waits.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import BusyError
from isocenter.runtime.priority import stand_back

Tokens = tuple[int, ...]
#: Results (one a text) of padded ids and mask, (texts, tokens) int64 each.
Run = Callable[[NDArray[np.int64], NDArray[np.int64]], Sequence[Any]]
#: A text may be this much shorter than the longest of its batch; beyond, its own batch costs less than the padding.
_SHORTEST, _SLACK = 0.8, 4
#: The same where only attention sees the padding: its part is small, but grows with the square of the length.
_SHORTEST_PACKED, _SLACK_PACKED = 0.5, 64
#: A batch waits for the crowd's share of a slot, but no longer than this part of what a batch took lately, and this many seconds.
_PATIENCE, _LONGEST = 0.5, 0.05
#: How fast a crowd is forgotten that does not come back, a batch.
_FORGET = 0.9


@dataclass(frozen=True)
class Lane:
    """Texts that may share a batch: one engine and what is made of its states. pad: the id that fills the rows up.

    packed: padding costs (nearly) nothing, so texts of more different lengths may share a batch, and only tokens count.
    """

    key: Hashable
    run: Run
    pad: int
    packed: bool = False

    def shortest(self, longest: int) -> float:
        """The fewest tokens of a text that may be in a batch with one of `longest`."""
        if self.packed:
            return min(longest * _SHORTEST_PACKED, longest - _SLACK_PACKED)
        return longest * _SHORTEST - _SLACK

    def longest(self, length: int) -> int:
        """The most tokens of a text that one of `length` may share a batch with: the way back from `shortest`; itself where padding costs."""
        return max(int(length / _SHORTEST_PACKED), length + _SLACK_PACKED) if self.packed else length

    def cost(self, length: int, longest: int) -> int:
        """Tokens that are computed for a text of this length in such a batch."""
        return length if self.packed else longest


@dataclass(eq=False)
class _Item:
    """One different text and who waits for it, as (ticket, position)."""

    lane: Lane
    ids: Tokens
    waiting: list[tuple[Ticket, int]]
    running: bool = False


@dataclass(eq=False)
class Ticket:
    """One request's texts. future: its results, in the texts' order. done and total count different texts.

    keep: what is kept of the result at a position; called by the slot that computed it, so possibly by several at once.
    """

    total: int
    results: list[Any]
    keep: Callable[[int, Any], Any] | None = None
    future: Future[list[Any]] = field(default_factory=Future)
    done: int = 0
    served: float = 0.0  # tokens that were run for it, on top of the queue's share when it came; who has the least is next
    started: bool = False
    queued: list[_Item] = field(default_factory=list)  # longest last, where `pop` takes it

    @property
    def progress(self) -> float:
        """0..1."""
        return self.done / self.total if self.total else 1.0


class Batcher:
    """The queue and its threads. Safe to use from several threads."""

    def __init__(self, *, slots: int = 2, token_budget: int = 1024, most_texts: int = 32, queue_size: int = 64) -> None:
        self.slots = slots
        self._budget = token_budget
        self._most = most_texts
        self._queue_size = queue_size
        self._wake = threading.Condition()
        self._tickets: list[Ticket] = []
        self._known: dict[tuple[Hashable, Tokens], _Item] = {}
        self._closed = False
        self._share = 0.0  # tokens that a request which was there all the time would have got
        self._crowd = 1.0  # most requests that were there at once, lately
        self._gathering = 0  # slots that wait for company
        self._seconds = 0.0  # what a batch takes, lately
        self.busy = 0  # slots that compute; one also finishes a batch whose clients have left
        self.batches = 0  # how many have run: what the tests and metrics look at
        self._threads = [threading.Thread(target=self._work, name=f"texts-{i}", daemon=True) for i in range(slots)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Requests of which nothing has begun."""
        with self._wake:
            return sum(not t.started for t in self._tickets)

    @property
    def in_flight(self) -> int:
        """Requests that are being computed."""
        with self._wake:
            return sum(t.started for t in self._tickets)

    def submit(self, lane: Lane, texts: Sequence[Tokens], keep: Callable[[int, Any], Any] | None = None) -> Ticket:
        """Queue texts; keep: see `Ticket`. Raises `BusyError` when too many requests wait already."""
        ticket = Ticket(len(set(texts)), [None] * len(texts), keep)
        if not texts:
            ticket.future.set_result([])
            return ticket
        with self._wake:
            if self._closed or sum(not t.started for t in self._tickets) >= self._queue_size:
                raise BusyError("GPU busy - retry later")
            fresh = []
            for position, ids in enumerate(texts):
                item = self._known.get((lane.key, ids))
                if item is None:
                    item = self._known[lane.key, ids] = _Item(lane, ids, [])
                    fresh.append(item)
                item.waiting.append((ticket, position))
                ticket.started |= item.running
            ticket.queued = sorted(fresh, key=lambda i: len(i.ids))
            ticket.served = self._share
            self._tickets.append(ticket)
            # A slot that waits for company is not woken for each of them: it looks again by itself soon.
            if not self._gathering or self._gathered():
                self._wake.notify()
        return ticket

    def drop(self, ticket: Ticket, *, unless_started: bool = False) -> bool:
        """Forget a request whose caller left; what others wait for too goes on. False: it had started and was kept, or is gone."""
        with self._wake:
            if unless_started and ticket.started:
                return False
            if not self._forget(ticket):
                return False
        ticket.future.cancel()
        return True

    def _forget(self, ticket: Ticket) -> bool:
        """Take a request and the texts that only it waits for out of the queue. Returns False when it was not there."""
        with self._wake:
            if ticket not in self._tickets:
                return False
            self._tickets.remove(ticket)
            for item in ticket.queued:
                # Whoever waited for another's text and left before is still in its list, and must not inherit it.
                item.waiting = [w for w in item.waiting if w[0] in self._tickets]
                if item.waiting:
                    heir = item.waiting[0][0]
                    heir.queued = sorted([*heir.queued, item], key=lambda i: len(i.ids))
                else:
                    self._known.pop((item.lane.key, item.ids), None)
            ticket.queued = []
            self._wake.notify_all()
        return True

    def close(self) -> None:
        """Finish the batches that run and drop what waits."""
        with self._wake:
            self._closed = True
            left = list(self._tickets)
            self._wake.notify_all()
        for thread in self._threads:
            thread.join(30)
        for ticket in left:
            self.drop(ticket)

    def _work(self) -> None:
        stand_back()
        while True:
            with self._wake:
                while not self._closed and not any(t.queued for t in self._tickets):
                    self._wake.wait()
                self._gather()
                if self._closed:
                    return
                if not any(t.queued for t in self._tickets):
                    continue  # another slot took all, or their clients left
                batch = self._next()
                self.busy += 1
                if any(t.queued for t in self._tickets):
                    self._wake.notify()  # what is left is for another slot
            self._run(batch)

    def _gather(self) -> None:
        """In a crowd, wait for company; holds the lock, and lets it go while it waits.

        Requests come one by one. A slot that took the first of them would leave the others to the next batch.
        """
        until = time.monotonic() + min(_LONGEST, _PATIENCE * self._seconds)
        self._gathering += 1
        while not self._closed and (left := until - time.monotonic()) > 0 and not self._gathered():
            self._wake.wait(left)
        self._gathering -= 1

    def _gathered(self) -> bool:
        """Whether a slot need not wait for company any longer; holds the lock."""
        here = [t for t in self._tickets if t.queued]
        if not here or len(here) >= int(self._crowd / self.slots):
            return True
        lengths = [len(i.ids) for t in here for i in t.queued]
        return len(lengths) >= self._most or sum(lengths) >= self._budget

    def _next(self) -> list[_Item]:
        """The next batch; holds the lock."""
        # Among equals one of which nothing has begun is first: a small request does not wait for a large one's next batch.
        ready = sorted((t for t in self._tickets if t.queued), key=lambda t: (t.served, t.started))
        first = ready[0].queued[-1]
        lane = first.lane
        most = lane.longest(len(first.ids))
        longest = max(_longest(t.queued, most) for t in ready if t.queued[0].lane.key == lane.key)
        least = lane.shortest(longest)
        batch: list[_Item] = []
        room = self._budget
        cheapest = lane.cost(max(1, int(least)), longest)
        for ticket in ready:
            kept: list[_Item] = []
            while ticket.queued and len(ticket.queued[-1].ids) >= least and len(batch) < self._most and (room >= cheapest or not batch):
                item = ticket.queued.pop()
                cost = lane.cost(len(item.ids), longest)
                if item.lane.key == lane.key and len(item.ids) <= longest and (cost <= room or not batch):
                    batch.append(item)
                    room -= cost
                else:
                    kept.append(item)
            ticket.queued.extend(reversed(kept))
        self._crowd = max(len(self._tickets), _FORGET * self._crowd)
        for item in batch:
            item.running = True
            for owner, _ in item.waiting:
                owner.started = True
                owner.served += lane.cost(len(item.ids), longest)
                self._share += lane.cost(len(item.ids), longest) / len(ready)
        self.batches += 1
        return batch

    def _run(self, batch: list[_Item]) -> None:
        lane, started = batch[0].lane, time.monotonic()
        try:
            results = lane.run(*padded([i.ids for i in batch], lane.pad))
            self._seconds += 0.2 * (time.monotonic() - started - self._seconds)
        except Exception as error:
            self._settle(batch, None, error)
        else:
            self._settle(batch, results, None)

    def _settle(self, batch: list[_Item], results: Sequence[Any] | None, error: Exception | None) -> None:
        """Hand results out; a failure is that of the requests with a text in this batch, and of nobody else."""
        with self._wake:
            for item in batch:
                self._known.pop((item.lane.key, item.ids), None)
        # Nobody joins these texts any more.
        failed = {} if error is None else {ticket: error for item in batch for ticket, _ in item.waiting}
        for item, result in zip(batch, results or (), strict=error is None):
            for ticket, position in item.waiting:
                try:
                    ticket.results[position] = result if ticket.keep is None else ticket.keep(position, result)
                except Exception as wrong:
                    failed[ticket] = wrong
        finished = set(failed)
        with self._wake:
            self.busy -= 1
            for item in batch:
                for ticket in {t for t, _ in item.waiting}:
                    ticket.done += 1
                    if ticket.done == ticket.total:
                        finished.add(ticket)
        for ticket in finished:
            if not self._forget(ticket) or not ticket.future.set_running_or_notify_cancel():
                continue  # its caller left while the batch ran
            if ticket in failed:
                ticket.future.set_exception(failed[ticket])
            else:
                ticket.future.set_result(ticket.results)


def _longest(items: Sequence[_Item], most: int) -> int:
    """Tokens of the longest text that has no more than `most`, of items sorted by length; 0 without one."""
    index = bisect_right(items, most, key=lambda i: len(i.ids))
    return len(items[index - 1].ids) if index else 0


def padded(texts: Sequence[Tokens], pad: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask, (texts, longest) each."""
    longest = max(len(t) for t in texts)
    ids = np.full((len(texts), longest), pad, np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return ids, mask
