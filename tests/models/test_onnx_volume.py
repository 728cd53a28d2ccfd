"""Whole calls of volumetric ONNX networks: every orientation, every way of inference, the scan's own grid."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isocenter.core.errors import CancelledError, UnsupportedError, UsageError
from isocenter.core.geometry import Grid, reorient
from isocenter.core.model import ModelContext, Run
from isocenter.core.volume import Volume
from isocenter.models import _openvino, onnx_volume
from isocenter.models._onnx import chain, tiles
from isocenter.models._onnx.engine import make
from tests.models import onnx_networks as nets

ORIENTATIONS = ["".join(p) for axes in itertools.permutations(["LR", "PA", "SI"]) for p in itertools.product(*axes)]
RNG = np.random.default_rng(5)


def volume(array: NDArray[Any], spacing: tuple[float, float, float] = (1, 1, 1), **how: Any) -> Volume:
    return Volume(array, spacing, **how)


def turned(scan: Volume, letters: str) -> Volume:
    """The same patient, stored with x, y, z towards `letters`; the array's last axis is x."""
    array = np.ascontiguousarray(reorient(scan.array, scan.grid, letters))
    steps = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    direction = np.array([steps[letter] for letter in letters], float).T
    axis = ["LR".find, "PA".find, "SI".find]
    order = [next(i for i, find in enumerate(axis) if find(letter) >= 0) for letter in letters]
    spacing = [scan.spacing[i] for i in order]
    size = np.array(scan.shape[::-1]) - 1
    origin = np.array(scan.origin) + [
        0 if any(letter == good for letter in letters) else s * n for good, s, n in zip("LPS", scan.spacing, size, strict=True)
    ]
    grid = Grid(array.shape, tuple(spacing), tuple(origin), tuple(map(tuple, direction)))  # type: ignore[arg-type]
    return Volume.on_grid(array, grid, modality=scan.modality, unit=scan.unit)


@pytest.fixture(scope="module")
def scan() -> Volume:
    smooth = RNG.normal(size=(12, 14, 10)).repeat(3, 0).repeat(2, 1).repeat(3, 2).astype(np.float32)
    return volume(smooth, (1.5, 1.0, 2.0))


@pytest.mark.parametrize("way", ["sliding", "stream", "tiles", "fixed"])
def test_the_answer_does_not_depend_on_how_the_scan_is_stored(tmp_path: Path, scan: Volume, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_volume, "_WHOLE_BYTES", 0)
    networks: dict[str, tuple[bytes, dict[str, Any]]] = {
        "sliding": (nets.unet(), nets.config(spacing=[1.3, 1.2, 1.1], crop_to_nonzero=True)),
        "stream": (nets.chain(), nets.config(inference="fully_convolutional", spacing=[2, 1.5, 1.2], orientation="AIL")),
        "tiles": (nets.unet(), nets.config(inference="fully_convolutional", halo=8, size_multiple=2, tile_size=[8, 16, 12], orientation="SRP")),
        "fixed": (nets.unet(image=(1, 1, 16, 16, 16)), nets.config(inference="fixed", orientation="RAS")),
    }
    model = nets.loaded(tmp_path / way, *networks[way])
    first = model.segment(scan).mask
    assert first.shape == scan.shape
    assert len(np.unique(first)) == 3
    for letters in ORIENTATIONS:
        other = turned(scan, letters)
        assert other.grid.orientation == letters
        mask = model.segment(other).mask
        assert mask.shape == other.shape
        assert np.array_equal(mask, reorient(first, scan.grid, letters)), letters
    model.close()


