"""From the images of a series to a stack on a regular grid: which belong together, in which order, and where they lie.

Positions are taken along the normal, the cross product of row and column direction, so that the array's z axis ascends
along it and the grid is right-handed (PS3.3 C.7.6.2.1). Whatever is left out, guessed or interpolated is said in a note.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError, LimitError
from isocenter.core.geometry import Grid, Triple
from isocenter.core.settings import Limits
from isocenter.core.volume import Scale
from isocenter.io import raw
from isocenter.io.dicom_image import Slice

#: Two images lie at one place when they are nearer than this, mm.
SAME_PLACE = 1e-3
#: Sideways shift (pixels) up to which a stack counts as straight.
STRAIGHT = 0.1
#: More interpolated slices than this in one gap is invention.
MOST_MISSING = 10


@dataclass(frozen=True)
class Stack:
    """Slices in array order (ascending along the normal) and the grid of the volume.

    places: for each slice where it lies on the grid, (z, y, x) in voxels, when it must be resampled; None when slice k
    is voxel plane k. scale: as in `Source`.
    """

    slices: list[Slice]
    grid: Grid
    notes: tuple[str, ...]
    places: NDArray[np.float64] | None = None
    scale: Scale = "full"


def stack(images: list[Slice], limits: Limits) -> Stack:
    """The largest consistent stack among the images of one series."""
    images, notes = _consistent(images)
    first = images[0]
    if first.position is None or first.orientation is None:
        return _flat(images, notes)
    if first.spacing is None:
        spacing, note = _pixel_size(first)
        if note == raw.NO_SCALE:
            raise GeometryError("the images have positions but no pixel spacing, so nothing could be measured in them")
        notes.append(note)
        images = [replace(s, spacing=spacing) for s in images]
    row, column, normal = _axes(images[0])
    depth = np.array([s.position for s in images], float) @ normal
    order = np.argsort(depth, kind="stable")
    images = _distinct([images[i] for i in order], depth[order], notes)
    positions = np.array([s.position for s in images], float)
    return _regular(images, positions, (row, column, normal), notes, limits)


def _consistent(images: list[Slice]) -> tuple[list[Slice], list[str]]:
    """The images of one size, orientation and pixel spacing that hold most voxels (a stack before a single picture, any
    other before a localizer), and a note on the others.
    """
    groups: list[list[Slice]] = []
    for image in images:
        for group in groups:
            if _alike(group[0], image):
                group.append(image)
                break
        else:
            if len(groups) >= 64:
                raise GeometryError("the images of the series have too many different sizes and orientations")
            groups.append([image])
    best = max(groups, key=lambda g: (not g[0].localizer, len(g) > 1, len(g) * g[0].form.rows * g[0].form.columns))
    others = len(images) - len(best)
    if not others:
        return best, []
    return best, [f"{others} of the {len(images)} images have another size, orientation or pixel spacing, or are localizers, and were left out."]


def _alike(a: Slice, b: Slice) -> bool:
    if (a.form.rows, a.form.columns, a.form.samples, a.localizer) != (b.form.rows, b.form.columns, b.form.samples, b.localizer):
        return False
    if (a.position is None) != (b.position is None) or not _close(a.orientation, b.orientation, 1e-3):
        return False
    return _close(a.spacing, b.spacing, 1e-4)


def _close(a: tuple[float, ...] | None, b: tuple[float, ...] | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return all(abs(p - q) <= tolerance for p, q in zip(a, b, strict=True))


def _axes(image: Slice) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors of increasing column index, increasing row index, and their normal."""
    cosines = np.array(image.orientation, float)
    normal = np.cross(cosines[:3], cosines[3:])
    return cosines[:3], cosines[3:], normal / np.linalg.norm(normal)


# -- images without a place --------------------------------------------------------------------------------------------


def _pixel_size(image: Slice) -> tuple[tuple[float, float], str]:
    """Spacing from the attributes that projection images and scanned films have, with a note."""
    for tag, note in (
        (0x00181164, "The pixel size is that of the detector, without the magnification, so measurements are too large."),
        (0x00182010, "The pixel size is that of the scanned film."),
    ):
        value = image.header.numbers(tag)
        if value and len(value) == 2 and all(0 < v < 1e6 for v in value):
            return (value[0], value[1]), note
    return (1.0, 1.0), raw.NO_SCALE


