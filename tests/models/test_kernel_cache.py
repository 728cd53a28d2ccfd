"""The cache of compiled kernels is filled once, from a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from isocenter.models import _kernel_cache


def test_an_empty_cache_is_filled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    class Ended:
        def __init__(self, command: list[str], **_: object) -> None:
            started.append(command)

        def poll(self) -> int:
            return 0

        wait = poll

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(subprocess, "Popen", Ended)
    _kernel_cache.compile_ahead()
    _kernel_cache.compile_ahead()
    assert [command[0] for command in started] == [sys.executable]
    for _ in range(2):
        _kernel_cache.compile_ahead("isocenter.analysis.warm")
    assert len(started) == 2
    assert "isocenter.analysis.warm.warm()" in started[1][-1]
    # The home folder on another machine, whose processor has other instructions: numba's index holds nothing for it.
    monkeypatch.setattr(_kernel_cache, "processor", lambda: "another one")
    for _ in range(2):
        _kernel_cache.compile_ahead()
    assert len(started) == 3


def test_without_a_cache_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "kernels"))
    assert _kernel_cache.folder() is None
    _kernel_cache.compile_ahead()


def test_who_stops_does_not_wait_for_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is told to end while it warms up."""
    (tmp_path / "endless.py").write_text(
        f"import os, time\ndef warm():\n    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n    time.sleep(600)\n"
    )
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    stop = threading.Event()
    compiling = threading.Thread(target=_kernel_cache.compile_ahead, args=("endless",), kwargs={"stop": stop})
    compiling.start()
    end = time.monotonic() + 60
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    stop.set()
    compiling.join(60)
    assert not compiling.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert list((tmp_path / "kernels").glob("compiled-*")) == []
    _kernel_cache.compile_ahead("endless", stop=stop)
