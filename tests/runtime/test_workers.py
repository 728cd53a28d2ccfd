"""Inference threads: bounded, cancellable, and rid of work that never ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from isocenter.core.errors import BusyError, DeadlineError
from isocenter.runtime.workers import Workers, current


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(1, 2)
    yield made
    made.close()


class Gate:
    """Work that runs until it is let go."""

    def __init__(self, workers: Workers, **how: float) -> None:
        self.started, self.open = threading.Event(), threading.Event()
        self.job = workers.submit(self, **how)
        assert self.started.wait(60)

    def __call__(self) -> str:
        self.started.set()
        assert self.open.wait(60)
        return "done"


def test_results_errors_and_a_bounded_queue(workers: Workers) -> None:
    gate = Gate(workers)
    second, third = workers.submit(lambda: 2), workers.submit(lambda: 1 // 0)
    with pytest.raises(BusyError):
        workers.submit(lambda: 4)
    assert workers.waiting == 3
    gate.open.set()
    assert (gate.job.result(60), second.result(60)) == ("done", 2)
    with pytest.raises(ZeroDivisionError):
        third.result(60)


def test_cancelled_work_leaves_the_queue_at_once(workers: Workers) -> None:
    gate = Gate(workers)
    ran: list[int] = []
    jobs = [workers.submit(lambda: ran.append(1)) for _ in range(2)]
    assert all(job.cancel() for job in jobs)
    assert workers.waiting == 1
    workers.submit(lambda: None)
    assert not gate.job.cancel(), "what runs is told instead"
    assert gate.job.unwanted.is_set()
    gate.open.set()
    assert gate.job.result(60) == "done"
    assert not ran


def test_a_coroutine_that_is_cancelled_takes_its_work_along(workers: Workers) -> None:
    gate = Gate(workers)
    ran: list[int] = []

    async def ask() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(workers.submit(lambda: ran.append(1))), 0.05)

    asyncio.run(ask())
    gate.open.set()
    gate.job.result(60)
    assert workers.submit(lambda: 5).result(60) == 5
    assert not ran


def test_work_that_hangs_is_given_up_and_another_thread_takes_over(workers: Workers) -> None:
    given_up = threading.Event()
    gate = Gate(workers, seconds=0.1)
    gate.job.on_abandon.append(given_up.set)
    with pytest.raises(DeadlineError, match=r"no answer within 0\.1 seconds"):
        gate.job.result(60)
    assert workers.submit(lambda: "next").result(60) == "next", "though the first thread still hangs"
    assert given_up.wait(60)
    assert workers.waiting == 0
    gate.open.set()
    time.sleep(0.05)
    assert workers.submit(lambda: threading.current_thread().name).result(60)


def test_a_thread_knows_its_job(workers: Workers) -> None:
    assert current() is None
    job = workers.submit(current)
    assert job.result(60) is job


def test_nothing_is_started_before_there_is_work() -> None:
    before = threading.active_count()
    workers = Workers(4, 4)
    assert threading.active_count() == before
    workers.submit(lambda: None).result(60)
    workers.close()
    with pytest.raises(BusyError):
        workers.submit(lambda: None)
