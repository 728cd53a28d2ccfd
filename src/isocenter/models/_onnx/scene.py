"""A scan on the way into a network: its own axes, intensities and spacing, cut and padded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isocenter.core.geometry import axes_towards, reorient
from isocenter.core.volume import Volume
from isocenter.models._onnx import resample
from isocenter.models._onnx.config import Inference, Plan, Shape
from isocenter.models._onnx.normalise import normalise

if TYPE_CHECKING:
    from isocenter.models._onnx.threads import Threads

Ends = tuple[int, int]
#: Where x, y and z of a slice point that readers look at, by where its normal points.
_FRONT = {"S": "LPS", "I": "LPS", "P": "LIP", "A": "LIP", "L": "PIL", "R": "PIL"}


@dataclass(frozen=True, eq=False)
class Scene:
    """All axes are the network's (z, y, x).

    work: the voxels as the network takes them, with `pad` zeros around. box: the part of the scan that they show. thick: the
    axis across thick slices, which are not interpolated. orientation: the network's axes. notes: what had to be guessed.
    """

    work: NDArray[np.float32]
    box: tuple[slice, slice, slice]
    pad: tuple[Ends, Ends, Ends]
    thick: int | None
    orientation: str
    notes: tuple[str, ...]

    @property
    def shape(self) -> Shape:
        """Of `work`."""
        z, y, x = self.work.shape
        return z, y, x


def prepare(volume: Volume, plan: Plan, patch: Shape, threads: Threads) -> Scene:
    """Turn, cut, normalise, resample and pad, in this order, as nnU-Net does it. Turning is exact: oblique scans stay oblique."""
    orientation = _orientation(volume, plan)
    axes, _ = axes_towards(volume.grid, orientation)
    z, y, x = (volume.spacing_zyx[axis] for axis in axes)
    straight = reorient(volume.array, volume.grid, orientation)
    box = _content(straight) if plan.crop else (slice(0, None), slice(0, None), slice(0, None))
    work, notes = normalise(straight[box], plan, threads)
    size: Shape = (work.shape[0], work.shape[1], work.shape[2])
    if plan.flat:
        wanted = (z, *plan.spacing[1:]) if plan.spacing else None
        fixed = plan.inference is Inference.FIXED
        thick, size = 0, (size[0], *patch[1:]) if fixed else resample.shape_at(size, (z, y, x), wanted)
        if volume.source.scale == "none" and wanted not in (None, (z, y, x)):
            notes = (*notes, f"the image does not say how large its pixels are: they were taken as {y:g} mm, and brought to the model's spacing")
    elif plan.inference is Inference.FIXED:
        thick, size = None, patch
    else:
        thick, size = resample.thick_axis((z, y, x), plan.spacing), resample.shape_at(size, (z, y, x), plan.spacing)
    work = resample.volume(work, size, thick, threads)
    sliding = plan.inference is Inference.SLIDING_WINDOW
    least = patch if sliding else [-(-n // plan.multiple) * plan.multiple for n in size]
    least = [size[0], *least[1:]] if plan.flat else least
    missing = [max(want - have, 0) for want, have in zip(least, size, strict=True)]
    # Windows see a small scan in their middle; elsewhere the first voxel stays the first.
    before, row, column = ((n // 2, n - n // 2) if sliding else (0, n) for n in missing)
    if any(missing):
        work = np.pad(work, (before, row, column))
    return Scene(work, box, (before, row, column), thick, orientation, notes)


def _orientation(volume: Volume, plan: Plan) -> str:
    """The network's axes; a single slice that lies across them is seen from its front, as readers see it, and not on its edge."""
    single = [axis for axis in range(3) if volume.shape[axis] == 1]
    if not plan.flat or len(single) != 1 or axes_towards(volume.grid, plan.orientation)[0][0] == single[0]:
        return plan.orientation
    return _FRONT[volume.grid.orientation[2 - single[0]]]


def _content(array: NDArray[np.generic]) -> tuple[slice, slice, slice]:
    """The box around what is not 0; all of it when there is nothing."""
    rows = np.zeros(array.shape[:2], bool)
    columns = np.zeros(array.shape[2], bool)
    for index, plane in enumerate(array):
        filled = plane != 0
        rows[index] = filled.any(1)
        columns |= filled.any(0)
    if not columns.any():
        return (slice(0, None),) * 3
    ends = [np.flatnonzero(line)[[0, -1]] for line in (rows.any(1), rows.any(0), columns)]
    z, y, x = (slice(int(a), int(b) + 1) for a, b in ends)
    return z, y, x
