"""Lesions out of a mask, and every figure of each: size, place, intensities, calipers.

A figure that cannot be had is None, and `reasons` says why; it is never 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.diameters import Caliper, Diameters, diameters
from isocenter.analysis.surface import surface
from isocenter.core.errors import GeometryError
from isocenter.core.geometry import Grid, Triple
from isocenter.core.volume import Volume

Index = tuple[int, int, int]


@dataclass(frozen=True)
class Intensities:
    """Of the voxels under a mask, those that are no numbers left out. std: of the population, as a histogram has it."""

    mean: float
    std: float
    minimum: float
    median: float
    maximum: float
    unit: str


@dataclass(frozen=True)
class LesionSize:
    """One connected lesion. Voxel positions are (x, y, z) of the image.

    volume_mm3: voxels times their volume. box: first and last voxel, both inside. short_axis_mm: at right angles to the
    longest diameter in its slice. touches_border: the lesion goes on outside of the image, so that sizes are least
    values. reasons: why a figure is None, by the figure's name.
    """

    voxels: int
    volume_mm3: float
    mesh_volume_mm3: float
    surface_mm2: float
    sphericity: float
    max_3d_diameter_mm: float
    longest_mm: float
    short_axis_mm: float
    who_product_mm2: float
    longest_ends: tuple[Triple, Triple]
    short_ends: tuple[Triple, Triple]
    plane: int
    slice_index: int
    box: tuple[Index, Index]
    centroid_voxel: Triple
    centroid_lps_mm: Triple
    touches_border: bool
    intensities: Intensities | None
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def calipers(self) -> Diameters:
        """The two lines, to draw."""
        return Diameters(Caliper(self.longest_mm, self.longest_ends), Caliper(self.short_axis_mm, self.short_ends), self.plane, self.slice_index)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def box_of(inside: NDArray[Any]) -> tuple[slice, slice, slice] | None:
    """The smallest box around a mask (z, y, x), None for an empty one; slabs are looked through one after the other."""
    planes = np.array([bool(plane.any()) for plane in inside])
    used = np.flatnonzero(planes)
    if not used.size:
        return None
    slab = inside[used[0] : used[-1] + 1]
    rows = np.flatnonzero(slab.any(axis=(0, 2)))
    columns = np.flatnonzero(slab.any(axis=(0, 1)))
    return slice(int(used[0]), int(used[-1]) + 1), slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def split(mask: NDArray[Any], *, least_voxels: int = 1) -> list[tuple[tuple[slice, slice, slice], NDArray[np.bool_]]]:
    """The connected parts (26 neighbours) of where `mask` (z, y, x) is not 0, largest first: box, and mask within it.

    Parts of equal size come in the order of their first voxel. least_voxels: smaller parts are left out.
    """
    import cc3d

    parts: list[tuple[int, tuple[slice, slice, slice], NDArray[np.bool_]]] = []
    # No part reaches across an empty plane: between two of them only a box has to be looked through.
    used = np.array([False, *(bool(plane.any()) for plane in mask), False])
    starts, stops = (np.flatnonzero(used[1:] & ~used[:-1]), np.flatnonzero(~used[1:] & used[:-1]))
    for start, stop in zip(starts, stops, strict=True):
        slab = mask[start:stop] != 0
        box = box_of(slab)
        if box is None:
            continue
        numbers, count = cc3d.connected_components(np.ascontiguousarray(slab[box]), connectivity=26, return_N=True)
        facts = cc3d.statistics(numbers, no_slice_conversion=False)
        for k in range(1, count + 1):
            voxels, inner = int(facts["voxel_counts"][k]), facts["bounding_boxes"][k]
            if voxels >= least_voxels:
                z, y, x = (slice(a.start + b.start, a.stop + b.start) for a, b in zip(inner, box, strict=True))
                parts.append((voxels, (slice(z.start + int(start), z.stop + int(start)), y, x), numbers[inner] == k))
    parts.sort(key=lambda part: -part[0])
    return [(box, inside) for _, box, inside in parts]


def within(box: tuple[slice, slice, slice], around: tuple[slice, ...]) -> tuple[slice, ...]:
    """A box as an index of the larger one around it."""
    return tuple(slice(b.start - a.start, b.stop - a.start) for b, a in zip(box, around, strict=True))


def neighbours(mask: NDArray[Any], label: int, box: tuple[slice, slice, slice], inside: NDArray[np.bool_]) -> set[int]:
    """Labels of a map (z, y, x) that touch a lesion of `label` (26 neighbours). inside: the lesion's mask within `box`."""
    from scipy.ndimage import binary_dilation

    around = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
    crop = mask[around]
    others = (crop != 0) & (crop != label)
    if not others.any():
        return set()
    lesion = np.zeros(crop.shape, bool)
    lesion[within(box, around)] = inside
    near = binary_dilation(lesion, np.ones((3, 3, 3), bool)) & others
    return {int(value) for value in np.unique(crop[near])}


