"""Where voxels lie in the patient: one frame (LPS, millimetres), arrays in (z, y, x) order.

A `Grid` maps a voxel index (x, y, z) to a point in the patient: ``p = origin + direction @ (spacing * index)``, which is
ITK's convention. `direction` holds one unit vector per column, the step of x, y and z. Columns need not be at right
angles: a NIfTI file may hold a shear, and its mask must keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError

Triple = tuple[float, float, float]
IDENTITY: tuple[Triple, Triple, Triple] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

#: LPS to RAS and back: x and y change sign.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Grid:
    """The lattice of a volume.

    shape: number of voxels (z, y, x). spacing: mm between voxel centres (x, y, z). origin: LPS position in mm of the
    centre of voxel 0. direction: rows of the 3 x 3 matrix whose columns are the unit steps of x, y, z.
    Raises `GeometryError` for a grid that is empty, degenerate or not finite.
    """

    shape: tuple[int, int, int]
    spacing: Triple = (1.0, 1.0, 1.0)
    origin: Triple = (0.0, 0.0, 0.0)
    direction: tuple[Triple, Triple, Triple] = IDENTITY

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(f"a volume needs three axes of at least one voxel, not shape {tuple(self.shape)}")
        numbers = np.array([*self.spacing, *self.origin, *np.ravel(self.direction)], dtype=np.float64)
        if numbers.size != 15 or not np.isfinite(numbers).all():
            raise GeometryError("spacing, origin and direction must be finite numbers")
        if min(self.spacing) <= 0:
            raise GeometryError(f"voxel spacing must be positive, not {self.spacing}")
        matrix = np.array(self.direction)
        if not np.allclose(np.linalg.norm(matrix, axis=0), 1.0, atol=1e-3):
            raise GeometryError("the direction's columns must be unit vectors")
        if abs(np.linalg.det(matrix)) < 1e-3:
            raise GeometryError("the axes of the volume lie in one plane; its orientation is not usable")

    @classmethod
    def from_affine_lps(cls, affine: NDArray[np.floating], shape: Sequence[int]) -> Grid:
        """The grid of a 4 x 4 matrix that maps (x, y, z, 1) indices to LPS millimetres."""
        affine = np.asarray(affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError("the affine must be a 4 x 4 matrix of finite numbers")
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if spacing.min() <= 0:
            raise GeometryError("the affine has an axis of length zero")
        rows = (affine[:3, :3] / spacing).tolist()
        z, y, x = (int(n) for n in shape)
        return cls((z, y, x), _triple(spacing), _triple(affine[:3, 3]), (_triple(rows[0]), _triple(rows[1]), _triple(rows[2])))

    @classmethod
    def from_affine_ras(cls, affine: NDArray[np.floating], shape: Sequence[int]) -> Grid:
        """As `from_affine_lps`, for a matrix to RAS millimetres, as NIfTI has it. shape is (z, y, x)."""
        affine = np.asarray(affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise GeometryError("the affine must be a 4 x 4 matrix of finite numbers")
        return cls.from_affine_lps(LPS_TO_RAS @ affine, shape)

    @cached_property
    def affine_lps(self) -> NDArray[np.float64]:
        """4 x 4 matrix from (x, y, z, 1) voxel indices to LPS millimetres."""
        affine = np.eye(4)
        affine[:3, :3] = np.array(self.direction) * np.array(self.spacing)
        affine[:3, 3] = self.origin
        affine.flags.writeable = False
        return affine

    @cached_property
    def affine_ras(self) -> NDArray[np.float64]:
        """4 x 4 matrix from (x, y, z, 1) voxel indices to RAS millimetres, as NIfTI has it."""
        affine = LPS_TO_RAS @ self.affine_lps
        affine.flags.writeable = False
        return affine

    @property
    def spacing_zyx(self) -> Triple:
        """Spacing in the order of the array's axes."""
        return self.spacing[2], self.spacing[1], self.spacing[0]

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel in mm³ (of the parallelepiped, where the axes are sheared)."""
        return float(abs(np.linalg.det(self.affine_lps[:3, :3])))

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_orthogonal(self) -> bool:
        """Whether the axes are at right angles (to 0.001), as ITK and DICOM require."""
        matrix = np.array(self.direction)
        return bool(np.allclose(matrix.T @ matrix, np.eye(3), atol=1e-3))

    @property
    def orientation(self) -> str:
        """Where increasing x, y, z point, e.g. "LPS" or "RAS": the patient axis nearest to each."""
        return orientation_of(np.array(self.direction))

    def same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids put every voxel within `tolerance_mm` of the same place."""
        if self.shape != other.shape:
            return False
        z, y, x = self.shape
        corners = np.array([(i, j, k, 1) for i in (0, x - 1) for j in (0, y - 1) for k in (0, z - 1)], dtype=float).T
        return bool(np.abs((self.affine_lps - other.affine_lps) @ corners).max() <= tolerance_mm)


