"""A 2-D ONNX network that somebody brought: added by the command line, asked for volumes there, for pictures over two protocols."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from typer.testing import CliRunner

from isocenter.cli import app
from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.http.app import create_app
from isocenter.service import Service
from tests.http import pictures
from tests.http.test_together import held, waits_for
from tests.models import onnx_networks as nets

RNG = np.random.default_rng(4)
NETWORK = nets.unet(image=nets.SLICES)
CONFIG: dict[str, Any] = {
    "model_type": "nnunet",
    "model_parameters": {"patch_size": [32, 48], "spacing": None, "normalization_schemes": ["RGBTo01Normalization"], "crop_to_nonzero": False},
    "dataset_parameters": {"num_classes": 3, "class_names": {"1": "liver", "2": "spleen"}},
}
#: In large grains, so that a random network has something to tell apart; of the network's own size.
PICTURES = [np.kron(RNG.integers(1, 255, (8, 12)), np.ones((4, 4))).astype(np.uint8) for _ in range(3)]


def plain(picture: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The classes of a picture by ONNX Runtime itself, and where no two are nearly alike."""
    session = onnxruntime.InferenceSession(NETWORK, providers=["CPUExecutionProvider"])
    scores = session.run(None, {"image": (picture / 255).astype(np.float32)[None, None]})[0][0]
    best = np.sort(scores, axis=0)
    return scores.argmax(0), best[-1] - best[-2] > 1e-3


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("slices")
    (place / "organs.onnx").write_bytes(NETWORK)
    (place / "config.json").write_text(json.dumps(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOCENTER_HOME", str(place / "home"))
        code, said = run("models", "add", place / "organs.onnx", "--config", place / "config.json")
        assert code == 0, said
        yield place / "home"


def run(*args: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, args)), catch_exceptions=False)
    return result.exit_code, result.stdout + result.stderr


def test_the_command_line_segments_a_volume_slice_by_slice(home: Path, tmp_path: Path) -> None:
    array = np.stack(PICTURES).astype(np.int16)
    image = nib.Nifti1Image(array.T, np.diag([-1.0, -1.0, 4.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "scan.nii.gz")
    code, said = run("segment", "-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "out", "-m", "organs")
    assert code == 0, said
    mask = np.asarray(nib.load(tmp_path / "out" / "mask.nii.gz").dataobj).T
    for slice_, picture in zip(mask, PICTURES, strict=True):
        classes, clear = plain(picture)
        assert clear.mean() > 0.9
        assert np.array_equal(slice_[clear], classes[clear])
    assert len(np.unique(mask)) == 3


def test_what_does_not_fit_is_told_in_a_sentence(home: Path, tmp_path: Path) -> None:
    for network, patch, says in ((NETWORK, [16, 32, 48], "two numbers [Y, X]"), (nets.unet(), [32, 48], "three numbers [Z, Y, X]")):
        (tmp_path / "net.onnx").write_bytes(network)
        (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "model_parameters": {**CONFIG["model_parameters"], "patch_size": patch}}))
        code, said = run("models", "add", tmp_path / "net.onnx", "--name", "wrong")
        assert code == 4
        assert says in " ".join(said.split())
    assert not (home / "models" / "wrong").exists()


def test_pictures_of_two_protocols_share_a_batch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(Settings(home=home, decoders=0, slice_batch_size=4))
    monkeypatch.setattr(Service, "warm", lambda self: None)
    monkeypatch.setattr("isocenter.http.app.Service", lambda settings: service)

    def predict(picture: NDArray[np.uint8]) -> NDArray[Any]:
        return pictures.found(web, picture, "liver", "organs")

    def segment(picture: NDArray[np.uint8]) -> NDArray[Any]:
        return np.asarray(pictures.labelled(web, picture, model="organs") == 1)

    with TestClient(create_app(service.settings), base_url="http://127.0.0.1") as web, ThreadPoolExecutor(3) as pool:
        with held(service) as batches:
            before = batches.batches
            waiting = [pool.submit(way, picture) for way, picture in zip((predict, segment, segment), PICTURES, strict=True)]
            waits_for(batches, 3)
        masks = [future.result(120) for future in waiting]
        assert batches.batches == before + 1
        alone = service.label(Volume(PICTURES[0][None]), model="organs").mask[0] == 1
    for mask, picture in zip(masks, PICTURES, strict=True):
        classes, clear = plain(picture)
        assert np.array_equal(mask[clear], classes[clear] == 1)
    assert np.mean(alone == masks[0]) > 0.999
    assert any(mask.any() for mask in masks)
