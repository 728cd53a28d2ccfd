"""What the engine keeps per volume: a robust intensity scale, and coarse copies made on first use."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.core.rescaled import Voxels
from isocenter.core.volume import Volume

Index = tuple[int, int, int]

SAMPLES = 400_000
"""Voxels that the intensity scale is estimated from, at most."""
COARSEST = 200_000
"""Voxels of the coarsest copy, at most."""
FLOOR = 0.005
"""Least noise, as a part of the range of intensities."""


@dataclass(frozen=True)
class Level:
    """One resolution. stride: full-resolution voxels per working voxel (z, y, x); spacing: mm of a working voxel."""

    stride: Index
    spacing: tuple[float, float, float]
    shape: Index


class Prepared:
    """Volume-only state of the engine; safe to share between sessions and threads."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.levels = _levels(volume)
        self._coarse: dict[int, tuple[NDArray[np.float32], float]] = {}
        self._lock = threading.Lock()
        self.low, self.high, self.noise = _scale(volume.voxels)

    @property
    def nbytes(self) -> int:
        """Memory held beside the volume."""
        return sum(values.nbytes for values, _ in self._coarse.values())

    def block(self, level: int, lo: Index, hi: Index) -> NDArray[np.float32]:
        """Intensities of [lo, hi) in voxels of `level`, in units of that level's noise, clipped to the robust range."""
        box = tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))
        if level == 0:
            return self._scaled(self.volume.voxels[box].astype(np.float32), self.noise)
        with self._lock:
            values, noise = self._copy(level)
        return self._scaled(values[box].copy(), noise)

    def _copy(self, level: int) -> tuple[NDArray[np.float32], float]:
        """A level's means and their own noise: the copy looks like a scan that was taken at that resolution."""
        if level not in self._coarse:
            finer = self.volume.voxels if level == 1 else self._copy(level - 1)[0]
            above, at = self.levels[level - 1], self.levels[level]
            values = _block_mean(finer, at.shape, [b // a for a, b in zip(above.stride, at.stride, strict=True)])
            self._coarse[level] = values, _scale(values)[2]
        return self._coarse[level]

    def _scaled(self, values: NDArray[np.float32], noise: float) -> NDArray[np.float32]:
        values = np.nan_to_num(values, copy=False, nan=self.low, posinf=self.high, neginf=self.low)
        np.clip(values, self.low, self.high, out=values)
        values -= np.float32(self.low)
        values /= np.float32(noise)
        return values


def _levels(volume: Volume) -> list[Level]:
    """Full resolution first; every further level halves the axes that are still fine, until the copy is small."""
    levels = [Level((1, 1, 1), volume.spacing_zyx, volume.shape)]
    while np.prod(levels[-1].shape, dtype=np.int64) > COARSEST:
        stride, spacing, shape = levels[-1].stride, levels[-1].spacing, levels[-1].shape
        fine = min(s for s, n in zip(spacing, shape, strict=True) if n > 1)
        halve = [s < 1.5 * fine and n > 8 for s, n in zip(spacing, shape, strict=True)]
        z, y, x = (2 * s if h else s for s, h in zip(stride, halve, strict=True))
        mm = tuple(2 * s if h else s for s, h in zip(spacing, halve, strict=True))
        n = tuple(-(-full // s) for full, s in zip(volume.shape, (z, y, x), strict=True))
        levels.append(Level((z, y, x), (mm[0], mm[1], mm[2]), (n[0], n[1], n[2])))
    return levels


def _block_mean(array: Voxels, shape: Index, stride: list[int]) -> NDArray[np.float32]:
    """Mean over blocks of `stride`; blocks that stick out of the far faces take what there is of them."""
    from isocenter.models._geodesic import kernels

    out = np.zeros(shape, np.float32)
    for z, plane in enumerate(array):
        kernels.add_blocks(plane.astype(np.float32), stride[1], stride[2], out[z // stride[0]])
    counts = (np.bincount(np.arange(n) // s, minlength=m).astype(np.float32) for n, s, m in zip(array.shape, stride, shape, strict=True))
    z_count, y_count, x_count = counts
    out /= z_count[:, None, None] * y_count[:, None] * x_count
    return out


def _scale(array: Voxels) -> tuple[float, float, float]:
    """Robust low and high values and the noise, from a regular subsample of neighbouring voxels.

    noise: 1.4826 times the median absolute difference of neighbours in x (most of them lie inside one tissue). Pairs at the
    most common value are left out (padding and air cut off have no noise); it is at least FLOOR of the range, so that a
    picture without noise keeps a sensible unit.
    """
    step = max(1, round((array.size / SAMPLES) ** (1 / 3))) if array.shape[0] > 1 else max(1, round((array.size / SAMPLES) ** 0.5))
    rows = array[:: min(step, array.shape[0]), ::step].astype(np.float32)
    rows = rows.reshape(-1, array.shape[2])
    if step > 1:
        left, right = rows[:, :-1:step], rows[:, 1::step]
    else:
        left, right = rows[:, :-1], rows[:, 1:]
    rows = rows[:, ::step]
    finite = np.isfinite(rows)
    if not finite.any():
        return 0.0, 1.0, 1.0
    low, high = (float(v) for v in np.percentile(rows[finite], (0.5, 99.5)))
    if high <= low:
        low, high = float(rows[finite].min()), float(rows[finite].max())
    if high <= low:
        return low, low + 1.0, 1.0
    width = min(left.shape[1], right.shape[1])
    left, right = left[:, :width], right[:, :width]
    values, counts = np.unique(rows[finite], return_counts=True)
    padding = values[np.argmax(counts)]
    difference = np.abs(right - left)[np.isfinite(left) & np.isfinite(right) & ((left != padding) | (right != padding))]
    noise = 1.4826 * float(np.median(difference)) if difference.size else 0.0
    return low, high, max(noise, FLOOR * (high - low))
