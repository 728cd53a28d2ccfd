"""Several worker processes under one parent: what dies is started again, and a stop reaches all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

import structlog

log = structlog.get_logger("isocenter.jobs")
#: Seconds before a process that dies at once is started again.
_PAUSE = 1.0


def supervise(command: Sequence[str], count: int) -> int:
    """Run `count` times `command` until SIGTERM or SIGINT, which is passed on; returns the exit code.

    A process that ends on its own is started again. Children end by themselves when their parent is gone (`orphaned`).
    """
    stopping = threading.Event()

    def stop(number: int, frame: object) -> None:
        stopping.set()
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(list(command), stdin=subprocess.DEVNULL, env={**os.environ, PARENT: str(os.getpid())})  # noqa: S603 - ours

    processes = [start() for _ in range(count)]
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while not stopping.wait(0.2):
        for place, process in enumerate(processes):
            if process.poll() is not None:
                log.warning("a worker process ended and is started again", code=process.returncode)
                time.sleep(_PAUSE)
                if not stopping.is_set():
                    processes[place] = start()
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    codes = [process.wait() for process in processes]
    # One that was told before it could listen died of it, which is what was wanted.
    return max((abs(code) for code in codes if code != -signal.SIGTERM), default=0)


#: The variable in which a child is told who its parent is.
PARENT = "ISOCENTER_PARENT_PROCESS"


def orphaned() -> bool:
    """Whether this process had a parent that supervised it and that is gone."""
    parent = os.environ.get(PARENT)
    return parent is not None and os.name == "posix" and os.getppid() != int(parent)


def run_until_stopped(start: Callable[[], object], drain: Callable[[], object]) -> None:
    """Call `start`, wait for SIGTERM, SIGINT or the parent's end, then call `drain`. A signal during `start` is kept."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    start()
    while not stopping.wait(0.5):
        if orphaned():
            break
    drain()
