"""The doctor's facts: what they say of this machine, and of machines that are not well."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from isocenter.runtime import environment
from isocenter.runtime.environment import GIB, State


def test_this_machine(tmp_path: Path) -> None:
    facts = {fact.name: fact for fact in environment.facts(tmp_path, "127.0.0.1", (0,))}
    assert set(facts) == {"Python", "System", "Cores", "Memory", "GPU", "Disk", "Packages", "Extras", "Port 0"}
    assert facts["Packages"].state is State.OK
    assert "numpy" in facts["Packages"].value
    assert all(fact.remedy for fact in facts.values() if fact.state is not State.OK)


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= environment.usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("free", "limit", "state"), [(16 * GIB, None, State.OK), (2 * GIB, None, State.NOTE), (16 * GIB, GIB // 2, State.BROKEN)])
def test_memory(monkeypatch: pytest.MonkeyPatch, free: int, limit: int | None, state: State) -> None:
    monkeypatch.setattr(environment, "_memory", lambda: (32 * GIB, free))
    monkeypatch.setattr(environment, "memory_limit", lambda: limit)
    fact = environment.memory()
    assert fact.state is state
    assert bool(fact.remedy) == (state is not State.OK)
    assert ("container" in fact.value) == (limit is not None)


def test_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "NVIDIA H200, 143771, 143000, 580.10\n"
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, answer, ""))
    monkeypatch.setattr(environment, "version", lambda package: None)
    fact = environment.gpu()
    assert fact.value == "NVIDIA H200, 140 GiB of 140 GiB free, driver 580.10"
    assert "[torch]" in fact.remedy

    def broken(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 10)

    monkeypatch.setattr(subprocess, "run", broken)
    assert environment.gpu().state is State.NOTE


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.disk(tmp_path / "not" / "yet" / "there").state is not State.BROKEN
    monkeypatch.setattr(os, "access", lambda *a: False)
    fact = environment.disk(tmp_path)
    assert fact.state is State.BROKEN
    assert "ISOCENTER_HOME" in fact.remedy


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    known = environment.version
    monkeypatch.setattr(environment, "version", lambda package: None if package == "pydicom" else known(package))
    fact = environment.packages()[0]
    assert (fact.state, fact.value) == (State.BROKEN, "pydicom missing")


def test_an_onnx_runtime_of_another_name_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the image for NVIDIA's cards."""
    version = environment.version
    monkeypatch.setattr(environment, "version", lambda name: {"onnxruntime": None, "onnxruntime-gpu": "1.26.0"}.get(name, version(name)))
    fact = environment.packages()[0]
    assert fact.state is State.OK
    assert "onnxruntime-gpu 1.26.0" in fact.value


def test_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        fact = environment.port("127.0.0.1", taken.getsockname()[1])
    assert fact.state is State.NOTE
    assert "--port" in fact.remedy
