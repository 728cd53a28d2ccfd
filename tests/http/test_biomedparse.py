"""BiomedParse's protocol, driven the way its existing clients do."""

from __future__ import annotations

import base64
import gzip
import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from isocenter.core.phantom import Phantom
from isocenter.core.settings import Settings
from tests.http.conftest import dicom_series, zipped

BASE = "/api/biomedparse/v1"


def test_health(client: TestClient) -> None:
    assert client.get(f"{BASE}/health").json() == {"status": "healthy", "gpu_available": False}


@pytest.mark.parametrize("dialect", ["form", "query", "both"])
def test_lungs_in_a_nifti_in_both_dialects(client: TestClient, ct: Phantom, ct_nifti: bytes, dialect: str) -> None:
    form = {} if dialect == "query" else {"prompts": ["lungs"] if dialect == "both" else ["lungs", "liver"]}
    query = {} if dialect == "form" else {"prompts": ["lungs", "liver"] if dialect == "query" else ["liver"]}
    answer = client.post(
        f"{BASE}/predict-3d-nifti?threshold=0.5&return_heatmap=true",
        files={"file": ("ct.nii.gz", ct_nifti)},
        data=form,
        params={"threshold": 0.5, "return_heatmap": True, **query},
    )
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [r["prompt"] for r in results] == (["liver", "lungs"] if dialect == "both" else ["lungs", "liver"])
    result = next(r for r in results if r["prompt"] == "lungs")
    assert list(result)[:8] == [
        "prompt",
        "description",
        "presence_confidence",
        "mask_confidence",
        "mask_format",
        "mask_shape",
        "mask_url",
        "heatmap_url",
    ]
    assert result["mask_shape"] == list(ct.volume.shape)
    assert result["axis_order"] == "zyx"
    assert np.allclose(result["affine"], ct.volume.grid.affine_ras)
    seg = fetch(client, result["mask_url"], "seg")
    prob = fetch(client, result["heatmap_url"], "prob")
    assert seg.dtype == prob.dtype == np.uint8
    assert set(np.unique(seg)) <= {0, 1}
    assert len(np.unique(prob)) > 10, "a heatmap holds probabilities, not a mask"
    assert np.array_equal(seg == 1, prob > 127)
    truth = ct.masks["lungs"]
    assert 2 * np.sum(truth & (seg == 1)) / (truth.sum() + seg.sum()) > 0.9


def fetch(client: TestClient, url: str, key: str) -> np.ndarray:
    """What `frontend/lib/api` does: the last path segment, then base64."""
    answer = client.get(f"{BASE}/fetch-npz", params={"name": url.rsplit("/", 1)[-1], "key": key})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    array = np.frombuffer(base64.b64decode(body["data_base64"]), dtype=body["dtype"]).reshape(body["shape"])
    with np.load(io.BytesIO(client.get(url).content)) as stored:
        assert np.array_equal(stored[key], array)
    return array


def test_a_plain_nifti_and_no_heatmap(client: TestClient, ct_nifti: bytes) -> None:
    answer = client.post(f"{BASE}/predict-3d-nifti", files={"file": ("ct.nii", gzip.decompress(ct_nifti))}, data={"prompts": " bone "})
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["prompt"] == "bone"
    assert answer.json()["results"][0]["heatmap_url"] is None


def test_a_dicom_zip_equals_the_nifti(client: TestClient, ct: Phantom) -> None:
    archive = zipped(dicom_series(ct.volume.array.astype(np.int16)))
    answer = client.post(f"{BASE}/predict-3d-dicom", files={"file": ("series.zip", archive)}, data={"prompts": "lungs"})
    assert answer.status_code == 200, answer.text
    result = answer.json()["results"][0]
    assert result["mask_shape"] == list(ct.volume.shape)
    assert result["series_uid"].endswith(".1001")
    assert result["spacing"] == [8.0, 6.0, 6.0]
    assert fetch(client, result["mask_url"], "seg").any()


def test_thresholds_nest(client: TestClient, ct_nifti: bytes) -> None:
    masks = []
    for threshold in (0.2, 0.5, 0.8):
        answer = client.post(f"{BASE}/predict-3d-nifti?threshold={threshold}", files={"file": ("ct.nii.gz", ct_nifti)}, data={"prompts": "liver"})
        masks.append(fetch(client, answer.json()["results"][0]["mask_url"], "seg").astype(bool))
    assert not (masks[1] & ~masks[0]).any()
    assert not (masks[2] & ~masks[1]).any()