def test_labels_lie_where_the_values_are_at_any_spacing(tmp_path: Path) -> None:
    """A network that rounds values, a ramp along each axis: every voxel's class is known."""
    model = nets.loaded(tmp_path, nets.pointwise(9), nets.config(9, spacing=[1, 1, 1], patch_size=[16, 20, 24]))
    for axis in range(3):
        ramp = np.linspace(0, 8, 30).reshape([-1 if i == axis else 1 for i in range(3)])
        values = np.broadcast_to(ramp, (30, 30, 30)).astype(np.float32)
        for spacing in ((1.0, 1.0, 1.0), (0.7, 0.8, 1.9), (2.1, 1.0, 0.9)):
            mask = model.segment(volume(values.copy(), spacing)).mask
            clear = np.abs(values - np.floor(values) - 0.5) > 0.2
            inside = np.s_[1:-1, 1:-1, 1:-1]
            assert np.array_equal(mask[inside][clear[inside]], np.rint(values)[inside][clear[inside]])


@pytest.mark.parametrize("shape", [(5, 40, 30), (40, 6, 9), (2, 2, 2), (33, 17, 48)])
@pytest.mark.parametrize("slices", [1, 5, 64])
def test_a_stream_is_the_whole_volume_at_once(tmp_path: Path, shape: tuple[int, int, int], slices: int) -> None:
    path = tmp_path / "chain.onnx"
    path.write_bytes(nets.chain(classes=4, dilations=(1, 3, 5, 2), activation="Relu"))
    found = chain.find(path)
    assert found is not None
    assert found.halo == (11, 11, 11)
    work = RNG.normal(size=shape).astype(np.float32)
    context = ModelContext(threads=2, engine="onnxruntime")
    stream = chain.Stream(found, context)
    stream.slices = lambda area, part=1.0: slices  # type: ignore[method-assign]
    pieces = [piece.copy() for piece in stream.run(work, Run())]
    whole = make(path, context).run(work[None, None])
    assert np.abs(np.concatenate(pieces, 2) - whole).max() < 1e-4
    assert max(piece.shape[2] for piece in pieces) <= slices


def test_other_networks_are_no_chains(tmp_path: Path) -> None:
    path = tmp_path / "unet.onnx"
    path.write_bytes(nets.unet())
    assert chain.find(path) is None


def test_tiles_that_bring_their_surroundings_are_the_whole_volume(tmp_path: Path) -> None:
    path = tmp_path / "chain.onnx"
    path.write_bytes(nets.chain(dilations=(1, 2, 2)))
    engine = make(path, ModelContext(threads=2, engine="onnxruntime"))
    work = RNG.normal(size=(30, 25, 28)).astype(np.float32)
    whole = engine.run(work[None, None])[0]

    class Kept:
        def __init__(self) -> None:
            self.scores: list[NDArray[np.float32]] = []

        def put(self, scores: NDArray[np.float32], places: Any) -> None:
            self.scores.append(scores[:, list(places)].copy())

    for halo, exact in ((5, True), (3, False)):
        kept = Kept()
        tiles.run_tiles(work, (11, 9, 28), (halo,) * 3, 1, engine, kept, Run())  # type: ignore[arg-type]
        assert (np.abs(np.concatenate(kept.scores, 1) - whole).max() < 1e-4) == exact


def test_tiles_grow_smaller_when_memory_ran_out() -> None:
    whole = tiles.core((64, 64, 64), (8, 8, 8), 1, 1.0)
    assert whole == (64, 64, 64)
    assert tiles.core((64, 64, 64), (8, 8, 8), 1, 0.5) == (32, 32, 32)
    large = tiles.core((512, 512, 512), (48, 48, 48), 16, 1.0)
    assert max(large) < 512
    assert all(n % 16 == 0 for n in large)


