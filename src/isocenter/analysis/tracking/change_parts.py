"""The parts of a change, one by one: what is new, has grown, has shrunk or is gone, with the size of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.lesions import LesionSize, measure_lesion, split, within
from isocenter.analysis.tracking.change import Change
from isocenter.core.volume import Volume

#: What a part may be, by its value in the mask; the last two where changes of any brightness were asked for.
KINDS = {1: "new", 2: "grown", 3: "shrunk", 4: "gone", 5: "brighter", 6: "darker"}
#: From this share of what surrounds a part on, lesion that stayed, it belongs to that lesion.
_BELONGS = 0.1


@dataclass(frozen=True)
class Part:
    """One connected part. size: on the later scan's grid. difference: mean of the later scan minus the earlier, in the earlier's unit.

    noise: the same in standard deviations of what the noise leaves. surrounding: share of what touches it that was lesion at both visits.
    """

    kind: str
    size: LesionSize
    difference: float
    noise: float
    surrounding: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def parts(change: Change, later: Volume, *, bright: bool = True) -> tuple[NDArray[np.uint8], tuple[Part, ...]]:
    """(z, y, x) mask with the values of `KINDS`, and its connected parts, largest first.

    bright: as `changes` was asked. A part is new, or gone, where little of what touches it was a lesion at both visits.
    """
    from scipy.ndimage import binary_dilation

    mask = np.zeros(later.shape, np.uint8)
    found: list[Part] = []
    for where, alone, with_others, plain in ((change.risen, 1, 2, 5), (change.fallen, 4, 3, 6)):
        for box, inside in split(where):
            around = tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, later.shape, strict=True))
            whole = np.zeros([s.stop - s.start for s in around], bool)
            whole[within(box, around)] = inside
            shell = binary_dilation(whole, np.ones((3, 3, 3))) & ~whole
            share = float(change.stays[around][shell].mean()) if shell.any() else 0.0
            value = plain if not bright else with_others if share >= _BELONGS else alone
            mask[box][inside] = value
            mean = float(np.mean(change.difference[box][inside]))
            found.append(Part(KINDS[value], measure_lesion(inside, box, later.grid, later), mean, mean / change.noise, share))
    return mask, tuple(sorted(found, key=lambda part: -part.size.voxels))


def below_surface(volume: Volume, depth_mm: float = 5.0) -> NDArray[np.bool_]:
    """(z, y, x) what lies deeper in the body than `depth_mm`: a head without its scalp, where there is no mask of the brain.

    The body is the largest part above 0.7 of Otsu's threshold, filled slice by slice; the first and the last slice are no surface.
    """
    from scipy.ndimage import binary_fill_holes, distance_transform_edt
    from skimage.filters import threshold_otsu

    array = np.asarray(volume.array)
    sample = array[::2, ::2, ::2] if min(array.shape) > 8 else array
    if float(sample.max()) <= float(sample.min()):
        return np.zeros(volume.shape, bool)
    body = split(array > 0.7 * threshold_otsu(sample))
    whole = np.zeros(volume.shape, bool)
    if not body:
        return whole
    box, inside = body[0]
    whole[box] = inside
    for k, plane in enumerate(whole):
        whole[k] = binary_fill_holes(plane)
    depth = distance_transform_edt(np.pad(whole, ((0, 0), (1, 1), (1, 1))), sampling=volume.spacing_zyx)
    return np.asarray(depth[:, 1:-1, 1:-1] > depth_mm)
