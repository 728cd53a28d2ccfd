"""From places on the working grid to probabilities on the scan's own voxels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.models._tissue.grid import Field, Spread, Working, fine_box, hounsfield, slabs


@dataclass(frozen=True)
class Ramp:
    """How well a value fits: 1 between `low` and `high` (HU), ½ at both, falling over `width` HU on either side."""

    low: float
    high: float
    width: float

    def __call__(self, hu: Field) -> Field:
        below = (hu - np.float32(self.low)) * np.float32(1 / self.width)
        above = (np.float32(self.high) - hu) * np.float32(1 / self.width)
        fit: Field = np.minimum(below, above, out=below)
        fit += np.float32(0.5)
        return np.clip(fit, 0, 1, out=fit)


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
    for rows in slabs(box):
        step()
        p = place.ramp(hounsfield(array[rows, box[1], box[2]]))
        p *= where(rows)
        if solid is not None:
            np.maximum(p, solid(rows), out=p)
        p *= 255
        out[rows, box[1], box[2]] = p
    return out
