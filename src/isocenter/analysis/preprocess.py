"""A scan made ready for networks: isotropic voxels, a grey window, values 0 to 1."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError, LimitError
from isocenter.core.geometry import Grid
from isocenter.core.rescaled import every
from isocenter.core.volume import Volume

#: Soft tissue in Hounsfield units, where nothing else is asked for.
CT_CENTRE, CT_WIDTH = 40.0, 400.0
_MOST_VOXELS = 1_000_000_000
_THREADS = min(os.cpu_count() or 1, 4)
#: Planes that are made at once where the whole is not wanted in memory.
_SLAB = 16
#: Rows of the result that are made at once: so few source rows lie in memory as floats beside the scan.
_ROWS = 16


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """array: (1, z, y, x) float32 between 0 and 1, on `grid`. centre, width: of the window, in the scan's unit."""

    array: NDArray[np.float32]
    grid: Grid
    centre: float
    width: float


@dataclass(frozen=True)
class Plan:
    """What a scan becomes: the grid of cubes, and the window's centre and width in the scan's unit."""

    grid: Grid
    centre: float
    width: float


def plan(volume: Volume, *, spacing_mm: float | None = None, centre: float | None = None, width: float | None = None) -> Plan:
    """Cubes by default as fine as the finest axis, not below 0.5 mm.

    Window: as given; for CT soft tissue; for others the values between the 1st and 99th percentile. Raises `LimitError`
    for more than 10^9 voxels.
    """
    step = spacing_mm or max(min(volume.spacing), 0.5)
    grid = isotropic(volume.grid, step)
    if grid.voxels > _MOST_VOXELS:
        raise LimitError(f"{step:g} mm make {grid.voxels} voxels", limit="10^9 voxels", value=_MOST_VOXELS)
    if centre is None or width is None:
        low, high = (CT_CENTRE - CT_WIDTH / 2, CT_CENTRE + CT_WIDTH / 2) if volume.unit == "HU" else _percentiles(volume)
        centre, width = (low + high) / 2, max(high - low, 1e-6)
    return Plan(grid, centre, width)


def preprocess(volume: Volume, *, spacing_mm: float | None = None, centre: float | None = None, width: float | None = None) -> Preprocessed:
    """Resample to cubes, window and scale to 0..1, see `plan`. Outside of the scan lies its lowest value.

    Raises `GeometryError` for a sheared grid, and what `plan` raises.
    """
    made = plan(volume, spacing_mm=spacing_mm, centre=centre, width=width)
    return Preprocessed(windowed(resampled(volume, made.grid), made.centre, made.width)[None], made.grid, made.centre, made.width)


