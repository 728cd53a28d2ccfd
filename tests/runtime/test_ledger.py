"""The memory ledger: never over budget, nobody starved, phases in turn."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from isocenter.core.errors import BusyError, CancelledError, MemoryLimitError
from isocenter.runtime.ledger import PHASES, Claim, DeviceLostError, Ledger

GB = 10**9
#: Weights and scratch of five models of three phases; they do not fit side by side in 24 GB.
MODELS = {
    "medsam": (1 * GB, 2 * GB, "segmentation"),
    "nnunet": (1 * GB, 4 * GB, "segmentation"),
    "medsiglip": (2 * GB, 2 * GB, "embedding"),
    "medgemma-4b": (9 * GB, 2 * GB, "narrative"),
    "medgemma-27b": (17 * GB, 4 * GB, "narrative"),
}


class Card:
    """What really lies on a simulated card, counted apart from the ledger: it is loaded and closed by the holders of claims."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.Lock()
        self.taken = 0
        self.loads: Counter[str] = Counter()

    def take(self, count: int) -> None:
        with self.lock:
            self.taken += count
            assert self.taken <= self.size, "out of memory"

    @contextmanager
    def use(self, ledger: Ledger, model: str, **how: float) -> Iterator[Claim]:
        weights, scratch, phase = MODELS[model]
        with ledger.claim(model, weights=weights, scratch=scratch, phase=phase, **how) as claim:  # type: ignore[arg-type]
            resident = claim.resident
            assert resident is not None
            with resident.loading:
                if resident.value is None:
                    self.take(weights)
                    self.loads[model] += 1
                    resident.close = lambda: self.take(-weights)
                    resident.value = model
            self.take(scratch)
            try:
                yield claim
            finally:
                self.take(-scratch)


