"""The part of a volume that one prompt is answered in, at one resolution, with everything in working voxels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isocenter.core.prompts import Box
from isocenter.models._distance import distance
from isocenter.models._geodesic import kernels
from isocenter.models._geodesic.prepared import Index, Prepared

F32 = NDArray[np.float32]
HALF = 128
"""Belief (0..255) from which a voxel is inside."""


BOUND = 6.0
"""Belief is a logit between -BOUND and BOUND, stored linearly in 0..255."""


@dataclass(frozen=True, eq=False)
class Anchor:
    """What a prompt fixed. voxels: (n, 3) full-resolution indices; radius: mm around them that the prompt won.

    hold: its voxels must be as the prompt says. box: all voxels of it too (a negative box; `voxels` is its middle then).
    """

    voxels: NDArray[np.intp]
    positive: bool
    radius: float = 0.0
    hold: bool = True
    box: Box | None = None


@dataclass(eq=False)
class Window:
    """Voxels [lo, lo + shape) of resolution `level`.

    steps: size of a working voxel over its smallest side (z, y, x). fine, soft: intensities after light and after
    stronger smoothing, in units of the noise. belief: uint8 as in the session; mask: belief >= HALF.
    """

    prepared: Prepared
    level: int
    lo: Index
    steps: F32
    fine: F32
    soft: F32
    belief: NDArray[np.uint8]
    mask: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.mask = self.belief >= HALF

    @property
    def shape(self) -> Index:
        """Number of working voxels (z, y, x)."""
        z, y, x = self.fine.shape
        return z, y, x

    @property
    def flat(self) -> bool:
        """Whether this is a picture: one voxel thick."""
        return self.prepared.volume.shape[0] == 1

    @property
    def unit(self) -> float:
        """Millimetres of one step."""
        spacing = self.prepared.levels[self.level].spacing
        return min(s for s, n in zip(spacing, self.prepared.volume.shape, strict=True) if n > 1 or not self.flat)

    @property
    def finest(self) -> float:
        """Millimetres of one step at full resolution."""
        spacing = self.prepared.volume.spacing_zyx
        return min(s for s, n in zip(spacing, self.prepared.volume.shape, strict=True) if n > 1 or not self.flat)

    @property
    def voxel(self) -> float:
        """Size of a working voxel in cubic (square, for a picture) steps."""
        return float(self.steps[1] * self.steps[2]) if self.flat else float(np.prod(self.steps))

    def radius(self, voxels: float) -> float:
        """Radius (steps) of the ball, or disc, with as many voxels."""
        size = voxels * self.voxel
        return float(np.sqrt(size / np.pi)) if self.flat else float((3 * size / (4 * np.pi)) ** (1 / 3))

    def ball(self, radius: float) -> float:
        """Voxels of the ball, or disc, of a radius (steps)."""
        return float(np.pi * (radius**2 if self.flat else 4 / 3 * radius**3) / self.voxel)

    def local(self, voxels: NDArray[np.intp]) -> NDArray[np.int64]:
        """Full-resolution indices (n, 3) as indices of this window, those outside left out, without repeats."""
        stride = np.array(self.prepared.levels[self.level].stride)
        index = voxels // stride - np.array(self.lo)
        index = index[np.all((index >= 0) & (index < np.array(self.shape)), axis=1)]
        return np.unique(index, axis=0).astype(np.int64) if len(index) > 1 else index.astype(np.int64)

    def blur(self, values: F32, times: int) -> F32:
        """`values` after `times` passes of (1/4, 1/2, 1/4) smoothing along the fine axes."""
        weights = self.weights
        for _ in range(times):
            values = kernels.smooth(values, weights)
        return values

    @property
    def weights(self) -> F32:
        """Smoothing weights per axis: the coarser an axis, the weaker."""
        return _weights(self.steps, self.flat)

    def near(self, points: NDArray[np.int64], cap: float = 60.0) -> F32:
        """Distance (steps) to the nearest of some points, at most `cap`."""
        if len(points) <= 48:
            return kernels.nearest(np.ascontiguousarray(points), self.steps, *self.shape, cap)
        away = np.ones(self.shape, np.uint8)
        away[tuple(points.T)] = 0
        z, y, x = (float(s) for s in self.steps)
        return distance(away, (z, y, x), cap)

    def inner(self, box: Box) -> tuple[slice, slice, slice]:
        """A full-resolution box as an index of this window, rounded inwards to the nearest working voxels."""
        stride = self.prepared.levels[self.level].stride
        z, y, x = (slice(max(round(a / s) - o, 0), max(round(b / s) - o, 0)) for a, b, s, o in zip(box.lo, box.hi, stride, self.lo, strict=True))
        return z, y, x

    def faces(self, values: NDArray[np.bool_]) -> bool:
        """Whether `values` is true on a face of the window that is not one of the volume."""
        full = self.prepared.levels[self.level].shape
        for axis in range(3):
            if self.lo[axis] > 0 and values.take(0, axis).any():
                return True
            if self.lo[axis] + self.shape[axis] < full[axis] and values.take(-1, axis).any():
                return True
        return False


def _weights(steps: F32, flat: bool) -> F32:
    weights = (0.5 / steps**2).astype(np.float32)
    if flat:
        weights[0] = 0
    return weights


def cut(prepared: Prepared, belief: NDArray[np.uint8], level: int, lo: NDArray[np.intp], hi: NDArray[np.intp]) -> Window:
    """The window [lo, hi) in full-resolution voxels at `level`, rounded outwards."""
    at = prepared.levels[level]
    stride = np.array(at.stride)
    a = np.maximum(lo // stride, 0)
    b = np.minimum(-(-hi // stride), at.shape)
    first: Index = (int(a[0]), int(a[1]), int(a[2]))
    last: Index = (int(b[0]), int(b[1]), int(b[2]))
    flat = prepared.volume.shape[0] == 1
    spacing = np.array(at.spacing)
    steps = (spacing / (spacing[1:].min() if flat else spacing.min())).astype(np.float32)
    if flat:
        steps[0] = 1
    weights = _weights(steps, flat)
    fine = kernels.smooth(prepared.block(level, first, last), weights)
    soft = kernels.smooth(kernels.smooth(fine, weights), weights)
    sampled = tuple(np.minimum(np.arange(f, t) * s + s // 2, n - 1) for f, t, s, n in zip(first, last, at.stride, belief.shape, strict=True))
    return Window(prepared, level, first, steps, fine, soft, np.ascontiguousarray(belief[np.ix_(*sampled)]))


def to_belief(logit: F32) -> NDArray[np.uint8]:
    """Belief (0..255) from logits; at least HALF exactly where the logit is above 0."""
    value: F32 = np.clip(np.ceil(logit * np.float32(127 / BOUND)) + 127, 0, 255)
    return value.astype(np.uint8)


def to_logit(belief: NDArray[np.uint8]) -> F32:
    """The middle of the logits that become each belief."""
    return (belief.astype(np.float32) - np.float32(127.5)) * np.float32(BOUND / 127)


def make_box(lo: NDArray[np.intp], hi: NDArray[np.intp]) -> Box:
    """A `Box` of Python integers."""
    a, b = [int(v) for v in lo], [int(v) for v in hi]
    return Box((a[0], a[1], a[2]), (b[0], b[1], b[2]))
