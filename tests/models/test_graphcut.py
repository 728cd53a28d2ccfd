"""The scribble models: exact cuts, masks on phantoms and real scans, and what scribbles promise."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_flow

from isocenter.core.errors import PromptError, UsageError
from isocenter.core.model import ModelContext, Task
from isocenter.core.prompts import Box
from isocenter.core.volume import Volume
from isocenter.models import graphcut
from isocenter.models._graphcut import _build, _kernels, likelihood, maxflow
from isocenter.models._graphcut.maxflow import UNIT, cut

Mask = NDArray[np.bool_]


@pytest.fixture(scope="module", params=[graphcut.HistogramGraphCut, graphcut.MixtureGraphCut])
def model(request: pytest.FixtureRequest) -> graphcut.HistogramGraphCut | graphcut.MixtureGraphCut:
    made: graphcut.HistogramGraphCut | graphcut.MixtureGraphCut = request.param()
    made.load(ModelContext())
    return made


def dice(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    return 2 * float((a.astype(bool) & b.astype(bool)).sum()) / float(a.astype(bool).sum() + b.astype(bool).sum())


def strokes(target: Mask, fractions: tuple[float, ...] = (0.25, 0.5, 0.75)) -> tuple[Mask, Mask]:
    """A cross well inside the target and four arcs around it, on a few axial slices."""
    inside, outside = np.zeros_like(target), np.zeros_like(target)
    slices = np.flatnonzero(target.any(axis=(1, 2)))
    for fraction in fractions:
        z = slices[int(fraction * len(slices))]
        depth = ndimage.distance_transform_edt(target[z])
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        parts, _ = ndimage.label(depth > 0.35 * depth.max())
        core = parts == parts[y, x]
        inside[z, y], inside[z, :, x] = inside[z, y] | core[y], inside[z, :, x] | core[:, x]
        away = ndimage.distance_transform_edt(~target[z])
        rows, columns = np.indices(away.shape)
        angle = np.arctan2(rows - y, columns - x)
        outside[z] |= (away > 2.5) & (away <= 3.6) & (np.mod(angle, np.pi / 2) < np.pi / 3)
    return inside, outside


def ellipsoid(contrast: float, noise: float, shape: tuple[int, int, int] = (80, 80, 80)) -> tuple[NDArray[np.int16], Mask]:
    """A soft-tissue ellipsoid in a cylinder of soft tissue in air."""
    z, y, x = (np.arange(n).reshape([-1 if i == axis else 1 for i in range(3)]) - n / 2 for axis, n in enumerate(shape))
    target = (z / 25) ** 2 + (y / 28) ** 2 + (x / 22) ** 2 < 1
    body = np.broadcast_to(y**2 + x**2 < 37**2, shape)
    clean = np.where(body, 20 + contrast * target, -1000.0)
    return (clean + np.random.default_rng(1).normal(0, noise, shape)).astype(np.int16), target


# --- the cut ---------------------------------------------------------------------------------------------------------


def reference(fg: NDArray[np.int64], bg: NDArray[np.int64], weights: list[NDArray[np.int64]]) -> int:
    """The least cost by SciPy's maximum flow."""
    n = fg.size
    node = np.arange(n).reshape(fg.shape)
    rows, columns, values = [np.full(n, n), node.ravel()], [node.ravel(), np.full(n, n + 1)], [bg.ravel(), fg.ravel()]
    for axis, weight in enumerate(weights):
        here, there = node.take(range(node.shape[axis] - 1), axis).ravel(), node.take(range(1, node.shape[axis]), axis).ravel()
        w = weight.take(range(node.shape[axis] - 1), axis).ravel()
        rows += [here, there]
        columns += [there, here]
        values += [w, w]
    matrix = coo_array((np.concatenate(values).astype(np.int32), (np.concatenate(rows), np.concatenate(columns))), shape=(n + 2, n + 2))
    return int(maximum_flow(matrix.tocsr(), n, n + 1).flow_value)


