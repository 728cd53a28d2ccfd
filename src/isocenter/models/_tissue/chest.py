"""Within the chest: left and right lung, and the airways."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isocenter.models._tissue import shapes
from isocenter.models._tissue.grid import Mask

if TYPE_CHECKING:
    from isocenter.models._tissue.scene import Scene


def sides(scene: Scene) -> tuple[Mask, Mask]:
    """The left and the right lung.

    Where the two touch (in front of the heart, or by partial volume) they are parted at their narrowest: the lungs are
    eroded until what is left lies on one side of the midline or the other, and each voxel goes to the nearest of these.
    """
    lungs = scene.lungs
    x = scene.working.axis(2)
    left_half = np.broadcast_to(x > scene.midline, lungs.shape)
    depth = shapes.depth(lungs, scene.spacing, 19.0)
    seeds = np.zeros(lungs.shape, np.int32)
    rest = lungs
    for mm in (0.0, 3.0, 6.0, 9.0, 13.0, 18.0):
        labels, sizes = shapes.components(rest & (depth > mm))
        if len(sizes) < 2:
            break
        on_left = np.bincount(labels[left_half], minlength=len(sizes)) / np.maximum(sizes, 1)
        numbers = np.arange(len(sizes))
        # A whole lung reaches over the midline by some per cent; two joined lungs are halved by it.
        seeds[shapes.chosen(labels, numbers[on_left > 0.85])] = 1
        seeds[shapes.chosen(labels, numbers[on_left < 0.15])] = 2
        rest = shapes.chosen(labels, numbers[(on_left >= 0.15) & (on_left <= 0.85)])
        if not rest.any():
            break
    seeds[rest] = np.where(left_half[rest], 1, 2)
    owner = shapes.nearest_label(seeds, lungs, scene.spacing) if (lungs & (seeds == 0)).any() else seeds
    return owner == 1, owner == 2


def airways(scene: Scene) -> Mask:
    """Trachea and main bronchi: cores of gas in front of the spine, at lung height or above, tube-like in slices."""
    gas = scene.gas
    if scene.flat or not gas.any() or scene.plane != 0:
        return np.zeros_like(gas)
    labels, sizes = shapes.components(shapes.dilate(gas, 0.8 * scene.voxel, scene.spacing) & scene.aerated & ~scene.lungs)
    from scipy import ndimage

    floor = _lowest(scene, scene.lungs)
    boxes = ndimage.find_objects(labels)
    kept = [int(n) for n in np.flatnonzero(sizes[1:] >= 6) + 1 if _tubular(scene, labels[boxes[n - 1]] == n, boxes[n - 1], floor)]
    return shapes.chosen(labels, kept)


def _tubular(scene: Scene, part: Mask, box: tuple[slice, slice, slice], floor: float) -> bool:
    """Whether a part (within its box) is a piece of airway: above `floor` (mm), in front of the spine, long and narrow."""
    z, y, x = (float(np.average(scene.working.axis(i)[box[i]], weights=part.sum(axis=tuple(a for a in range(3) if a != i)))) for i in range(3))
    area = part.sum(axis=(1, 2)) * scene.spacing[1] * scene.spacing[2]
    spine = scene.spine
    central = spine is None or (abs(x - spine[1]) < 45 and -10 < spine[0] - y < 110)
    return bool(z > floor and central and len(part) * scene.spacing[0] >= 25 and np.median(area) < 1100)


def _lowest(scene: Scene, lungs: Mask) -> float:
    """Height in mm above which gas in the middle is airway rather than stomach: a third of the way up the lungs."""
    used = np.flatnonzero(lungs.sum(axis=(1, 2)) * scene.spacing[1] * scene.spacing[2] > 400)
    z = scene.working.axis(0)
    if not len(used):
        # No lung in sight: neck and head hold airways, the belly does not, and bones do not tell which this is.
        return float("inf")
    return float(z[used[0]] + (z[used[-1]] - z[used[0]]) * 0.35)
