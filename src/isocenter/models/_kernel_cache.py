"""Where compiled kernels are kept, and how they come there: without importing numba, which takes a moment."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

_MODELS = """
from isocenter.core.model import ModelContext
from isocenter.models import registry
for spec in registry.specs().values():
    if not spec.weights_bytes and spec.weights is None:
        registry.create(spec).load(ModelContext())
"""

#: Seconds that compiling may take, and between two looks at whether it is still wanted.
_MOST, _LOOK = 300.0, 0.1


def folder() -> Path | None:
    """The cache's folder, None when it cannot be written."""
    place = Path(os.environ.get("NUMBA_CACHE_DIR") or Path(os.environ.get("ISOCENTER_HOME", "~/.isocenter")).expanduser() / "kernels")
    try:
        place.mkdir(parents=True, exist_ok=True)
        probe = place / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError:
        return None
    return place


def processor() -> str:
    """Which processor this is, as far as machine code is made for one: a home folder may be moved to another machine, or shared with it."""
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer", "CPU part", "Features")
    return "\n".join([platform.machine(), *(line for line in first.splitlines() if line.partition(":")[0].strip() in told)])


def _stamp() -> str:
    """What numba keeps compiled kernels apart by, beside its own version: interpreter, processor, and where and when the package was installed."""
    here = Path(__file__)
    parts = (sys.implementation.cache_tag, processor(), here, here.stat().st_mtime_ns)
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]


def compile_ahead(*callers: str, stop: threading.Event | None = None) -> None:
    """Fill an empty cache from a process of its own: the compiler leaves some 90 MB behind in the process that it ran in.

    callers: modules of the package whose `warm()` runs all kernels of theirs once; by default the weight-free models' are
    compiled. stop: once set, the process is ended, or not begun. Nothing depends on its success; what it did not compile is
    compiled where it is needed.
    """
    place = folder()
    if place is None:
        return
    versions = f"{importlib.metadata.version('isocenter')}-{importlib.metadata.version('numba')}-{_stamp()}"
    marks = {name: place / f"compiled-{name.removeprefix('isocenter.')}{'-' if name else ''}{versions}" for name in callers or ("",)}
    left = [name for name, mark in marks.items() if not mark.exists()]
    if not left:
        return
    program = "".join(f"import {name}\n{name}.warm()\n" if name else _MODELS for name in left)
    stop = stop or threading.Event()
    if stop.is_set():
        return
    try:
        process = subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError:
        return
    end = time.monotonic() + _MOST
    while process.poll() is None and not stop.wait(_LOOK) and time.monotonic() < end:
        pass
    if process.poll() is None:
        process.kill()
    if process.wait() == 0:
        for name in left:
            marks[name].touch()
