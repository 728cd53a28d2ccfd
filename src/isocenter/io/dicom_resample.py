"""Slices that do not make a regular grid, brought to one: linear along the normal, and within the slice where it is shifted."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: A slice this near to a plane of the grid (voxels) is taken as it is.
_NEAR = 0.02


def resample(array: NDArray[np.generic], places: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.generic]:
    """`array` (slices, y, x), whose slice k has its corner voxel at `places[k]` (z, y, x) of the new grid, on that grid.

    Outside of the slices, which a shift uncovers, lies the lowest value of the volume. Of the same type as `array`;
    integers are rounded. Slices that lie on a plane of the grid and are not shifted are copied as they are.
    """
    result = np.empty(shape, array.dtype)
    fill = array.min()
    threads = min(os.cpu_count() or 1, 4, shape[0])
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda t: _fill(result, array, places, fill, range(shape[0] * t // threads, shape[0] * (t + 1) // threads)), range(threads)))
    return result


def _fill(result: NDArray[np.generic], array: NDArray[np.generic], places: NDArray[np.float64], fill: np.generic, planes: range) -> None:
    """Some planes of the result, each a slice or the weighted sum of the two around it."""
    total = np.empty(result.shape[1:], np.float32)
    scratch = np.empty((array.shape[1] + 1, array.shape[2] + 1), np.float32)
    near: dict[int, _Placed] = {}
    for k in planes:
        terms = _terms(k, places)
        near = {i: near[i] if i in near else _placed(array[i], places[i, 1:], fill) for i, _ in terms}
        if len(terms) == 1 and (whole := near[terms[0][0]]).exact:
            result[k] = fill
            result[k, whole.rows, whole.columns] = array[terms[0][0]]
            continue
        # Values are counted from `fill` on, so that what lies outside of a slice is zero.
        (index, weight), *others = terms
        _set(total, near[index], weight)
        for index, weight in others:
            placed = near[index]
            product = scratch[: placed.values.shape[0], : placed.values.shape[1]]
            np.multiply(placed.values, np.float32(weight), out=product)
            part = total[placed.rows, placed.columns]
            np.add(part, product, out=part)
        if result.dtype.kind in "iu":
            np.rint(total, out=total)
        np.add(total, np.float32(fill), out=result[k], casting="unsafe")


def _set(total: NDArray[np.float32], placed: _Placed, weight: float) -> None:
    """`total` is what this slice alone gives, zero around it; every voxel is written once."""
    rows, columns = placed.rows, placed.columns
    total[: rows.start] = 0
    total[rows.stop :] = 0
    total[rows, : columns.start] = 0
    total[rows, columns.stop :] = 0
    np.multiply(placed.values, np.float32(weight), out=total[rows, columns])


@dataclass(frozen=True)
class _Placed:
    """A slice minus the fill value, shifted by less than a voxel, and the rows and columns of the grid that it covers."""

    values: NDArray[np.float32]
    rows: slice
    columns: slice
    exact: bool


def _placed(image: NDArray[np.generic], corner: NDArray[np.float64], fill: np.generic) -> _Placed:
    """A slice whose first voxel goes to `corner` (y, x)."""
    values = np.subtract(image, fill, dtype=np.float32)
    whole = np.floor(corner + _NEAR).astype(int)
    rest = np.maximum(corner - whole, 0)
    shifted = [axis for axis in (0, 1) if rest[axis] >= _NEAR]
    for axis in shifted:
        longer = np.empty(tuple(n + (a == axis) for a, n in enumerate(values.shape)), np.float32)
        first, last = (longer[:-1], longer[1:]) if axis == 0 else (longer[:, :-1], longer[:, 1:])
        longer[(-1,) if axis == 0 else (slice(None), -1)] = 0
        np.multiply(values, np.float32(1 - rest[axis]), out=first)
        np.multiply(values, np.float32(rest[axis]), out=values)
        np.add(last, values, out=last)
        values = longer
    y, x = (int(n) for n in whole)
    return _Placed(values, slice(y, y + values.shape[0]), slice(x, x + values.shape[1]), not shifted)


def _terms(k: int, places: NDArray[np.float64]) -> list[tuple[int, float]]:
    """(slice, weight): what plane k is made of."""
    lower = int(np.clip(np.searchsorted(places[:, 0], k + 1e-6) - 1, 0, len(places) - 2))
    upper = _share(k - places[lower, 0], places[lower + 1, 0] - k)
    return [(index, weight) for index, weight in ((lower, 1 - upper), (lower + 1, upper)) if weight]


def _share(below: float, above: float) -> float:
    """The weight of the upper slice for a plane that lies so far from both; 0 or 1 when it is as good as on one."""
    if below < _NEAR:
        return 0.0
    return 1.0 if above < _NEAR else below / (below + above)