def preprocessed_slabs(volume: Volume, made: Plan) -> Iterator[NDArray[np.float32]]:
    """`preprocess`'s array (z, y, x), some planes at a time, made ahead on threads; never more of it than a few slabs is in memory."""
    planes = _planes(volume, made.grid)

    def make(first: int) -> NDArray[np.float32]:
        out = np.empty((min(_SLAB, made.grid.shape[0] - first), *made.grid.shape[1:]), np.float32)
        planes(out, first)
        return windowed(out, made.centre, made.width)

    waiting: deque[Future[NDArray[np.float32]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, made.grid.shape[0], _SLAB):
            waiting.append(pool.submit(make, first))
            if len(waiting) > _THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def windowed(array: NDArray[np.float32], centre: float, width: float) -> NDArray[np.float32]:
    """`array` itself, scaled so that the window's ends become 0 and 1, and cut off there."""
    for plane in array:  # one after the other: they stay in the processor's cache for all three steps
        np.subtract(plane, np.float32(centre - width / 2), out=plane)
        np.multiply(plane, np.float32(1 / width), out=plane)
        np.clip(plane, 0, 1, out=plane)
    return array


def isotropic(grid: Grid, step: float) -> Grid:
    """The grid of cubes of `step` mm that covers the same box: its outer faces lie within half a cube of the original's."""
    shape = tuple(max(1, math.ceil(n * s / step - 1e-6)) for n, s in zip(grid.shape, grid.spacing_zyx, strict=True))
    # The first cube's centre lies half a cube inside of the box's corner.
    corner = np.array([(step / s - 1) / 2 for s in grid.spacing])
    origin = grid.affine_lps[:3, :3] @ corner + grid.affine_lps[:3, 3]
    return Grid((shape[0], shape[1], shape[2]), (step, step, step), (float(origin[0]), float(origin[1]), float(origin[2])), grid.direction)


def resampled(volume: Volume, grid: Grid) -> NDArray[np.float32]:
    """(z, y, x) float32 values of a scan on another grid of the same axes, linear between voxels.

    Beyond half a voxel outside of the scan lies its lowest value. Takes no memory to speak of but the result's. Raises
    `GeometryError` for a sheared scan and for a grid whose axes are not the scan's.
    """
    planes = _planes(volume, grid)
    out = np.empty(grid.shape, np.float32)
    ends = np.linspace(0, grid.shape[0], _THREADS + 1).astype(int)
    with ThreadPoolExecutor(_THREADS) as pool:
        for done in [pool.submit(planes, out[int(a) : int(b)], int(a)) for a, b in pairwise(ends)]:
            done.result()
    return out


def _planes(volume: Volume, grid: Grid) -> Callable[[NDArray[np.float32], int], None]:
    """What fills an array with the planes of `volume` on `grid` that begin at an index, see `resampled`; to be called from any thread."""
    if not volume.grid.is_orthogonal:
        raise GeometryError("the axes of this scan are not at right angles; it cannot be resampled")
    if grid.same_as(volume.grid):

        def copy(out: NDArray[np.float32], first: int) -> None:
            for k, plane in enumerate(out, start=first):
                plane[...] = volume.voxels[k]

        return copy
    if not np.allclose(grid.direction, volume.direction, atol=1e-5):
        raise GeometryError("a scan is resampled along its own axes only")
    from isocenter.analysis._resample import blend

    start = np.linalg.solve(volume.grid.affine_lps, (*grid.origin, 1.0))[:3]
    steps = [a / b for a, b in zip(grid.spacing, volume.spacing, strict=True)]
    (columns, right), (rows, down), (planes, between) = (_lines(float(start[k]), steps[k], grid.shape[2 - k], volume.shape[2 - k]) for k in range(3))
    bands = [_band(rows, start, volume.shape[1]) for start in range(0, grid.shape[1], _ROWS)]
    lowest = min(float(plane.min()) for plane in volume.voxels)

    def fill(out: NDArray[np.float32], first: int) -> None:
        line = np.empty(volume.shape[2], np.float32)
        # Copies: a scan's own planes are read-only, which the kernel does not take. Two lie beside each other, by the last bit of their index.
        held = np.empty((2, max(source.stop - source.start for _, source, _ in bands), volume.shape[2]), np.float32)
        for band, source, there in bands:
            parts = held[:, : source.stop - source.start]
            holds = [-1, -1]
            for k, plane in enumerate(out, start=first):
                z = int(planes[k])
                if z < 0:
                    plane[band] = lowest
                    continue
                above = min(z + 1, volume.shape[0] - 1)
                for n in (z, above):
                    if holds[n % 2] != n:
                        holds[n % 2] = n
                        parts[n % 2] = volume.voxels[n, source]
                blend(parts[z % 2], parts[above % 2], between[k], there, down[band], columns, right, lowest, line, plane[band])

    return fill


def _band(rows: NDArray[np.int64], start: int, size: int) -> tuple[slice, slice, NDArray[np.int64]]:
    """Some rows of the result: which they are, the source rows that they need, and where in these each one's first is (-1 outside)."""
    band = slice(start, start + _ROWS)
    used = rows[band][rows[band] >= 0]
    source = slice(int(used[0]), min(int(used[-1]) + 2, size)) if used.size else slice(0, 1)
    return band, source, np.where(rows[band] >= 0, rows[band] - source.start, -1)


def _lines(start: float, step: float, count: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Along one axis: the first source line of each new one (-1 outside), and the weight of the one after it."""
    place = start + step * np.arange(count)
    within = (place >= -0.5 - 1e-9) & (place <= size - 0.5 + 1e-9)
    held = np.clip(place, 0, size - 1)
    first = np.floor(held).astype(np.int64)
    weight = (held - first).astype(np.float32)
    return np.where(within, first, -1), weight


def _percentiles(volume: Volume) -> tuple[float, float]:
    """1st and 99th percentile of at most a million voxels, evenly taken."""
    sample = every(volume.voxels, max(1, volume.voxels.size // 1_000_000)).astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 0.0, 1.0
    low, high = np.percentile(sample, [1, 99])
    return float(low), float(high)
