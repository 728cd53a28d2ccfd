"""A scan made ready for networks: isotropic voxels, a grey window, values 0 to 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError, LimitError
from isocenter.core.geometry import Grid
from isocenter.core.rescaled import every
from isocenter.core.volume import Volume

#: Soft tissue in Hounsfield units, where nothing else is asked for.
CT_CENTRE, CT_WIDTH = 40.0, 400.0
_MOST_VOXELS = 1_000_000_000


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """array: (1, z, y, x) float32 between 0 and 1, on `grid`. centre, width: of the window, in the scan's unit."""

    array: NDArray[np.float32]
    grid: Grid
    centre: float
    width: float


def preprocess(volume: Volume, *, spacing_mm: float | None = None, centre: float | None = None, width: float | None = None) -> Preprocessed:
    """Resample to cubes (by default as fine as the finest axis, not below 0.5 mm), window and scale to 0..1.

    Window: as given; for CT soft tissue; for others the values between the 1st and 99th percentile. Outside of the scan lies
    its lowest value. Raises `GeometryError` for a sheared grid, `LimitError` for more than 10^9 voxels.
    """
    step = spacing_mm or max(min(volume.spacing), 0.5)
    grid = isotropic(volume.grid, step)
    if grid.voxels > _MOST_VOXELS:
        raise LimitError(f"{step:g} mm make {grid.voxels} voxels", limit="10^9 voxels", value=_MOST_VOXELS)
    if centre is None or width is None:
        low, high = (CT_CENTRE - CT_WIDTH / 2, CT_CENTRE + CT_WIDTH / 2) if volume.unit == "HU" else _percentiles(volume)
        centre, width = (low + high) / 2, max(high - low, 1e-6)
    array = resampled(volume, grid)
    np.subtract(array, np.float32(centre - width / 2), out=array)
    np.multiply(array, np.float32(1 / width), out=array)
    np.clip(array, 0, 1, out=array)
    return Preprocessed(array[None], grid, centre, width)


def isotropic(grid: Grid, step: float) -> Grid:
    """The grid of cubes of `step` mm that covers the same box: its outer faces lie within half a cube of the original's."""
    shape = tuple(max(1, math.ceil(n * s / step - 1e-6)) for n, s in zip(grid.shape, grid.spacing_zyx, strict=True))
    # The first cube's centre lies half a cube inside of the box's corner.
    corner = np.array([(step / s - 1) / 2 for s in grid.spacing])
    origin = grid.affine_lps[:3, :3] @ corner + grid.affine_lps[:3, 3]
    return Grid((shape[0], shape[1], shape[2]), (step, step, step), (float(origin[0]), float(origin[1]), float(origin[2])), grid.direction)


def resampled(volume: Volume, grid: Grid) -> NDArray[np.float32]:
    """(z, y, x) float32 values of a scan on another grid, linear between voxels."""
    import SimpleITK as sitk

    if not volume.grid.is_orthogonal:
        raise GeometryError("the axes of this scan are not at right angles; it cannot be resampled")
    if grid.same_as(volume.grid):
        return volume.array.astype(np.float32)
    array = volume.array
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection([float(v) for row in volume.direction for v in row])
    z, y, x = grid.shape
    direction = [float(v) for row in grid.direction for v in row]
    lowest = float(array.min())
    result = sitk.Resample(image, (x, y, z), sitk.Transform(), sitk.sitkLinear, grid.origin, grid.spacing, direction, lowest, sitk.sitkFloat32, True)
    return np.asarray(sitk.GetArrayViewFromImage(result)).copy()


def _percentiles(volume: Volume) -> tuple[float, float]:
    """1st and 99th percentile of at most a million voxels, evenly taken."""
    sample = every(volume.voxels, max(1, volume.voxels.size // 1_000_000)).astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 0.0, 1.0
    low, high = np.percentile(sample, [1, 99])
    return float(low), float(high)
