"""A robot that clicks as people are assumed to: at the deepest point of the target, then of the largest mistake."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isocenter.core.geometry import Triple
from isocenter.core.prompts import Voxel

Mask = NDArray[np.bool_]


def dice(a: Mask, b: Mask) -> float:
    """Overlap of two masks, 0..1; 1 when both are empty."""
    both = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(a & b)) / both if both else 1.0


def deepest(mask: Mask, spacing: Triple) -> Voxel:
    """The voxel (z, y, x) farthest from the mask's outside, in mm; the mask must not be empty."""
    from isocenter.models._distance import distance

    z, y, x = (slice(int(u[0]), int(u[-1]) + 1) for u in (np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))))
    part = mask[z, y, x]
    depth = distance(np.pad(part, 1), spacing)[1:-1, 1:-1, 1:-1]
    at = np.unravel_index(int(depth.argmax()), part.shape)
    return int(at[0]) + z.start, int(at[1]) + y.start, int(at[2]) + x.start


def next_click(target: Mask, mask: Mask, spacing: Triple) -> tuple[Voxel, bool]:
    """Where to click next, and whether on the structure: in the largest part of the larger kind of error."""
    import cc3d

    missing, surplus = target & ~mask, mask & ~target
    positive = bool(np.count_nonzero(missing) >= np.count_nonzero(surplus))
    error = missing if positive else surplus
    if not error.any():
        return deepest(target, spacing), True
    parts = cc3d.connected_components(error, connectivity=6)
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    return deepest(parts == largest, spacing), positive
