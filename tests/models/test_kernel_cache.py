"""The cache of compiled kernels is filled once, from a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from isocenter.models import _kernel_cache


def test_an_empty_cache_is_filled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        started.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(subprocess, "run", run)
    _kernel_cache.compile_ahead()
    _kernel_cache.compile_ahead()
    assert [command[0] for command in started] == [sys.executable]
    for _ in range(2):
        _kernel_cache.compile_ahead("isocenter.analysis.warm")
    assert len(started) == 2
    assert "isocenter.analysis.warm.warm()" in started[1][-1]


def test_without_a_cache_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "kernels"))
    assert _kernel_cache.folder() is None
    _kernel_cache.compile_ahead()
