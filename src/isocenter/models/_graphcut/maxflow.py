"""Exact minimum cuts on voxel grids with six neighbours, 2-D and 3-D.

`cut` takes any costs; `cut_levels` is the way for large boxes: all costs come from whole-numbered intensity levels, which
needs 50 bytes per voxel, and a box of more than `VOXELS` voxels is cut on a grid coarser by two first (and that one the
same way), then exactly within a band around the coarse answer. Only the first is the exact minimum over all voxels; the
second can miss structures thinner than two voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isocenter.models._graphcut import _build
from isocenter.models._graphcut._build import LARGEST, LEVELS
from isocenter.models._graphcut._kernels import solve

#: Real costs are rounded to multiples of 1 / UNIT.
UNIT = 1024
#: Largest box that is cut in one piece: it takes 75 MB and half a second, a few seconds where noise hides every edge. Time grows
#: faster than size there, and a coarser grid has less noise, so a larger limit makes such answers slower and no better.
VOXELS = 1_500_000
#: Voxels on either side of a coarse boundary that are cut anew.
BAND = 2

_NO_INDEX = np.empty(0, np.int64)


def cut(unary_fg: ArrayLike, unary_bg: ArrayLike, weights: Sequence[ArrayLike]) -> NDArray[np.bool_]:
    """The foreground (z, y, x) of least cost, exact to 1 / UNIT per cost.

    unary_fg, unary_bg: cost of a voxel in the foreground and in the background. weights: for z, y and x the cost of
    putting a voxel and the next one along that axis on different sides, >= 0, an array or one number (the last entry along
    the axis is not used). Costs are clipped to 4096. Of several best answers it is the one with the least foreground.
    """
    excess = np.clip(np.rint((np.asarray(unary_bg, np.float64) - np.asarray(unary_fg, np.float64)) * UNIT), -LARGEST, LARGEST).astype(np.int32)
    nodes = _Nodes(excess.shape)
    grid = nodes.residual[nodes.first : nodes.last].reshape(*excess.shape, 6)
    for axis, weight in enumerate(weights):
        whole = np.clip(np.rint(np.broadcast_to(np.asarray(weight, np.float64), excess.shape) * UNIT), 0, LARGEST).astype(np.int32)
        here = tuple(slice(None, -1) if i == axis else slice(None) for i in range(3))
        there = tuple(slice(1, None) if i == axis else slice(None) for i in range(3))
        grid[(*here, 2 * axis + 1)] = whole[here]
        grid[(*there, 2 * axis)] = whole[here]
    nodes.excess[nodes.first : nodes.last] = excess.ravel()
    return nodes.solve().view(np.bool_)


class _Nodes:
    """Arrays of one full grid, with spare nodes at both ends; see `_kernels`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        _, ny, nx = shape
        self.shape = shape
        self.first = ny * nx
        self.last = self.first + int(np.prod(shape))
        self.residual = np.zeros((self.last + self.first, 6), np.int32)
        self.excess = np.zeros(self.last + self.first, np.int32)
        self.strides = np.array([-ny * nx, ny * nx, -nx, nx, -1, 1], np.int64)

    def solve(self) -> NDArray[np.uint8]:
        side = np.zeros(self.last - self.first, np.uint8)
        solve(self.residual, self.excess, self.strides, None, self.first, self.last, side)
        return side.reshape(self.shape)