def crowd(ledger: Ledger, card: Card, requests: int, slots: int) -> Counter[int]:
    """16 threads with so many requests in all, for any of the models; returns how many were overtaken how often."""
    overtaken: Counter[int] = Counter()
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        choice = random.Random(seed)
        try:
            for _ in range(requests // 16):
                asked = time.monotonic()
                with card.use(ledger, choice.choice(list(MODELS)), slots=slots) as claim:
                    assert time.monotonic() - asked < 60, "starved"
                    overtaken[claim.overtaken] += 1
                    if choice.random() < 0.05:
                        time.sleep(0.0005)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not any(t.is_alive() for t in threads), "somebody still waits"
    return overtaken


@pytest.mark.parametrize("slots", [1, 3])
def test_sixteen_threads_five_models_one_card(slots: int) -> None:
    """4 000 requests for 24 GB: all are answered, the card is never overfull, and nobody is passed by more than eight."""
    card, ledger = Card(24 * GB), Ledger(24 * GB)
    overtaken = crowd(ledger, card, 4000, slots)
    assert sum(overtaken.values()) == 4000
    assert max(overtaken) <= 8
    assert 15 * GB < ledger.peak <= ledger.budget, "never over, and put to use"
    ledger.close()
    assert (card.taken, ledger.used, ledger.waiting) == (0, 0, 0)
    strict, queue = Card(24 * GB), Ledger(24 * GB, overtakes=0)
    crowd(queue, strict, 1000, slots)
    assert card.loads.total() / 4000 < 0.75 * strict.loads.total() / 1000, "taking turns loads models less often than first come, first served"


class Ledgers(RuleBasedStateMachine):
    """Claims come, go, are cancelled and corrected in any order; without threads, so that each step is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(100, 10, overtakes=2)
        self.held: list[Claim] = []
        self.number = 0

    def settle(self) -> None:
        with self.ledger._wake:
            while self.ledger._step():
                pass

    @rule(model=st.integers(0, 4), scratch=st.integers(0, 40), phase=st.sampled_from(PHASES), slots=st.integers(1, 2))
    def ask(self, model: int, scratch: int, phase: str, slots: int) -> None:
        claim = Claim(model, (0, 10, 25, 40, 50)[model], scratch, phase, slots, self.number)
        self.number += 1
        with self.ledger._wake:
            self.ledger._admit(claim)
            self.ledger._waiting.append(claim)
        self.held.append(claim)
        self.settle()

    @precondition(lambda self: any(c.granted for c in self.held))
    @rule(data=st.data(), drop=st.booleans(), loaded=st.booleans())
    def release(self, data: st.DataObject, drop: bool, loaded: bool) -> None:
        claim = data.draw(st.sampled_from([c for c in self.held if c.granted]))
        assert claim.resident is not None
        if loaded:
            claim.resident.value = "model"
        if drop:
            self.ledger.discard(claim)
        self.held.remove(claim)
        self.ledger._release(claim)
        self.settle()

    @precondition(lambda self: any(c.granted for c in self.held))
    @rule(data=st.data(), weights=st.integers(0, 60))
    def measure(self, data: st.DataObject, weights: int) -> None:
        self.ledger.correct(data.draw(st.sampled_from([c for c in self.held if c.granted])), weights)
        self.settle()

    @precondition(lambda self: any(not c.granted for c in self.held))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from([c for c in self.held if not c.granted]))
        self.held.remove(claim)
        self.ledger._waiting.remove(claim)
        self.settle()

    @invariant()
    def sums_are_right(self) -> None:
        ledger = self.ledger
        residents = [*ledger._residents.values(), *ledger._leaving]
        granted = [c for c in self.held if c.granted]
        assert ledger.used == sum(r.bytes for r in residents) + sum(c.scratch for c in granted)
        assert 0 <= ledger.used <= ledger.budget
        assert sum(r.users for r in residents) == len(granted)
        assert all(r.users <= r.slots for r in residents)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """When nothing is held, nothing waits; and nobody is passed more than twice."""
        assert any(c.granted for c in self.held) or not self.held
        assert all(c.overtaken <= 2 for c in self.held)


Ledgers.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLedgers = Ledgers.TestCase


def test_models_of_other_phases_share_when_they_fit() -> None:
    card = Card(24 * GB)
    ledger = Ledger(24 * GB)
    with card.use(ledger, "medgemma-4b"), card.use(ledger, "medsam"), card.use(ledger, "medsiglip"):
        assert ledger.used == 18 * GB
    assert ledger.evictions == 0


def test_the_least_recently_used_leaves() -> None:
    ledger = Ledger(10)
    for key in "abca":
        with ledger.claim(key, weights=3, scratch=1) as claim:
            assert claim.resident is not None
            claim.resident.value = key
    with ledger.claim("d", weights=3, scratch=1):
        assert [ledger.holds(k)[0] for k in "abcd"] == [True, False, True, True]


def waits(ledger: Ledger, count: int = 1) -> None:
    deadline = time.monotonic() + 60
    while ledger.waiting < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_waiting_ends_by_cancelling_by_time_and_with_the_device() -> None:
    ledger = Ledger(10, queue_size=2)
    ends: dict[str, type[BaseException]] = {}
    gone = threading.Event()

    def ask(name: str, **how: object) -> None:
        try:
            with ledger.claim(name, weights=8, scratch=0, **how):  # type: ignore[arg-type]
                pass
        except Exception as error:
            ends[name] = type(error)

    with ledger.claim("a", weights=8, scratch=0):
        threads = [threading.Thread(target=ask, args=("left",), kwargs={"cancelled": gone.is_set}), threading.Thread(target=ask, args=("lost",))]
        for thread in threads:
            thread.start()
        waits(ledger, 2)
        with pytest.raises(BusyError, match="too much"), ledger.claim("more", weights=1, scratch=0):
            pass
        gone.set()
        threads[0].join(60)
        ask("late", timeout=0.05)
        ledger.lose()
        threads[1].join(60)
    assert ends == {"left": CancelledError, "late": BusyError, "lost": DeviceLostError}
    assert ledger.waiting == 0


def test_more_than_the_budget_is_refused_with_the_numbers() -> None:
    ledger = Ledger(24 << 20, 4 << 20, name="cuda:0")
    with (
        pytest.raises(MemoryLimitError, match=r"needs 21 MiB of memory on cuda:0, which has 20 MiB"),
        ledger.claim("m", weights=20 << 20, scratch=1 << 20),
    ):
        pass


def test_a_failed_load_leaves_nothing_behind() -> None:
    ledger = Ledger(10)
    with pytest.raises(RuntimeError), ledger.claim("a", weights=8, scratch=1):
        raise RuntimeError("weights are broken")
    assert (ledger.used, ledger.holds("a")) == (0, (False, False))


@given(st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
def test_turns_go_round_the_phases(order: list[int]) -> None:
    """While one phase works and all wait, the same phase goes first, then the next in the circle."""
    ledger = Ledger(10)
    done: list[str] = []
    phases = [PHASES[n % 3] for n in order]

    def ask(number: int, phase: str) -> None:
        with ledger.claim((phase, number), weights=6, scratch=0, phase=phase):
            done.append(phase)

    with ledger.claim("now", weights=6, scratch=0, phase="embedding"):
        threads = []
        for number, phase in enumerate(phases):
            threads.append(threading.Thread(target=ask, args=(number, phase)))
            threads[-1].start()
            waits(ledger, number + 1)
    for thread in threads:
        thread.join(60)
    assert done == ["embedding"] * 2 + ["narrative"] * 2 + ["segmentation"] * 2
