"""What changed between two registered scans: lesions that came, grew, shrank or went, without a mask of either visit.

The earlier scan is brought onto the later one's grid; what scanners do to brightness, overall and slowly over the field of view,
is taken out of it. A voxel is changed where it differs from all that lies within the registration's error around it, by
many times the noise, and is brighter than the tissue in one of the two scans, as lesions are on FLAIR or T2; from such seeds a
change spreads as far as the difference does. Lesjak et al., Neuroinformatics 14:403, 2016, compare such methods.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError, UsageError
from isocenter.core.volume import Volume

Floats = NDArray[np.float32]
#: Of what a smoothing leaves of the noise, sd: where a change begins, and how far it spreads.
SEED_SD, SPREAD_SD = 8.0, 5.0
#: How much brighter than the tissue's median a seed is, in its robust sd.
BRIGHT_SD = 1.5
#: Error that a registration may have; sd of the smoothing; scale of uneven brightness; all mm.
_OFF_MM, _SMOOTH_MM, _BIAS_MM = 1.5, 1.0, 20.0
#: Log ratios beyond this are change, not brightness.
_BIAS_MOST = 0.3
#: Smaller changes are noise, mm³.
_LEAST_MM3 = 20.0


@dataclass(frozen=True, eq=False)
class Change:
    """On the later scan's grid: risen, fallen (z, y, x) bool; difference: in the earlier scan's unit, NaN outside the region.

    noise: robust sd of the smoothed difference. stays: as bright as lesions are in both scans.
    """

    risen: NDArray[np.bool_]
    fallen: NDArray[np.bool_]
    difference: Floats
    noise: float
    stays: NDArray[np.bool_]

    @property
    def both(self) -> NDArray[np.bool_]:
        return np.asarray(self.risen | self.fallen)


def changes(
    later: Volume,
    earlier: Volume,
    matrix: NDArray[np.float64],
    region: NDArray[np.bool_],
    *,
    bright: bool = True,
    seed_sd: float = SEED_SD,
    spread_sd: float = SPREAD_SD,
    bright_sd: float = BRIGHT_SD,
) -> Change:
    """Changes within `region` (z, y, x; on the later scan's grid), such as the brain.

    matrix: 4 x 4, LPS mm of `earlier` to LPS mm of `later`, as `register` gives it. bright: lesions are brighter than the
    tissue around; False where they may be anything. seed_sd, spread_sd, bright_sd: see `SEED_SD` and its neighbours. Raises
    `UsageError` for a region of another shape or of less than 1000 voxels that both scans show, `GeometryError` for a grid whose axes
    are not at right angles.
    """
    from scipy import ndimage

    if region.shape != later.shape:
        raise UsageError("the region lies on another grid than the later scan")
    if not (later.grid.is_orthogonal and earlier.grid.is_orthogonal):
        raise GeometryError("the axes of this scan are not at right angles; it cannot be compared")
    spacing = np.array(later.spacing_zyx)
    before, seen = _onto(earlier, later, matrix)
    # Work on the region's box alone.
    inside = np.asarray(region & seen)
    if int(inside.sum()) < 1000:
        raise UsageError("the two scans share too little of the region to be compared")
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    inside, before = inside[box], before[box]
    after = later.array[box].astype(np.float32)
    after = _evened(before, after, inside, spacing)
    weight = np.maximum(ndimage.gaussian_filter(inside.astype(np.float32), _SMOOTH_MM / spacing), 0.1)
    a, b = (ndimage.gaussian_filter(np.where(inside, v, 0), _SMOOTH_MM / spacing) / weight for v in (before, after))
    difference = b - a
    noise = max(_spread(difference[inside]), 1e-6)
    near = _ball(_OFF_MM, spacing)
    centre, spread = float(np.median(before[inside])), _spread(before[inside])
    lightest = np.maximum(a, b)
    seed_at = inside & (lightest > centre + bright_sd * spread) if bright else inside
    spread_at = inside & (lightest > centre) if bright else inside
    least = max(1, round(_LEAST_MM3 / later.grid.voxel_mm3))
    found = []
    for sign in (1, -1):
        # Brighter than all around it was, or darker than all around it was.
        beyond = b - ndimage.maximum_filter(a, footprint=near) if sign > 0 else ndimage.minimum_filter(a, footprint=near) - b
        where = spread_at & (sign * difference > spread_sd * noise)
        grown = ndimage.binary_propagation(seed_at & where & (beyond > seed_sd * noise), mask=where)
        labels, _ = ndimage.label(grown, np.ones((3, 3, 3)))
        sizes = np.bincount(labels.reshape(-1))
        sizes[0] = 0
        whole = np.zeros(later.shape, bool)
        whole[box] = (sizes >= least)[labels]
        found.append(whole)
    told = np.full(later.shape, np.nan, np.float32)
    told[box][inside] = difference[inside]
    stays = np.zeros(later.shape, bool)
    stays[box] = inside & (np.minimum(a, b) > centre + bright_sd * spread)
    return Change(found[0], found[1], told, noise, stays)


def _onto(earlier: Volume, later: Volume, matrix: NDArray[np.float64]) -> tuple[Floats, NDArray[np.bool_]]:
    """The earlier scan on the later one's grid, linear, and where it has a value."""
    from scipy import ndimage

    to = np.linalg.inv(earlier.grid.affine_lps) @ np.linalg.inv(matrix) @ later.grid.affine_lps
    linear, offset = to[:3, :3][::-1, ::-1], to[:3, 3][::-1]
    moved = ndimage.affine_transform(earlier.array.astype(np.float32), linear, offset, output_shape=later.shape, order=1, cval=np.nan)
    seen = np.isfinite(moved)
    return np.nan_to_num(moved), seen


def _evened(before: Floats, after: Floats, inside: NDArray[np.bool_], spacing: NDArray[np.float64]) -> Floats:
    """`after` as bright as `before`: the smooth part of the log ratio is taken out, from voxels that hardly changed."""
    from scipy import ndimage

    floor = 1e-3 * max(float(np.median(before[inside])), 1e-6)
    ratio = np.log(np.maximum(after, floor)) - np.log(np.maximum(before, floor))
    middle = float(np.median(ratio[inside]))
    usual = inside & (np.abs(ratio - middle) < _BIAS_MOST)
    sigma = _BIAS_MM / spacing
    weight = ndimage.gaussian_filter(usual.astype(np.float32), sigma)
    smooth = ndimage.gaussian_filter(np.where(usual, ratio - middle, 0).astype(np.float32), sigma) / np.maximum(weight, 1e-3)
    return np.asarray(after / np.exp(smooth + middle), dtype=np.float32)


def _ball(radius_mm: float, spacing: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Voxels within a radius of the middle one."""
    reach = np.floor(radius_mm / spacing + 1e-6).astype(int)
    offset = np.indices([int(2 * r + 1) for r in reach]).T - reach
    return np.asarray((((offset * spacing) ** 2).sum(axis=-1) <= radius_mm**2 + 1e-6).T)


def _spread(values: Floats) -> float:
    """Robust sd: 1.4826 times the median absolute deviation."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))
