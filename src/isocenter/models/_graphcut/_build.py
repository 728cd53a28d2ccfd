"""What goes into a cut and what comes out of it: capacities from voxels, coarser grids, bands, connected parts.

Levels are intensities as whole numbers 0..LEVELS-1, so that every cost that depends on them is a table look-up. Seeds
are 0, FOREGROUND or BACKGROUND.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from isocenter.models._numba import kernel

Array = Any  # numba infers the types of arrays; annotations would only repeat them

LEVELS = 1024
FOREGROUND, BACKGROUND = 1, 2
#: Capacity that no cut can afford: more than six of the largest arcs and the largest cost together.
HARD = 1 << 26
LARGEST = 1 << 22


@kernel()
def excess_of(levels: Array, seeds: Array, costs: Array, prior: Array, shifts: Array, index: Array, out: Array) -> None:
    """Source minus sink capacity of the voxels at the flat `index` (all, when it is empty).

    costs: by level. prior: on a grid that is coarser by 2**shifts. Seeds are tied to their terminal.
    """
    _, ny, nx = levels.shape
    flat, seed = levels.ravel(), seeds.ravel()
    for i in range(out.size):
        voxel = index[i] if index.size else i
        if seed[voxel] != 0:
            out[i] = HARD if seed[voxel] == FOREGROUND else -HARD
            continue
        z, y, x = voxel // (ny * nx), voxel // nx % ny, voxel % nx
        out[i] = costs[flat[voxel]] + prior[z >> shifts[0], y >> shifts[1], x >> shifts[2]]


@kernel()
def arcs_by_level(levels: Array, pairs: Array, residual: Array, first: int) -> None:
    """Capacities between all neighbours; pairs (3, LEVELS): by axis and difference of levels."""
    nz, ny, nx = levels.shape
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                here = np.int64(levels[z, y, x])
                node = first + (z * ny + y) * nx + x
                if z + 1 < nz:
                    c = pairs[0, abs(here - np.int64(levels[z + 1, y, x]))]
                    residual[node, 1] = c
                    residual[node + ny * nx, 0] = c
                if y + 1 < ny:
                    c = pairs[1, abs(here - np.int64(levels[z, y + 1, x]))]
                    residual[node, 3] = c
                    residual[node + nx, 2] = c
                if x + 1 < nx:
                    c = pairs[2, abs(here - np.int64(levels[z, y, x + 1]))]
                    residual[node, 5] = c
                    residual[node + 1, 4] = c


@kernel()
def arcs_of_band(levels: Array, pairs: Array, side: Array, index: Array, residual: Array, excess: Array, table: Array) -> None:
    """Neighbours and capacities of the voxels at the sorted flat `index`, which are the nodes 1..len(index).

    What lies outside the band is fixed to `side`, so its arcs count as capacity from the source or to the sink.
    """
    nz, ny, nx = levels.shape
    flat, fixed = levels.ravel(), side.ravel()
    steps = np.array([ny * nx, nx, 1])
    sizes = np.array([nz, ny, nx])
    for axis in range(3):
        ahead = 0  # walks through the same sorted list, one step of this axis further on
        behind = 0
        for i in range(index.size):
            voxel = index[i]
            at = voxel // steps[axis] % sizes[axis]
            if at + 1 < sizes[axis]:
                other = voxel + steps[axis]
                c = pairs[axis, abs(np.int64(flat[voxel]) - np.int64(flat[other]))]
                while ahead < index.size and index[ahead] < other:
                    ahead += 1
                if ahead < index.size and index[ahead] == other:
                    table[i + 1, 2 * axis + 1] = ahead + 1
                    table[ahead + 1, 2 * axis] = i + 1
                    residual[i + 1, 2 * axis + 1] = c
                    residual[ahead + 1, 2 * axis] = c
                else:
                    excess[i + 1] += c if fixed[other] else -c
            if at > 0:
                other = voxel - steps[axis]
                while behind < index.size and index[behind] < other:
                    behind += 1
                if behind == index.size or index[behind] != other:
                    c = pairs[axis, abs(np.int64(flat[voxel]) - np.int64(flat[other]))]
                    excess[i + 1] += c if fixed[other] else -c


@kernel()
def halve(levels: Array, seeds: Array, factors: Array, coarse: Array, coarse_seeds: Array) -> None:
    """Mean level of each block of `factors` voxels, and its seeds; a block with both kinds is foreground."""
    nz, ny, nx = levels.shape
    for z in range(coarse.shape[0]):
        for y in range(coarse.shape[1]):
            for x in range(coarse.shape[2]):
                total, count, seed = 0, 0, 0
                for k in range(z * factors[0], min((z + 1) * factors[0], nz)):
                    for j in range(y * factors[1], min((y + 1) * factors[1], ny)):
                        for i in range(x * factors[2], min((x + 1) * factors[2], nx)):
                            total += levels[k, j, i]
                            count += 1
                            if seeds[k, j, i] != 0 and seed != FOREGROUND:
                                seed = seeds[k, j, i]
                coarse[z, y, x] = (total + count // 2) // count
                coarse_seeds[z, y, x] = seed


@kernel()
def double(coarse: Array, seeds: Array, factors: Array, side: Array) -> None:
    """The side of each voxel from that of its block; a seed keeps its own."""
    for z in range(side.shape[0]):
        for y in range(side.shape[1]):
            for x in range(side.shape[2]):
                seed = seeds[z, y, x]
                side[z, y, x] = seed == FOREGROUND if seed != 0 else coarse[z // factors[0], y // factors[1], x // factors[2]]


@kernel()
def mark_band(side: Array, radius: int, band: Array) -> int:
    """Write 1 into `band` within `radius` voxels of where `side` changes; the number of voxels marked."""
    nz, ny, nx = side.shape
    marked = 0
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                s = side[z, y, x]
                if not (
                    (z + 1 < nz and side[z + 1, y, x] != s) or (y + 1 < ny and side[z, y + 1, x] != s) or (x + 1 < nx and side[z, y, x + 1] != s)
                ):
                    continue
                for k in range(max(z - radius, 0), min(z + radius + 1, nz)):
                    for j in range(max(y - radius, 0), min(y + radius + 1, ny)):
                        for i in range(max(x - radius, 0), min(x + radius + 1, nx)):
                            marked += band[k, j, i] == 0
                            band[k, j, i] = 1
    return marked


@kernel()
def keep_connected(side: Array, seeds: Array) -> None:
    """Drop from `side` all that does not hang together with a foreground seed (by faces), in place."""
    nz, ny, nx = side.shape
    flat, seed = side.ravel(), seeds.ravel()
    inside = 0
    for i in range(flat.size):
        inside += flat[i] != 0
    stack = np.empty(inside, np.int64)
    waiting = 0
    for i in range(flat.size):
        if flat[i] == 1 and seed[i] == FOREGROUND:
            flat[i] = 2
            stack[waiting] = i
            waiting += 1
    while waiting > 0:
        waiting -= 1
        here = stack[waiting]
        z, y, x = here // (ny * nx), here // nx % ny, here % nx
        for arc in range(6):
            axis, sign = arc >> 1, 1 if arc & 1 else -1
            at = z if axis == 0 else (y if axis == 1 else x)
            size = nz if axis == 0 else (ny if axis == 1 else nx)
            if not 0 <= at + sign < size:
                continue
            other = here + sign * (ny * nx if axis == 0 else (nx if axis == 1 else 1))
            if flat[other] == 1:
                flat[other] = 2
                stack[waiting] = other
                waiting += 1
    for i in range(flat.size):
        flat[i] = flat[i] == 2
