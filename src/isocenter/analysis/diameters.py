"""In-plane diameters of a lesion as RECIST wants them: the longest one, and the longest one at right angles to it.

The outline of a mask runs through the middle of the edges between voxels inside and outside (marching squares at one
half), so that a row of n voxels is n spacings long. Positions come from the grid's affine: pixels may be anisotropic,
oblique, even sheared. RECIST 1.1 (Eisenhauer et al., Eur J Cancer 45:228, 2009), sections 3.1 and 4.2: longest diameter in
the plane of measurement; for lymph nodes the short axis, the longest diameter perpendicular to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import UsageError
from isocenter.core.geometry import Grid, Triple

#: A volume whose slices are this much farther apart than its pixels was acquired in that plane, and is measured in it.
_SLICED = 1.5
#: In which the widths of slices are looked at, to leave out those that cannot hold the longest diameter.
_DIRECTIONS = 16


@dataclass(frozen=True)
class Caliper:
    """A line that was measured. ends: voxel positions (x, y, z) of the image, between voxel centres where need be."""

    length_mm: float
    ends: tuple[Triple, Triple]


@dataclass(frozen=True)
class Diameters:
    """The calipers of one lesion, both in one slice. plane: the array axis (0 z, 1 y, 2 x) that it is cut across.

    short: the longest line within the outline at right angles to `longest`.
    """

    longest: Caliper
    short: Caliper
    plane: int
    slice_index: int

    @property
    def product_mm2(self) -> float:
        """The bidimensional product of WHO (Miller et al., Cancer 47:207, 1981) and RANO."""
        return self.longest.length_mm * self.short.length_mm


def measuring_plane(grid: Grid) -> int:
    """The array axis to cut across: that of the slices where they are thick, else the one nearest to head-feet."""
    spacing = np.array(grid.spacing_zyx)
    thick = int(np.argmax(spacing))
    if spacing[thick] >= _SLICED * np.delete(spacing, thick).max():
        return thick
    return 2 - next(i for i, letter in enumerate(grid.orientation) if letter in "SI")


def diameters(inside: NDArray[np.bool_], grid: Grid, *, first: tuple[int, int, int] = (0, 0, 0), plane: int | None = None) -> Diameters | None:
    """The diameters of one lesion; None for an empty mask.

    inside: (z, y, x), all of the grid or a crop of it that begins at voxel `first` (z, y, x). plane: array axis to cut
    across, `measuring_plane` by default. Parts of a slice that do not touch (not even by a corner) are measured one by
    one: a diameter does not leave its part's outermost points.
    """
    plane = measuring_plane(grid) if plane is None else plane
    if plane not in (0, 1, 2):
        raise UsageError("plane must be 0, 1 or 2: the array axis (z, y, x) to cut across")
    cut = np.moveaxis(inside, plane, 0)
    flat = _Plane.of(grid, plane)
    best: tuple[float, int, NDArray[np.float64]] | None = None
    most = flat.most_mm(cut)
    # Those that may hold the longest diameter first: as soon as one is longer than the next may be, all is known.
    for index in np.argsort(-most, kind="stable"):
        if most[index] <= (best[0] if best is not None else 0.0):
            break
        for corners in _hulls(cut[index], flat):
            length, pair = _farthest(corners @ flat.matrix.T)
            if best is None or length > best[0] + 1e-9:
                best = length, int(index), corners[list(pair)]
    if best is None:
        return None
    length, index, ends = best
    short, short_ends = _across(cut[index], ends, flat)

    def place(point: NDArray[np.float64]) -> Triple:
        rest = [float(point[0]), float(point[1])]
        rest.insert(plane, float(index))
        z, y, x = (value + start for value, start in zip(rest, first, strict=True))
        return x, y, z

    longest = Caliper(length, (place(ends[0]), place(ends[1])))
    return Diameters(longest, Caliper(short, (place(short_ends[0]), place(short_ends[1]))), plane, index + first[plane])


@dataclass(frozen=True, eq=False)
class _Plane:
    """Where the pixels of a slice lie: `matrix` (2, 2) takes (row, column) to millimetres in the plane's own axes."""

    matrix: NDArray[np.float64]

    @classmethod
    def of(cls, grid: Grid, plane: int) -> _Plane:
        steps = [grid.affine_lps[:3, 2 - axis] for axis in range(3) if axis != plane]
        along = steps[0] / np.linalg.norm(steps[0])
        rest = steps[1] - (steps[1] @ along) * along
        across = rest / np.linalg.norm(rest)
        return cls(np.array([[s @ along for s in steps], [s @ across for s in steps]]))

    def most_mm(self, cut: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(slices,) no diameter of a slice is longer; 0 for empty ones.

        A shape's diameter is the largest of its widths, so of the widths in some directions one falls short of it by no more than the
        cosine of half the angle between two of these.
        """
        angles = np.arange(_DIRECTIONS) * (np.pi / _DIRECTIONS)
        # What a step of a row and of a column is worth in each direction.
        down, along = (np.stack([np.cos(angles), np.sin(angles)], axis=1) @ self.matrix).T
        rows = np.arange(cut.shape[1])[:, None]
        filled: NDArray[np.bool_] = np.any(cut, axis=2)
        first, last = cut.argmax(axis=2), cut.shape[2] - 1 - cut[:, :, ::-1].argmax(axis=2)
        most = np.zeros(len(cut))
        for k in np.flatnonzero(filled.any(axis=1)):
            here = filled[k]
            base = rows[here] * down
            # Half a voxel beyond the outermost ones on all sides: more than any edge's middle.
            ends = np.concatenate([base + (first[k, here][:, None] - 0.5) * along, base + (last[k, here][:, None] + 0.5) * along])
            widths = np.ptp(ends, axis=0) + np.abs(down)
            most[k] = widths.max() / np.cos(np.pi / (2 * _DIRECTIONS))
        return most


def _hulls(image: NDArray[np.bool_], flat: _Plane) -> list[NDArray[np.float64]]:
    """(n, 2) corners (row, column) of the convex hull of every part of a slice; parts that touch by a corner are one."""
    from scipy import ndimage
    from scipy.spatial import ConvexHull

    parts, _ = ndimage.label(image, structure=np.ones((3, 3)))
    hulls = []
    for number, where in enumerate(ndimage.find_objects(parts), start=1):
        points = _edges(parts[where] == number) + np.array([where[0].start, where[1].start])
        # Half a voxel all around makes even a single voxel a diamond, so a hull always has an area.
        hulls.append(points[ConvexHull(points).vertices])
    return hulls


def _edges(part: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n, 2) middles (row, column) of all edges between inside and outside."""
    padded = np.pad(part, 1)
    rows = np.argwhere(padded[1:] != padded[:-1]) - np.array([0.5, 1.0])
    columns = np.argwhere(padded[:, 1:] != padded[:, :-1]) - np.array([1.0, 0.5])
    return np.concatenate([rows, columns])


def _farthest(points: NDArray[np.float64]) -> tuple[float, tuple[int, int]]:
    """The two corners of a hull that are farthest apart: all pairs, since a hull of pixels has few corners."""
    from scipy.spatial.distance import pdist

    distances = pdist(points)
    k = int(np.argmax(distances))
    n = len(points)
    i = int(n - 2 - math.floor(math.sqrt(-8 * k + 4 * n * (n - 1) - 7) / 2 - 0.5))
    j = int(k + i + 1 - n * (n - 1) // 2 + (n - i) * ((n - i) - 1) // 2)
    return float(distances[k]), (i, j)


def _across(image: NDArray[np.bool_], ends: NDArray[np.float64], flat: _Plane) -> tuple[float, NDArray[np.float64]]:
    """The longest line at right angles to `ends` (2, 2) between outermost points of the outline that they lie on."""
    from scipy import ndimage

    parts, _ = ndimage.label(image, structure=np.ones((3, 3)))
    # An end lies on an edge: one of the two voxels beside it is inside.
    row, column = ends[0]
    near = [parts[r, c] for r in {math.floor(row), math.ceil(row)} for c in {math.floor(column), math.ceil(column)} if _in(parts.shape, r, c)]
    starts, stops = _segments(parts == max(near))
    long = flat.matrix @ (ends[1] - ends[0])
    along = long / np.linalg.norm(long)
    across = np.array([-along[1], along[0]])
    # The outline is straight between its corners, so the extent across is largest at one of them.
    u0, u1 = (points @ flat.matrix.T @ along for points in (starts, stops))
    v0, v1 = (points @ flat.matrix.T @ across for points in (starts, stops))
    best, where = -1.0, (0.0, 0.0, 0.0)
    for u in np.unique(np.round(u0, 9)):
        met = (np.minimum(u0, u1) <= u + 1e-7) & (np.maximum(u0, u1) >= u - 1e-7)
        a0, a1, b0, b1 = u0[met], u1[met], v0[met], v1[met]
        flatly = np.abs(a1 - a0) < 1e-7
        share = np.where(flatly, 0.0, (u - a0) / np.where(flatly, 1.0, a1 - a0))
        v = np.concatenate([b0 + share * (b1 - b0), b1[flatly]])
        if v.max() - v.min() > best + 1e-9:
            best, where = float(v.max() - v.min()), (float(u), float(v.min()), float(v.max()))
    back = np.linalg.inv(flat.matrix)
    u, low, high = where
    return best, np.array([back @ (u * along + v * across) for v in (low, high)])


def _in(shape: tuple[int, ...], row: int, column: int) -> bool:
    return 0 <= row < shape[0] and 0 <= column < shape[1]


def _segments(part: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Starts and stops, (n, 2) each, of the straight pieces of a part's outline."""
    from skimage.measure import find_contours

    lines = find_contours(np.pad(part, 1).astype(np.float32), 0.5, fully_connected="high")
    return np.concatenate([line[:-1] - 1 for line in lines]), np.concatenate([line[1:] - 1 for line in lines])


def from_points(points: NDArray[np.floating], spacing: tuple[float, float]) -> tuple[float, float]:
    """Longest and perpendicular diameter in mm from a reader's four end points, in pixels.

    points: (4, 2) as (x, y): the two ends of the long line, then those of the short one. spacing: mm (x, y).
    """
    placed = np.asarray(points, dtype=np.float64).reshape(4, 2) * np.asarray(spacing)
    return float(np.linalg.norm(placed[1] - placed[0])), float(np.linalg.norm(placed[3] - placed[2]))