def energy(mask: Mask, fg: NDArray[np.int64], bg: NDArray[np.int64], weights: list[NDArray[np.int64]]) -> int:
    total = int(fg[mask].sum() + bg[~mask].sum())
    for axis, weight in enumerate(weights):
        total += int(weight.take(range(mask.shape[axis] - 1), axis)[np.diff(mask, axis=axis) != 0].sum())
    return total


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 8)),
    seed=st.integers(0, 2**32 - 1),
    largest=st.integers(1, 60),
    empty=st.sampled_from([0.0, 0.5, 0.9]),
)
def test_cut_costs_what_scipys_maximum_flow_says(shape: tuple[int, int, int], seed: int, largest: int, empty: float) -> None:
    rng = np.random.default_rng(seed)
    fg, bg = (rng.integers(0, 40, shape) * (rng.random(shape) >= empty) for _ in range(2))
    weights = [rng.integers(0, largest, shape) for _ in range(3)]
    assert energy(cut(fg, bg, weights), fg, bg, weights) == reference(fg, bg, weights)


def test_cut_of_a_band_equals_the_cut_of_the_whole() -> None:
    """Both layouts of the graph, on the same problem: the band is everything but a frame that is known anyway."""
    rng = np.random.default_rng(5)
    levels = rng.integers(0, 1024, (9, 10, 11)).astype(np.uint16)
    seeds = np.full(levels.shape, _build.BACKGROUND, np.uint8)
    seeds[1:-1, 1:-1, 1:-1] = 0
    seeds[4, 5, 5] = _build.FOREGROUND
    pairs = np.broadcast_to((UNIT * np.exp(-np.arange(1024) / 300)).astype(np.int32), (3, 1024)).copy()
    costs = np.linspace(-2 * UNIT, 2 * UNIT, 1024).astype(np.int32)
    problem = maxflow.Problem(levels, seeds, costs, rng.integers(-500, 500, levels.shape).astype(np.int32), (0, 0, 0), pairs, (1.0, 1.0, 1.0))
    whole = maxflow.cut_levels(problem)
    known = (seeds == _build.FOREGROUND).astype(np.uint8)
    index = np.flatnonzero(seeds == 0)
    assert np.array_equal(maxflow._cut_band(problem, known, index), whole.ravel()[index])
    assert 20 < whole.sum() < index.size - 20


def test_coarse_to_fine_is_near_the_exact_cut() -> None:
    voxels, target = ellipsoid(40, 20)
    inside, outside = strokes(target)
    seeds = np.where(inside, _build.FOREGROUND, np.where(outside, _build.BACKGROUND, 0)).astype(np.uint8)
    problem = graphcut.HistogramGraphCut()._problem(voxels, seeds, (1.0, 1.0, 1.0), {})
    exact, quick = maxflow.cut_levels(problem), maxflow.cut_levels(problem, voxels=150_000)
    assert dice(exact, quick) > 0.98
    assert dice(quick, target) > 0.9


def test_a_million_voxels_are_cut_within_a_second() -> None:
    voxels, target = ellipsoid(40, 20, (96, 96, 96))
    maxflow.warm()
    gain = np.clip((voxels - 40.0) / 10, -4, 4)
    weight = 2 * np.exp(-0.5 * (np.diff(voxels.astype(float), axis=0, append=0) / 60) ** 2)
    started = time.thread_time()
    mask = cut(0, gain, (weight, 1.0, 1.0))
    assert time.thread_time() - started < 2.0  # 0.3 s on an idle core
    assert dice(mask, target) > 0.95


def test_nothing_is_compiled_after_warming() -> None:
    kernels = [_kernels.solve, _build.halve, _build.double, _build.excess_of, _build.arcs_by_level, _build.arcs_of_band, _build.mark_band]
    kernels.append(_build.keep_connected)
    maxflow.warm()
    before = [len(k.signatures) for k in kernels]  # type: ignore[attr-defined]
    voxels, target = ellipsoid(40, 20)
    graphcut.HistogramGraphCut().separate(Volume(voxels), *strokes(target))
    assert [len(k.signatures) for k in kernels] == before  # type: ignore[attr-defined]


