"""Threads that compute step back behind those that answer."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading

#: Seconds that a thread may go on while others wait for the interpreter.
SWITCH = 0.001
#: Steps of niceness: a computing thread gets a third of the weight of one that answers, and all of a core that nobody else wants.
STEPS = 5


def stand_back() -> None:
    """Make this thread, and the threads that it will start (those of numba and of ONNX Runtime), nicer than the event loop's.

    Where there are as many computing threads as cores, the loop would otherwise wait for its turn behind them. On systems
    where niceness belongs to the process nothing happens. There is no way back for the thread: for threads of a pool.
    """
    if sys.platform == "linux":
        me = threading.get_native_id()
        with contextlib.suppress(OSError):  # it ended meanwhile, or a sandbox forbids it
            os.setpriority(os.PRIO_PROCESS, me, min(19, os.getpriority(os.PRIO_PROCESS, me) + STEPS))


def settle_down() -> None:
    """Make pauses short, once all is loaded: a server that has to answer within milliseconds whatever it computes.

    A collection would look through all that was imported, with all threads stopped: it is left out from now on. And a
    thread that runs Python gives the interpreter away sooner than by default (5 ms) when another waits for it.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH)
