"""Surface, volume and largest extent of a mask in space, from a triangle mesh, as PyRadiomics defines them.

Definitions: van Griethuysen et al., Cancer Res 77:e104, 2017, shape features MeshVolume, SurfaceArea and
Maximum3DDiameter. The mesh is that of marching cubes at one half, its corners in the middle of the edges between voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.core.geometry import Grid

#: So many points are compared in pairs at once; of more, the hull is found first.
_FEW = 1000


@dataclass(frozen=True)
class Surface:
    """What a mesh says. max_3d_diameter_mm: between the two corners of the mesh that are farthest apart."""

    mesh_volume_mm3: float
    area_mm2: float
    max_3d_diameter_mm: float

    @property
    def sphericity(self) -> float:
        """Surface of a ball of the same volume over the surface: 1 for a ball (Wadell, J Geol 43:250, 1935)."""
        return float(np.pi ** (1 / 3) * (6 * self.mesh_volume_mm3) ** (2 / 3) / self.area_mm2)


def mesh(inside: NDArray[np.bool_], grid: Grid, *, first: tuple[int, int, int] = (0, 0, 0)) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Corners (n, 3), LPS mm, and triangles (m, 3) of the surface of a mask (z, y, x) that begins at voxel `first`."""
    from skimage.measure import marching_cubes

    corners, triangles, _, _ = marching_cubes(np.pad(inside, 1).astype(np.float32), 0.5, method="lorensen")
    index = corners[:, ::-1].astype(np.float64) - 1 + np.array(first[::-1])
    placed = index @ grid.affine_lps[:3, :3].T + grid.affine_lps[:3, 3]
    return placed, triangles.astype(np.int64)


def surface(inside: NDArray[np.bool_], grid: Grid) -> Surface | None:
    """The surface of a mask (z, y, x), all of the grid or a crop of it; None for an empty mask."""
    if not inside.any():
        return None
    corners, triangles = mesh(inside, grid)
    centred = corners - corners.mean(axis=0)
    a, b, c = (centred[triangles[:, k]] for k in range(3))
    area = float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)
    volume = float(abs(np.einsum("ij,ij->i", a, np.cross(b, c)).sum()) / 6)
    return Surface(volume, area, _extent(corners))


def _extent(corners: NDArray[np.float64]) -> float:
    """Largest distance between two points, exactly: of those that may be one of its ends, and of these of the convex hull's corners."""
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import cdist

    one = corners[np.argmax(np.linalg.norm(corners - corners.mean(axis=0), axis=1))]
    other = corners[np.argmax(np.linalg.norm(corners - one, axis=1))]
    best = float(np.linalg.norm(other - one))
    # No pair is farther apart than both points' distances from the middle of a long line together.
    reach = np.linalg.norm(corners - (one + other) / 2, axis=1)
    ends = corners[reach >= best - reach.max() - 1e-9]
    if len(ends) > _FEW:
        ends = ends[ConvexHull(ends).vertices]
    for start in range(0, len(ends), 256):
        best = max(best, float(cdist(ends[start : start + 256], ends[start:]).max()))
    return best
