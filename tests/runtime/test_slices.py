"""Batches across clients: in turn, with deadlines, each failure alone, nobody left waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.core.errors import BusyError, DeadlineError
from isocenter.runtime.slices import Batches, batch_size
from isocenter.runtime.workers import Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(1, 4)
    yield made
    made.close()


def block(workers: Workers) -> threading.Event:
    gate = threading.Event()
    workers.submit(lambda: gate.wait(60))
    return gate


@given(
    requests=st.lists(st.lists(st.integers(0, 9), max_size=7), min_size=1, max_size=5),
    broken=st.sets(st.integers(0, 9), max_size=3),
    most=st.integers(1, 6),
)
@settings(max_examples=40, deadline=None)
def test_every_request_gets_its_own_results_or_its_own_failure(requests: list[list[int]], broken: set[int], most: int) -> None:
    workers = Workers(1, 8)
    batches = Batches(workers.submit)
    largest = [0]

    def compute(items: Sequence[int], unwanted: Any) -> list[int]:
        largest[0] = max(largest[0], len(items))
        if any(item in broken for item in items):
            raise ValueError(str([i for i in items if i in broken]))
        return [item * item for item in items]

    gate = block(workers)
    futures = [batches.add("lane", items, compute, most=most) for items in requests]
    gate.set()
    for items, future in zip(requests, futures, strict=True):
        if broken & set(items):
            with pytest.raises(ValueError, match=r"\[\d\]"):
                future.result(60)
        else:
            assert future.result(60) == [i * i for i in items]
    assert largest[0] <= most
    workers.close()


def test_clients_take_turns(workers: Workers) -> None:
    """One with a hundred slices does not make one with a single slice wait for all of them."""
    batches = Batches(workers.submit)
    order: list[list[str]] = []
    gate = block(workers)

    def compute(items: Sequence[Any], unwanted: Any) -> list[Any]:
        order.append(list(items))
        return list(items)

    large = batches.add("lane", ["large"] * 100, compute, most=8)
    small = batches.add("lane", ["small"], compute, most=8)
    gate.set()
    assert small.result(60) == ["small"]
    assert "small" in order[0]
    assert large.result(60) == ["large"] * 100
    assert batches.batches == 13


def test_who_leaves_or_comes_too_late_is_not_computed(workers: Workers) -> None:
    batches = Batches(workers.submit)
    seen: list[str] = []
    gate = block(workers)

    def compute(items: Sequence[Any], unwanted: Any) -> list[Any]:
        seen.extend(items)
        return list(items)

    left = batches.add("lane", ["left"], compute)
    late = batches.add("lane", ["late"], compute, seconds=0)
    stays = batches.add("lane", ["stays"], compute)
    assert left.cancel()
    gate.set()
    assert stays.result(60) == ["stays"]
    with pytest.raises(BusyError):
        late.result(60)
    assert seen == ["stays"]


def test_a_full_queue_and_a_hanging_batch_leave_nobody_waiting() -> None:
    workers = Workers(1, 0)
    batches = Batches(workers.submit)
    gate = block(workers)
    with pytest.raises(BusyError):
        batches.add("lane", [1], lambda items, unwanted: list(items))
    gate.set()
    workers.close()

    workers = Workers(1, 2, 2.0)
    batches, hangs = Batches(workers.submit), threading.Event()

    def compute(items: Sequence[int], unwanted: Any) -> list[int]:
        if 1 in items:
            hangs.wait(60)
        return list(items)

    first = batches.add("lane", [1], compute)
    while workers.waiting and not batches.batches:
        pass
    second = batches.add("lane", [2], compute)
    with pytest.raises(DeadlineError):
        first.result(60)
    assert second.result(60) == [2]
    hangs.set()
    workers.close()


def test_the_documents_rule() -> None:
    assert [batch_size(n * 10**9) for n in (4, 6, 8, 12, 16, 24, 80)] == [1, 2, 3, 4, 6, 8, 8]
    assert batch_size(None) == 1
