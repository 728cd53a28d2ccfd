"""From places on the working grid to probabilities on the scan's own voxels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from isocenter.models._tissue import kernels
from isocenter.models._tissue.grid import Field, Spread, Working, fine_box, readable, slabs

_NONE = np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class Ramp:
    """How well a value fits: 1 between `low` and `high` (HU), ½ at both, falling over `width` HU on either side."""

    low: float
    high: float
    width: float


@dataclass(frozen=True, eq=False)
class Place:
    """Where a structure is, on the working grid (0..1).

    where: how far the voxel's value decides, by `ramp`. solid: what belongs to it whatever the value. The probability is
    the larger of where * ramp and solid. presence: 0..1, how sure it is that the structure is in the scan at all.
    """

    where: Field
    ramp: Ramp
    solid: Field | None
    presence: float


def nowhere(shape: tuple[int, ...], presence: float = 0.02) -> Place:
    """The answer for a structure that is not in the scan."""
    return Place(np.zeros(shape, np.float32), Ramp(0, 0, 1), None, presence)


def render(working: Working, place: Place, array: NDArray[np.generic], step: Callable[[], None]) -> NDArray[np.uint8]:
    """floor(255 p) on the scan's voxels. array: (z, y, x) HU, LPS, of `working.shape`; `step` is called between slabs."""
    out = np.zeros(working.shape, np.uint8)
    support = place.where > 0 if place.solid is None else (place.where > 0) | (place.solid > 0)
    box = fine_box(working, support)
    if box is None:
        return out
    where = Spread(working, place.where, box)
    solid = Spread(working, place.solid, box) if place.solid is not None else None
    ramp = place.ramp
    for rows in slabs(box):
        step()
        surely = solid(rows) if solid else repeat((_NONE, _NONE, 0.0))
        for z, (below, above, weight), (lower, upper, _) in zip(range(rows.start, rows.stop), where(rows), surely, strict=False):
            values = readable(array[z : z + 1, box[1], box[2]])
            kernels.paint(values, below, above, lower, upper, weight, ramp.low, ramp.high, 1 / ramp.width, out[z, box[1], box[2]])
    return out
