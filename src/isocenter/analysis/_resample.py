"""The loop of linear resampling along the axes of a grid. Releases the interpreter lock; compiled when imported, or cached."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isocenter.models._numba import kernel

Floats = NDArray[np.float32]
Places = NDArray[np.int64]


@kernel("void(float32[:,::1], float32[:,::1], float32, int64[::1], float32[::1], int64[::1], float32[::1], float32, float32[::1], float32[:,::1])")
def blend(
    below: Floats,
    above: Floats,
    between: float,
    rows: Places,
    down: Floats,
    columns: Places,
    right: Floats,
    outside: float,
    line: Floats,
    out: Floats,
) -> None:  # pragma: no cover - compiled
    """One plane (y, x) of the result, out of the planes below and above it; `between` is the weight of the one above.

    rows, columns: the first of the two source lines of each line of the result, -1 where it lies outside; down, right: the
    weight of the second. line: one source row, to work in.
    """
    last_row, last_column = below.shape[0] - 1, below.shape[1] - 1
    for j in range(out.shape[0]):
        y = rows[j]
        if y < 0:
            out[j, :] = outside
            continue
        y1 = min(y + 1, last_row)
        c = down[j]
        for x in range(below.shape[1]):
            low = below[y, x] + between * (above[y, x] - below[y, x])
            high = below[y1, x] + between * (above[y1, x] - below[y1, x])
            line[x] = low + c * (high - low)
        for i in range(out.shape[1]):
            x = columns[i]
            if x < 0:
                out[j, i] = outside
            else:
                out[j, i] = line[x] + right[i] * (line[min(x + 1, last_column)] - line[x])
