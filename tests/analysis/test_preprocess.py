"""Scans made ready for networks: the resampling is SimpleITK's, number by number, in less memory."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.analysis.preprocess import isotropic, preprocess, resampled
from isocenter.core.errors import GeometryError
from isocenter.core.geometry import Grid
from isocenter.core.rescaled import Rescaled
from isocenter.core.volume import Volume

TURNED = ((0.0, -1.0, 0.0), (0.6, 0.0, 0.8), (-0.8, 0.0, 0.6))


def scan(shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int = 1) -> Volume:
    values = np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)
    return Volume(values, spacing=spacing, origin=(-10.0, 25.0, 7.0), direction=TURNED, modality="CT", unit="HU")


def by_simpleitk(volume: Volume, grid: Grid) -> np.ndarray:
    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection([v for row in volume.direction for v in row])
    direction = [float(v) for row in grid.direction for v in row]
    size = (grid.shape[2], grid.shape[1], grid.shape[0])
    lowest = float(volume.array.min())
    found = sitk.Resample(image, size, sitk.Transform(), sitk.sitkLinear, grid.origin, grid.spacing, direction, lowest, sitk.sitkFloat32)
    return np.asarray(sitk.GetArrayFromImage(found))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.floats(0.4, 5.0)] * 3),
    st.floats(0.5, 4.0),
)
def test_as_simpleitk_has_it(shape: tuple[int, int, int], spacing: tuple[float, float, float], step: float) -> None:
    volume = scan(shape, spacing)
    grid = isotropic(volume.grid, step)
    ours, theirs = resampled(volume, grid), by_simpleitk(volume, grid)
    # The outermost cubes' centres may lie on the very edge, where rounding decides: compare those inside of it.
    index = np.indices(grid.shape)
    inside = np.ones(grid.shape, bool)
    for axis, (n, s) in enumerate(zip(shape, volume.spacing_zyx, strict=True)):
        place = ((index[axis] + 0.5) * step) / s
        inside &= np.abs(place - n) > 1e-6
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=0.01)


def test_integers_that_mean_something_else_are_resampled_as_what_they_mean() -> None:
    plain = scan((6, 7, 8), (1.0, 1.5, 2.0))
    stored = Volume(Rescaled(np.asarray(plain.array), 0.5, -3.0), spacing=plain.spacing, origin=plain.origin, direction=TURNED)
    grid = isotropic(plain.grid, 1.2)
    np.testing.assert_allclose(resampled(stored, grid), resampled(plain, grid) * 0.5 - 3, atol=1e-3)


def test_a_scan_of_float32_is_resampled_though_its_planes_are_read_only() -> None:
    plain = scan((6, 7, 8), (1.0, 1.5, 2.0))
    floats = Volume(np.asarray(plain.array, np.float32), spacing=plain.spacing, origin=plain.origin, direction=TURNED)
    grid = isotropic(plain.grid, 1.2)
    np.testing.assert_allclose(resampled(floats, grid), resampled(plain, grid), atol=1e-4)


def test_only_along_its_own_axes() -> None:
    volume = scan((4, 4, 4), (1.0, 1.0, 1.0))
    other = Grid((4, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    with pytest.raises(GeometryError, match="own axes"):
        resampled(volume, other)


def test_window() -> None:
    ready = preprocess(scan((6, 8, 8), (0.8, 0.8, 2.0)))
    assert (ready.centre, ready.width) == (40, 400)
    assert ready.array.shape[0] == 1
    assert (float(ready.array.min()), float(ready.array.max())) == (0, 1)
    assert ready.grid.spacing == (0.8, 0.8, 0.8)


def test_no_memory_but_the_result() -> None:
    """Beside scan and result some rows of two planes a thread."""
    import tracemalloc

    volume = Volume(np.arange(40 * 200 * 200, dtype=np.int32).reshape(40, 200, 200).astype(np.int16), (0.75, 0.75, 1.0))
    grid = isotropic(volume.grid, 1.0)
    resampled(volume, grid)  # the kernel is loaded
    tracemalloc.start()
    out = resampled(volume, grid)
    beyond = tracemalloc.get_traced_memory()[1] - out.nbytes
    tracemalloc.stop()
    assert beyond < 300_000, "two planes as floats take 320 kB"
