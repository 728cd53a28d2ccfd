"""A registration as files that other programs read: an affine transform of ITK, and a displacement field as NIfTI.

Both lead from LPS mm of the moving scan to LPS mm of the fixed one, the field first. So, in SimpleITK, a composite of the two resamples
the fixed scan onto the moving one's grid; 3D Slicer and ANTs read the same files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.tracking.deform import Region

#: Voxels of a field at most.
_VOXELS = 8_000_000
#: Displacements are rounded to this fraction of a mm: as good as exact, and half the size on disk.
_FRACTION = 128


@dataclass(frozen=True, eq=False)
class Field:
    """What all regions' fields come to. shift: (z, y, x, 3) float32, LPS mm (x, y, z) to add; cubes of `step` mm along LPS axes."""

    shift: NDArray[np.float32]
    origin: tuple[float, float, float]
    step: float

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 3) mm to add to LPS points; nothing beyond the grid."""
        from scipy.ndimage import map_coordinates

        index = ((np.asarray(points, dtype=np.float64).reshape(-1, 3) - np.array(self.origin)) / self.step)[:, ::-1].T
        return np.stack([map_coordinates(self.shift[..., k], index, order=1, mode="constant") for k in range(3)], axis=1).astype(np.float64)


def field_of(regions: Sequence[Region]) -> Field | None:
    """The fields of all regions in one, as fine as the finest; None where none is used."""
    used = [r for r in regions if not r.reason]
    if not used:
        return None
    low = np.min([np.array(r.origin) - r.step / 2 for r in regions], axis=0)
    high = np.max([np.array(r.origin) + (np.array(r.shift.shape[2::-1]) - 0.5) * r.step for r in regions], axis=0)
    step = max(min(r.step for r in used), float(np.cbrt(np.prod(high - low) / _VOXELS)))
    columns, rows, planes = (int(n) for n in np.ceil((high - low) / step))
    origin = low + step / 2
    shift = np.zeros((planes, rows, columns, 3), np.float32)
    y, x = np.mgrid[:rows, :columns]
    for k, plane in enumerate(shift):
        points = np.stack([x.ravel(), y.ravel(), np.full(x.size, k)], axis=1) * step + origin
        left = np.ones(len(points), bool)
        flat = plane.reshape(-1, 3)
        # As `deform.carry` has it: the first region that holds a place moves it.
        for region in regions:
            here = left & region.holds(points)
            left &= ~here
            if not region.reason and here.any():
                flat[here] = np.round(region.at(points[here]) * _FRACTION) / _FRACTION
    return Field(shift, (float(origin[0]), float(origin[1]), float(origin[2])), step)


def write_affine(file: Path, matrix: NDArray[np.float64]) -> None:
    """A 4 x 4 matrix as ITK's text (`.tfm`)."""
    import SimpleITK as sitk

    affine = sitk.AffineTransform(3)
    affine.SetMatrix(matrix[:3, :3].ravel().tolist())
    affine.SetTranslation(matrix[:3, 3].tolist())
    sitk.WriteTransform(affine, str(file))


def write_field(file: Path, field: Field) -> None:
    """A field as an image of vectors."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(field.shift, isVector=True)
    image.SetSpacing([field.step] * 3)
    image.SetOrigin(field.origin)
    sitk.WriteImage(image, str(file), useCompression=True)


def read_field(file: Path) -> Field | None:
    """What `write_field` wrote, None where there is no such file."""
    import SimpleITK as sitk

    if not file.is_file():
        return None
    image = sitk.ReadImage(str(file), sitk.sitkVectorFloat32)
    x, y, z = image.GetOrigin()
    return Field(sitk.GetArrayFromImage(image), (x, y, z), float(image.GetSpacing()[0]))
