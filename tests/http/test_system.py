"""What the server says of itself: profile, devices, decisions, and model switches in /metrics."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from isocenter.core.settings import Settings
from isocenter.http.app import create_app


def test_system(client: TestClient, ct_nifti: bytes) -> None:
    client.post("/api/biomedparse/v1/predict-3d-nifti", files={"file": ("a.nii.gz", ct_nifti)}, data={"prompts": "liver"})
    body = client.get("/api/v1/system").json()
    assert body["profile"] in ("cpu_only", "local_16gb", "local_24gb", "kaggle_t4", "colab_t4", "colab_a100")
    cpu = body["devices"][-1]
    assert cpu["id"] == "cpu"
    assert cpu["budget_bytes"] == cpu["capacity_bytes"] - cpu["headroom_bytes"]
    assert any("tissue" in model["model"] for model in cpu["models"])
    assert body["models"]["tissue"]["device"] == "cpu"
    assert "CPUExecutionProvider" in body["onnx"]["providers"]


def test_model_switches_are_measured(client: TestClient, ct_nifti: bytes) -> None:
    client.post("/api/biomedparse/v1/predict-3d-nifti", files={"file": ("a.nii.gz", ct_nifti)}, data={"prompts": "liver"})
    text = client.get("/metrics").text
    for stage in ("load", "first_answer"):
        seconds = re.search(rf'isocenter_model_switch_seconds_sum{{model="tissue",stage="{stage}"}} (\S+)', text)
        assert seconds is not None
        assert float(seconds[1]) > 0
    budget = re.search(r'isocenter_device_budget_bytes{device="cpu"} (\S+)', text)
    assert budget is not None
    assert float(budget[1]) > 0


def test_too_little_memory_and_too_little_time(home: Path, ct_nifti: bytes) -> None:
    """507 and 504 with what to do; the server is ready all the same, and its other models answer."""

    def click(**settings: Any) -> Any:
        with TestClient(create_app(Settings(home=home, decoders=0, **settings)), base_url="http://127.0.0.1") as client:
            deadline = time.monotonic() + 180
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            words = client.post("/api/biomedparse/v1/predict-3d-nifti", files={"file": ("a.nii.gz", ct_nifti)}, data={"prompts": "body"})
            return words, client.post(
                "/infer/segmentation", files={"file": ("a.nii.gz", ct_nifti)}, data={"params": '{"nninter": true, "pos_points": [[30, 30, 20]]}'}
            )

    words, click_answer = click(memory_budget_bytes=1 << 20)
    assert words.status_code == 200
    assert click_answer.status_code == 507
    assert "'geodesic' needs 128 MiB of memory at least" in click_answer.json()["detail"]
    words, _ = click(inference_timeout=0.001)
    assert words.status_code == 504
    assert "ISOCENTER_INFERENCE_TIMEOUT" in words.json()["detail"]


def test_gpu_log(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert client.get("/monai/logs/gpu").status_code == 404
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, "NVIDIA-SMI 580", ""))
    assert client.get("/logs/gpu").text == "NVIDIA-SMI 580"