def _triple(values: Sequence[float] | NDArray[np.floating]) -> Triple:
    a, b, c = (float(v) for v in values)
    return a, b, c


def orientation_of(direction: NDArray[np.floating]) -> str:
    """Three letters for the directions of x, y, z in LPS; each patient axis is used once (greedy by magnitude)."""
    matrix = np.abs(np.asarray(direction, dtype=np.float64)).copy()
    letters = ["", "", ""]
    for _ in range(3):
        row, column = np.unravel_index(int(np.argmax(matrix)), (3, 3))
        positive = direction[row, column] >= 0
        letters[int(column)] = ("LPS" if positive else "RAI")[int(row)]
        matrix[row, :] = -1
        matrix[:, column] = -1
    return "".join(letters)


def axes_towards(grid: Grid, target: str = "LPS") -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """How to turn a (z, y, x) array of this grid so that x, y, z point towards `target` (three letters).

    Returns (`axes` for `numpy.transpose`, `flips` of the transposed axes), both in (z, y, x) order. No resampling:
    oblique volumes are brought to the nearest axes.
    """
    opposite = dict(zip("LRPASI", "RLAPIS", strict=True))
    have = grid.orientation
    axes, flips = [], []
    for letter in reversed(target):
        column = next(i for i, h in enumerate(have) if h in (letter, opposite[letter]))
        axes.append(2 - column)
        flips.append(have[column] != letter)
    return (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])


def reorient(array: NDArray[np.generic], grid: Grid, target: str = "LPS") -> NDArray[np.generic]:
    """A view of `array` (z, y, x) whose axes point towards `target`; see `axes_towards`."""
    axes, flips = axes_towards(grid, target)
    return np.transpose(array, axes)[tuple(slice(None, None, -1) if f else slice(None) for f in flips)]


def restore(array: NDArray[np.generic], grid: Grid, target: str = "LPS") -> NDArray[np.generic]:
    """The way back from `reorient`: a view in the axes of `grid`."""
    axes, flips = axes_towards(grid, target)
    straight = array[tuple(slice(None, None, -1) if f else slice(None) for f in flips)]
    return np.transpose(straight, np.argsort(axes))


def onto(array: NDArray[np.generic], grid: Grid, target: Grid) -> NDArray[np.generic]:
    """A view of `array` (z, y, x, on `grid`) in the axes of `target`, where both name the same points in another order.

    Raises `GeometryError` unless one grid is the other with axes swapped or turned round (within a tenth of a voxel):
    nothing is resampled.
    """
    step = np.linalg.inv(grid.affine_lps) @ target.affine_lps
    turn = np.rint(step[:3, :3])
    swapped = tuple(int(np.argmax(np.abs(turn[:, column]))) for column in range(3))
    if np.abs(step[:3, :3] - turn).max() * max(target.shape) > 0.1 or sorted(swapped) != [0, 1, 2]:
        raise GeometryError("the label map's grid is not the image's; resample it to the image first")
    axes = tuple(2 - swapped[2 - axis] for axis in range(3))
    flips = tuple(turn[swapped[2 - axis], 2 - axis] < 0 for axis in range(3))
    turned = np.transpose(array, axes)[tuple(slice(None, None, -1) if f else slice(None) for f in flips)]
    corner = np.array([shape - 1 if flip else 0 for shape, flip in zip(reversed(turned.shape), reversed(flips), strict=True)], dtype=float)
    first = np.array([corner[swapped.index(axis)] for axis in range(3)])
    if turned.shape != target.shape or np.abs(step[:3, 3] - first).max() > 0.1:
        raise GeometryError("the label map does not cover the image's grid; resample it to the image first")
    return turned
