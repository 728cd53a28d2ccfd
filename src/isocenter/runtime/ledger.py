"""The memory ledger of one device: who may use how much of it, in which order.

A claim is for a model's weights and its scratch memory together, granted in one step (to take one and then wait for the
other is how two models lock each other out). At every moment

    weights of loaded models, used or idle + scratch of the claims that are granted <= budget = capacity - headroom.

Room is made by closing idle models, the one that was used longest ago first. Claims are granted in the order in which
they came, except that one may go ahead of others that do not fit yet, and that those of the phase at work go ahead of
those of another: segmentation, embedding and narration take turns where they do not fit side by side, instead of loading
each other out. No claim is overtaken more often than `overtakes` times; from then on all others wait for it.

Lock order: one condition guards all of a ledger; models are closed with it released, by whichever waiting thread finds
that room is needed, one at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from isocenter.core.errors import BusyError, CancelledError, IsocenterError, MemoryLimitError
from isocenter.runtime.environment import size

#: Phases in the order of a pipeline; the next one in this circle that somebody waits for gets its turn.
PHASES = ("segmentation", "embedding", "narrative")
#: How often a waiting thread asks whether its caller still wants the answer, in seconds.
_ASK = 0.1


class DeviceLostError(IsocenterError):
    """The device stopped working; what waited or ran there has to go elsewhere. Not for clients."""


@dataclass(eq=False)
class Resident:
    """A model in a device's memory. value: the model, None until its first holder has loaded it (under `loading`)."""

    key: Hashable
    bytes: int
    phase: str
    slots: int = 1
    users: int = 0
    used: float = 0.0
    value: Any = None
    close: Callable[[], None] | None = None
    gone: bool = False  # to be closed by its last user
    loading: threading.Lock = field(default_factory=threading.Lock)


@dataclass(eq=False)
class Claim:
    """One wish for a model and memory. overtaken: how often a later one was granted before it."""

    key: Hashable
    weights: int
    scratch: int
    phase: str
    slots: int
    number: int
    overtaken: int = 0
    resident: Resident | None = None

    @property
    def granted(self) -> bool:
        return self.resident is not None


