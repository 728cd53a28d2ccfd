"""The slices of a scan on which its lesions were measured: all that pictures of lesions need, in a file of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.lesions import LesionSize
from isocenter.core.geometry import Grid
from isocenter.core.volume import Volume

_GRID = ("shape", "spacing", "origin", "direction")


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice: image and label map (rows, columns), cut across array axis `plane` of `grid`."""

    image: NDArray[np.generic]
    mask: NDArray[np.generic]
    grid: Grid
    plane: int


def cut(volume: Volume, mask: NDArray[np.generic], plane: int, index: int) -> Slice:
    """One slice of a scan and of the label map (z, y, x) on its grid."""
    where = (slice(None),) * plane + (index,)
    return Slice(np.asarray(volume.voxels[where]), np.asarray(mask[where]), volume.grid, plane)


def arrays(volume: Volume, mask: NDArray[np.generic], sizes: Iterable[LesionSize]) -> dict[str, NDArray[np.generic]]:
    """The slices of these lesions, by names as an `.npz` file has them; each once."""
    grid = volume.grid
    made: dict[str, NDArray[np.generic]] = {name: np.array(getattr(grid, name)) for name in _GRID}
    for plane, index in sorted({(size.plane, size.slice_index) for size in sizes}):
        one = cut(volume, mask, plane, index)
        made[f"image-{plane}-{index}"], made[f"mask-{plane}-{index}"] = one.image, one.mask
    return made


def read(file: Path, plane: int, index: int) -> Slice | None:
    """One slice out of a file of `arrays`, None where the file or the slice is not there."""
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as held:
        if f"image-{plane}-{index}" not in held:
            return None
        shape, spacing, origin, direction = (held[name].tolist() for name in _GRID)
        a, b, c = (tuple(float(v) for v in row) for row in direction)
        grid = Grid(tuple(shape), tuple(spacing), tuple(origin), (a, b, c))  # type: ignore[arg-type] # lengths are Grid's to check
        return Slice(held[f"image-{plane}-{index}"], held[f"mask-{plane}-{index}"], grid, plane)
