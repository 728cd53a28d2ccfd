"""Networks of slices: a volume's slices and pictures of several clients are their batch, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from isocenter.core.errors import ModelError, UnsupportedError
from isocenter.core.geometry import Grid, reorient
from isocenter.core.model import QUIET, ModelContext, Run
from isocenter.core.phantom import turned
from isocenter.core.volume import Source, Volume
from isocenter.models import onnx_volume
from isocenter.models._onnx import slices, windows
from isocenter.models._onnx.engine import OrtEngine
from isocenter.models._onnx.threads import Threads
from tests.models import onnx_networks as nets

RNG = np.random.default_rng(11)
WAYS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "windows": (nets.unet(image=nets.SLICES), nets.config(patch_size=[16, 24], use_tta=True)),
    "one at a time": (nets.unet(image=(1, 1, 16, 24)), nets.config(patch_size=[16, 24])),
    "tiles": (
        nets.unet(image=nets.SLICES),
        nets.config(patch_size=[16, 16], inference="fully_convolutional", halo=[8, 8], size_multiple=2, tile_size=[16, 12]),
    ),
    "fixed": (nets.unet(image=("n", 1, 16, 24)), nets.config(patch_size=[16, 24], inference="fixed")),
}


def grains(*shape: int) -> NDArray[np.float32]:
    """Noise in grains of several pixels, so that a random network has something to tell apart."""
    noise = RNG.normal(size=(shape[0], -(-shape[1] // 4), -(-shape[2] // 4)))
    return noise.repeat(4, 1).repeat(4, 2)[:, : shape[1], : shape[2]].astype(np.float32)


def plain(network: bytes, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores (slices, classes, y, x) of slices that go through ONNX Runtime one by one."""
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": plane[None, None]})[0] for plane in array])


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many slices went through the network at once, time after time."""
    seen: list[int] = []
    whole = OrtEngine.run

    def counted(self: OrtEngine, image: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(len(image))
        return whole(self, image)

    monkeypatch.setattr(OrtEngine, "run", counted)
    return seen


@pytest.mark.parametrize("way", ["sliding_window", "fully_convolutional", "fixed"])
def test_each_slice_is_a_plain_run_of_the_network(tmp_path: Path, way: str, batches: list[int]) -> None:
    network, array = nets.unet(image=nets.SLICES), grains(7, 32, 48)
    model = nets.loaded(tmp_path, network, nets.config(patch_size=[32, 48], inference=way, halo=8, size_multiple=2))
    answer = model.segment(Volume(array), run=Run(batch=3))
    assert batches == ([3, 3, 3] if way == "sliding_window" else [3, 3, 1])
    expected = plain(network, array)
    first, second = np.sort(expected, axis=1)[:, -2:].swapaxes(0, 1)
    clear = second - first > 1e-4
    assert clear.mean() > 0.99
    assert len(np.unique(answer.mask)) == 3
    assert np.array_equal(answer.mask[clear], expected.argmax(1)[clear])
    model.close()


def test_scores_of_windows_are_the_weighted_means_in_plane() -> None:
    """Against a sum written down plainly, with mirroring, for a number of slices that is no multiple of the batch."""
    network, array = nets.unet(image=nets.SLICES), grains(5, 40, 30)
    weight = windows.weights((1, 16, 24))[0]
    total, sum_ = np.zeros((40, 30)), np.zeros((5, 3, 40, 30))
    for y in windows.starts(40, 16, 0.5):
        for x in windows.starts(30, 24, 0.5):
            place = np.s_[..., y : y + 16, x : x + 24]
            found = [np.flip(plain(network, np.ascontiguousarray(np.flip(array[place], way))), way) for way in ((), (1,), (2,), (1, 2))]
            # The answers' axes are (slice, class, y, x): turned back along the same two.
            found = [np.flip(np.flip(f, way), tuple(a + 1 for a in way)) for f, way in zip(found, ((), (1,), (2,), (1, 2)), strict=True)]
            sum_[place] += np.mean(found, axis=0) * weight
            total[place] += weight
    kept: list[NDArray[np.float32]] = []

    class Kept:
        def put(self, scores: NDArray[np.float32], places: Any, total: NDArray[np.float32] | None = None) -> None:
            assert total is not None
            kept.extend(scores[:, place] / total[place] for place in places)

    engine = slices.SliceEngine(OrtEngine(network, ModelContext(threads=1), 1, flat=True))
    for deep in (1, 2, 4, 5):
        kept.clear()
        blend = windows.Blend(array, (deep, 16, 24), 0, engine, Kept(), Threads(1), flat=True)
        blend.run(0.5, gaussian=True, even=True, mirror=(1, 2), run=QUIET)
        np.testing.assert_allclose(np.stack(kept), sum_ / total, atol=1e-4)


@pytest.mark.parametrize("way", list(WAYS))
def test_batched_is_unbatched(tmp_path: Path, way: str, batches: list[int]) -> None:
    model = nets.loaded(tmp_path, *WAYS[way])
    scan = Volume(grains(6, 40, 36))
    alone = model.segment(scan).mask
    assert set(batches) == {1}
    assert len(np.unique(alone)) == 3
    for batch in (2, 4, 64):
        batches.clear()
        mask = model.segment(scan, run=Run(batch=batch)).mask
        assert np.mean(mask == alone) > 0.9995
        assert max(batches) == (1 if way == "one at a time" else {2: 2, 4: 3, 64: 6}[batch])
    model.close()


@pytest.mark.parametrize("way", list(WAYS))
def test_pictures_share_passes_and_get_what_they_would_get_alone(tmp_path: Path, way: str, batches: list[int]) -> None:
    model = nets.loaded(tmp_path, *WAYS[way])
    pictures = [Volume(grains(1, *shape)) for shape in ((30, 40), (30, 40), (22, 50), (30, 40), (9, 9))]
    alone = [model.segment(picture) for picture in pictures]
    passes = len(batches)
    batches.clear()
    together = model.segment_pictures(pictures, run=Run(batch=4))
    assert any(len(np.unique(answer.mask)) > 1 for answer in alone)
    for mine, one in zip(together, alone, strict=True):
        assert mine.mask.shape == one.mask.shape
        assert np.mean(mine.mask == one.mask) > 0.9995
        assert (mine.labels, mine.notes) == (one.labels, one.notes)
    assert way == "one at a time" or len(batches) < passes
    model.close()


@pytest.mark.parametrize("way", list(WAYS))
def test_the_answer_does_not_depend_on_how_the_scan_is_stored(tmp_path: Path, way: str) -> None:
    """Thick slices, pixels that are no squares, an orientation of the network that is not the scan's."""
    network, settings = WAYS[way]
    settings = {**settings, "model_parameters": {**settings["model_parameters"], "orientation": "RAS", "spacing": [1.4, 1.0]}}
    model = nets.loaded(tmp_path, network, settings)
    grid = Grid((6, 40, 36), (0.8, 1.2, 5.0), (-14.0, 3.0, 50.0))
    array = grains(6, 40, 36)
    first = model.segment(Volume.on_grid(array, grid)).mask
    assert len(np.unique(first)) == 3
    for letters in ("LPS", "RAS", "PIR", "ASL", "SLP", "IRA"):
        other = Volume.on_grid(np.ascontiguousarray(reorient(array, grid, letters)), turned(grid, letters))
        assert np.array_equal(model.segment(other, run=Run(batch=2)).mask, reorient(first, grid, letters)), letters
    for z in (0, 3):
        one = Volume.on_grid(array[z : z + 1], Grid((1, 40, 36), grid.spacing, grid.origin))
        assert np.array_equal(model.segment(one).mask[0], first[z]), "nothing comes from the slices beside"
    model.close()


