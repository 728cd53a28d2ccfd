"""The loops over voxels: blending windows, choosing classes, resampling along one axis. All release the interpreter lock."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isocenter.models._numba import kernel

Floats = NDArray[np.float32]


@kernel("boolean(float32[:,:,:,::1], float32[:,:,::1], float32[:,:,:,::1], float32[:,:,::1], int64, int64, int64, boolean, int64, int64)")
def accumulate(
    scores: Floats, weight: Floats, ring: Floats, total: Floats, a0: int, b0: int, c0: int, turned: bool, first: int, last: int
) -> bool:  # pragma: no cover - compiled
    """Add a window's scores (C, z, y, x) times its weights (z, y, x) to the ring (C, A, B, X); slices first..last along z.

    a0, b0, c0: where the window begins along the ring's axes. A is z and B is y, or the other way round when `turned`; places
    along A are taken modulo the ring's length. Returns whether all scores were finite.
    """
    classes, _, rows, columns = scores.shape
    length = ring.shape[1]
    broken = 0
    for c in range(classes):
        for z in range(first, last):
            for y in range(rows):
                a, b = (a0 + y, b0 + z) if turned else (a0 + z, b0 + y)
                a %= length
                for x in range(columns):
                    value = scores[c, z, y, x]
                    broken += not abs(value) < np.float32(3e38)
                    ring[c, a, b, c0 + x] += value * weight[z, y, x]
                if c == 0:
                    for x in range(columns):
                        total[a, b, c0 + x] += weight[z, y, x]
    return broken == 0


@kernel("boolean(float32[:,:,:,::1], int64, float32[:,::1], boolean, float32, uint16[:,::1])")
def choose(scores: Floats, index: int, total: Floats, divide: bool, threshold: float, labels: NDArray[np.uint16]) -> bool:  # pragma: no cover
    """The class of each pixel of one slice (C, index, B, X): the largest score, the first of equals; of one channel, above `threshold`.

    divide: turn sums into means by `total` (B, X), in place. Returns whether all scores were finite.
    """
    classes, _, rows, columns = scores.shape
    broken = 0
    best = np.empty(columns, np.float32)
    for b in range(rows):
        for c in range(classes):
            for x in range(columns):
                value = scores[c, index, b, x]
                if divide:
                    value /= total[b, x]
                    scores[c, index, b, x] = value
                broken += not abs(value) < np.float32(3e38)
                if classes == 1:
                    labels[b, x] = value > threshold
                elif c == 0:
                    best[x] = value
                    labels[b, x] = 0
                elif value > best[x]:
                    best[x] = value
                    labels[b, x] = c
    return broken == 0


@kernel(
    "void(float32[:,:,:,::1], int64, uint16[:,::1], float32[:,:,:,::1], int64, uint16[:,::1], float32,"
    " int32[::1], int32[::1], float32[::1], int32[::1], int32[::1], float32[::1], float32, uint16[:,::1])"
)
def blend(
    near: Floats,
    near_index: int,
    near_labels: NDArray[np.uint16],
    far: Floats,
    far_index: int,
    far_labels: NDArray[np.uint16],
    part: float,
    b_low: NDArray[np.int32],
    b_high: NDArray[np.int32],
    b_part: Floats,
    x_low: NDArray[np.int32],
    x_high: NDArray[np.int32],
    x_part: Floats,
    threshold: float,
    labels: NDArray[np.uint16],
) -> None:  # pragma: no cover
    """Classes of one slice between two, from linearly interpolated scores.

    Where all eight corners have the same class, it wins whatever the weights are, so scores are only looked at elsewhere.
    """
    classes = near.shape[0]
    for b in range(labels.shape[0]):
        b0, b1, v = b_low[b], b_high[b], b_part[b]
        for x in range(labels.shape[1]):
            x0, x1, u = x_low[x], x_high[x], x_part[x]
            one = near_labels[b0, x0]
            alike = one == near_labels[b0, x1] and one == near_labels[b1, x0] and one == near_labels[b1, x1]
            alike = alike and one == far_labels[b0, x0] and one == far_labels[b0, x1] and one == far_labels[b1, x0] and one == far_labels[b1, x1]
            if alike:
                labels[b, x] = one
                continue
            best, chosen = np.float32(-np.inf), 0
            for c in range(classes):
                i, j = near[c, near_index], far[c, far_index]
                low = (1 - v) * ((1 - u) * i[b0, x0] + u * i[b0, x1]) + v * ((1 - u) * i[b1, x0] + u * i[b1, x1])
                high = (1 - v) * ((1 - u) * j[b0, x0] + u * j[b0, x1]) + v * ((1 - u) * j[b1, x0] + u * j[b1, x1])
                value = np.float32((1 - part) * low + part * high)
                if classes == 1:
                    chosen = int(value > threshold)
                elif value > best:
                    best, chosen = value, c
            labels[b, x] = chosen


@kernel("void(float32[:,:,::1], int32[::1], float32[:,::1], float32[:,:,::1], int64, int64)", fastmath={"reassoc", "contract"})
def band(source: Floats, first: NDArray[np.int32], taps: Floats, target: Floats, start: int, stop: int) -> None:  # pragma: no cover
    """target[p, o, q] = sum over k of taps[o, k] * source[p, first[o] + k, q], for p of start..stop."""
    for p in range(start, stop):
        for o in range(target.shape[1]):
            if target.shape[2] == 1:
                value = np.float32(0)
                for k in range(taps.shape[1]):
                    value += taps[o, k] * source[p, first[o] + k, 0]
                target[p, o, 0] = value
                continue
            for q in range(target.shape[2]):
                target[p, o, q] = taps[o, 0] * source[p, first[o], q]
            for k in range(1, taps.shape[1]):
                factor = taps[o, k]
                for q in range(target.shape[2]):
                    target[p, o, q] += factor * source[p, first[o] + k, q]
