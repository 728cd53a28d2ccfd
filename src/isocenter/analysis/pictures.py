"""Lesions as pictures for a network that looks at pictures: the slice on which each was measured, nothing drawn on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.case import Case, MeasuredVisit
from isocenter.analysis.lesions import LesionSize
from isocenter.analysis.preprocess import CT_CENTRE, CT_WIDTH
from isocenter.core.errors import UsageError
from isocenter.core.geometry import axes_towards
from isocenter.core.volume import Volume

#: Edge of a picture in pixels, and how much of the surroundings it shows, mm on each side.
EDGE, MARGIN_MM, LEAST_MM = 224, 15.0, 20.0


def lesion_picture(scan: Volume, size: LesionSize) -> NDArray[np.uint8]:
    """(EDGE, EDGE) uint8 around one lesion of `scan`, of equal mm both ways, turned as radiologists look at it.

    A CT is shown in a soft-tissue window, anything else between the slice's 1st and 99th percentile.
    """
    from scipy.ndimage import map_coordinates

    rest = [axis for axis in range(3) if axis != size.plane]
    image = np.take(scan.array, size.slice_index, axis=size.plane).astype(np.float32)
    low, high = (CT_CENTRE - CT_WIDTH / 2, CT_CENTRE + CT_WIDTH / 2) if scan.unit == "HU" else np.nanpercentile(image, [1, 99])
    ends = np.array([[p[2 - axis] for axis in rest] for p in (*size.longest_ends, *size.short_ends)])
    spacing = np.array([scan.spacing_zyx[axis] for axis in rest])
    half = max(float((np.ptp(ends, axis=0) * spacing).max()) / 2 + MARGIN_MM, LEAST_MM)
    grid_mm = ((np.arange(EDGE) + 0.5) / EDGE * 2 - 1) * half
    rows, columns = (ends[:, k].mean() + grid_mm / spacing[k] for k in (0, 1))
    shown = map_coordinates(np.nan_to_num(image), np.meshgrid(rows, columns, indexing="ij"), order=1, mode="nearest")
    axes, flips = axes_towards(scan.grid, "LPS")
    order = [axis for axis in axes if axis != size.plane]
    if order != rest:
        shown = shown.T
    for position, axis in enumerate(order):
        if flips[axes.index(axis)] != (axes.index(axis) == 0):
            shown = np.flip(shown, position)
    return np.ascontiguousarray(np.clip((shown - low) / max(float(high - low), 1e-6), 0, 1) * 255).astype(np.uint8)


def shown(case: Case, visits: Sequence[MeasuredVisit]) -> list[tuple[str, LesionSize]]:
    """What a model of language is shown of a case: the largest lesion at the last scan and, where it is there, at the one before.

    (visit, size) of each, the last first. visits: the case's, with their lesions.
    """
    seen = [v.timepoint.timepoint_id for v in case.visits if v.found is not None]
    if not seen or not case.at(seen[-1]):
        return []
    track = max(case.at(seen[-1]), key=lambda k: k.longest_mm or 0.0).track
    chosen = []
    for visit in reversed(seen[-2:]):
        names = {k.lesion_id for k in case.at(visit) if k.track == track}
        found = next((v.found for v in visits if v.timepoint.timepoint_id == visit), None) or ()
        chosen += [(visit, f.size) for f in found if f.id in names][:1]
    return chosen


def slice_picture(scan: Volume, index: int | None = None) -> NDArray[np.uint8]:
    """(rows, columns) uint8: a slice of a scan as its file stores it, the middle one by default, in the same window as `lesion_picture`.

    An 8-bit picture is left as it is. Raises `UsageError` for a slice that is not there.
    """
    count = scan.shape[0]
    if index is not None and not 0 <= index < count:
        raise UsageError(f"the scan has the slices 0 to {count - 1}")
    image = scan.array[count // 2 if index is None else index]
    if image.dtype == np.uint8 and scan.unit != "HU":
        return np.ascontiguousarray(image)
    values = np.nan_to_num(image.astype(np.float32))
    low, high = (CT_CENTRE - CT_WIDTH / 2, CT_CENTRE + CT_WIDTH / 2) if scan.unit == "HU" else np.percentile(values, [1, 99])
    return np.ascontiguousarray(np.clip((values - low) / max(float(high - low), 1e-6), 0, 1) * 255).astype(np.uint8)