def _flat(images: list[Slice], notes: list[str]) -> Stack:
    """A single picture, or the frames of one object in their order: identity directions, origin 0."""
    if len({id(s.header) for s in images}) > 1:
        raise GeometryError("the images of the series carry no position, so their order and distance are unknown; send one of them at a time")
    images = sorted(images, key=lambda s: s.frame)
    first = images[0]
    spacing = first.spacing
    if spacing is None:
        spacing, note = _pixel_size(first)
        notes.append(note)
    step = first.step or 1.0
    scale: Scale = "none" if raw.NO_SCALE in notes else "full" if first.step else "plane"
    if len(images) > 1:
        notes.append("The frames carry no position; they were stacked in their order" + (", 1 mm apart." if not first.step else "."))
    shape = (len(images), first.form.rows, first.form.columns)
    return Stack(images, Grid(shape, (spacing[1], spacing[0], step)), tuple(notes), scale=scale)


# -- one image a place -------------------------------------------------------------------------------------------------


def _distinct(images: list[Slice], depth: NDArray[np.float64], notes: list[str]) -> list[Slice]:
    """One image at each place: duplicates dropped, the first of a series in time taken, anything else refused."""
    places: list[list[Slice]] = [[images[0]]]
    for image, (before, here) in zip(images[1:], itertools.pairwise(depth), strict=True):
        if here - before < SAME_PLACE:
            places[-1].append(image)
        else:
            places.append([image])
    if len(places) == len(images):
        return images
    # Positions of one place may differ in their last digits, so time decides only here.
    places = [_without_copies(sorted(place, key=lambda s: (s.time, s.number))) for place in places]
    dropped = len(images) - sum(map(len, places))
    if dropped:
        notes.append(f"{dropped} of the {len(images)} images are duplicates of others and were left out.")
    counts = {len(place) for place in places}
    if len(counts) > 1:
        raise GeometryError("several different images lie at the same place at some of the places only, so it is unclear which belong together")
    (count,) = counts
    if count > 1:
        notes.append(f"The series holds {count} images at each of {len(places)} places (points in time, echoes or the like); the first was read.")
    return [place[0] for place in places]


def _without_copies(place: list[Slice]) -> list[Slice]:
    """The images of one place that differ in their pixels."""
    if len(place) == 1:
        return place
    kept: dict[object, Slice] = {}
    by_name: dict[object, Slice] = {}
    for image in place:
        name = (image.header.text(0x00080018), image.frame)
        if name[0] and name in by_name:
            continue
        by_name[name] = image
        kept.setdefault(_fingerprint(image), image)
    return list(kept.values())


def _fingerprint(image: Slice) -> tuple[object, ...]:
    """Equal for images with equal pixels and scale; frames of one file are told apart by their number when compressed."""
    header = image.header
    if image.compressed:
        start, count = header.pixel_offset, image.part.size - header.pixel_offset
        frame = image.frame
    else:
        start, count, frame = header.pixel_offset + image.frame * image.form.nbytes, image.form.nbytes, 0
    return hashlib.sha256(image.part.read(start, count), usedforsecurity=False).digest(), frame, image.slope, image.intercept


# -- the grid ----------------------------------------------------------------------------------------------------------


