"""Slices that do not make a regular grid, brought to one: linear along the normal, and within the slice where it is shifted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def resample(array: NDArray[np.generic], places: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.generic]:
    """`array` (slices, y, x), whose slice k has its corner voxel at `places[k]` (z, y, x) of the new grid, on that grid.

    Outside of the slices, which a shift uncovers, lies the lowest value of the volume. Of the same type as `array`;
    integers are rounded. Slices that lie on a plane of the grid and are not shifted are copied as they are.
    """
    result = np.empty(shape, array.dtype)
    fill = array.min()
    lower = 0
    near: dict[int, NDArray[np.generic]] = {}
    for k in range(shape[0]):
        while lower + 2 < len(places) and places[lower + 1, 0] <= k + 1e-6:
            lower += 1
        below, above = places[lower, 0], places[lower + 1, 0]
        weight = min(max((k - below) / (above - below), 0.0), 1.0)
        if abs(k - below) < 0.02:
            weight = 0.0
        elif abs(k - above) < 0.02:
            weight = 1.0
        wanted = [i for i, w in ((lower, 1 - weight), (lower + 1, weight)) if w > 0]
        near = {i: near[i] if i in near else _placed(array[i], places[i, 1:], shape[1:], fill) for i in wanted}
        plane = near[wanted[0]] if len(wanted) == 1 else _mix(near[lower], near[lower + 1], weight)
        result[k] = np.rint(plane) if result.dtype.kind in "iu" and plane.dtype.kind == "f" else plane
    return result


def _mix(below: NDArray[np.generic], above: NDArray[np.generic], weight: float) -> NDArray[np.generic]:
    return np.asarray(below, np.float32) * np.float32(1 - weight) + np.asarray(above, np.float32) * np.float32(weight)


def _placed(image: NDArray[np.generic], corner: NDArray[np.float64], shape: tuple[int, int], fill: np.generic) -> NDArray[np.generic]:
    """A slice put at `corner` (y, x) of a larger one; between the voxels by linear interpolation."""
    whole = np.floor(corner + 1e-6).astype(int)
    part = corner - whole
    if (np.abs(part) < 0.02).all():
        canvas = np.full(shape, fill, image.dtype)
        canvas[whole[0] : whole[0] + image.shape[0], whole[1] : whole[1] + image.shape[1]] = image
        return canvas
    padded = np.full((shape[0] + 1, shape[1] + 1), fill, np.float32)
    padded[whole[0] + 1 : whole[0] + 1 + image.shape[0], whole[1] + 1 : whole[1] + 1 + image.shape[1]] = image
    v, u = np.float32(part[0]), np.float32(part[1])
    mixed = padded[1:] * (1 - v) + padded[:-1] * v
    return np.asarray(mixed[:, 1:] * (1 - u) + mixed[:, :-1] * u)
