"""Pieces of one lesion, measured as one: for a reader who says that a mask cut a lesion apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis import appearance
from isocenter.analysis.diameters import diameters
from isocenter.analysis.lesions import Intensities, LesionSize, measure_lesion, within
from isocenter.core.errors import UsageError
from isocenter.core.volume import Volume

#: A lesion's box in its array (slices z, y, x), and its mask within it.
Part = tuple[tuple[slice, slice, slice], NDArray[np.bool_]]


@dataclass(frozen=True)
class Merged:
    """Several lesions of a visit as one. parts: those that are no lesions of their own any more. size, appearance: of all together."""

    parts: tuple[str, ...]
    size: LesionSize
    appearance: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"parts": list(self.parts), "size": self.size.as_dict(), "appearance": list(self.appearance)}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Merged:
        """Out of `as_dict`, after JSON."""
        size = {name: _tuples(value) for name, value in data["size"].items()}
        size["intensities"] = Intensities(**size["intensities"]) if size["intensities"] else None
        return cls(tuple(data["parts"]), LesionSize(**size), tuple(float(v) for v in data["appearance"]))

    def still_of(self, sizes: Sequence[LesionSize]) -> bool:
        """Whether lesions of these sizes are the ones that were merged: their visit may have been measured anew since."""
        low = np.min([s.box[0] for s in sizes], axis=0)
        high = np.max([s.box[1] for s in sizes], axis=0)
        same_box = tuple(low) == tuple(self.size.box[0]) and tuple(high) == tuple(self.size.box[1])
        return same_box and sum(s.voxels for s in sizes) == self.size.voxels


def merge(parts: Sequence[Part], names: Sequence[str], scan: Volume) -> Merged:
    """Lesions of a scan as one; the first of `names` stays. Its diameters reach over the gaps between parts in one slice.

    names: of `parts`, in their order. Raises `GeometryError` as `measure_lesion` does.
    """
    around = tuple(slice(min(box[k].start for box, _ in parts), max(box[k].stop for box, _ in parts)) for k in range(3))
    z, y, x = around
    owner = np.zeros((z.stop - z.start, y.stop - y.start, x.stop - x.start), np.uint16)
    for number, (box, inside) in enumerate(parts, start=1):
        owner[within(box, around)][inside] = number
    whole = owner != 0
    first = (z.start, y.start, x.start)
    lines = diameters(whole, scan.grid, first=first)
    if lines is not None:
        lines = diameters(_bridged(owner, lines.plane), scan.grid, first=first, plane=lines.plane)
    size = measure_lesion(whole, (z, y, x), scan.grid, scan, lines=lines)
    vector = appearance.vector(whole, (z, y, x), size, scan)
    return Merged(tuple(names[1:]), size, tuple(float(v) for v in vector))


def _bridged(owner: NDArray[np.uint16], plane: int) -> NDArray[np.bool_]:
    """The whole lesion for its diameters: in slices with several parts, all that lies between them too.

    The hull of the voxels' centres reaches no farther than the parts themselves, so no diameter grows by it but over the gap.
    """
    from skimage.draw import line
    from skimage.morphology import convex_hull_image

    bridged = owner != 0
    slices, filled = np.moveaxis(owner, plane, 0), np.moveaxis(bridged, plane, 0)
    for k, one in enumerate(slices):
        if np.unique(one[one != 0]).size > 1:
            points = np.argwhere(one)
            if np.linalg.matrix_rank(points - points[0]) < 2:  # all on one line: it has no hull
                filled[k][line(*points[0], *points[-1])] = True
            else:
                filled[k] |= convex_hull_image(one != 0, offset_coordinates=False)
    return np.asarray(bridged, dtype=np.bool_)


def chosen(lesions: Iterator[tuple[int, tuple[slice, slice, slice], NDArray[np.bool_]]], names: Sequence[str]) -> list[Part]:
    """The named ones (`lesion-n`) of a visit's lesions, as `report.scans.each_lesion` gives them. Raises `UsageError` where one is not there."""
    by_name = {f"lesion-{n}": (box, inside) for n, (_, box, inside) in enumerate(lesions, start=1)}
    if any(name not in by_name for name in names):
        raise UsageError("the visit's mask does not hold these lesions any more; measure the visit again")
    return [by_name[name] for name in names]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
