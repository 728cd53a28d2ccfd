"""Morphology in millimetres on the working grid; what lies beyond the scan's border counts as unknown, never as outside."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isocenter.core.geometry import Triple
from isocenter.models._tissue.grid import Field, Mask

Labels = NDArray[np.int32]


def depth(mask: Mask, spacing: Triple) -> Field:
    """Distance in mm of each voxel of the mask to the nearest voxel outside of it; 0 outside. Huge when all are inside."""
    import edt

    if mask.all():
        return np.full(mask.shape, 1e4, np.float32)
    return np.asarray(edt.edt(np.ascontiguousarray(mask), anisotropy=spacing, black_border=False), np.float32)


def erode(mask: Mask, mm: float, spacing: Triple) -> Mask:
    """Voxels more than `mm` inside."""
    return depth(mask, spacing) > mm


def dilate(mask: Mask, mm: float, spacing: Triple) -> Mask:
    """Voxels within `mm` of the mask."""
    if not mask.any():
        return mask.copy()
    return depth(~mask, spacing) <= mm


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

    if not labels.any():
        return np.zeros_like(labels)
    where = ndimage.distance_transform_edt(labels == 0, sampling=spacing, return_distances=False, return_indices=True)
    return np.where(within, labels[tuple(where)], 0).astype(np.int32)
