"""Morphology in millimetres on the working grid; what lies beyond the scan's border counts as unknown, never as outside."""

from __future__ import annotations

import functools
import itertools

import numpy as np
from numpy.typing import NDArray

from isocenter.core.geometry import Triple
from isocenter.models._tissue.grid import Field, Mask

Labels = NDArray[np.int32]

#: Balls of more voxels than this are not made by shifting.
SHIFTS = 60


def depth(mask: Mask, spacing: Triple, cap: float) -> Field:
    """Distance in mm of each voxel of the mask to the nearest voxel outside of it, up to `cap`; 0 outside."""
    from isocenter.models._distance import distance

    out = np.zeros(mask.shape, np.float32)
    box = bounds(mask, 1)
    if box is not None:
        out[box] = distance(mask[box], spacing, cap)
    return out


def bounds(mask: Mask, margin: int) -> tuple[slice, slice, slice] | None:
    """The box of a mask, widened by some voxels; None for an empty mask."""
    box = []
    for axis in range(3):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(used):
            return None
        box.append(slice(max(0, int(used[0]) - margin), min(mask.shape[axis], int(used[-1]) + 1 + margin)))
    return box[0], box[1], box[2]


def erode(mask: Mask, mm: float, spacing: Triple) -> Mask:
    """Voxels more than `mm` inside."""
    return ~dilate(~mask, mm, spacing)


def dilate(mask: Mask, mm: float, spacing: Triple) -> Mask:
    """Voxels within `mm` of the mask."""
    out = np.zeros(mask.shape, bool)
    box = bounds(mask, int(mm / min(spacing)) + 2)
    if box is None:
        return out
    steps = _ball(mm, spacing)
    if len(steps) > SHIFTS:
        out[box] = depth(~mask[box], spacing, mm + 0.1) <= mm
        return out
    part, into = mask[box], out[box]
    for step in steps:  # shifting a mask a few times is quicker than measuring distances
        to = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(step, part.shape, strict=True))
        of = tuple(slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(step, part.shape, strict=True))
        into[to] |= part[of]
    return out


@functools.lru_cache(maxsize=64)
def _ball(mm: float, spacing: Triple) -> tuple[tuple[int, int, int], ...]:
    """The steps (z, y, x) of at most `mm`."""
    reach = [range(-int(mm / s), int(mm / s) + 1) for s in spacing]
    return tuple(
        (z, y, x)
        for z, y, x in itertools.product(*reach)
        if (z * spacing[0]) ** 2 + (y * spacing[1]) ** 2 + (x * spacing[2]) ** 2 <= mm * mm * (1 + 1e-6)
    )


def opened(mask: Mask, mm: float, spacing: Triple) -> Mask:
    """What a ball of radius `mm` inside the mask can touch."""
    return mask & dilate(erode(mask, mm, spacing), mm, spacing)


def closed(mask: Mask, mm: float, spacing: Triple) -> Mask:
    """The mask with gaps narrower than a ball of radius `mm` filled."""
    return mask | erode(dilate(mask, mm, spacing), mm, spacing)


def components(mask: Mask) -> tuple[Labels, NDArray[np.int64]]:
    """Connected parts (6 neighbours) numbered from 1, and the voxels of each (index 0: of the background)."""
    import cc3d

    labels = np.asarray(cc3d.connected_components(np.ascontiguousarray(mask), connectivity=6), np.int32)
    return labels, np.bincount(labels.ravel(), minlength=1)


def touching(labels: Labels, seed: Mask) -> Mask:
    """The parts that share a voxel with `seed`."""
    return chosen(labels, np.unique(labels[seed]))


def chosen(labels: Labels, numbers: NDArray[np.integer] | list[int]) -> Mask:
    """Voxels whose number is one of `numbers`; 0 never is."""
    table = np.zeros(int(labels.max(initial=0)) + 1, bool)
    table[numbers] = True
    table[0] = False
    return table[labels]


def sheets(mask: Mask, axis: int) -> Labels:
    """Connected parts within each plane across `axis` (4 neighbours), numbered through all planes from 1."""
    from scipy import ndimage

    plane = np.moveaxis(np.zeros((3, 3, 3), bool), axis, 0)
    plane[1] = ndimage.generate_binary_structure(2, 1)
    structure = np.moveaxis(plane, 0, axis)
    labels, _ = ndimage.label(mask, structure)
    return np.asarray(labels, np.int32)


def rim(shape: tuple[int, ...], axis: int) -> Mask:
    """The border voxels of each plane across `axis`."""
    border = np.ones(shape, bool)
    inside = [slice(1, -1)] * 3
    inside[axis] = slice(None)
    border[tuple(inside)] = False
    return border


def smooth(field: NDArray[np.generic], mm: float, spacing: Triple) -> Field:
    """Gaussian of standard deviation `mm`."""
    from scipy import ndimage

    sigma = [mm / s for s in spacing]
    return np.asarray(ndimage.gaussian_filter(field.astype(np.float32), sigma, mode="nearest", truncate=3), np.float32)


def nearest_label(labels: Labels, within: Mask, spacing: Triple) -> Labels:
    """Each voxel of `within` takes the number of the nearest numbered voxel (mm, through anything); 0 elsewhere."""
    from scipy import ndimage

    out = np.zeros(labels.shape, np.int32)
    box = bounds((labels > 0) | within, 0)
    if box is None or not labels.any():
        return out
    part = labels[box]
    where = ndimage.distance_transform_edt(part == 0, sampling=spacing, return_distances=False, return_indices=True)
    out[box] = np.where(within[box], part[tuple(where)], 0)
    return out


def medians(values: Field, labels: Labels, numbers: NDArray[np.integer]) -> NDArray[np.float64]:
    """The median of `values` in each part; NaN where it has no voxel."""
    place = np.flatnonzero(np.isin(labels, numbers) & (labels > 0))
    owner = labels.ravel()[place]
    order = np.argsort(owner, kind="stable")
    found = np.searchsorted(owner[order], [numbers, numbers + 1])
    taken = values.ravel()[place[order]]
    return np.array([np.median(taken[a:b]) if b > a else np.nan for a, b in found.T])
