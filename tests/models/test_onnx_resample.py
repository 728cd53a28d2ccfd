"""Resampling to a network's spacing, and classes back on the scan's voxels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage.transform import resize

from isocenter.core.errors import LimitError
from isocenter.models._onnx import resample
from isocenter.models._onnx.sink import Sink
from isocenter.models._onnx.threads import Threads

THREADS = Threads(2)


@pytest.mark.parametrize("shape", [(20, 31, 17), (9, 62, 40), (40, 20, 34), (1, 31, 17), (13, 31, 60)])
def test_cubic_as_nnunet_does_it(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).normal(size=(20, 31, 17)).astype(np.float32)
    theirs = resize(image, shape, order=3, mode="edge", anti_aliasing=False)
    assert np.abs(resample.volume(image, shape, None, THREADS) - theirs).max() < 1e-4


def test_thick_slices_are_not_interpolated() -> None:
    tools = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    image = np.random.default_rng(0).normal(size=(1, 9, 30, 26)).astype(np.float32)
    have, want = (5.0, 0.8, 0.8), (2.0, 1.0, 1.0)
    shape = resample.shape_at((9, 30, 26), have, want)
    assert shape == tuple(tools.compute_new_shape((9, 30, 26), have, want))
    thick = resample.thick_axis(have, want)
    assert thick == 0
    theirs = tools.resample_data_or_seg_to_spacing(image, have, want, order=3, order_z=0, force_separate_z=None)[0]
    assert np.abs(resample.volume(image[0], shape, thick, THREADS) - theirs).max() < 1e-4


@pytest.mark.parametrize(
    ("have", "want", "axis"),
    [((1, 1, 1), (1, 1, 1), None), ((5, 1, 1), (1, 1, 1), 0), ((1, 1, 1), (1, 4, 1), 1), ((0.2, 1.2, 1.2), (1, 1, 1), None), ((3, 1, 1), None, None)],
)
def test_which_axis_is_thick(have: tuple[float, float, float], want: tuple[float, float, float] | None, axis: int | None) -> None:
    assert resample.thick_axis(have, want) == axis


def test_a_spacing_that_asks_for_too_much_is_refused() -> None:
    with pytest.raises(LimitError, match="voxels"):
        resample.shape_at((500, 500, 500), (5, 5, 5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("thick", [None, 0, 1])
@pytest.mark.parametrize("pieces", [(13,), (1, 5, 7), (4, 4, 4, 1)])
def test_classes_come_back_as_from_interpolated_scores(classes: int, thick: int | None, pieces: tuple[int, ...]) -> None:
    """Against interpolating every class's scores over the whole volume; pieces of any depth, with a margin that is left out."""
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(classes, 13, 12, 15)).astype(np.float32)
    pad = [(1, 2), (0, 1), (2, 0)]
    inner = scores[:, 1:11, 0:11, 2:15]
    target = np.zeros((23, 8, 31), np.uint8)
    axes = []
    for axis, (n, out) in enumerate(zip(inner.shape[1:], target.shape, strict=True)):
        place = np.clip((np.arange(out) + 0.5) * n / out - 0.5, 0, n - 1)
        axes.append(np.floor(place + 0.5) if axis == thick else place)
    grid = np.meshgrid(*axes, indexing="ij")
    fine = np.stack([map_coordinates(channel, grid, order=1, mode="nearest") for channel in inner])
    expected = fine.argmax(0) if classes > 1 else fine[0] > 0.1
    sink = Sink((13, 12, 15), pad, target, 0.1, thick, THREADS)
    begin = 0
    for depth in pieces:
        piece = scores[:, begin : begin + depth].copy()
        sink.put(piece, range(depth))
        piece[:] = np.nan  # whoever made the scores may write over them
        begin += depth
    best = np.sort(fine, 0)
    clear = (best[-1] - best[-2] if classes > 1 else np.abs(best[-1] - 0.1)) > 1e-4
    assert np.array_equal(target[clear], expected[clear])
    assert clear.mean() > 0.99