def test_a_slice_across_the_networks_axes_is_looked_at_from_its_front(tmp_path: Path) -> None:
    model = nets.loaded(tmp_path, *WAYS["windows"])
    flat = grains(1, 30, 40)
    expected = model.segment(Volume(flat)).mask
    for letters in ("PIL", "LIP"):  # sagittal, head up and face to the left; coronal, head up
        seen = turned(Grid((30, 30, 30)), letters)
        upright = Volume.on_grid(flat, Grid((1, 30, 40), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), seen.direction))
        assert upright.grid.orientation == letters
        assert np.array_equal(model.segment(upright).mask, expected)
        stored = np.ascontiguousarray(reorient(flat, upright.grid, "RAS"))
        other = Volume.on_grid(stored, turned(upright.grid, "RAS"))
        assert np.array_equal(model.segment(other).mask, reorient(expected, upright.grid, "RAS"))
    model.close()


def test_labels_lie_where_the_values_are_at_any_spacing(tmp_path: Path) -> None:
    """A network that rounds values: a ramp in plane that is another one in every slice, so that no slice may be mixed with the next."""
    settings = nets.config(9, spacing=[1, 1], patch_size=[20, 24])
    model = nets.loaded(tmp_path, nets.pointwise(9, image=nets.SLICES), settings)
    ramp = np.linspace(0, 8, 30, dtype=np.float32)
    for values in (np.broadcast_to(ramp[:, None], (30, 30)), np.broadcast_to(ramp, (30, 30))):
        array = np.stack([values, values[::-1, ::-1], np.full_like(values, 3), values])
        for spacing in ((1.0, 1.0, 1.0), (0.7, 0.8, 1.9), (1.9, 1.4, 0.3)):
            mask = model.segment(Volume(array, spacing)).mask
            clear = np.abs(array - np.floor(array) - 0.5) > 0.2
            inside = np.s_[:, 2:-2, 2:-2]
            assert np.array_equal(mask[inside][clear[inside]], np.rint(array)[inside][clear[inside]])
    model.close()