@pytest.mark.parametrize("learn", [likelihood.histogram, likelihood.mixture])
def test_densities_integrate_to_one_and_peak_where_the_samples_are(learn: object) -> None:
    rng = np.random.default_rng(0)
    samples = np.concatenate([rng.normal(0.3, 0.03, 300), rng.normal(0.7, 0.05, 200)])
    counts = np.histogram(samples, 1024, (0, 1))[0].astype(float)
    density = learn(counts, 20 if learn is likelihood.mixture else 64, 0.02)  # type: ignore[operator]
    assert density.mean() == pytest.approx(1, abs=0.02)
    assert density[307] > 3
    assert density[717] > 2
    assert density[512] < 0.5
    assert density[950] < 0.1


# --- the models ------------------------------------------------------------------------------------------------------


def test_specs_name_classes_that_exist() -> None:
    assert {spec.id for spec in graphcut.SPECS} == {"Histogram+GraphCut", "GMM+GraphCut"}
    for spec in graphcut.SPECS:
        assert spec.task is Task.SCRIBBLES
        assert hasattr(graphcut, spec.factory.split(":")[1])


@pytest.mark.parametrize(("contrast", "noise"), [(40, 0), (40, 20), (400, 20)])
def test_phantom(model: graphcut.HistogramGraphCut, contrast: float, noise: float) -> None:
    voxels, target = ellipsoid(contrast, noise)
    inside, outside = strokes(target)
    mask = model.separate(Volume(voxels, modality="CT", unit="HU"), inside, outside)
    assert mask.dtype == np.uint8
    assert dice(mask, target) >= 0.95
    assert mask[inside].all()
    assert not mask[outside].any()
    assert np.array_equal(mask, model.separate(Volume(voxels), inside, outside)), "the same question, the same answer"


@pytest.mark.parametrize("sigma", ["0.1", 0.05, [0.3], None])
def test_no_sigma_collapses(model: graphcut.HistogramGraphCut, sigma: object) -> None:
    """MONAI Label's default of 0.1 gives Dice 0.03 on such a phantom; its viewers send the value along."""
    voxels, target = ellipsoid(50, 8)
    assert dice(model.separate(Volume(voxels), *strokes(target), options={"sigma": sigma}), target) >= 0.9


def test_one_slice_of_scribbles_is_enough(model: graphcut.HistogramGraphCut) -> None:
    voxels, target = ellipsoid(40, 10)
    assert dice(model.separate(Volume(voxels), *strokes(target, (0.5,))), target) >= 0.85


def test_without_background_the_shell_of_the_box_is_background(model: graphcut.HistogramGraphCut) -> None:
    voxels, target = ellipsoid(40, 20)
    inside, _ = strokes(target)
    nothing = np.zeros_like(target)
    assert dice(model.separate(Volume(voxels), inside, nothing), target) >= 0.95


def test_roi_bounds_the_mask_and_its_centre_stands_in_for_scribbles(model: graphcut.HistogramGraphCut) -> None:
    voxels, target = ellipsoid(60, 10)
    nothing = np.zeros_like(target)
    roi = Box((10, 8, 14), (70, 72, 66))
    mask = model.separate(Volume(voxels), nothing, nothing, roi=roi)
    assert dice(mask, target) >= 0.9
    half = Box((10, 8, 14), (70, 72, 40))
    inside, outside = strokes(target)
    mask = model.separate(Volume(voxels), inside, outside, roi=half)
    assert mask.any()
    assert not mask[:, :, 40:].any()
    with pytest.raises(PromptError, match="outside the volume"):
        model.separate(Volume(voxels), inside, outside, roi=Box((200, 0, 0), (210, 5, 5)))