class Ledger:
    """One device's memory. Safe to use from any number of threads."""

    def __init__(self, capacity: int, headroom: int = 0, *, queue_size: int = 1024, overtakes: int = 8, name: str = "device") -> None:
        self.name = name
        self.capacity = capacity
        self.headroom = headroom
        self.used = 0
        self.peak = 0
        self.evictions = 0
        self.grants = 0
        self._queue_size = queue_size
        self._overtakes = overtakes
        self._wake = threading.Condition(threading.Lock())
        self._residents: dict[Hashable, Resident] = {}
        self._leaving: list[Resident] = []  # dropped while somebody used them: they count until they are closed
        self._waiting: list[Claim] = []
        self._numbers = itertools.count()
        self._phase = PHASES[0]
        self._evicting = 0
        self._lost = False
        #: Called as (stage, key, seconds) when a model was closed.
        self.observe: Callable[[str, Hashable, float], None] = lambda stage, key, seconds: None

    @property
    def budget(self) -> int:
        """Bytes that models may take."""
        return max(0, self.capacity - self.headroom)

    @property
    def lost(self) -> bool:
        """Whether the device stopped working."""
        return self._lost

    @property
    def waiting(self) -> int:
        """Claims that wait."""
        return len(self._waiting)

    def state(self) -> dict[str, Any]:
        """What is where, for people and metrics."""
        with self._wake:
            idle = sum(r.bytes for r in self._residents.values() if not r.users)
            models = [{"model": str(r.key), "bytes": r.bytes, "users": r.users} for r in self._residents.values()]
            return {
                "capacity_bytes": self.capacity,
                "headroom_bytes": self.headroom,
                "budget_bytes": self.budget,
                "leased_bytes": self.used - idle,
                "idle_bytes": idle,
                "waiting": len(self._waiting),
                "lost": self._lost,
                "models": models,
            }

    def holds(self, key: Hashable) -> tuple[bool, bool]:
        """(whether a model is in memory, whether one more could use it at once)."""
        with self._wake:
            resident = self._residents.get(key)
            return resident is not None, resident is not None and resident.users < resident.slots

    def alone(self) -> bool:
        """Whether at most one claim is held."""
        with self._wake:
            return sum(r.users for r in (*self._residents.values(), *self._leaving)) <= 1

    def fits(self, need: int) -> bool:
        """Whether so much is free at once, with nothing closed."""
        with self._wake:
            return not self._lost and not self._waiting and self.used + need <= self.budget

    @contextmanager
    def claim(
        self,
        key: Hashable,
        *,
        weights: int,
        scratch: int,
        phase: str = PHASES[0],
        slots: int = 1,
        cancelled: Callable[[], bool] | None = None,
        timeout: float | None = None,
    ) -> Iterator[Claim]:
        """Wait for room and hold it. slots: how many may hold one model at once; timeout: seconds to wait at most.

        Raises `MemoryLimitError` for more than the whole budget, `BusyError` when too many wait or the time is over,
        `CancelledError`, `DeviceLostError`. Do not wait for a second claim while holding one.
        """
        claim = Claim(key, weights, scratch, phase, slots, next(self._numbers))
        self._wait(claim, cancelled, None if timeout is None else time.monotonic() + timeout)
        try:
            yield claim
        finally:
            self._release(claim)

    def evict_idle(self) -> int:
        """Close all idle models; returns the bytes that came free."""
        with self._wake:
            while self._evicting:
                self._wake.wait()
            idle = [r for r in self._residents.values() if not r.users]
            before = self.used
            self._evict(idle)
            return before - self.used

    def discard(self, claim: Claim) -> None:
        """The model of a granted claim is not to be used again: closed when its last user is done, and loaded anew by the next."""
        with self._wake:
            resident = claim.resident
            if resident is not None and not resident.gone:
                resident.gone = True
                if self._residents.get(resident.key) is resident:
                    del self._residents[resident.key]
                    self._leaving.append(resident)
                self._wake.notify_all()

    def correct(self, claim: Claim, weights: int) -> None:
        """A loaded model was measured: book its true size, as far as the budget goes."""
        with self._wake:
            resident = claim.resident
            if resident is not None:
                grown = min(weights - resident.bytes, max(0, self.budget - self.used))
                resident.bytes += grown
                self._book(grown)
                self._wake.notify_all()

    def resize(self, capacity: int) -> None:
        """The device has more or less memory for us than was thought (other processes came or went)."""
        with self._wake:
            self.capacity = capacity
            self._wake.notify_all()

    def lose(self) -> None:
        """The device stopped working: whoever waits gets `DeviceLostError`, and nobody is let in again."""
        with self._wake:
            self._lost = True
            self._wake.notify_all()

    def close(self) -> None:
        """Close the idle models."""
        self.evict_idle()

    # All below holds the condition.

    def _wait(self, claim: Claim, cancelled: Callable[[], bool] | None, deadline: float | None) -> None:
        with self._wake:
            self._admit(claim)
            self._waiting.append(claim)
            try:
                while not claim.granted:
                    if not self._step():
                        self._check(claim, cancelled, deadline)
                        left = None if deadline is None else max(0.0, deadline - time.monotonic())
                        pause = _ASK if cancelled is not None else None
                        self._wake.wait(min((t for t in (left, pause) if t is not None), default=None))
            except BaseException:
                if claim.granted:
                    self._let_go(claim)
                else:
                    self._waiting.remove(claim)
                self._wake.notify_all()
                raise

    def _admit(self, claim: Claim) -> None:
        if claim.weights + claim.scratch > self.budget:
            raise MemoryLimitError(
                f"this needs {size(claim.weights + claim.scratch)} of memory on {self.name}, which has {size(self.budget)} for models: "
                "choose a smaller model or a lower precision, or set ISOCENTER_MEMORY_BUDGET_BYTES when you know better"
            )
        if len(self._waiting) >= self._queue_size:
            raise BusyError("the server has too much work waiting; try again shortly")

    def _check(self, claim: Claim, cancelled: Callable[[], bool] | None, deadline: float | None) -> None:
        if self._lost:
            raise DeviceLostError(f"{self.name} stopped working")
        if cancelled is not None and cancelled():
            raise CancelledError("the work was cancelled")
        if deadline is not None and time.monotonic() >= deadline:
            raise BusyError("the models were in use for too long; try again later")
        if claim.weights + claim.scratch > self.budget:
            self._admit(claim)  # the budget shrank meanwhile

    def _step(self) -> bool:
        """Grant one claim or make room for one; False when nothing can be done now."""
        if self._evicting or self._lost:
            return False
        passed: set[Hashable] = set()
        for claim in self._order():
            resident = self._residents.get(claim.key)
            if resident is not None and resident.users >= resident.slots:
                continue  # waits for the model and not for memory: nobody has to wait for it
            need = claim.scratch + (0 if resident is not None else claim.weights)
            if self.used + need <= self.budget:
                self._grant(claim, resident)
                return True
            victims = self._victims(self.used + need - self.budget, spared=passed | {claim.key})
            if victims:
                self._evict(victims)
                return True
            if claim.overtaken >= self._overtakes:
                return False
            passed.add(claim.key)
        return False

    def _order(self) -> list[Claim]:
        """Who is asked first: those overtaken often enough, then the phase at work (models that are loaded before others), then the next phase."""
        here = PHASES.index(self._phase) if self._phase in PHASES else 0

        def rank(claim: Claim) -> tuple[bool, int, bool, int]:
            if claim.overtaken >= self._overtakes:
                return False, 0, False, claim.number
            turn = (PHASES.index(claim.phase) - here) % len(PHASES) if claim.phase in PHASES else 0
            return True, turn, claim.key not in self._residents, claim.number

        return sorted(self._waiting, key=rank)

    def _victims(self, missing: int, *, spared: set[Hashable]) -> list[Resident]:
        """Idle models to close, used longest ago first; none when that would not do. Spared: what those that it goes ahead of wait for."""
        idle = sorted((r for r in self._residents.values() if not r.users and r.key not in spared), key=lambda r: r.used)
        victims = []
        for resident in idle:
            if missing <= 0:
                break
            if resident.bytes:
                victims.append(resident)
                missing -= resident.bytes
        return victims if missing <= 0 else []

    def _grant(self, claim: Claim, resident: Resident | None) -> None:
        for other in self._waiting:
            held = self._residents.get(other.key)
            if other.number < claim.number and not (held is not None and held.users >= held.slots):
                other.overtaken += 1
        if resident is None:
            resident = self._residents[claim.key] = Resident(claim.key, claim.weights, claim.phase, claim.slots)
            self._book(claim.weights)
        resident.users += 1
        self.grants += 1
        self._book(claim.scratch)
        self._phase = claim.phase
        claim.resident = resident
        self._waiting.remove(claim)
        self._wake.notify_all()

    def _book(self, count: int) -> None:
        self.used += count
        self.peak = max(self.peak, self.used)

    def _release(self, claim: Claim) -> None:
        with self._wake:
            self._let_go(claim)
            self._wake.notify_all()

    def _let_go(self, claim: Claim) -> None:
        resident = claim.resident
        if resident is None:
            return
        resident.users -= 1
        resident.used = time.monotonic()
        self.used -= claim.scratch
        if resident.gone and not resident.users:
            self._evict([resident])
        elif resident.value is None and not resident.users:
            self._forget(resident)  # its holder did not load it

    def _evict(self, victims: list[Resident]) -> None:
        """Close models, with the lock released meanwhile; their bytes count until they are closed."""
        if not victims:
            return
        for resident in victims:
            resident.gone = True
            if self._residents.get(resident.key) is resident:
                del self._residents[resident.key]
                self._leaving.append(resident)
        self._evicting += 1
        self._wake.release()
        try:
            for resident in victims:
                started = time.perf_counter()
                if resident.close is not None:
                    with contextlib.suppress(Exception):  # a model that cannot even be closed is forgotten all the same
                        resident.close()
                self.observe("evict", resident.key, time.perf_counter() - started)
        finally:
            self._wake.acquire()
            self._evicting -= 1
            for resident in victims:
                self._forget(resident)
                self.evictions += 1
            self._wake.notify_all()

    def _forget(self, resident: Resident) -> None:
        if resident in self._leaving:
            self._leaving.remove(resident)
        elif self._residents.get(resident.key) is resident:
            del self._residents[resident.key]
        else:
            return
        self.used -= resident.bytes