def test_a_picture_without_a_scale_is_told_what_was_assumed(tmp_path: Path) -> None:
    network, settings = WAYS["windows"]
    for spacing, told in (([2, 2], True), ([1, 1], False), (None, False)):
        parameters = {**settings["model_parameters"], "spacing": spacing}
        model = nets.loaded(tmp_path, network, {**settings, "model_parameters": parameters})
        picture = Volume(grains(1, 30, 40), source=Source(format="picture", scale="none"))
        assert any("taken as 1 mm" in note for note in model.segment(picture).notes) == told
        assert not any("taken as 1 mm" in note for note in model.segment(Volume(grains(1, 30, 40))).notes)
        model.close()


def test_intensities_zeros_and_components_are_as_in_volumes(tmp_path: Path) -> None:
    settings = nets.config(2, patch_size=[16, 16], normalization_schemes=["ZScoreNormalization"], crop_to_nonzero=True)
    settings["postprocessing"] = {"keep_largest": True}
    flat = nets.loaded(tmp_path / "flat", nets.pointwise(2, image=nets.SLICES), settings)
    settings["model_parameters"]["patch_size"] = [4, 16, 16]
    deep = nets.loaded(tmp_path / "deep", nets.pointwise(2), settings)
    array = np.zeros((8, 40, 30), np.float32)
    array[2:7, 5:30, 4:25] = grains(5, 25, 21) + 5
    scan = Volume(array, (1.0, 1.0, 3.0))
    one, other = flat.segment(scan, run=Run(batch=3)), deep.segment(scan)
    assert one.mask.any()
    assert np.array_equal(one.mask, other.mask)
    flat.close()
    deep.close()


def test_scans_of_another_kind_and_broken_weights_are_refused(tmp_path: Path) -> None:
    network, settings = WAYS["windows"]
    parameters = {**settings["model_parameters"], "normalization_schemes": ["CTNormalization"]}
    model = nets.loaded(tmp_path / "ct", network, {**settings, "model_parameters": parameters})
    with pytest.raises(UnsupportedError, match="for CT, the scan is MR"):
        model.segment_pictures([Volume(grains(1, 20, 20), modality="CT"), Volume(grains(1, 20, 20), modality="MR")])
    model.close()
    weights = {"out.w": np.full((3, 1, 1, 1), np.nan, np.float32), "out.b": np.zeros(3, np.float32)}
    broken = nets.model([nets.conv("out", "image", "scores", kernel=1, axes=2)], weights, image=nets.SLICES, scores=("n", 3, "h", "w"))
    model = nets.loaded(tmp_path / "nan", broken, settings)
    with pytest.raises(ModelError, match="no numbers"):
        model.segment(Volume(grains(2, 20, 20)))
    model.close()


def test_the_spec_says_that_pictures_go_and_share(tmp_path: Path) -> None:
    spec = onnx_volume.offer(nets.folder(tmp_path / "flat", *WAYS["windows"]))
    assert (spec.dimensions, spec.together) == ((2, 3), True)
    volumetric = onnx_volume.offer(nets.folder(tmp_path / "deep", nets.unet(), nets.config()))
    assert (volumetric.dimensions, volumetric.together) == ((3,), False)


def test_both_engines_agree(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    scan = Volume(grains(5, 40, 36))
    masks = []
    for engine in ("onnxruntime", "openvino"):
        for way in ("windows", "one at a time"):
            model = nets.loaded(tmp_path / engine / way, *WAYS[way], engine=engine)
            masks.append(model.segment(scan, options={"use_tta": False}, run=Run(batch=2)).mask)
            model.close()
    assert len(np.unique(masks[0])) == 3
    assert all(np.mean(mask == masks[0]) > 0.999 for mask in masks)
