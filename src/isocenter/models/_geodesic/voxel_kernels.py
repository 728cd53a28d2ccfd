"""numba kernels that describe and decide single voxels; see `kernels.py`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isocenter.models._numba import kernel

ROWS = 64
"""Rows that the perceptron takes at once."""


@kernel("f4[:](f4[:,::1], f4[::1], f4[::1], f4[:,::1], f4[::1], f4[:,::1], f4[::1], f4[::1])", fastmath={"contract"})
def perceptron(
    features: NDArray[np.float32],
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
    w1: NDArray[np.float32],
    b1: NDArray[np.float32],
    w2: NDArray[np.float32],
    b2: NDArray[np.float32],
    w3: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Logit of each row (n, features): two hidden rectified layers; the last weight of `w3` is its bias.

    Rows are taken by the ROWS, so that the innermost loops run over rows (ten times faster than row by row).
    """
    n, d = features.shape
    h1 = w1.shape[1]
    h2 = w2.shape[1]
    out = np.empty(n, np.float32)
    column = np.zeros(ROWS, np.float32)
    a = np.empty((h1, ROWS), np.float32)
    b = np.empty((h2, ROWS), np.float32)
    for start in range(0, n, ROWS):
        m = min(ROWS, n - start)
        for k in range(h1):
            a[k, :] = b1[k]
        for j in range(d):
            for r in range(m):
                column[r] = min(max((features[start + r, j] - mean[j]) / scale[j], np.float32(-4)), np.float32(4))
            for k in range(h1):
                w = w1[j, k]
                into = a[k]
                for r in range(ROWS):
                    into[r] += column[r] * w
        for k in range(h2):
            b[k, :] = b2[k]
        for j in range(h1):
            for r in range(ROWS):
                column[r] = max(a[j, r], np.float32(0))
            for k in range(h2):
                w = w2[j, k]
                into = b[k]
                for r in range(ROWS):
                    into[r] += column[r] * w
        for r in range(m):
            total = w3[h2]
            for k in range(h2):
                total += max(b[k, r], np.float32(0)) * w3[k]
            out[start + r] = total
    return out


@kernel("f4[:,::1](i8[:,::1], f4[:,:,::1], f4[:,:,::1], f4[:,:,::1], f4[:,:,::1], f4[:,:,::1], f4[:])", fastmath={"contract"})
def across(
    places: NDArray[np.int64],
    surface: NDArray[np.float32],
    fine: NDArray[np.float32],
    soft: NDArray[np.float32],
    contrast: NDArray[np.float32],
    middle: NDArray[np.float32],
    steps: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The course of the intensity along the normal of a surface through each of some voxels (n, 3); (n, 14).

    surface: signed distance, of which the gradient is the normal; contrast, middle: inside less outside, and halfway between
    the two, around a voxel. 0-5 the side of the middle on which the intensity lies 3, 2, 1 steps inwards and 1, 2, 3 outwards, 6-11 its
    difference from the voxel's own (positive: towards the inside), 12 size of the gradient, 13 its part along the normal.
    """
    nz, ny, nx = fine.shape
    out = np.empty((len(places), 14), np.float32)
    for i in range(len(places)):
        z, y, x = places[i]
        za, zb, ya, yb, xa, xb = max(z - 1, 0), min(z + 1, nz - 1), max(y - 1, 0), min(y + 1, ny - 1), max(x - 1, 0), min(x + 1, nx - 1)
        dz = (surface[zb, y, x] - surface[za, y, x]) / steps[0]
        dy = (surface[z, yb, x] - surface[z, ya, x]) / steps[1]
        dx = (surface[z, y, xb] - surface[z, y, xa]) / steps[2]
        size = np.sqrt(dz * dz + dy * dy + dx * dx) + np.float32(1e-3)
        dz, dy, dx = dz / size, dy / size, dx / size
        c = contrast[z, y, x]
        m = middle[z, y, x]
        sign = np.float32(1.0) if c > 0 else (np.float32(-1.0) if c < 0 else np.float32(0.0))
        here = fine[z, y, x]
        for k in range(6):
            t = np.float32(k - 3 if k < 3 else k - 2)
            u = min(max(int(np.rint(z + t * dz / steps[0])), 0), nz - 1)
            v = min(max(int(np.rint(y + t * dy / steps[1])), 0), ny - 1)
            w = min(max(int(np.rint(x + t * dx / steps[2])), 0), nx - 1)
            there = fine[u, v, w]
            out[i, k] = min(max((there - m) * c / (c * c + 1), np.float32(-2)), np.float32(2))
            out[i, 6 + k] = min(max((there - here) * sign, np.float32(-12)), np.float32(12)) / 3
        gz = (soft[zb, y, x] - soft[za, y, x]) / (2 * steps[0])
        gy = (soft[z, yb, x] - soft[z, ya, x]) / (2 * steps[1])
        gx = (soft[z, y, xb] - soft[z, y, xa]) / (2 * steps[2])
        out[i, 12] = min(np.sqrt(gz * gz + gy * gy + gx * gx), np.float32(8)) / 2
        out[i, 13] = min(max((gz * dz + gy * dy + gx * dx) * sign, np.float32(-8)), np.float32(8)) / 2
    return out


@kernel("f4[:,::1](i8[:,::1], f4[:,:,::1])")
def beside(places: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest and smallest value of each voxel and its six neighbours, for some voxels (n, 3); (n, 2)."""
    nz, ny, nx = values.shape
    out = np.empty((len(places), 2), np.float32)
    for i in range(len(places)):
        z, y, x = places[i]
        a, b, c, d = values[max(z - 1, 0), y, x], values[min(z + 1, nz - 1), y, x], values[z, max(y - 1, 0), x], values[z, min(y + 1, ny - 1), x]
        e, f, g = values[z, y, max(x - 1, 0)], values[z, y, min(x + 1, nx - 1)], values[z, y, x]
        out[i, 0] = max(a, b, c, d, e, f, g)
        out[i, 1] = min(a, b, c, d, e, f, g)
    return out


@kernel("Tuple((i8[::1], f4[::1]))(i8[:,::1], i8[:,::1], f4[:])")
def closest(places: NDArray[np.int64], points: NDArray[np.int64], steps: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which of some points (m, 3) lies nearest to each of some voxels (n, 3), and how far (steps) that is."""
    number = np.zeros(len(places), np.int64)
    away = np.empty(len(places), np.float32)
    for i in range(len(places)):
        best = np.float32(1e18)
        for p in range(len(points)):
            dz = (places[i, 0] - points[p, 0]) * steps[0]
            dy = (places[i, 1] - points[p, 1]) * steps[1]
            dx = (places[i, 2] - points[p, 2]) * steps[2]
            squared = np.float32(dz * dz + dy * dy + dx * dx)
            if squared < best:
                best = squared
                number[i] = p
        away[i] = np.sqrt(best)
    return number, away
