"""The working grid: a scan reduced to voxels of about 3 mm, and the way back to its own voxels.

All arrays are (z, y, x) with x to the patient's left, y to the back, z to the head (LPS). What lies where is decided on
the working grid, where anatomy is small enough for morphology on all of it; borders are drawn on the scan's own voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.core.geometry import Triple
from isocenter.models._tissue import kernels

Mask = NDArray[np.bool_]
Field = NDArray[np.float32]

#: Edge length in mm that voxels of the working grid come near to.
STEP = 3.0
#: Voxels of the scan that are worked on at once: about 16 MB as float32, and some tens of milliseconds a step.
SLAB_VOXELS = 4_000_000


@dataclass(frozen=True, eq=False)
class Working:
    """A reduced scan. hu: means over `factors` (z, y, x) of the scan's voxels; spacing in mm (z, y, x); shape: the scan's."""

    hu: Field
    spacing: Triple
    factors: tuple[int, int, int]
    shape: tuple[int, int, int]

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return self.spacing[0] * self.spacing[1] * self.spacing[2] / 1000

    def axis(self, number: int) -> NDArray[np.float64]:
        """Positions of the voxels along one axis in mm, from the first voxel."""
        return np.arange(self.hu.shape[number], dtype=np.float64) * self.spacing[number]


def reduce(array: NDArray[np.generic], spacing: Triple) -> Working:
    """The mean of blocks of `array` (z, y, x; HU), at most ~3 mm wide; the last blocks may be cut. spacing in mm (z, y, x)."""
    factors = tuple(max(1, min(n, round(STEP / s))) for n, s in zip(array.shape, spacing, strict=True))
    fz, fy, fx = factors
    out = np.empty([-(-n // f) for n, f in zip(array.shape, factors, strict=True)], np.float32)
    for i, plane in enumerate(out):
        kernels.block_means(readable(array[i * fz : i * fz + fz]), fy, fx, plane)
    step = (spacing[0] * fz, spacing[1] * fy, spacing[2] * fx)
    z, y, x = array.shape
    return Working(out, step, (fz, fy, fx), (z, y, x))


def field(mask: Mask) -> Field:
    """A mask as a field of 0 and 1."""
    return mask.astype(np.float32)


def readable(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Voxels as the kernels take them; a copy only where they do not."""
    return array if array.dtype in kernels.AS_THEY_ARE and array.flags.aligned else np.array(array, np.float32)


def _between(n: int, coarse: int, factor: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Field]:
    """For each of n fine positions the two coarse neighbours and the weight of the second."""
    place = np.clip((np.arange(n) + 0.5) / factor - 0.5, 0, coarse - 1)
    low = np.floor(place).astype(np.intp)
    return low, np.minimum(low + 1, coarse - 1), (place - low).astype(np.float32)


class Spread:
    """Brings a field of the working grid onto slabs of the scan's voxels, linearly."""

    def __init__(self, working: Working, field: Field, box: tuple[slice, slice, slice]) -> None:
        self._field = field
        self._ways = [_between(n, c, f) for n, c, f in zip(working.shape, field.shape, working.factors, strict=True)]
        self._box = box

    def __call__(self, rows: slice) -> Iterator[tuple[Field, Field, float]]:
        """For each of the slices `rows`: the values on the box's pixels below and above it, and the weight of the ones above."""
        _, by, bx = self._box
        (z0, z1, wz), (y0, y1, wy), (x0, x1, wx) = self._ways
        first = z0[rows.start]
        part = self._field[first : z1[rows.stop - 1] + 1]
        part = _mix(part, x0[bx], x1[bx], wx[bx], 2)
        part = _mix(part, y0[by], y1[by], wy[by], 1)
        for z in range(rows.start, rows.stop):
            yield part[z0[z] - first], part[z1[z] - first], float(wz[z])


def _mix(part: Field, low: NDArray[np.intp], high: NDArray[np.intp], weight: Field, axis: int) -> Field:
    below, above = np.take(part, low, axis), np.take(part, high, axis)
    shape = [1, 1, 1]
    shape[axis] = -1
    above -= below
    above *= weight.reshape(shape)
    above += below
    return above


def fine_box(working: Working, support: Mask) -> tuple[slice, slice, slice] | None:
    """The scan's voxels that a field can reach which is zero outside `support`; None for an empty support."""
    box = []
    for axis in range(3):
        used = np.flatnonzero(support.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(used):
            return None
        f = working.factors[axis]
        box.append(slice(max(0, (int(used[0]) - 1) * f), min(working.shape[axis], (int(used[-1]) + 2) * f)))
    return box[0], box[1], box[2]


def slabs(box: tuple[slice, slice, slice]) -> Iterator[slice]:
    """The slices of a box, a few at a time."""
    area = (box[1].stop - box[1].start) * (box[2].stop - box[2].start)
    step = max(1, SLAB_VOXELS // max(area, 1))
    for start in range(box[0].start, box[0].stop, step):
        yield slice(start, min(start + step, box[0].stop))