def test_what_cannot_be_answered(model: graphcut.HistogramGraphCut) -> None:
    voxels, target = ellipsoid(40, 0)
    inside, outside = strokes(target)
    volume, nothing = Volume(voxels), np.zeros_like(target)
    with pytest.raises(PromptError, match="foreground"):
        model.separate(volume, nothing, outside)
    with pytest.raises(PromptError, match="shape"):
        model.separate(volume, inside[1:], outside)
    for options in ({"lamda": "much"}, {"sigma": -1}, {"lamda": float("nan")}):
        with pytest.raises(UsageError):
            model.separate(volume, inside, outside, options=options)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_picture(model: graphcut.HistogramGraphCut, dtype: type[np.generic]) -> None:
    """2-D, without millimetres; also with values that are not numbers."""
    y, x = np.ogrid[:120, :140]
    target = ((y - 60) ** 2 + (x - 70) ** 2 < 35**2)[None]
    voxels = (80 + 60 * target + np.random.default_rng(2).normal(0, 12, target.shape)).clip(0, 255).astype(dtype)
    if dtype is np.float32:
        voxels[0, :3] = np.nan
    mask = model.separate(Volume(voxels), *strokes(target, (0.5,)))
    assert dice(mask, target) >= 0.97


def test_thick_slices(model: graphcut.HistogramGraphCut) -> None:
    """Slices five times as thick as the pixels are wide: evidence must not be smoothed across them as if they were near."""
    voxels, target = ellipsoid(40, 10)
    thick, truth = np.ascontiguousarray(voxels[2::5]), np.ascontiguousarray(target[2::5])
    mask = model.separate(Volume(thick, (1.0, 1.0, 5.0)), *strokes(truth, (0.3, 0.6)))
    assert dice(mask, truth) >= 0.93


@settings(max_examples=25, deadline=None, derandomize=True)
@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12)), seed=st.integers(0, 2**32 - 1), flat=st.booleans())
def test_scribbles_are_always_honoured(shape: tuple[int, int, int], seed: int, flat: bool) -> None:
    rng = np.random.default_rng(seed)
    voxels = np.zeros(shape, np.int16) if flat else rng.integers(-1000, 3000, shape).astype(np.int16)
    inside, outside = rng.random(shape) < 0.1, rng.random(shape) < 0.1
    inside.flat[int(rng.integers(inside.size))] = True
    for kind in (graphcut.HistogramGraphCut, graphcut.MixtureGraphCut):
        mask = kind().separate(Volume(voxels), inside, outside)
        assert mask[inside].all()
        assert not mask[outside & ~inside].any()
        assert ndimage.label(mask)[1] <= ndimage.label(inside)[1]


def test_real_liver(data: Path, model: graphcut.HistogramGraphCut) -> None:
    """Liver of a CT with three slices of scribbles; truth is TotalSegmentator's (liver = 5)."""
    import nibabel

    folder = data / "totalsegmentator"
    scan, truth = nibabel.load(folder / "example_ct.nii.gz"), nibabel.load(folder / "example_seg_fast_force_split.nii.gz")
    target = np.asanyarray(truth.dataobj).T == 5
    volume = Volume(np.asanyarray(scan.dataobj).T, (3.0, 3.0, 3.0), modality="CT", unit="HU")
    inside, outside = strokes(target)
    started = time.thread_time()
    mask = model.separate(volume, inside, outside)
    assert time.thread_time() - started < 2.5
    assert dice(mask, target) >= 0.8


@pytest.mark.parametrize(("label", "least"), [(5, 0.85), (1, 0.85), (19, 0.8)])
def test_real_mr(data: Path, model: graphcut.HistogramGraphCut, label: int, least: float) -> None:
    """MR, where an intensity window made for CT finds nothing."""
    import nibabel

    folder = data / "totalsegmentator"
    scan, truth = nibabel.load(folder / "example_mr_sm.nii.gz"), nibabel.load(folder / "example_seg_mr.nii.gz")
    target = label == np.asanyarray(truth.dataobj).T
    spacing = tuple(float(s) for s in scan.header.get_zooms())
    volume = Volume(np.asanyarray(scan.dataobj).T, (spacing[0], spacing[1], spacing[2]), modality="MR")
    assert dice(model.separate(volume, *strokes(target)), target) >= least
