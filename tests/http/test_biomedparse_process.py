"""BiomedParse's child process under a server: one that never finishes loading is ended when the request's time is over."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from isocenter.core.settings import Settings
from isocenter.http.app import create_app
from isocenter.service import Service
from tests.http.pictures import png
from tests.http.test_together import block
from tests.models.test_biomedparse import CODE, NAME, write_weights

pytest.importorskip("torch")
pytest.importorskip("hydra")


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_loading_that_hangs_is_ended_with_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = tmp_path / "hang"
    hang.touch()
    monkeypatch.setenv("BP3D_CODE", str(CODE))
    monkeypatch.setenv("BP3D_CKPT", str(write_weights(tmp_path / NAME)))
    processes: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how)
            processes.append(self)

    monkeypatch.setattr("isocenter.models._biomedparse.child.subprocess.Popen", Recorded)
    service = Service(Settings(home=tmp_path / "home", decoders=0, inference_timeout=1.0))
    monkeypatch.setattr(Service, "warm", lambda self: None)
    monkeypatch.setattr("isocenter.http.app.Service", lambda settings: service)

    with TestClient(create_app(service.settings), base_url="http://127.0.0.1") as web:

        def ask() -> Any:
            files = {"file": ("a.png", png(block((4, 50))), "image/png")}
            return web.post("/api/biomedparse/v1/predict-2d", files=files, params={"prompts": "bright", "model": "biomedparse"})

        while not processes:  # a machine so busy that the time was over before the process began
            answer = ask()
            assert answer.status_code == 504, answer.text[:300]
            assert "ISOCENTER_INFERENCE_TIMEOUT" in answer.json()["detail"]
        ledger = service.runtime.fleet.ledger(service.runtime.devices[0])
        until(lambda: all(process.returncode is not None for process in processes), "the processes are ended, and waited for")
        until(lambda: ledger.used == 0 and not service.runtime.waiting, "their memory is back")
        ended = len(processes)
        hang.unlink()
        service.runtime._workers._seconds = None
        answer = ask()
        assert answer.status_code == 200, answer.text[:300]
        assert len(answer.json()["results"]) == 1
        assert np.isfinite(answer.json()["results"][0]["mask_confidence"])
        assert len(processes) == ended + 1, "a new process"
        assert processes[-1].poll() is None
    assert processes[-1].returncode is not None
