"""Fully convolutional networks, whole or in tiles that bring their surroundings along: no seams, nothing is blended.

A voxel's scores depend on what lies within the network's halo only, so a tile that is larger by the halo gives its inner voxels
the very scores that the whole volume would.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import ModelError
from isocenter.core.model import Run
from isocenter.models._onnx.config import Shape

if TYPE_CHECKING:
    from isocenter.models._onnx.windows import Network, Taker

#: Activations of one tile that are aimed at, and how many bytes of them a voxel is taken to need.
BUDGET_BYTES = 600 * 1024 * 1024
VOXEL_BYTES = 256


def core(shape: Shape, halo: Shape, multiple: int, part: float, wanted: Shape | None = None) -> Shape:
    """The part of a tile that is kept (z, y, x): `wanted`, or what memory allows; the whole volume where that fits.

    part: its edge as a part of that, after memory ran out. Sizes are multiples of `multiple`.
    """
    if wanted is None:
        size = list(shape)
        while math.prod(min(n + 2 * h, full) for n, h, full in zip(size, halo, shape, strict=True)) * VOXEL_BYTES > BUDGET_BYTES and max(size) > 16:
            axis = max(range(3), key=lambda i: size[i])
            size[axis] = -(-size[axis] // 2)
        wanted = (size[0], size[1], size[2])
    z, y, x = (max(multiple, -(-max(1, int(n * part)) // multiple) * multiple) for n in wanted)
    return z, y, x


def run_tiles(work: NDArray[np.float32], size: Shape, halo: Shape, multiple: int, network: Network, sink: Taker, run: Run) -> None:
    """Predict `work` (z, y, x; sizes are multiples of `multiple`) in tiles whose inner part is `size`, and hand the slices on."""
    halo_z, halo_y, halo_x = (-(-h // multiple) * multiple for h in halo)
    grid = [range(0, full, n) for full, n in zip(work.shape, size, strict=True)]
    total, done = math.prod(map(len, grid)), 0
    for z0 in grid[0]:
        depth = min(size[0], work.shape[0] - z0)
        slab: NDArray[np.float32] | None = None
        for y0, x0 in itertools.product(grid[1], grid[2]):
            begin = (max(z0 - halo_z, 0), max(y0 - halo_y, 0), max(x0 - halo_x, 0))
            end = [min(a + n + h, full) for a, n, h, full in zip((z0, y0, x0), size, (halo_z, halo_y, halo_x), work.shape, strict=True)]
            patch = work[begin[0] : end[0], begin[1] : end[1], begin[2] : end[2]]
            scores = network.run(np.ascontiguousarray(patch)[None, None])
            if scores.shape[2:] != patch.shape:
                raise ModelError(f"the network answers {patch.shape} voxels with {scores.shape[2:]}; only networks that keep the size can be used")
            rows, columns = min(size[1], work.shape[1] - y0), min(size[2], work.shape[2] - x0)
            a, b, c = z0 - begin[0], y0 - begin[1], x0 - begin[2]
            inner = scores[0, :, a : a + depth, b : b + rows, c : c + columns]
            if (rows, columns) == work.shape[1:]:
                slab = np.ascontiguousarray(inner)
            else:
                if slab is None:
                    slab = np.empty((scores.shape[1], depth, *work.shape[1:]), np.float32)
                slab[:, :, y0 : y0 + rows, x0 : x0 + columns] = inner
            done += 1
            run.check(done / total, f"tile {done} of {total}")
        if slab is not None:
            sink.put(slab, range(depth))
