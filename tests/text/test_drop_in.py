"""The bridge's three ways to start, as real processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from isocenter.cli import chosen
from isocenter.core.errors import ModelError, UsageError
from isocenter.core.settings import Settings
from isocenter.textservice import TextService
from tests.ports import free_port
from tests.text.test_wire import application

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


def started_with(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    """The settings that a start with these variables has."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ISOCENTER_LOG_LEVEL", "error")
    return chosen.settings()


def test_a_setting_that_makes_no_sense_is_named() -> None:
    done = subprocess.run([sys.executable, "-m", "gpu_service"], env={**os.environ, "GPU_MAX_CONCURRENT": "two"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "gpu_service: GPU_MAX_CONCURRENT (ISOCENTER_TEXT_SLOTS): Input should be a valid integer" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TORCH_DEVICE", "nonsense", "a device is cpu, cuda, one card such as cuda:1, or auto"),
        ("TORCH_DEVICE", "mps", "a device is cpu"),
        ("MODEL_EMBED", "/models/mine", "ISOCENTER_TEXT_MODELS=name=folder"),
        ("MODEL_BERTSCORE", "../../etc/passwd", "a model is named like"),
        ("GPU_EMBED_BATCH", "-1", "greater than or equal to 1"),
        ("GPU_MAX_BATCH_SIZE", "0", "greater than or equal to 1"),
    ],
)
def test_a_variable_of_the_bridge_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        started_with(monkeypatch, **{name: value})
    assert refused.value.message.startswith(f"{name} (ISOCENTER_")
    assert words in refused.value.message


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "TORCH_DEVICE",
        "MODEL_BERTSCORE",
        "MODEL_EMBED",
        "GPU_MAX_CONCURRENT",
        "GPU_EMBED_BATCH",
        "GPU_MAX_BATCH_SIZE",
        "GPU_MAX_TEXT_LENGTH",
        "API_KEY",
    )
    assert started_with(monkeypatch, **dict.fromkeys(names, "")) == Settings()


@pytest.mark.parametrize(("written", "meant"), [("auto", None), (" CUDA ", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_devices_are_written_in_any_case(monkeypatch: pytest.MonkeyPatch, written: str, meant: str | None) -> None:
    assert started_with(monkeypatch, TORCH_DEVICE=written).text_device == meant


def test_a_card_that_is_not_there_is_said_and_ends_nothing(home: Path, minilm: Path) -> None:
    with application(home, minilm, text_device="cuda:99") as client:
        answer = client.post("/embed", json={"texts": ["a"]})
        told = client.get("/info").json()
    assert answer.status_code == 503
    assert "cuda:99" in answer.json()["detail"]
    assert "Retry-After" not in answer.headers, "it does not help to try again"
    assert (told["device"], told["device_name"], told["vram_total_mb"]) == ("cuda:99", "not available", None)


def test_a_model_that_cannot_be_loaded_keeps_nobody_from_getting_ready(tmp_path: Path, minilm: Path) -> None:
    """Weights that are cut off, as by a download that was stopped."""
    folder = tmp_path / "models" / "all-MiniLM-L6-v2"
    shutil.copytree(minilm, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])
    service = TextService(Settings(home=tmp_path))
    try:
        service.warm()
        with pytest.raises(ModelError, match="download them again"):
            service.embedder()[1].result()
    finally:
        service.close()


def test_port_and_address_are_the_bridges_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_LOG_LEVEL", "error")
    import gpu_service

    plain = gpu_service._bridged(Settings())
    assert (plain.ports, plain.host) == ((8765,), "127.0.0.1"), "without a key nobody but this machine"
    assert gpu_service._bridged(Settings(api_key="k")).host == "0.0.0.0"
    kept = gpu_service._bridged(Settings(api_key="k", host="127.0.0.1", ports=(9,)))
    assert (kept.ports, kept.host) == ((9,), "127.0.0.1")
