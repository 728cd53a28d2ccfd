"""From the scan's spacing to the network's, as nnU-Net does it: cubic splines within a slice, nearest slices where they are thick.

Every resampling is linear and separable, so it is a small table of taps for each axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import LimitError
from isocenter.models._onnx import kernels
from isocenter.models._onnx.config import Shape, Triple

if TYPE_CHECKING:
    from isocenter.models._onnx.threads import Threads

#: Slices this many times thicker than pixels are kept apart: interpolating between them invents anatomy.
ANISOTROPY = 3.0
#: Most voxels of a volume at the network's spacing.
MOST_VOXELS = 400_000_000
#: Taps smaller than this part of the largest are left out; splines ring on for ever, by a quarter from voxel to voxel.
_SMALL = 1e-7


def shape_at(shape: Shape, spacing: Triple, wanted: Triple | None) -> Shape:
    """Voxels (z, y, x) of the same extent at another spacing. Raises `LimitError` for a volume that would be too large."""
    if wanted is None:
        return shape
    z, y, x = (max(1, round(n * have / want)) for n, have, want in zip(shape, spacing, wanted, strict=True))
    if z * y * x > MOST_VOXELS:
        raise LimitError(f"at the model's spacing the scan would have {z * y * x} voxels", limit="voxels", value=MOST_VOXELS)
    return z, y, x


def thick_axis(spacing: Triple, wanted: Triple | None) -> int | None:
    """The axis across thick slices, None where voxels are near enough to cubes (or where two axes are alike)."""
    for voxel in (spacing, wanted):
        if voxel is not None and max(voxel) / min(voxel) > ANISOTROPY:
            thick = [axis for axis in range(3) if voxel[axis] == max(voxel)]
            return thick[0] if len(thick) == 1 else None
    return None


def volume(array: NDArray[np.float32], shape: Shape, thick: int | None, threads: Threads) -> NDArray[np.float32]:
    """`array` (z, y, x) resampled to `shape`: cubic, along `thick` the nearest slice. Nothing leaves the range of values that was there."""
    if array.shape == shape:
        return array
    others = tuple(axis for axis in range(3) if axis != thick)
    low, high = (ends(axis=others if thick is not None else None, keepdims=True) for ends in (array.min, array.max))
    # What shrinks goes first: the rest then has less to do.
    for axis in sorted(others, key=lambda i: shape[i] / array.shape[i]):
        if shape[axis] != array.shape[axis]:
            array = _along(array, axis, *_taps(array.shape[axis], shape[axis], 3), threads)
    # Splines overshoot at edges; in a slice of its own, values stay within that slice's.
    array = np.clip(array, low, high)
    if thick is not None and shape[thick] != array.shape[thick]:
        array = _along(array, thick, *_taps(array.shape[thick], shape[thick], 0), threads)
    return array


def _taps(source: int, target: int, order: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(first source voxel, weights) of each target voxel; grids of one extent, pixels as areas, edges repeated."""
    if order == 0 or source == 1:
        return linear(source, target, nearest=True)[0], np.ones((target, 1), np.float32)
    from scipy.ndimage import zoom

    table = zoom(np.eye(source), (target / source, 1), order=order, mode="nearest", grid_mode=True).astype(np.float64)
    used = np.abs(table) > _SMALL * np.abs(table).max()
    begin, end = used.argmax(1), source - used[:, ::-1].argmax(1)
    width = int((end - begin).max())
    first = np.minimum(begin, source - width)
    taps = np.take_along_axis(table, first[:, None] + np.arange(width), 1)
    return first.astype(np.int32), (taps / taps.sum(1, keepdims=True)).astype(np.float32)


def _along(array: NDArray[np.float32], axis: int, first: NDArray[np.int32], taps: NDArray[np.float32], threads: Threads) -> NDArray[np.float32]:
    before, after = int(np.prod(array.shape[:axis], dtype=np.int64)), int(np.prod(array.shape[axis + 1 :], dtype=np.int64))
    shape = (*array.shape[:axis], len(first), *array.shape[axis + 1 :])
    target = np.empty((before, len(first), after), np.float32)
    source = np.ascontiguousarray(array).reshape(before, array.shape[axis], after)
    if before >= threads.count:
        threads.each(lambda part: kernels.band(source, first, taps, target, *part), threads.parts(before))
    else:
        # The outermost axis has one plane only: its rows are shared out.

        def rows(part: tuple[int, int]) -> None:
            piece = np.empty((before, part[1] - part[0], after), np.float32)
            kernels.band(source, first[part[0] : part[1]], taps[part[0] : part[1]], piece, 0, before)
            target[:, part[0] : part[1]] = piece

        threads.each(rows, threads.parts(len(first)))
    return target.reshape(shape)


def linear(source: int, target: int, *, nearest: bool = False) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """(lower voxel, upper voxel, the upper's weight) of `source` for each of `target` voxels of the same extent."""
    place = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    if nearest:
        near = np.minimum(np.floor(place + 0.5), source - 1).astype(np.int32)
        return near, near, np.zeros(target, np.float32)
    low = np.floor(place).astype(np.int32)
    return low, np.minimum(low + 1, source - 1).astype(np.int32), (place - low).astype(np.float32)
