"""The two networks that were trained on the phantom, through every protocol that takes them: frames, spacings, labels and windows.

One nnU-Net and one SAM (`tests/data`); each protocol gets the patient along other axes, askew or in other voxels than the
next one. `tests/models/test_nnunet.py` and `test_sam_phantom.py` ask the same of the service, and of SAM's click protocols.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from typer.testing import CliRunner

from isocenter.cli import app as commands
from isocenter.core.geometry import Grid
from isocenter.core.phantom import phantom
from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.demo.robot import dice
from isocenter.http.app import create_app
from isocenter.io import nifti
from isocenter.service import Service
from tests.dicom_study import slices
from tests.http.conftest import zipped
from tests.models.test_nnunet import resampled, turned
from tests.models.test_sam_phantom import COPIES, click

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("nnunetv2")
DATA = Path(__file__).parent.parent / "data"
ORGANS = ("liver", "spleen", "kidney_left", "kidney_right")
LEAST = 0.9
Case = tuple[Volume, dict[str, NDArray[np.bool_]]]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("phantom-networks")
    (home / "models").mkdir()
    for name in ("phantom_nnunet", "sam_phantom"):
        (home / "models" / name).symlink_to(DATA / name)
    return home


@pytest.fixture(scope="module")
def client(networks: Path) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        # The engines that need no weights are not asked here, so nothing waits for them to compile.
        patch.setattr(Service, "warm", lambda self: None)
        with TestClient(create_app(Settings(home=networks, decoders=0, min_free_bytes=0)), base_url="http://127.0.0.1") as client:
            yield client


def cut(volume: Volume, masks: dict[str, NDArray[np.bool_]]) -> Case:
    """The abdomen with 40 mm around it: enough for the nnU-Net, and a fraction of the work."""
    where = np.argwhere(np.any([masks[name] for name in ORGANS], axis=0))
    margin = np.ceil(40 / np.array(volume.spacing_zyx)).astype(int)
    low, high = np.maximum(where.min(0) - margin, 0), np.minimum(where.max(0) + 1 + margin, volume.shape)
    part = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    affine = volume.grid.affine_lps.copy()
    affine[:3, 3] = (affine @ [*low[::-1], 1])[:3]
    array = np.ascontiguousarray(volume.array[part])
    grid = Grid.from_affine_lps(affine, (array.shape[0], array.shape[1], array.shape[2]))
    return Volume.on_grid(array, grid, modality="CT", unit="HU"), {name: masks[name][part] for name in ORGANS}


def body(orientation: str, shape: tuple[int, int, int] = (48, 64, 64), seed: int = 5) -> Case:
    made = phantom(shape, seed=seed, orientation=orientation)
    return cut(made.volume, made.masks)


def file_of(volume: Volume) -> dict[str, Any]:
    return {"file": ("scan.nii.gz", nifti.write(volume.array, volume.grid))}


def series(volume: Volume) -> bytes:
    files = []
    for data in slices(volume, date(2025, 3, 4), 0):
        out = io.BytesIO()
        data.save_as(out, enforce_file_format=True)
        files.append(out.getvalue())
    return zipped(files)


def read(data: bytes, volume: Volume) -> NDArray[Any]:
    """A NIfTI answer as (z, y, x), which lies where the scan lies."""
    image = nib.Nifti1Image.from_bytes(gzip.decompress(data))
    assert np.allclose(image.affine, volume.grid.affine_ras, atol=1e-3)
    return np.asarray(image.dataobj).T


def check(mask: NDArray[Any], values: dict[str, int], truth: dict[str, NDArray[np.bool_]]) -> None:
    scores = {name: dice(mask == values[name], truth[name]) for name in ORGANS}
    assert min(scores.values()) >= LEAST, scores


@pytest.mark.parametrize(("path", "orientation"), [("predict-3d-nifti", "PIR"), ("predict-3d-dicom", "RAS")])
def test_words_over_biomedparse(client: TestClient, path: str, orientation: str) -> None:
    volume, truth = body(orientation)
    files = file_of(volume) if path.endswith("nifti") else {"file": ("series.zip", series(volume))}
    prompts = {"kidney_left": "left kidney", "liver": "the liver", "spleen": "spleen", "kidney_right": "right kidney"}
    form = {"prompts": list(prompts.values())}
    answer = client.post(f"/api/biomedparse/v1/{path}", files=files, data=form, params={"modality": "CT", "model": "phantom_nnunet"})
    assert answer.status_code == 200, answer.text
    for name, result in zip(prompts, answer.json()["results"], strict=True):
        assert (result["prompt"], result["model"]) == (prompts[name], "phantom_nnunet")
        assert np.allclose(result["affine"], volume.grid.affine_ras, atol=1e-3)
        fetched = client.get("/api/biomedparse/v1/fetch-npz", params={"name": result["mask_url"].rsplit("/", 1)[-1], "key": "seg"}).json()
        mask = np.frombuffer(base64.b64decode(fetched["data_base64"]), dtype=fetched["dtype"]).reshape(fetched["shape"])
        assert dice(mask != 0, truth[name]) >= LEAST, name


def test_everything_over_monai_label(client: TestClient) -> None:
    volume, truth = body("LIP", (36, 80, 56), seed=6)
    labels = client.get("/info/").json()["models"]["phantom_nnunet"]["labels"]
    answer = client.post("/infer/phantom_nnunet?output=image", data={"params": "{}"}, files=file_of(volume))
    assert answer.status_code == 200, answer.text
    check(read(answer.content, volume), labels, truth)


def test_everything_over_the_native_api_of_a_patient_who_lies_askew(client: TestClient) -> None:
    whole = phantom((64, 80, 80), seed=11, shift_mm=(8.0, -6.0, 10.0), scale=1.05)
    volume, truth = cut(*resampled(whole, turned(18) @ np.diag([-1.0, 1, -1])))
    answer = client.post("/api/v1/segment", data={"model": "phantom_nnunet", "modality": "CT"}, files=file_of(volume))
    assert answer.status_code == 200, answer.text
    facts = json.loads(answer.headers["X-Isocenter-Provenance"])
    assert facts["model"] == "phantom_nnunet"
    check(read(answer.content, volume), facts["labels"], truth)


def finished(client: TestClient, address: str) -> dict[str, Any]:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.get(address).json()
        if job["status"] in ("completed", "failed", "cancelled"):
            assert job["status"] == "completed", job
            return job
        time.sleep(0.05)
    raise AssertionError(job)


def by_job(client: TestClient, volume: Volume, job: dict[str, Any]) -> tuple[NDArray[Any], dict[str, int]]:
    asked = {"job": json.dumps({**job, "modality": "CT", "formats": ["nifti", "measurements"]})}
    answer = client.post("/api/v1/jobs", files=file_of(volume), data=asked)
    assert answer.status_code == 201, answer.text
    address = f"/api/v1/jobs/{answer.json()['id']}"
    finished(client, address)
    facts = client.get(f"{address}/artifacts/measurements.json").json()
    assert facts["model"] == job["model"]
    return read(client.get(f"{address}/artifacts/mask.nii.gz").content, volume), {entry["name"]: entry["label"] for entry in facts["labels"]}


def test_both_as_jobs(client: TestClient) -> None:
    volume, truth = body("ASL")
    check(*by_job(client, volume, {"model": "phantom_nnunet"}), truth)
    found = COPIES["flat voxels"]()
    z, y, x = click(found.masks["heart"]).zyx
    mask, _ = by_job(client, found.volume, {"model": "sam_phantom", "prompts": [{"type": "point", "xyz": [x, y, z]}]})
    assert dice(mask != 0, found.masks["heart"]) >= LEAST


def test_everything_over_the_inference_service(client: TestClient) -> None:
    volume, truth = body("LPS", (36, 56, 60), seed=6)
    study = client.post("/api/v1/dicom/upload", files={"file": ("study.zip", series(volume))}).json()
    model = next(m for m in client.get("/api/v1/inference/models").json() if m["name"] == "phantom_nnunet")
    job = client.post("/api/v1/inference/submit", json={"study_id": study["id"], "model_id": model["id"]}).json()
    address = f"/api/v1/inference/jobs/{job['id']}"
    classes = finished(client, address)["metrics"]["detected_classes"]
    mask = read(client.get(f"{address}/download").content, volume)
    check(mask, {name: classes[name]["class_id"] for name in ORGANS}, truth)


def command(tmp_path: Path, volume: Volume, *words: str) -> tuple[NDArray[Any], dict[str, int]]:
    """What `isocenter segment` writes."""
    scan, out = tmp_path / "scan.nii.gz", tmp_path / "out"
    scan.write_bytes(nifti.write(volume.array, volume.grid))
    result = CliRunner().invoke(commands, ["segment", "-i", str(scan), "-o", str(out), "--modality", "CT", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    facts = json.loads((out / "measurements.json").read_text())
    assert facts["model"] in words
    return read((out / "mask.nii.gz").read_bytes(), volume), {entry["name"]: entry["label"] for entry in facts["labels"]}


def test_everything_on_the_command_line(networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_HOME", str(networks))
    volume, truth = body("SPL")
    check(*command(tmp_path, volume, "-m", "phantom_nnunet"), truth)


def test_clicks_and_a_box_on_the_command_line(networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_HOME", str(networks))
    found = COPIES["mirrored"]()
    z, y, x = click(found.masks["heart"]).zyx
    mask, _ = command(tmp_path, found.volume, "-m", "sam_phantom", "--point", f"{x},{y},{z}", "--negative", "1,1,1")
    assert dice(mask != 0, found.masks["heart"]) >= LEAST
    askew = COPIES["oblique"]()
    lung = askew.masks["lung_right"]
    z, _, _ = click(lung).zyx
    rows, columns = np.nonzero(lung[z])
    box = f"{columns.min()},{rows.min()},{z},{columns.max()},{rows.max()},{z}"
    mask, _ = command(tmp_path, askew.volume, "-m", "sam_phantom", "--box", box)
    assert dice(mask != 0, lung) >= LEAST


def test_each_is_refused_what_it_does_not_take(client: TestClient) -> None:
    volume, _ = body("LPS")
    for model, prompts, words in (
        ("sam_phantom", '["liver"]', "takes point, box, mask"),
        ("phantom_nnunet", '[{"type": "point", "xyz": [3, 3, 3]}]', "the names of its labels"),
    ):
        answer = client.post("/api/v1/segment", data={"model": model, "prompts": prompts, "modality": "CT"}, files=file_of(volume))
        assert answer.status_code == 400
        assert words in answer.json()["detail"]
    answer = client.post("/api/biomedparse/v1/predict-3d-nifti", files=file_of(volume), data={"prompts": "liver"}, params={"model": "sam_phantom"})
    assert answer.status_code == 400
    assert "takes point, box, mask" in answer.json()["detail"]