def test_engines_agree_and_are_named(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    scan = volume(RNG.normal(size=(40, 40, 40)).astype(np.float32))
    answers = {}
    for engine in ("onnxruntime", "openvino", "auto"):
        model = nets.loaded(tmp_path / engine, nets.unet(classes=4, seed=3), nets.config(4), engine=engine)
        answers[engine] = model.segment(scan)
        model.close()
    assert (answers["onnxruntime"].mask == answers["openvino"].mask).mean() > 0.999
    assert any("ONNX Runtime" in note and "float32" in note for note in answers["onnxruntime"].notes)
    assert any("OpenVINO" in note and "float32" in note for note in answers["openvino"].notes)
    assert any("OpenVINO" in note for note in answers["auto"].notes)


def test_bfloat16_is_openvinos_where_the_processor_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    scan = volume(RNG.normal(size=(24, 24, 24)).astype(np.float32))
    asked: dict[str, Any] = {"engine": "openvino", "precision": "bfloat16"}
    if _openvino.has_bfloat16():
        half = nets.loaded(tmp_path / "half", nets.unet(), nets.config(), **asked)
        assert any("(CPU, bfloat16)" in note for note in half.segment(scan).notes)
    # A processor without it computes in float32, and the answer says so.
    monkeypatch.setattr(_openvino, "has_bfloat16", lambda: False)
    whole = nets.loaded(tmp_path / "whole", nets.unet(), nets.config(), **asked).segment(scan)
    assert any("(CPU, float32)" in note for note in whole.notes)
    plain = nets.loaded(tmp_path / "plain", nets.unet(), nets.config(), engine="openvino").segment(scan)
    assert np.array_equal(whole.mask, plain.mask)


def test_no_volume_of_scores_is_ever_held(tmp_path: Path) -> None:
    """60 classes of 64 x 64 x 256 would be 252 MB; the sum of a window's slices is 16 MB."""
    scan = volume(np.zeros((256, 64, 64), np.uint8))
    model = nets.loaded(tmp_path, nets.pointwise(60), nets.config(60, patch_size=[16, 32, 32]))
    tracemalloc.start()
    try:
        model.segment(scan)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    whole = 60 * scan.array.size * 4
    assert peak < whole / 8, f"{peak / 1e6:.0f} MB of {whole / 1e6:.0f}"


def test_cropping_takes_the_margin_of_zeros_away_and_puts_it_back(tmp_path: Path) -> None:
    array = np.zeros((40, 50, 60), np.int16)
    array[5:30, 10:44, 20:51] = RNG.integers(50, 200, (25, 34, 31))
    parameters: dict[str, Any] = {"normalization_schemes": ["ZScoreNormalization"], "crop_to_nonzero": True, "patch_size": [16, 16, 16]}
    model = nets.loaded(tmp_path, nets.unet(), nets.config(**parameters))
    whole = model.segment(volume(array)).mask
    part = model.segment(volume(array[5:30, 10:44, 20:51].copy())).mask
    assert np.array_equal(whole[5:30, 10:44, 20:51], part)
    part_of = whole.copy()
    part_of[5:30, 10:44, 20:51] = 0
    assert not part_of.any()
    assert model.segment(volume(np.zeros((20, 20, 20), np.int16))).mask.shape == (20, 20, 20)


def test_only_the_largest_component_of_chosen_classes_is_kept(tmp_path: Path) -> None:
    array = np.zeros((20, 20, 20), np.float32)
    array[2:8, 2:8, 2:8], array[12:14, 12:14, 12:14] = 1, 1
    array[16:18, 2:4, 2:4], array[16:17, 8:10, 2:3] = 2, 2
    settings = {**nets.config(3, patch_size=[20, 20, 20]), "postprocessing": {"keep_largest": ["one"]}}
    settings["dataset_parameters"]["class_names"] = {"1": "One", "2": "Two"}
    model = nets.loaded(tmp_path, nets.pointwise(3), settings)
    mask = model.segment(volume(array)).mask
    assert (mask == 1).sum() == 216
    assert (mask == 2).sum() == (array == 2).sum()
    everything = model.segment(volume(array), options={"keep_largest": False}).mask
    assert np.array_equal(everything, array)


def test_many_classes_need_two_bytes(tmp_path: Path) -> None:
    model = nets.loaded(tmp_path, nets.pointwise(300), nets.config(300))
    ramp = np.broadcast_to(np.arange(16, dtype=np.float32) * 19, (16, 16, 16)).copy()
    answer = model.segment(volume(ramp))
    assert answer.mask.dtype == np.uint16
    assert np.array_equal(answer.mask, ramp)
    assert len(answer.labels) == 299


def test_probabilities_are_cut_at_the_threshold(tmp_path: Path) -> None:
    settings = nets.config(2, inference="fixed", patch_size=[16, 16, 16], threshold=0.7)
    model = nets.loaded(tmp_path, nets.unet(1, image=(1, 1, 16, 16, 16), sigmoid=True), settings)
    array = RNG.normal(size=(16, 16, 16)).astype(np.float32)
    mask = model.segment(volume(array)).mask
    assert np.array_equal(mask, model._engine.run(array[None, None])[0, 0] > np.float32(0.7))


def test_ct_values_become_what_the_plan_says(tmp_path: Path) -> None:
    settings = nets.config(9, normalization_schemes=["CTNormalization"], orientation="LPS")
    known = {"percentile_00_5": -100.0, "percentile_99_5": 300.0, "mean": -100.0, "std": 50.0}
    settings["dataset_parameters"]["channels"] = {"0": {"name": "CT", "foreground_properties": known}}
    model = nets.loaded(tmp_path, nets.pointwise(9), settings)
    hounsfield = np.array([-1024, -100, -49, 1, 251, 300, 3000], np.int16)
    array = np.broadcast_to(hounsfield.repeat(3), (16, 16, 21)).copy()
    found = model.segment(volume(array, modality="CT", unit="HU")).mask[8, 8, 1::3]
    assert found.tolist() == [0, 0, 1, 2, 7, 8, 8]


@pytest.mark.parametrize("scheme", ["CTNormalization", "ZScoreNormalization", "RescaleTo01Normalization", "QuantileNormalization"])
def test_odd_intensities_are_borne(tmp_path: Path, scheme: str) -> None:
    model = nets.loaded(tmp_path, nets.pointwise(3), nets.config(3, normalization_schemes=[scheme]))
    constant = np.full((16, 16, 16), 7, np.int16)
    broken = RNG.normal(size=(16, 16, 16)).astype(np.float32)
    broken[0, 0, :3] = [np.nan, np.inf, -np.inf]
    for array in (constant, broken, np.full((16, 16, 16), np.nan, np.float32)):
        assert model.segment(volume(array)).mask.shape == array.shape


def test_options_are_checked(tmp_path: Path) -> None:
    model = nets.loaded(tmp_path, nets.unet(), nets.config())
    scan = volume(RNG.normal(size=(24, 24, 24)).astype(np.float32))
    plain = model.segment(scan).mask
    assert (model.segment(scan, options={"use_tta": True}).mask != plain).any()
    for options in ({"step_size": 0}, {"step_size": 1e-9}, {"step_size": "0.5"}, {"use_tta": "yes"}, {"step": 0.5}, {"keep_largest": 1}):
        with pytest.raises(UsageError):
            model.segment(scan, options=options)


def test_scans_of_another_kind_are_refused(tmp_path: Path) -> None:
    model = nets.loaded(tmp_path, nets.unet(), nets.config(normalization_schemes=["CTNormalization"]))
    array = RNG.normal(size=(24, 24, 24)).astype(np.float32)
    with pytest.raises(UnsupportedError, match="for CT, the scan is MR"):
        model.segment(volume(array, modality="MR"))
    with pytest.raises(UnsupportedError, match="single slice"):
        model.segment(volume(array[:1], modality="CT"))
    assert any("taken as CT" in note for note in model.segment(volume(array)).notes)


@pytest.mark.parametrize("way", ["sliding_window", "fully_convolutional"])
def test_cancelling(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_volume, "_WHOLE_BYTES", 0)
    model = nets.loaded(tmp_path, nets.chain(), nets.config(inference=way))
    steps: list[float] = []
    run = Run(progress=lambda fraction, _: steps.append(fraction), cancelled=lambda: len(steps) >= 2)
    with pytest.raises(CancelledError):
        model.segment(volume(RNG.normal(size=(80, 32, 32)).astype(np.float32)), run=run)
    assert len(steps) == 2
    assert model.segment(volume(RNG.normal(size=(20, 20, 20)).astype(np.float32))).mask.shape == (20, 20, 20)