def measure_lesion(
    inside: NDArray[np.bool_], box: tuple[slice, slice, slice], grid: Grid, image: Volume | None = None, *, lines: Diameters | None = None
) -> LesionSize:
    """Measure one lesion. inside: its mask within `box` (slices z, y, x of the grid). image: for intensities, on that grid.
    lines: its diameters, where they are not the mask's.

    Raises `GeometryError` for an empty mask, and when the image lies on another grid.
    """
    if image is not None and not image.grid.same_as(grid):
        raise GeometryError("the mask's grid is not the image's; resample it to the image first")
    first: Index = (box[0].start, box[1].start, box[2].start)
    lines = lines or diameters(inside, grid, first=first)
    shape = surface(inside, grid)
    if lines is None or shape is None:
        raise GeometryError("an empty mask has no size")
    voxels = int(np.count_nonzero(inside))
    centre = [float((np.arange(n) * np.count_nonzero(inside, axis=axes)).sum() / voxels) for n, axes in _profiles(inside.shape)]
    z, y, x = (c + start for c, start in zip(centre, first, strict=True))
    place = grid.affine_lps @ (x, y, z, 1.0)
    values, reason = (None, "no image was given") if image is None else _intensities(image, box, inside)
    last = tuple(s.stop - 1 for s in box)
    return LesionSize(
        voxels=voxels,
        volume_mm3=voxels * grid.voxel_mm3,
        mesh_volume_mm3=shape.mesh_volume_mm3,
        surface_mm2=shape.area_mm2,
        sphericity=shape.sphericity,
        max_3d_diameter_mm=shape.max_3d_diameter_mm,
        longest_mm=lines.longest.length_mm,
        short_axis_mm=lines.short.length_mm,
        who_product_mm2=lines.product_mm2,
        longest_ends=lines.longest.ends,
        short_ends=lines.short.ends,
        plane=lines.plane,
        slice_index=lines.slice_index,
        box=((first[2], first[1], first[0]), (last[2], last[1], last[0])),
        centroid_voxel=(x, y, z),
        centroid_lps_mm=(float(place[0]), float(place[1]), float(place[2])),
        touches_border=_touches(inside, box, grid.shape),
        intensities=values,
        reasons={} if reason is None else {"intensities": reason},
    )


def lesions(mask: NDArray[Any], grid: Grid, image: Volume | None = None, *, least_voxels: int = 1) -> list[LesionSize]:
    """Every connected lesion of a mask (z, y, x), largest first. Raises `GeometryError` when mask, grid and image differ."""
    if tuple(mask.shape) != grid.shape:
        raise GeometryError(f"the mask's shape {tuple(mask.shape)} is not the grid's {grid.shape}")
    return [measure_lesion(inside, box, grid, image) for box, inside in split(mask, least_voxels=least_voxels)]


def _profiles(shape: tuple[int, ...]) -> list[tuple[int, tuple[int, int]]]:
    return [(shape[0], (1, 2)), (shape[1], (0, 2)), (shape[2], (0, 1))]


def _touches(inside: NDArray[np.bool_], box: tuple[slice, slice, slice], shape: Index) -> bool:
    """Whether a face of the image cuts through the lesion. The two faces of a single slice say nothing about it."""
    for axis, (where, n) in enumerate(zip(box, shape, strict=True)):
        if n > 1 and (where.start == 0 or where.stop == n):
            ends = [0] * (where.start == 0) + [-1] * (where.stop == n)
            if any(np.take(inside, end, axis=axis).any() for end in ends):
                return True
    return False


def _intensities(image: Volume, box: tuple[slice, slice, slice], inside: NDArray[np.bool_]) -> tuple[Intensities | None, str | None]:
    values = image.voxels[box][inside].astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return None, "no voxel under the mask holds a number"
    low, middle, high = np.percentile(values, [0, 50, 100])
    return Intensities(float(values.mean()), float(values.std()), float(low), float(middle), float(high), image.unit), None
