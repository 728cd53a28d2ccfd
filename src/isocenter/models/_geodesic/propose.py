"""From prompts to an edit of the belief: thin first version (one arrival map, one level set)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isocenter.core.prompts import Box
from isocenter.models._geodesic.prepared import Prepared


@dataclass(frozen=True, eq=False)
class Anchor:
    """Voxels (n, 3) that a prompt fixed, and the radius (mm) around them that it won."""

    voxels: NDArray[np.intp]
    positive: bool
    radius: float


@dataclass(frozen=True, eq=False)
class Edit:
    """New belief (uint8) inside a box, and the anchors to remember."""

    box: Box
    belief: NDArray[np.uint8]
    anchors: list[Anchor] = field(default_factory=list)


def make_box(lo: NDArray[np.intp], hi: NDArray[np.intp]) -> Box:
    """A `Box` of Python integers."""
    a, b = [int(v) for v in lo], [int(v) for v in hi]
    return Box((a[0], a[1], a[2]), (b[0], b[1], b[2]))


def from_voxels(prepared: Prepared, belief: NDArray[np.uint8], anchors: list[Anchor], voxels: NDArray[np.intp], positive: bool) -> Edit | None:
    """Grow from the prompted voxels over what they resemble."""
    from isocenter.models._geodesic import kernels

    shape = np.array(belief.shape)
    lo, hi = np.maximum(voxels.min(axis=0) - 40, 0), np.minimum(voxels.max(axis=0) + 41, shape)
    box = make_box(lo, hi)
    values = prepared.block(0, box.lo, box.hi)
    spacing = np.array(prepared.levels[0].spacing)
    steps = (spacing / spacing.min()).astype(np.float32)
    local = voxels - lo
    centre = np.median(values[tuple(local.T)])
    values = kernels.smooth(values, (0.5 / steps**2).astype(np.float32))
    closed = ((belief[box.slices] >= 128) == positive).astype(np.uint8)
    for anchor in anchors:
        if anchor.positive != positive:
            inside = np.all((anchor.voxels >= lo) & (anchor.voxels < hi), axis=1)
            z, y, x = (anchor.voxels[inside] - lo).T
            closed[z, y, x] = 1
    unary = (0.3 * np.minimum(np.abs(values - centre), 5) ** 2).astype(np.float32)
    seeds = np.ravel_multi_index(tuple(local.T), values.shape).astype(np.int32)
    arrival = kernels.flood(values, unary, closed, seeds, steps, np.float32(0.3), np.float32(0.3), 100_000).reshape(values.shape)
    region = arrival < 16 * 12
    new = belief[box.slices].copy()
    new[region] = 200 if positive else 50
    return Edit(box, new, [Anchor(voxels, positive, float(spacing.min()))])


def from_box(prepared: Prepared, belief: NDArray[np.uint8], anchors: list[Anchor], box: Box) -> Edit | None:
    """Thin: the whole box."""
    new = np.full_like(belief[box.slices], 200 if box.positive else 0)
    return Edit(box, new)
