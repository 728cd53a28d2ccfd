"""The exact Euclidean distance transform, without the interpreter lock: the event loop answers while it is computed.

Felzenszwalb and Huttenlocher, "Distance transforms of sampled functions", Theory of Computing 8 (2012): squared distances
along x, then the lower envelopes of parabolas along y and z. An axis is cut where the mask changes, so that one pass
gives the distances of both sides. The libraries at hand (edt, SciPy) hold the lock for as long as a volume takes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from isocenter.core.geometry import Triple
from isocenter.models._numba import kernel

#: Lines that are read at a time: one cache line of float32, whatever the distance between two voxels of a line.
_LINES = 16


@kernel("void(u1[:,:,:], f4[:,:,:], f8, f4, b1)")
def _rows(mask: NDArray[np.uint8], out: NDArray[np.float32], step: float, most: float, both: bool) -> None:
    """Squared distances along x, at most `most`; 0 outside unless `both`."""
    nz, ny, nx = mask.shape
    for z in range(nz):
        for y in range(ny):
            row = mask[z, y]
            a = 0
            while a < nx:
                b = a + 1
                while b < nx and row[b] == row[a]:
                    b += 1
                if row[a] == 0 and not both:
                    out[z, y, a:b] = 0.0
                else:
                    for x in range(a, b):
                        best = float(most)
                        if a > 0:
                            best = min(best, ((x - a + 1) * step) ** 2)
                        if b < nx:
                            best = min(best, ((b - x) * step) ** 2)
                        out[z, y, x] = best
                a = b


@kernel("void(u1[:,:], f4[:,:], i8, i8, f8, f4, b1, f8[:], f8[:], f8[:])")
def _line(
    side: NDArray[np.uint8],
    values: NDArray[np.float32],
    k: int,
    n: int,
    step: float,
    most: float,
    both: bool,
    apex: NDArray[np.float64],
    height: NDArray[np.float64],
    start: NDArray[np.float64],
) -> None:
    """One line, column k of `side` and `values`: in each stretch of one side the lower envelope of its parabolas and of its ends.

    apex, height, start: room for n + 2 numbers each.
    """
    unit = step * step
    a = 0
    while a < n:
        b = a + 1
        while b < n and side[b, k] == side[a, k]:
            b += 1
        if side[a, k] == 0 and not both:
            a = b
            continue
        top = -1
        for i in range(a - 1, b + 1):
            if i < 0 or i >= n:
                continue
            here = 0.0 if i < a or i >= b else float(values[i, k])
            if here >= most:
                continue
            from_ = -np.inf
            while top >= 0:
                from_ = ((here + unit * i * i) - (height[top] + unit * apex[top] * apex[top])) / (2 * unit * (i - apex[top]))
                if from_ > start[top]:
                    break
                top -= 1
            if top < 0:
                from_ = -np.inf
            top += 1
            apex[top], height[top], start[top] = i, here, from_
        if top >= 0:
            at = 0
            for i in range(a, b):
                while at < top and start[at + 1] < i:
                    at += 1
                values[i, k] = min(most, unit * (i - apex[at]) ** 2 + height[at])
        a = b


@kernel("void(u1[:,:,:], f4[:,:,:], f8, f4, b1, b1)")
def _columns(mask: NDArray[np.uint8], out: NDArray[np.float32], step: float, most: float, both: bool, root: bool) -> None:
    """The same along the first axis, `_LINES` lines at a time; with `root` distances, no longer squares."""
    n, rows, nx = mask.shape
    side, values = np.empty((n, _LINES), np.uint8), np.empty((n, _LINES), np.float32)
    apex, height, start = np.empty(n + 2), np.empty(n + 2), np.empty(n + 2)
    for y in range(rows):
        for x in range(0, nx, _LINES):
            width = min(_LINES, nx - x)
            for i in range(n):
                for k in range(width):
                    side[i, k] = mask[i, y, x + k]
                    values[i, k] = out[i, y, x + k]
            for k in range(width):
                _line(side, values, k, n, step, most, both, apex, height, start)
            for i in range(n):
                for k in range(width):
                    out[i, y, x + k] = np.sqrt(values[i, k]) if root else values[i, k]


def distance(mask: NDArray[np.bool_] | NDArray[np.uint8], spacing: Triple, cap: float = math.inf, *, both: bool = False) -> NDArray[np.float32]:
    """Distance of each voxel of a mask to the nearest voxel outside of it, at most `cap`; 0 outside.

    mask: (z, y, x), 0 or 1. spacing: length of a voxel's sides (z, y, x); distances are in its unit. What lies beyond the
    array is unknown, not outside. With `both`, voxels outside get their distance to the mask. Where there is no voxel
    to be far from, the distance is `cap`.
    """
    sides = np.ascontiguousarray(mask).view(np.uint8)
    out = np.empty(sides.shape, np.float32)
    most = float(np.float32(cap) ** 2)
    z, y, x = (float(s) for s in spacing)
    _rows(sides, out, x, most, both)
    for plane, result in zip(sides, out, strict=True):
        _columns(plane[:, None], result[:, None], y, most, both, False)
    _columns(sides, out, z, most, both, True)
    return out
