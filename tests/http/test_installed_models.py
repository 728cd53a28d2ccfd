"""Installed models over HTTP: a folder that appears while the server runs, one that is broken, and a checkpoint that is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from isocenter.core.geometry import Grid
from isocenter.core.settings import Settings
from isocenter.http.app import create_app
from isocenter.io import nifti
from tests.models.test_catalog import CONFIG, network

BASE = "/api/biomedparse/v1"


@contextmanager
def application(home: Path, **settings: Any) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=home, decoders=0, **settings)), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture(scope="module")
def scan() -> bytes:
    array = np.zeros((20, 24, 28), np.float32)
    array[5:9, 6:12, 7:14] = 1
    return nifti.write(array, Grid(array.shape, (1.0, 1.0, 1.0)))


def find(client: TestClient, scan: bytes, word: str, **query: str) -> Any:
    files = {"file": ("t1.nii.gz", scan)}
    return client.post(f"{BASE}/predict-3d-nifti", files=files, data={"prompts": word}, params={"modality": "MR", **query})


def install(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "net.onnx").write_bytes(network())


def test_a_folder_that_appears_while_the_server_runs_answers(tmp_path: Path, scan: bytes) -> None:
    with application(tmp_path) as client:
        assert find(client, scan, "bright", model="spots").status_code == 404
        install(tmp_path / "models" / "spots", CONFIG)
        client.app.state.context.service.registry.refresh()  # type: ignore[attr-defined]
        (answer,) = find(client, scan, "bright", model="spots").json()["results"]
        assert answer["model"] == "spots"
        with_default = find(client, scan, "bright").json()["results"][0]
        assert with_default["model"] == "spots"  # it has a label for the word; tissue is for CT and has none
        assert "spots" in client.get("/info/").json()["models"]


def test_a_broken_folder_is_refused_with_its_reason_and_nothing_else_suffers(tmp_path: Path, scan: bytes) -> None:
    install(tmp_path / "models" / "bad", {"model_type": "nonesuch"})
    install(tmp_path / "models" / "good", CONFIG)
    with application(tmp_path) as client:
        answer = find(client, scan, "bright", model="bad")
        assert answer.status_code == 503
        assert "nonesuch" in answer.json()["detail"]
        assert str(tmp_path) not in answer.text
        assert find(client, scan, "bright", model="good").status_code == 200
        assert client.get(f"{BASE}/health").json()["status"] == "healthy"


def test_a_missing_checkpoint_of_biomedparse_is_named_everywhere(tmp_path: Path, ct_nifti: bytes) -> None:
    with application(tmp_path, biomedparse_checkpoint=tmp_path / "absent.ckpt") as client:
        health = client.get(f"{BASE}/health").json()
        assert health["status"] == "degraded"
        assert "BP3D_CKPT" in health["problem"]
        files = {"file": ("ct.nii.gz", ct_nifti)}
        answer = client.post(f"{BASE}/predict-3d-nifti", files=files, data={"prompts": "lungs"}, params={"modality": "CT"})
        assert answer.status_code == 503
        assert "BP3D_CKPT" in answer.json()["detail"]
        assert str(tmp_path) not in answer.text
        answer = client.post(f"{BASE}/predict-3d-nifti", files=files, data={"prompts": "lungs"}, params={"modality": "CT", "model": "tissue"})
        assert answer.status_code == 200
        assert client.get("/healthz").json() == {"status": "ok"}
