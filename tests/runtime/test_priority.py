"""Threads that compute are nicer than the one that answers, and so are the threads that they start."""

from __future__ import annotations

import gc
import os
import sys
import threading
from concurrent.futures import Future

import pytest

from isocenter.runtime.batching import Batcher, Lane
from isocenter.runtime.priority import STEPS, settle_down, stand_back
from isocenter.runtime.workers import Workers

linux = pytest.mark.skipif(sys.platform != "linux", reason="niceness belongs to the process elsewhere")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@linux
def test_a_thread_and_its_children_step_back_and_the_others_do_not() -> None:
    before = niceness()
    found: Future[tuple[int, int]] = Future()

    def work() -> None:
        stand_back()
        inner: list[int] = []
        child = threading.Thread(target=lambda: inner.append(niceness()))
        child.start()
        child.join()
        found.set_result((niceness(), inner[0]))

    threading.Thread(target=work).start()
    assert found.result(60) == (min(19, before + STEPS),) * 2
    assert niceness() == before


@linux
def test_inference_and_batches_of_texts_run_there() -> None:
    mine = min(19, niceness() + STEPS)
    workers, batcher = Workers(1, 1), Batcher(slots=1)
    try:
        assert workers.submit(niceness).result(60) == mine
        ticket = batcher.submit(Lane("niceness", lambda ids, mask: [niceness()] * len(ids), 0), [(1, 2)])
        assert ticket.future.result(60) == [mine]
    finally:
        workers.close()
        batcher.close()


def test_what_is_loaded_is_left_out_of_collections() -> None:
    interval = sys.getswitchinterval()
    try:
        settle_down()
        assert gc.get_freeze_count() > 0
        assert sys.getswitchinterval() < 0.005
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)