def test_a_picture_with_a_window_is_a_ct_slice(client: TestClient, ct: Phantom) -> None:
    plane = ct.volume.array[ct.volume.shape[0] * 3 // 4].astype(float)
    grey = np.clip((plane + 1000) / 2000 * 255, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    answer = client.post(
        f"{BASE}/predict-2d?return_heatmap=true&modality=CT&window=2000/0", files={"file": ("slice.png", buffer.getvalue())}, data={"prompts": "bone"}
    )
    assert answer.status_code == 200, answer.text
    result = answer.json()["results"][0]
    assert list(result)[:7] == ["prompt", "description", "classification_confidence", "mask_confidence", "mask_format", "mask", "heatmap"]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(result["mask"]))))
    assert mask.shape == plane.shape
    assert set(np.unique(mask)) == {0, 255}
    cases = {"": "modality=CT", "?modality=CT": "window=400/40", "?modality=CT&window=0/1": "400/40", "?modality=MR&window=4/1": "CT"}
    for query, words in cases.items():
        refused = client.post(f"{BASE}/predict-2d{query}", files={"file": ("slice.png", buffer.getvalue())}, data={"prompts": "bone"})
        assert refused.status_code in (400, 415), "grey levels must not pass for Hounsfield units"
        assert words in refused.json()["detail"]


def test_a_single_frame_ct(client: TestClient, ct: Phantom) -> None:
    one = dicom_series(ct.volume.array[ct.volume.shape[0] * 3 // 4][None].astype(np.int16))[0]
    answer = client.post(f"{BASE}/predict-2d", files={"file": ("slice.dcm", one)}, data={"prompts": "bone"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["mask_confidence"] > 0.5


@pytest.mark.parametrize(
    ("path", "name", "prompts", "detail"),
    [
        ("predict-3d-nifti", "ct.zip", ["liver"], "Expected a NIfTI file (.nii or .nii.gz)"),
        ("predict-3d-dicom", "ct.nii.gz", ["liver"], "Expected a ZIP containing a DICOM series (with or without DICOMDIR)"),
        ("predict-3d-nifti", "ct.nii.gz", [" ", ""], "No prompts provided"),
        ("predict-3d-nifti", "ct.nii.gz", [], "No prompts provided"),
    ],
)
def test_refusals_in_the_protocols_words(client: TestClient, ct_nifti: bytes, path: str, name: str, prompts: list[str], detail: str) -> None:
    answer = client.post(f"{BASE}/{path}", files={"file": (name, ct_nifti)}, data={"prompts": prompts})
    assert (answer.status_code, answer.json()) == (400, {"detail": detail})


@pytest.mark.parametrize("query", ["threshold=nan", "threshold=2", "threshold=x", "slice_batch_size=0", "return_heatmap=perhaps"])
def test_values_that_do_not_parse(client: TestClient, ct_nifti: bytes, query: str) -> None:
    answer = client.post(f"{BASE}/predict-3d-nifti?{query}", files={"file": ("ct.nii.gz", ct_nifti)}, data={"prompts": "liver"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", query.split("=")[0]]


def test_a_missing_file(client: TestClient) -> None:
    answer = client.post(f"{BASE}/predict-2d", data={"prompts": "liver"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "file"]


def test_an_unknown_word_says_what_is_known(client: TestClient, ct_nifti: bytes) -> None:
    answer = client.post(f"{BASE}/predict-3d-nifti", files={"file": ("ct.nii.gz", ct_nifti)}, data={"prompts": "flux capacitor"})
    assert answer.status_code == 400
    assert "liver" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("name", "status", "detail"),
    [
        ("../seg_abcdefgh.npz", 403, "Access denied"),
        ("/etc/seg_abcdefgh.npz", 403, "Access denied"),
        ("x.txt", 400, "Expected .npz filename"),
        ("seg_abcdefgh.npz", 404, "File not found"),
        ("config.npz", 404, "File not found"),
    ],
)
def test_fetching_what_is_not_there(client: TestClient, name: str, status: int, detail: str) -> None:
    answer = client.get(f"{BASE}/fetch-npz", params={"name": name})
    assert (answer.status_code, answer.json()) == (status, {"detail": detail})


def test_an_unknown_key(client: TestClient, ct_nifti: bytes) -> None:
    answer = client.post(f"{BASE}/predict-3d-nifti", files={"file": ("ct.nii.gz", ct_nifti)}, data={"prompts": "body"})
    name = answer.json()["results"][0]["mask_url"].removeprefix("/files/")
    assert client.get(f"{BASE}/fetch-npz", params={"name": name, "key": "nothing"}).json() == {"detail": "Key 'nothing' not in NPZ"}


def test_old_artifacts_are_swept(client: TestClient, app_settings: Settings, ct_nifti: bytes) -> None:
    answer = client.post(f"{BASE}/predict-3d-nifti", files={"file": ("ct.nii.gz", ct_nifti)}, data={"prompts": "body"})
    url = answer.json()["results"][0]["mask_url"]
    path: Path = app_settings.home / "artifacts" / url.rsplit("/", 1)[-1]
    bystander = path.with_name("not-ours.npz")
    bystander.write_bytes(b"")
    old = time.time() - app_settings.artifact_ttl - 10
    for file in (path, bystander):
        os.utime(file, (old, old))
    client.app.state.context.service.sweep()  # type: ignore[attr-defined]
    assert client.get(url).status_code == 404
    assert bystander.exists()
