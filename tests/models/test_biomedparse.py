"""BiomedParse's adapter with a stand-in for its repository: frame, windows, separators, probabilities, and a process that dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isocenter.core.errors import CancelledError, DeadlineError, MemoryLimitError, ModelError, UsageError
from isocenter.core.geometry import Grid, reorient
from isocenter.core.model import ModelContext, Run
from isocenter.core.phantom import turned
from isocenter.core.volume import Volume
from isocenter.models._biomedparse import picture
from isocenter.models.biomedparse import BiomedParse, offer

CODE = Path(__file__).parent / "biomedparse_repository"
NAME = "biomedparse_3D_AllData_MultiView_edge.ckpt"


def write_weights(path: Path, **changes: Any) -> Path:
    import torch

    state = {"model.backbone.weight": torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1), "model.backbone.bias": torch.zeros(1)} | changes
    torch.save({"state_dict": {name: value for name, value in state.items() if value is not None}, "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("biomedparse") / NAME)


@pytest.fixture(autouse=True)
def code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BP3D_CODE", str(CODE))


@pytest.fixture(scope="module")
def model(weights: Path) -> Iterator[BiomedParse]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BP3D_CODE", str(CODE))
        made = BiomedParse()
        made.load(ModelContext(spec=offer(weights), threads=1))
    yield made
    made.close()


def block(orientation: str, shape: tuple[int, int, int] = (12, 40, 60)) -> tuple[Volume, Any]:
    """A CT with a bright block in it, stored along other axes; the block itself."""
    grid = Grid(shape, (1.0, 1.5, 2.0), (-30.0, -20.0, 5.0))
    inside = np.zeros(shape, bool)
    inside[3:8, 8:24, 12:40] = True
    hu = np.where(inside, 200, -100).astype(np.int16)
    place = turned(grid, orientation)
    return Volume.on_grid(np.ascontiguousarray(reorient(hu, grid, orientation)), place, modality="CT", unit="HU"), reorient(inside, grid, orientation)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "ASL"])
def test_masks_on_the_scans_own_grid(model: BiomedParse, orientation: str) -> None:
    volume, inside = block(orientation)
    bright, corner = model.find(volume, ["bright", "corner"])
    assert (bright.prompt, bright.mask.shape) == ("bright", volume.shape)
    assert 2 * np.sum(bright.mask & inside) / (bright.mask.sum() + inside.sum()) > 0.93
    assert bright.presence > 0.99
    # The picture's upper left is the patient's right and front, however the scan lies; on slices where anything is.
    z, y, x = (axis.mean() for axis in np.nonzero(corner.mask))
    right, front, _, _ = volume.grid.affine_lps @ (x, y, z, 1) - volume.grid.affine_lps @ (*((np.array(volume.shape[::-1]) - 1) / 2), 1)
    assert right < -5
    assert front < -3
    empty = ~inside.any(axis=tuple(a for a in range(3) if volume.grid.orientation[2 - a] not in "SI"), keepdims=True)
    assert not np.any(corner.mask.astype(bool) & empty), "slices on which nothing exists stay empty"


def test_heatmaps_are_probabilities(model: BiomedParse) -> None:
    volume, _ = block("LPS")
    low, high = (model.find(volume, ["bright"], threshold=t)[0] for t in (0.2, 0.8))
    assert len(np.unique(low.probability)) > 10
    np.testing.assert_array_equal(low.probability, high.probability)
    assert high.mask.sum() < low.mask.sum()
    for finding, threshold in ((low, 0.2), (high, 0.8)):
        assert finding.probability[finding.mask == 1].min() >= int(255 * threshold)
        assert finding.probability[finding.mask == 0].max() <= int(255 * threshold)


def test_a_picture(model: BiomedParse) -> None:
    grey = np.full((1, 60, 90), 20, np.uint8)
    grey[0, 10:40, 50:80] = 220
    bright, dark = model.find(Volume(grey), ["bright", "dark"])
    for finding, inside in ((bright, grey > 128), (dark, grey < 128)):
        assert 2 * np.sum((finding.mask != 0) & inside) / (finding.mask.sum() + inside.sum()) > 0.97
    assert bright.notes == ()
    assert not model.find(Volume(np.full((1, 8, 8), 30, np.uint8)), ["dark"])[0].mask.any(), "nothing is there for sure"


def test_a_prompt_stays_one_prompt(model: BiomedParse) -> None:
    volume, _ = block("LPS")
    found = model.find(volume, ["bright[SEP]corner", "dark"])
    assert [finding.prompt for finding in found] == ["bright[SEP]corner", "dark"]
    assert picture.escaped(" liver [SEP][ sep ]\ntumour [CLS]") == "liver sepsep tumour cls"
    for wrong in ("", "  ", "x" * 301):
        with pytest.raises(UsageError):
            model.find(volume, [wrong])


def test_windows_by_what_is_named(model: BiomedParse) -> None:
    assert picture.window_of("left lung nodule") == (-160.0, 1500.0)
    assert picture.window_of("brain haemorrhage") == (40.0, 80.0)
    assert picture.window_of("lumbar spine") == (400.0, 1800.0)
    assert picture.window_of("plunging liver") == picture.SOFT, "only whole words count"
    values = np.array([-910, -160, 590, 40, 240, -160], np.int16).reshape(1, 2, 3)
    ct = Volume(values, modality="CT", unit="HU")
    assert picture.scaled(ct, (-160.0, 1500.0)).ravel()[:3].tolist() == [0, 127, 255]
    assert picture.scaled(ct, picture.SOFT).ravel()[3:].tolist() == [127, 255, 0]
    mr = np.zeros((10, 20, 20), np.float32)
    mr[2:8] = np.random.default_rng(0).uniform(50, 150, (6, 20, 20))
    grey = picture.scaled(Volume(mr, modality="MR"), None)
    assert (grey.min(), grey.max()) == (0, 255)
    assert 100 < np.median(grey[2:8]) < 155
    volume, _ = block("LPS")
    found = model.find(volume, ["bright lung", "bright", "bright bone"])
    assert [finding.notes[0] for finding in found] == [f"shown in the CT window {w}" for w in ("1500/-160", "400/40", "1800/400")]
    assert [finding.prompt for finding in found] == ["bright lung", "bright", "bright bone"]


def test_thick_slices_are_taken_as_they_were_acquired() -> None:
    sagittal = Volume(np.zeros((8, 30, 20), np.uint8), (1.0, 1.0, 6.0), direction=((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0)))
    axes, flips = picture.order(sagittal)
    assert sagittal.grid.orientation == "PIL"
    assert (axes, flips) == ((0, 1, 2), (False, False, False)), "rows to the feet, columns to the back"
    array = np.random.default_rng(0).integers(0, 9, (3, 4, 5), dtype=np.uint8)
    for axes in ((2, 0, 1), (1, 2, 0), (0, 2, 1)):
        np.testing.assert_array_equal(picture.back(picture.turned(array, axes, (True, False, True)), axes, (True, False, True)), array)


def test_progress_and_cancel_between_batches(model: BiomedParse) -> None:
    volume, _ = block("LPS")
    seen: list[float] = []
    model.find(volume, ["bright"], run=Run(lambda fraction, message: seen.append(fraction), batch=3))
    assert seen[:4] == [0, 0.25, 0.5, 0.75]
    assert model._child is not None
    process = model._child._process
    with pytest.raises(CancelledError):
        model.find(volume, ["bright"], run=Run(cancelled=lambda: True, batch=3))
    assert model.find(volume, ["bright"])[0].mask.any()
    assert model._child._process is process, "it goes on with the network that is loaded"


def test_a_process_that_hangs_or_dies(model: BiomedParse, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, _ = block("LPS")
    child = model._child
    assert child is not None
    first = child._process
    monkeypatch.setattr(child, "_timeout", 1.0)
    with pytest.raises(DeadlineError, match="BP3D_TIMEOUT"):
        model.find(volume, ["hang"])
    assert first is not None
    assert first.returncode is not None, "it was killed and its memory is back"
    monkeypatch.undo()
    monkeypatch.setenv("BP3D_CODE", str(CODE))
    with pytest.raises(ModelError, match="not finite"):
        model.find(volume, ["nan"])  # in a new process, which lives on
    with pytest.raises(ModelError, match="ended unexpectedly"):
        model.find(volume, ["crash"])
    assert child._process is None
    with pytest.raises(MemoryLimitError, match="memory"):
        model.find(volume, ["memory"])


def test_a_call_that_takes_too_long_is_ended_from_another_thread(model: BiomedParse) -> None:
    volume, _ = block("LPS")
    model.find(volume, ["bright"])
    child = model._child
    assert child is not None
    process = child._process
    assert process is not None
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(model.find, volume, ["hang"])
        while not waits.done():
            model.abort()
            time.sleep(0.05)
        with pytest.raises(ModelError, match="ended unexpectedly"):
            waits.result(60)
    assert process.returncode is not None
    assert model.find(volume, ["bright"])[0].mask.any(), "in a new process"


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = write_weights(tmp_path / NAME, **{"model.backbone.bias": None})
    made = BiomedParse()
    with pytest.raises(ModelError, match="does not hold the weights"):
        made.load(ModelContext(spec=offer(path)))
    with pytest.raises(ModelError, match="not loaded"):
        made.find(block("LPS")[0], ["liver"])


def test_what_is_missing_is_named(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = offer(weights)
    assert (spec.id, spec.options["code"], spec.options["timeout"]) == ("biomedparse", str(CODE), 600.0)
    assert offer(weights.parent).weights_sha256 == spec.weights_sha256
    monkeypatch.setenv("BP3D_TIMEOUT", "soon")
    with pytest.raises(ModelError, match="BP3D_TIMEOUT"):
        offer(weights)
    monkeypatch.setenv("BP3D_TIMEOUT", "30")
    assert offer(weights).options["timeout"] == 30
    monkeypatch.setenv("BP3D_CODE", str(tmp_path))
    with pytest.raises(ModelError, match="BP3D_CODE does not name"):
        offer(weights)
    monkeypatch.delenv("BP3D_CODE")
    with pytest.raises(ModelError, match="BP3D_CODE is not set"):
        offer(weights)
    beside = tmp_path / "BiomedParse-2"
    (beside / "configs" / "model").mkdir(parents=True)
    (beside / "configs" / "model" / "biomedparse_3D.yaml").write_text("_target_: x\n")
    (beside / "model_weights").mkdir()
    assert offer(write_weights(beside / "model_weights" / NAME)).options["code"] == str(beside.resolve())
    (tmp_path / NAME).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        offer(tmp_path / NAME)
    with pytest.raises(ModelError, match="0 files of weights"):
        offer(beside)
