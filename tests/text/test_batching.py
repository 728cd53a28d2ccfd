"""The queue by itself: what shares a batch, who is next, what happens to those who leave or fail."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from isocenter.core.errors import BusyError
from isocenter.runtime.batching import Batcher, Lane, Ticket


class Recorder:
    """A lane's work that notes its batches, can be held up, and fails on the token 666."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()

    def __call__(self, ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> Sequence[Any]:
        self.entered.set()
        assert self.go.wait(60)
        self.batches.append([tuple(r[: int(m.sum())]) for r, m in zip(ids.tolist(), mask, strict=True)])
        if (ids == 666).any():
            raise ValueError("poison")
        return [int(row[m == 1].sum()) for row, m in zip(ids, mask, strict=True)]


@pytest.fixture
def run() -> Recorder:
    return Recorder()


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    made = Batcher(slots=1, token_budget=100, most_texts=8, queue_size=4)
    yield made
    made.close()


def test_results_keep_their_order_and_batches_are_sorted(batcher: Batcher, run: Recorder) -> None:
    texts = [(i,) * n for i, n in enumerate((3, 40, 12, 41, 2, 90, 11), start=1)]
    ticket = batcher.submit(Lane("a", run, 0), texts)
    assert ticket.future.result(60) == [sum(t) for t in texts]
    for batch in run.batches:
        longest = max(map(len, batch))
        assert longest * len(batch) <= 100 or len(batch) == 1
        assert min(map(len, batch)) >= 0.8 * longest - 4
    assert ticket.progress == 1
    assert (batcher.waiting, batcher.in_flight) == (0, 0)


def test_the_same_text_is_computed_once(batcher: Batcher, run: Recorder) -> None:
    run.go.clear()
    lane = Lane("a", run, 0)
    first = batcher.submit(lane, [(1, 2), (1, 2), (3,)])
    second = batcher.submit(lane, [(3,), (1, 2)])
    run.go.set()
    assert first.future.result(60) == [3, 3, 3]
    assert second.future.result(60) == [3, 3]
    assert sorted(t for b in run.batches for t in b) == [(1, 2), (3,)]


def test_where_padding_costs_nothing_other_lengths_share_a_batch(batcher: Batcher, run: Recorder) -> None:
    lane = Lane("a", run, 0, packed=True)
    run.go.clear()
    held = batcher.submit(lane, [(9,) * 99])
    assert run.entered.wait(60)
    texts = [(i,) * n for i, n in enumerate((3, 40, 12, 17, 2, 14), start=1)]
    tickets = [batcher.submit(lane, [text]) for text in texts[:3]]
    tickets.append(batcher.submit(lane, texts[3:]))
    run.go.set()
    assert held.future.result(60) == [9 * 99]
    assert [r for t in tickets for r in t.future.result(60)] == [sum(t) for t in texts]
    # Together 88 tokens, which fit; padded to the longest they would be 240.
    assert [sorted(len(t) for t in b) for b in run.batches] == [[99], [2, 3, 12, 14, 17, 40]]


def test_a_long_text_does_not_share_with_a_short_one_even_so(run: Recorder) -> None:
    batcher, lane = Batcher(slots=1, token_budget=1000, most_texts=8), Lane("a", run, 0, packed=True)
    try:
        ticket = batcher.submit(lane, [(1,) * 400, (2,) * 190, (3,) * 200, (4,) * 210])
        assert ticket.future.result(60) == [400, 380, 600, 840]
        assert [[len(t) for t in b] for b in run.batches] == [[400, 210, 200], [190]]
    finally:
        batcher.close()


def test_requests_share_batches_but_lanes_do_not(batcher: Batcher, run: Recorder) -> None:
    run.go.clear()
    other = Recorder()
    held = batcher.submit(Lane("a", run, 0), [(9,) * 50])
    assert run.entered.wait(60)
    tickets = [batcher.submit(Lane("a", run, 0), [(i, i)]) for i in range(3)]
    apart = batcher.submit(Lane("b", other, 0), [(7, 7)])
    assert (batcher.in_flight, batcher.waiting) == (1, 4)
    run.go.set()
    assert [t.future.result(60) for t in tickets] == [[0], [2], [4]]
    assert apart.future.result(60) == [14]
    assert held.future.result(60) == [450]
    assert len(run.batches) == 2
    assert other.batches == [[(7, 7)]]


def test_a_small_request_does_not_wait_for_a_large_one(batcher: Batcher, run: Recorder) -> None:
    lane = Lane("a", run, 0)
    run.go.clear()
    large = batcher.submit(lane, [(i,) * 60 for i in range(20)])
    assert run.entered.wait(60)
    small = batcher.submit(lane, [(5, 5)])
    run.go.set()
    assert small.future.result(60) == [10]
    assert large.future.result(60)
    assert [(5, 5)] in run.batches[:3]


def test_new_requests_that_never_end_do_not_starve_a_large_one(run: Recorder) -> None:
    """There is a new small request whenever a batch is chosen, as with clients that ask again and again."""
    batcher = Batcher(slots=1, token_budget=100, most_texts=8, queue_size=200)
    small: list[Ticket] = []
    order: list[str] = []

    def work(ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> Sequence[Any]:
        order.append("large" if ids.shape[1] == 60 else "small")
        if len(order) < 100:
            small.append(batcher.submit(lane, [(1000 + len(order),) * 20]))
        return run(ids, mask)

    lane = Lane("a", work, 0)
    try:
        large = batcher.submit(lane, [(i,) * 60 for i in range(10)])
        assert large.future.result(60) == [60 * i for i in range(10)]
        done = len(order)
        # Each has its share: three small texts have the tokens of a large one, and one comes with each batch.
        waits = [len(part) for part in "".join(name[0] for name in order[:done]).split("l")[1:-1]]
        assert done < 50
        assert max(waits) <= 4
        # Nor do the small ones wait until all of the large one is done.
        assert "small" in order[1:3]
    finally:
        batcher.close()


def test_a_list_of_texts_has_the_share_of_a_client_that_asks_one_by_one(run: Recorder) -> None:
    """Eight clients, each with the next text when it had its answer, but one that sent all of its texts at once."""
    batcher = Batcher(slots=1, token_budget=100, most_texts=1, queue_size=200)
    chosen: list[int] = []
    tickets: list[Ticket] = []

    def work(ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> Sequence[Any]:
        client = int(ids[0, 0])
        chosen.append(client)
        if client and len(chosen) < 80:
            submit(client, len(chosen))
        return run(ids, mask)

    def submit(client: int, turn: int) -> None:
        tickets.append(batcher.submit(lane, [(client, *[1000 + turn] * 99)]))

    lane = Lane("a", work, 0)
    try:
        run.go.clear()
        tickets.append(batcher.submit(lane, [(0, *[i] * 99) for i in range(1, 11)]))
        assert run.entered.wait(60)
        for client in range(1, 8):
            submit(client, 0)
        run.go.set()
        tickets[0].future.result(60)
        turns = [i for i, client in enumerate(chosen) if client == 0]
        assert len(turns) == 10
        assert max(later - turn for turn, later in itertools.pairwise(turns)) == 8
    finally:
        batcher.close()


def test_a_failure_is_that_of_its_batch(batcher: Batcher, run: Recorder) -> None:
    lane = Lane("a", run, 0)
    bad = batcher.submit(lane, [(666,) * 50, (1,)])
    good = batcher.submit(lane, [(2,)])
    with pytest.raises(ValueError, match="poison"):
        bad.future.result(60)
    assert good.future.result(60) == [2]
    assert batcher.submit(lane, [(3,)]).future.result(60) == [3]
    assert (batcher.waiting, batcher.in_flight) == (0, 0)


def test_who_leaves_takes_his_texts_along_but_not_those_of_others(batcher: Batcher, run: Recorder) -> None:
    lane = Lane("a", run, 0)
    run.go.clear()
    held = batcher.submit(lane, [(9,) * 50])
    assert run.entered.wait(60)
    leaver = batcher.submit(lane, [(1,) * 20, (2,) * 20])
    stayer = batcher.submit(lane, [(2,) * 20])
    assert batcher.drop(leaver, unless_started=True)
    assert not batcher.drop(held, unless_started=True)
    assert leaver.future.cancelled()
    run.go.set()
    assert stayer.future.result(60) == [40]
    assert held.future.result(60)
    assert (1,) * 20 not in [t for b in run.batches for t in b]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_text_that_all_have_left_can_be_asked_for_again(batcher: Batcher, run: Recorder, order: tuple[int, ...]) -> None:
    lane = Lane("a", run, 0)
    run.go.clear()
    held = batcher.submit(lane, [(9,) * 50])
    assert run.entered.wait(60)
    leavers = [batcher.submit(lane, [(1,) * 20, (i + 2,)]) for i in range(3)]
    for i in order:
        assert batcher.drop(leavers[i])
    assert len(batcher._known) == 1
    again = batcher.submit(lane, [(1,) * 20])
    run.go.set()
    assert again.future.result(60) == [20]
    assert held.future.result(60) == [450]


def test_the_queue_is_bounded(batcher: Batcher, run: Recorder) -> None:
    run.go.clear()
    batcher.submit(Lane("a", run, 0), [(9,)])
    assert run.entered.wait(60)
    for i in range(4):
        batcher.submit(Lane("a", run, 0), [(i,)])
    with pytest.raises(BusyError, match="GPU busy - retry later"):
        batcher.submit(Lane("a", run, 0), [(8,)])
    run.go.set()


def test_from_many_threads(run: Recorder) -> None:
    batcher = Batcher(slots=3, token_budget=64, queue_size=100)
    wrong: list[Any] = []

    def client(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            texts = [tuple(rng.integers(1, 50, rng.integers(1, 20)).tolist()) for _ in range(int(rng.integers(1, 6)))]
            ticket = batcher.submit(Lane("a", run, 0), texts)
            if rng.random() < 0.2:
                batcher.drop(ticket)
            elif ticket.future.result(60) != [sum(t) for t in texts]:
                wrong.append(texts)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    deadline = time.monotonic() + 60
    while (batcher.in_flight or batcher.busy) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not wrong
    assert (batcher.waiting, batcher.in_flight, len(batcher._known)) == (0, 0, 0)
    batcher.close()


def test_in_a_crowd_a_slot_waits_for_its_share(run: Recorder) -> None:
    batcher = Batcher(slots=1, token_budget=1000, most_texts=32, queue_size=64)
    lane = Lane("a", run, 0)
    try:
        run.go.clear()
        first = batcher.submit(lane, [(1,) * 3])
        assert run.entered.wait(60)
        crowd = [batcher.submit(lane, [(i,) * 3]) for i in range(10, 18)]
        time.sleep(0.5)  # so batches take long, and waiting for company pays
        run.go.set()
        for ticket in (first, *crowd):
            ticket.future.result(60)
        assert [len(b) for b in run.batches] == [1, 8]
        # They come again, one by one, to an idle slot, which does not run off with the first.
        again = []
        for i in range(20, 28):
            again.append(batcher.submit(lane, [(i,) * 3]))
            time.sleep(0.0005)
        for ticket in again:
            ticket.future.result(60)
        assert max(len(b) for b in run.batches[2:]) > 1
        # One who is alone is not made to wait for long, and in the end not at all.
        for i in range(40):
            batcher.submit(lane, [(100 + i,)]).future.result(60)
        assert batcher._crowd < 2
    finally:
        batcher.close()


def test_what_is_kept_of_a_result_is_the_requests_choice(batcher: Batcher, run: Recorder) -> None:
    lane, seen = Lane("a", run, 0), []

    def keep(position: int, result: int) -> None:
        seen.append((position, result))
        if result == 30:
            raise ValueError("not to be kept")

    ticket = batcher.submit(lane, [(1, 1), (2,) * 4, (1, 1)], keep)
    assert ticket.future.result(60) == [None, None, None]
    assert sorted(seen) == [(0, 2), (1, 8), (2, 2)]
    bad, good = batcher.submit(lane, [(10,) * 3], keep), batcher.submit(lane, [(10,) * 3])
    with pytest.raises(ValueError, match="not to be kept"):
        bad.future.result(60)
    assert good.future.result(60) == [30]
    assert batcher.busy == 0