@dataclass(frozen=True)
class Problem:
    """A box to cut by intensity levels.

    levels (z, y, x) uint16 below LEVELS. seeds uint8: 0, FOREGROUND or BACKGROUND. costs (LEVELS,): what a voxel of that
    level gains by being foreground. prior: a further gain, on a grid coarser by 2**shifts. pairs (3, LEVELS): cost of
    separating neighbours along z, y, x by the difference of their levels. spacing (z, y, x).
    """

    levels: NDArray[np.uint16]
    seeds: NDArray[np.uint8]
    costs: NDArray[np.int32]
    prior: NDArray[np.int32]
    shifts: tuple[int, int, int]
    pairs: NDArray[np.int32]
    spacing: tuple[float, float, float]

    def coarser(self) -> tuple[Problem, tuple[int, int, int]]:
        """The same on a coarser grid, and the factors by which; long voxels are not made longer."""
        longest = 2 * min(s for s, n in zip(self.spacing, self.levels.shape, strict=True) if n > 1)
        factors = [2 if n > 1 and s < longest else 1 for s, n in zip(self.spacing, self.levels.shape, strict=True)]
        shape = [-(-n // f) for n, f in zip(self.levels.shape, factors, strict=True)]
        levels, seeds = np.empty(shape, np.uint16), np.empty(shape, np.uint8)
        _build.halve(self.levels, self.seeds, np.array(factors), levels, seeds)
        z, y, x = (max(s - (f == 2), 0) for s, f in zip(self.shifts, factors, strict=True))
        prior = self.prior
        for axis, (shift, factor) in enumerate(zip(self.shifts, factors, strict=True)):
            if factor == 2 and shift == 0:  # the prior is as fine as the voxels: thin it out with them
                prior = np.ascontiguousarray(prior.take(np.arange(0, prior.shape[axis], 2), axis))
        # Costs are per voxel. Volume grows faster than surface, so a boundary weighs less against the voxels beside it.
        pairs = np.stack([row // f for row, f in zip(self.pairs, factors, strict=True)])
        dz, dy, dx = (s * f for s, f in zip(self.spacing, factors, strict=True))
        problem = replace(self, levels=levels, seeds=seeds, prior=prior, shifts=(z, y, x), pairs=pairs, spacing=(dz, dy, dx))
        return problem, (factors[0], factors[1], factors[2])


def cut_levels(problem: Problem, voxels: int = VOXELS) -> NDArray[np.uint8]:
    """The foreground of a `Problem`, 0 or 1 (z, y, x): exact up to `voxels` voxels, coarse to fine beyond."""
    levels, shifts = problem.levels, np.array(problem.shifts)
    if levels.size <= voxels:
        nodes = _Nodes(levels.shape)
        excess = nodes.excess[nodes.first : nodes.last]
        _build.excess_of(levels, problem.seeds, problem.costs, problem.prior, shifts, _NO_INDEX, excess)
        _build.arcs_by_level(levels, problem.pairs, nodes.residual, nodes.first)
        return nodes.solve()
    coarse, factors = problem.coarser()
    side = np.empty(levels.shape, np.uint8)
    _build.double(cut_levels(coarse, voxels), problem.seeds, np.array(factors), side)
    for radius in range(BAND, 0, -1):
        band = np.zeros(levels.shape, np.uint8)
        if _build.mark_band(side, radius, band) <= voxels:
            index = np.flatnonzero(band)
            side.reshape(-1)[index] = _cut_band(problem, side, index)
            break
    return side


def _cut_band(problem: Problem, side: NDArray[np.uint8], index: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Cut the voxels at the flat `index` anew; all others stay as they are in `side`."""
    residual, excess = np.zeros((index.size + 1, 6), np.int32), np.zeros(index.size + 1, np.int32)
    table = np.zeros((index.size + 1, 6), np.int32)
    _build.excess_of(problem.levels, problem.seeds, problem.costs, problem.prior, np.array(problem.shifts), index, excess[1:])
    _build.arcs_of_band(problem.levels, problem.pairs, side, index, residual, excess, table)
    found = np.zeros(index.size, np.uint8)
    if index.size:
        solve(residual, excess, np.zeros(6, np.int64), table, 1, index.size + 1, found)
    return found


def warm() -> None:
    """Compile all kernels, or take them from the cache."""
    levels = np.zeros((4, 4, 4), np.uint16)
    levels[1:3, 1:3, 1:3] = LEVELS - 1
    seeds = np.zeros(levels.shape, np.uint8)
    seeds[2, 2, 2], seeds[0] = _build.FOREGROUND, _build.BACKGROUND
    pairs = np.full((3, LEVELS), UNIT, np.int32)
    problem = Problem(levels, seeds, np.zeros(LEVELS, np.int32), np.zeros(levels.shape, np.int32), (0, 0, 0), pairs, (1.0, 1.0, 1.0))
    cut_levels(problem)
    _build.keep_connected(cut_levels(problem, voxels=32), seeds)
