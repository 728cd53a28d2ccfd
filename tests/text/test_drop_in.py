"""The bridge's three ways to start, as real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from isocenter.core.settings import Settings
from tests.ports import free_port

SOURCE = Path(__file__).parent.parent.parent / "src"


@pytest.mark.parametrize("how", ["uvicorn", "script", "folder", "module"])
def test_starts(how: str, tmp_path: Path) -> None:
    port = free_port()
    command = {
        "uvicorn": ["-m", "uvicorn", "gpu_service:app", "--port", str(port)],
        "script": [str(SOURCE / "gpu_service.py")],
        "folder": [str(SOURCE.parent / "gpu_service.py")],
        "module": ["-m", "gpu_service"],
    }[how]
    env = {**os.environ, "ISOCENTER_HOME": str(tmp_path), "ISOCENTER_PORTS": str(port), "TORCH_DEVICE": "cpu"}
    process = subprocess.Popen([sys.executable, *command], env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        health = None
        deadline = time.monotonic() + 180
        while health is None and time.monotonic() < deadline:
            assert process.poll() is None
            try:
                health = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30).read())
            except OSError:
                time.sleep(0.1)
        assert health == {"status": "ok", "device": "cpu"}
    finally:
        process.kill()
        process.wait()


def test_a_setting_that_makes_no_sense_is_named() -> None:
    done = subprocess.run([sys.executable, "-m", "gpu_service"], env={**os.environ, "GPU_MAX_CONCURRENT": "two"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ISOCENTER_TEXT_SLOTS" in done.stderr
    assert "Traceback" not in done.stderr


def test_port_and_address_are_the_bridges_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_LOG_LEVEL", "error")
    import gpu_service

    plain = gpu_service._bridged(Settings())
    assert (plain.ports, plain.host) == ((8765,), "127.0.0.1"), "without a key nobody but this machine"
    assert gpu_service._bridged(Settings(api_key="k")).host == "0.0.0.0"
    kept = gpu_service._bridged(Settings(api_key="k", host="127.0.0.1", ports=(9,)))
    assert (kept.ports, kept.host) == ((9,), "127.0.0.1")