def _regular(images: list[Slice], positions: NDArray[np.float64], axes: tuple[NDArray[np.float64], ...], notes: list[str], limits: Limits) -> Stack:
    """The grid of slices in their order, and where they lie on it when they do not make a regular one themselves."""
    row, column, normal = axes
    spacing = images[0].spacing or (1.0, 1.0)
    rows, columns = images[0].form.rows, images[0].form.columns
    if len(images) == 1:
        step = images[0].step
        scale: Scale = "full" if step else "plane"
        if not step:
            step = 1.0
            notes.append("The single slice does not say how thick it is; 1 mm was assumed.")
        return Stack(images, _grid((1, rows, columns), (spacing[1], spacing[0], step), positions[0], axes), tuple(notes), scale=scale)
    depth = (positions - positions[0]) @ normal
    aside = positions - positions[0] - depth[:, None] * normal
    shifts = np.stack([aside @ column / spacing[0], aside @ row / spacing[1]], axis=1)
    straight = bool(np.abs(shifts).max() <= STRAIGHT)
    count = _planes(depth, notes)
    step = float(depth[-1]) / (count - 1)
    if straight and count == len(images) and _even(depth, step):
        return Stack(images, _grid((count, rows, columns), (spacing[1], spacing[0], step), positions[0], axes), tuple(notes))
    if straight:
        shifts[:] = 0
    else:
        notes.append("The slices are shifted against each other (gantry tilt); they were resampled to a grid with right angles.")
    low, high = np.floor(shifts.min(axis=0) + 1e-6), np.ceil(shifts.max(axis=0) - 1e-6)
    shape = (count, rows + int(high[0] - low[0]), columns + int(high[1] - low[1]))
    if np.prod(shape, dtype=np.float64) > limits.max_voxels:
        raise LimitError("the series would fill too many voxels on a regular grid", limit="max_voxels", value=limits.max_voxels)
    origin = positions[0] + low[0] * spacing[0] * column + low[1] * spacing[1] * row
    places = np.column_stack([depth / step, shifts - low])
    return Stack(images, _grid(shape, (spacing[1], spacing[0], step), origin, axes), tuple(notes), places)


def _grid(shape: tuple[int, int, int], spacing: Triple, origin: NDArray[np.float64], axes: tuple[NDArray[np.float64], ...]) -> Grid:
    rows = np.stack(axes, axis=1).tolist()
    x, y, z = origin.tolist()
    return Grid(shape, spacing, (x, y, z), (tuple(rows[0]), tuple(rows[1]), tuple(rows[2])))


def _even(depth: NDArray[np.float64], step: float) -> bool:
    """Whether no slice is off its place by more than the rounding of positions explains (2 % of the step or 0.06 mm)."""
    off = np.abs(depth - step * np.arange(len(depth)))
    return bool(off.max() <= max(0.02 * step, min(0.06, 0.25 * step)))


def _planes(depth: NDArray[np.float64], notes: list[str]) -> int:
    """How many planes a regular grid from the first to the last slice has; a note where slices are missing or uneven."""
    count = len(depth)
    if _even(depth, float(depth[-1]) / (count - 1)):
        return count
    gaps = np.diff(depth)
    usual = float(np.median(gaps))
    least = float(gaps.min())
    multiples = np.rint(gaps / least)
    whole = bool((np.abs(gaps - multiples * least) <= 0.02 * gaps + 0.02).all())
    step = float(depth[-1]) / float(multiples.sum()) if whole else usual
    if gaps.max() > (MOST_MISSING + 1.5) * step:
        raise GeometryError(f"there is a gap of {gaps.max():.1f} mm in the series, whose slices are {step:.2f} mm apart: slices are missing")
    count = round(float(depth[-1]) / step) + 1
    if whole and (multiples == 1).mean() > 0.5:
        notes.append(_missing(multiples, step))
    else:
        notes.append(
            f"The distance between slices varies from {least:.2f} to {gaps.max():.2f} mm; they were resampled, linear along the normal, "
            f"to {count} slices {float(depth[-1]) / (count - 1):.2f} mm apart."
        )
    return count


def _missing(multiples: NDArray[np.float64], step: float) -> str:
    """Which planes, counted from 0 in the volume, no image was there for."""
    lost: dict[int, int] = defaultdict(int)
    plane = 0
    for steps in multiples.astype(int):
        if steps > 1:
            lost[plane + 1] = int(steps) - 1
        plane += int(steps)
    which = ", ".join(str(first) if n == 1 else f"{first}-{first + n - 1}" for first, n in itertools.islice(lost.items(), 12))
    count = sum(lost.values())
    more = " and more" if len(lost) > 12 else ""
    return f"{count} slice{'s are' if count > 1 else ' is'} missing ({step:.2f} mm apart); interpolated: z = {which}{more}."
