"""A lesion on its slice: the scan, the mask's outline and the two calipers."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.preprocess import CT_CENTRE, CT_WIDTH
from isocenter.analysis.slices import Slice
from isocenter.core.geometry import axes_towards
from isocenter.core.patient import Lesion

#: Edge of the picture in pixels, and how much of the surroundings is shown, mm on each side.
SIZE, MARGIN_MM = 240, 25.0
#: Outlines of the lesion that is shown, and of others on its slice.
_OWN, _OTHERS = (255, 200, 0), (150, 150, 190)


def thumbnail(shown_on: Slice, lesion: Lesion, *, unit: str) -> bytes | None:
    """PNG of the slice on which the lesion was measured, None where it was not.

    Shown as radiologists look at it: the patient's right on the left, front or head up.
    """
    from PIL import Image, ImageDraw

    if lesion.plane is None or lesion.slice_index is None or lesion.longest_ends is None or lesion.short_ends is None:
        return None
    plane = lesion.plane
    rest = [axis for axis in range(3) if axis != plane]
    grid = shown_on.grid
    image = shown_on.image.astype(np.float32)
    inside = shown_on.mask != 0
    ends = np.array([[p[2 - axis] for axis in rest] for p in (*lesion.longest_ends, *lesion.short_ends)])
    spacing = np.array([grid.spacing_zyx[axis] for axis in rest])
    # The patient's axis that rows and columns run along decides how the slice is turned.
    axes, flips = axes_towards(grid, "LPS")
    turned = {axis: flips[position] for position, axis in enumerate(axes)}
    order = [axis for axis in axes if axis != plane]
    if order != rest:
        image, inside, ends, spacing = image.T, inside.T, ends[:, ::-1], spacing[::-1]
    for position, axis in enumerate(order):
        if turned[axis] != (axes.index(axis) == 0):  # head is up: rows run from head to feet
            image, inside = np.flip(image, position), np.flip(inside, position)
            ends = ends.copy()
            ends[:, position] = image.shape[position] - 1 - ends[:, position]
    middle, extent = ends.mean(axis=0), np.ptp(ends, axis=0) * spacing
    half = max(float(extent.max()) / 2 + MARGIN_MM, 20.0)
    scale = SIZE / (2 * half)
    grid_mm = (np.arange(SIZE) + 0.5) / scale - half
    rows, columns = (middle[k] + grid_mm / spacing[k] for k in (0, 1))
    from scipy.ndimage import map_coordinates

    where = np.meshgrid(rows, columns, indexing="ij")
    low, high = (CT_CENTRE - CT_WIDTH / 2, CT_CENTRE + CT_WIDTH / 2) if unit == "HU" else tuple(np.percentile(image, [1, 99]))
    shown = map_coordinates(image, where, order=1, mode="nearest")
    grey = np.clip((shown - low) / max(float(high - low), 1e-6), 0, 1) * 255
    own = _measured(inside, ends)
    rgb = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    for part, colour in ((inside & ~own, _OTHERS), (own, _OWN)):
        soft = map_coordinates(part.astype(np.float32), where, order=1, mode="constant")
        rgb[(soft >= 0.5) & ~_eroded(soft >= 0.5)] = colour
    picture = Image.fromarray(rgb)
    draw = ImageDraw.Draw(picture)
    for (a, b), colour in ((ends[:2], (0, 220, 255)), (ends[2:], (255, 120, 200))):
        at = [((p[1] - columns[0]) / (columns[1] - columns[0]), (p[0] - rows[0]) / (rows[1] - rows[0])) for p in (a, b)]
        draw.line(at, fill=colour, width=2)
    # A centimetre, to see how large all this is.
    right, low_edge = SIZE - 8, SIZE - 9
    draw.rectangle((right - 10 * scale - 1, low_edge - 2, right + 1, low_edge + 2), fill=(0, 0, 0))
    draw.line((right - 10 * scale, low_edge, right, low_edge), fill=(255, 255, 255), width=2)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _measured(inside: NDArray[np.bool_], ends: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The parts of a slice's mask that the calipers run over: the lesion itself, of several that the slice cuts.

    ends: (4, 2) rows and columns, two for each caliper. All of the mask where they run over nothing.
    """
    from scipy.ndimage import label

    parts, _ = label(inside, np.ones((3, 3)))
    share = np.linspace(0, 1, 200)[:, None]
    points = np.concatenate([ends[k] + share * (ends[k + 1] - ends[k]) for k in (0, 2)])
    rows, columns = (np.clip(np.rint(points[:, k]).astype(int), 0, inside.shape[k] - 1) for k in (0, 1))
    hit = np.unique(parts[rows, columns])
    own = np.isin(parts, hit[hit > 0])
    return own if own.any() else inside


def _eroded(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(inside, 1)
    return padded[1:-1, 1:-1] & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
