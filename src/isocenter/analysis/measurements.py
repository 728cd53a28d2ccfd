"""`measure`: size, place and intensities of every label of a segmentation.

A figure that cannot be had is None, and `reason` says why; it is never 0.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.geometry import Triple
from isocenter.core.segmentation import Label, Segmentation
from isocenter.core.volume import Volume

_EMPTY = "the mask is empty"
_UNKNOWN = {
    "plane": "the image does not say how thick its slice is, so there is no volume",
    "none": "the image does not say how large its pixels are, so there is no volume",
}


@dataclass(frozen=True)
class Measurement:
    """One label. Voxel indices are (x, y, z) of the image, as its file has them.

    mean, std, unit: of the intensities under the mask ("HU" or "a.u."). box: first and last voxel, both inside.
    centroid_lps_mm: in the patient, x to the left, y to the back, z to the head. presence: how sure the model is that the
    structure is there at all, 0..1. reason: why figures are None.
    """

    label: int
    name: str
    voxels: int
    volume_mm3: float | None
    volume_ml: float | None
    mean: float | None
    std: float | None
    unit: str
    box: tuple[tuple[int, int, int], tuple[int, int, int]] | None
    centroid_voxel: Triple | None
    centroid_lps_mm: Triple | None
    presence: float | None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def measure(segmentation: Segmentation, volume: Volume) -> list[Measurement]:
    """All labels of a segmentation, in their order, on the volume that it was made from."""
    return [_measure(segmentation, volume, label) for label in segmentation.labels]


def describe_image(volume: Volume) -> dict[str, Any]:
    """What measurements.json says of the scan itself: plain data, nothing of the patient. No spacing where its file has none."""
    z, y, x = volume.shape
    return {
        "voxels": [x, y, z],
        "spacing_mm": None if volume.source.scale == "none" else list(volume.spacing),
        "orientation": volume.grid.orientation,
        "modality": volume.modality,
        "unit": volume.unit,
        "format": volume.source.format,
        "series_uid": volume.source.series_uid,
        "content": volume.key,
    }


def _measure(segmentation: Segmentation, volume: Volume, label: Label) -> Measurement:
    presence = segmentation.scores.get(label.name)
    presence = None if presence is None else round(float(presence), 4)
    inside = segmentation.mask == label.value
    profiles = [np.count_nonzero(inside, axis=axes) for axes in ((0, 1), (0, 2), (1, 2))]  # along x, y, z
    voxels = int(profiles[0].sum())
    if not voxels:
        return Measurement(label.value, label.name, 0, None, None, None, None, volume.unit, None, None, None, presence, _EMPTY)
    scale = volume.source.scale
    mm3 = voxels * segmentation.grid.voxel_mm3
    x, y, z = (float((np.arange(p.size) * p).sum() / voxels) for p in profiles)
    used = [np.flatnonzero(p) for p in profiles]
    first, last = (_voxel([u[end] for u in used]) for end in (0, -1))
    mean, std = _statistics(volume, inside)
    place = segmentation.grid.affine_lps @ (x, y, z, 1.0)
    return Measurement(
        label.value,
        label.name,
        voxels,
        round(mm3, 3) if scale == "full" else None,
        round(mm3 / 1000, 6) if scale == "full" else None,
        mean,
        std,
        volume.unit,
        (first, last),
        (round(x, 3), round(y, 3), round(z, 3)),
        (round(float(place[0]), 3), round(float(place[1]), 3), round(float(place[2]), 3)) if scale != "none" else None,
        presence,
        "no voxel under the mask holds a number" if mean is None else _UNKNOWN.get(scale),
    )


def _voxel(values: list[Any]) -> tuple[int, int, int]:
    x, y, z = (int(v) for v in values)
    return x, y, z


def _statistics(volume: Volume, inside: NDArray[np.bool_]) -> tuple[float | None, float | None]:
    """Mean and standard deviation under a mask, slice by slice: a whole-body mask must not cost another volume's memory."""
    count, mean, spread = 0, 0.0, 0.0
    for plane, where in zip(volume.voxels, inside, strict=True):
        values = plane[where].astype(np.float64)
        values = values[np.isfinite(values)]
        if not values.size:
            continue
        # Chan's way of joining two groups: exact where a sum of squares would cancel.
        here = float(values.mean())
        together = count + values.size
        spread += float(((values - here) ** 2).sum()) + (here - mean) ** 2 * count * values.size / together
        mean += (here - mean) * values.size / together
        count = together
    return (round(mean, 3), round(math.sqrt(spread / count), 3)) if count else (None, None)
