"""Slices that do not make a regular grid, brought to one: linear along the normal, and within the slice where it is shifted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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
    """Some planes of the result, each the weighted sum of the slices around it, which are shifted by weighting neighbours."""
    total = np.empty(result.shape[1:], np.float32)
    scratch = np.empty(array.shape[1:], np.float32)
    for k in planes:
        terms = list(_terms(k, places))
        result[k] = fill
        _, rows, columns = array.shape
        if len(terms) == 1:
            index, _, y, x = terms[0]
            result[k, y : y + rows, x : x + columns] = array[index]
            continue
        # Counted from the fill value on, so that what lies outside needs no care.
        total[:] = 0
        for index, weight, y, x in terms:
            np.subtract(array[index], fill, out=scratch, dtype=np.float32)
            np.multiply(scratch, np.float32(weight), out=scratch)
            part = total[y : y + rows, x : x + columns]
            np.add(part, scratch, out=part)
        np.add(total, np.float32(fill), out=total)
        result[k] = np.rint(total, out=total) if result.dtype.kind in "iu" else total


def _terms(k: int, places: NDArray[np.float64]) -> Iterator[tuple[int, float, int, int]]:
    """(slice, weight, y, x): what plane k is made of, and where the slice's corner goes."""
    lower = int(np.clip(np.searchsorted(places[:, 0], k + 1e-6) - 1, 0, len(places) - 2))
    upper = _share(k - places[lower, 0], places[lower + 1, 0] - k)
    for index, weight in ((lower, 1 - upper), (lower + 1, upper)):
        if weight == 0:
            continue
        y, x = places[index, 1:]
        for row, by_row in _steps(y):
            for column, by_column in _steps(x):
                yield index, weight * by_row * by_column, row, column


def _share(below: float, above: float) -> float:
    """The weight of the upper slice for a plane that lies so far from both; 0 or 1 when it is as good as on one."""
    if below < _NEAR:
        return 0.0
    return 1.0 if above < _NEAR else below / (below + above)


def _steps(place: float) -> list[tuple[int, float]]:
    """A place between two voxels as the voxels and their weights."""
    whole = int(np.floor(place + _NEAR))
    rest = place - whole
    return [(whole, 1.0)] if rest < _NEAR else [(whole, 1 - rest), (whole + 1, rest)]
