"""Of chosen labels only the largest component is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.model import Run


def keep_largest(mask: NDArray[Any], values: Sequence[int], run: Run) -> None:
    """Set all voxels of `mask` (z, y, x) to 0 that belong to `values` but not to the largest component of theirs (26 neighbours)."""
    import cc3d
    from scipy.ndimage import find_objects

    boxes = find_objects(mask)
    for value in values:
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is None:
            continue
        run.check()
        part = mask[box]
        # In the structure's own box: the library holds the interpreter while it works.
        components = cc3d.connected_components(part == value, connectivity=26)
        sizes = np.bincount(components.ravel())
        if len(sizes) > 2:
            sizes[0] = 0
            part[(part == value) & (components != sizes.argmax())] = 0
