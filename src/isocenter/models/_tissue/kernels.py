"""numba kernels over all voxels of a scan; what NumPy would do in a dozen passes over memory they do in one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from isocenter.models._numba import kernel

#: Values outside of this are metal, or padding of the scanner's round field.
LOWEST, HIGHEST = -1024, 3071
#: Types of voxels that are read as they are; all others are brought to float32 first.
AS_THEY_ARE = (np.dtype("=i2"), np.dtype("=f4"))


_PLANE, _BYTES, _F4, _I8 = types.float32[:, :], types.uint8[:, :], types.float32, types.int64


def _each(*others: Any) -> list[Any]:
    """A signature for each kind of voxels; a scan's own voxels are read-only, turned ones lie in any order."""
    return [types.void(types.Array(voxel, 3, "A", readonly=True), *others) for voxel in (types.int16, types.float32)]


@kernel(*_each(_I8, _I8, _PLANE))
def block_means(values: NDArray[np.generic], fy: int, fx: int, out: NDArray[np.float32]) -> None:
    """Means over blocks of fy x fx pixels and all slices of `values` (slices, rows, columns); the last ones are cut.

    Values are clipped; what is not a number counts as padding.
    """
    depth, ny, nx = values.shape
    low, high = np.float32(LOWEST), np.float32(HIGHEST)
    sums = np.empty(nx, np.float32)
    for j in range(out.shape[0]):
        top, bottom = j * fy, min(j * fy + fy, ny)
        sums[:] = 0
        for y in range(top, bottom):
            for x in range(nx):
                column = np.float32(0)
                for z in range(depth):
                    value = np.float32(values[z, y, x])
                    column += min(max(value, low), high) if value == value else low
                sums[x] += column
        for i in range(out.shape[1]):
            left, right = i * fx, min(i * fx + fx, nx)
            total = np.float32(0)
            for x in range(left, right):
                total += sums[x]
            out[j, i] = total / np.float32(depth * (bottom - top) * (right - left))


@kernel(*_each(_PLANE, _PLANE, _PLANE, _PLANE, _F4, _F4, _F4, _F4, _BYTES))
def paint(
    values: NDArray[np.generic],
    where0: NDArray[np.float32],
    where1: NDArray[np.float32],
    solid0: NDArray[np.float32],
    solid1: NDArray[np.float32],
    weight: float,
    low: float,
    high: float,
    scale: float,
    out: NDArray[np.uint8],
) -> None:
    """floor(255 p) on one slice, values (1, rows, columns): p = max(where * ramp(value), solid).

    where, solid: (rows, columns) below and above the slice; `weight` is that of the ones above. solid: (0, 0) for none.
    ramp: see `answer.Ramp`; scale: 1 / its width. What is not a number counts as padding.
    """
    none = solid0.shape[0] == 0
    half, one, all_ = np.float32(0.5), np.float32(1), np.float32(255)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            value = np.float32(values[0, y, x])
            if not np.isfinite(value):
                value = np.float32(HIGHEST) if value > 0 else np.float32(LOWEST)
            p = min(max(min((value - low) * scale, (high - value) * scale) + half, np.float32(0)), one)
            p *= (where1[y, x] - where0[y, x]) * weight + where0[y, x]
            if not none:
                p = max(p, (solid1[y, x] - solid0[y, x]) * weight + solid0[y, x])
            out[y, x] = np.uint8(p * all_)
