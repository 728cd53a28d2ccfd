"""What a box is drawn around: its contents are parted into the structure and its surroundings, as a whole.

The idea is GrabCut's (C. Rother, V. Kolmogorov, A. Blake, ACM TOG 23, 2004): what lies outside of the box shows what the
surroundings look like; a minimum cut and the intensities on both sides of it are found in turns. That the drawn box fits
closely is known too: its middle is likelier inside than its corners.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isocenter.models._geodesic.regions import ratio_table
from isocenter.models._geodesic.window import F32, Window

#: Evidence of the place: this much (logit) for each half width of the box, none at this part of the way from its middle to a side.
_PLACE, _EVEN = 3.0, 0.85
#: Evidence of the intensity: a factor below 1, as neighbouring voxels are not independent, and its largest size (logit).
_EVIDENCE, _CERTAIN = 0.8, 3.0
#: Cost of an outline between two voxels of one intensity, and the difference (in units of the noise) that halves it, about.
_OUTLINE, _EDGE = 2.0, 1.5
_SURE = np.float32(1e3)
#: Least and most belief (logit) in an answer: corrections shall outdo it.
_WEAK, _STRONG = 0.3, 1.5
_ROUNDS = 4
_BINS = 64
#: How sure the intensities of one round are made of: voxels inside and outside of the cut.
_INSIDE, _OUTSIDE = 0.95, 0.05


@dataclass(frozen=True, eq=False)
class Parted:
    """mask: what the box holds, one connected part. logit: how sure, positive exactly inside of the mask."""

    mask: NDArray[np.bool_]
    logit: F32


def part(window: Window, inner: tuple[slice, slice, slice], free: NDArray[np.bool_], bound: int | None = None) -> Parted | None:
    """The structure inside a box, `inner` of the window's voxels; None where nothing may become part of it.

    free: what may; what is in the window's mask is part of it already. bound: the slice that the box was drawn in, where it
    was drawn in one: that slice is decided by itself, and the others go on from it.
    """
    inside = np.zeros(window.shape, np.bool_)
    inside[inner] = (free | window.mask)[inner]
    if not inside.any():
        return None
    place = np.where(window.mask, _SURE, _place(window.shape, inner))
    if bound is not None:
        z = slice(bound, bound + 1)
        plane = replace(window, fine=window.fine[z], soft=window.soft[z], belief=window.belief[z])
        drawn = part(plane, (slice(0, 1), *inner[1:]), free[z])
        if drawn is not None:
            place[z] = np.where(drawn.mask, _SURE, -_SURE)
    # No evidence buys in what lies outside, or out what was won before.
    mask, odds = _cut(window, np.where(inside, place, -_SURE))
    mask = _main_part(mask, place)
    return Parted(mask, np.where(mask, np.clip(odds, _WEAK, _STRONG), np.clip(odds, -_STRONG, -_WEAK)).astype(np.float32))


def _cut(window: Window, place: F32) -> tuple[NDArray[np.bool_], F32]:
    """Mask and logit, from the evidence of the place and what it says of the intensities. The mask is never empty."""
    from isocenter.models._graphcut import maxflow

    outline = _outline(window)
    mask, odds = place > min(0.0, float(place.max()) - 1e-3), place
    share = _share(place)
    for turn in range(_ROUNDS):
        odds = place + np.clip(_EVIDENCE * _appearance(window.fine, share), -_CERTAIN, _CERTAIN)
        found = maxflow.cut(np.maximum(-odds, 0), np.maximum(odds, 0), outline)
        # All of it looks like its surroundings: the box itself is all that is known.
        if not found.any() or (turn and np.array_equal(found, mask)):
            break
        mask = found
        share = np.where(place > -_SURE, np.where(mask, _INSIDE, _OUTSIDE), 0).astype(np.float32)
    return mask, odds


def _share(logit: F32) -> F32:
    share: F32 = (1 / (1 + np.exp(-np.clip(logit, -30, 30)))).astype(np.float32)
    return share


def _place(shape: tuple[int, ...], inner: tuple[slice, slice, slice]) -> F32:
    """Logit of lying inside, by the place in the box alone: falls with the distance from its middle, as in an ellipsoid."""
    squared = np.zeros(shape, np.float32)
    for axis, along in enumerate(inner):
        if shape[axis] == 1:
            continue
        half = max((along.stop - along.start) / 2, 0.5)
        offset = ((np.arange(shape[axis]) + 0.5 - (along.start + along.stop) / 2) / half) ** 2
        squared += offset.reshape([-1 if i == axis else 1 for i in range(3)]).astype(np.float32)
    logit: F32 = np.clip(_PLACE * (_EVEN - np.sqrt(squared)), -3, 3).astype(np.float32)
    return logit


def _appearance(values: F32, share: NDArray[np.floating]) -> F32:
    """Logarithm of how much likelier each voxel's intensity is inside than outside; share: how much of it counts as inside."""
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    high = max(high, low + 1)
    count = int(np.clip(high - low, 8, _BINS))  # no finer than the noise
    bins = np.clip((values - low) / (high - low) * (count - 1), 0, count - 1).astype(np.int32)
    held = np.bincount(bins.ravel(), weights=share.ravel(), minlength=count).astype(np.float64)
    total = np.bincount(bins.ravel(), minlength=count).astype(np.float64)
    table = ratio_table(held, total - held, max(0.7, count / _BINS * 1.5))
    ratio: F32 = table[bins]
    return ratio


def _outline(window: Window) -> list[F32]:
    """For z, y and x the cost of an outline between a voxel and the next one."""
    costs = []
    for axis in range(3):
        cost = np.zeros(window.shape, np.float32)
        last = tuple(slice(None, -1) if i == axis else slice(None) for i in range(3))
        steps = np.diff(window.fine, axis=axis)
        cost[last] = _OUTLINE / window.steps[axis] * np.exp(-0.5 * np.square(steps / np.float32(_EDGE)))
        costs.append(cost)
    return costs


def _main_part(mask: NDArray[np.bool_], place: F32) -> NDArray[np.bool_]:
    """The connected part (by faces) that lies most in the middle of the box."""
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    weight = np.bincount(parts.ravel(), weights=_share(place).ravel())
    weight[0] = 0
    main: NDArray[np.bool_] = parts == int(weight.argmax())
    return main
