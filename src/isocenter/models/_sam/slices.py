"""A network that knows single pictures (SAM, MedSAM), followed through a scan slice by slice.

A slice with a positive prompt is a key slice. From each, the structure is followed both ways: what was found in one
slice is the prompt for the next (its box, grown a little, and for SAM its deepest point), until the answer stops looking
like the slice before. Then connected components and a smoothing across slices make one body of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isocenter.models._sam.session import Hints, Plane, Said

Point2 = tuple[float, float, bool]
Box2 = tuple[tuple[float, float], tuple[float, float]]
#: A neighbouring slice's answer belongs to the same structure when the smaller of both masks lies at least by this part in the other ...
_OVERLAP = 0.5
#: ... when it has not grown by more than this factor (and some pixels, for small structures) ...
_GROWTH, _GROWTH_PIXELS = 2.5, 20
#: ... when its mean grey is that of the key slice within so many standard deviations, at least so many of 255 steps ...
_DEVIATIONS, _STEPS = 2.5, 24.0
#: ... and when the network itself expects this overlap with the truth (SAM; MedSAM never learned to tell), and is nearly as sure
#: of itself as it was in the key slice: where a structure ends beside another one that looks alike, this falls first.
_EXPECTED, _AS_SURE = 0.5, 0.8


@dataclass(frozen=True)
class Ask:
    """What a network is asked on one slice. points: (y, x, positive) voxels; box: (y, x) corners, half-open."""

    points: tuple[Point2, ...] = ()
    box: Box2 | None = None


@dataclass(frozen=True)
class Answer:
    """mask: (rows, columns); expected: the network's own guess of its overlap with the truth, 0..1; None if it has none."""

    mask: Plane
    expected: float | None


class Asker(Protocol):
    """A network and the volume that it looks at."""

    #: Whether the network takes boxes alone.
    boxes_only: bool

    def first(self, z: int, hints: Hints) -> Answer:
        """The answer to what a person said on slice z."""

    def ask(self, z: int, ask: Ask) -> Answer:
        """The answer to one question on slice z."""

    def look_ahead(self, slices: Sequence[int]) -> None:
        """Look at slices that will all be asked about, several at once."""

    def grey(self, z: int) -> NDArray[np.uint8]:
        """Slice z as the network sees it."""


def follow(asker: Asker, said: Said, depth: int) -> dict[int, Plane]:
    """The structure in every slice in which it was found."""
    keys = {z: h for z, h in said.slices.items() if h.positive}
    asker.look_ahead(sorted(keys))
    answers = {z: asker.first(z, hints) for z, hints in sorted(keys.items())}
    found = {z: answer.mask for z, answer in answers.items()}
    # A prior mask of several slices says where the structure ends; points, boxes and a mask of one slice do not.
    alone = sum(h.mask is not None for h in keys.values()) == 1
    spreading = [z for z in sorted(keys) if keys[z].points or keys[z].box is not None or alone]
    first, last = max(0, said.reach[0]), min(depth, said.reach[1])
    for key in spreading:
        if not found[key].any():
            continue
        style = _style(asker.grey(key), found[key])
        least = max(_EXPECTED, _AS_SURE * (answers[key].expected or 0.0))
        for step in (-1, 1):
            # Between two key slices each follows the structure up to the middle.
            ahead = [abs(other - key) for other in keys if (other - key) * step > 0]
            furthest = min(ahead) // 2 if ahead else depth
            prior, z = found[key], key + step
            while first <= z < last and abs(z - key) <= furthest and z not in keys:
                extra = tuple((float(y), float(x), p) for y, x, p in said.slices[z].points) if z in said.slices else ()
                answer = asker.ask(z, from_prior(bulk(prior), extra, boxes_only=asker.boxes_only))
                if _ended(asker.grey(z), answer, prior, style, least):
                    break
                if z not in found or not found[z].any():
                    found[z] = answer.mask
                prior, z = answer.mask, z + step
    return consistent(found, set(keys))


def from_prior(prior: Plane, extra: tuple[Point2, ...] = (), *, boxes_only: bool) -> Ask:
    """The question for a slice whose neighbour, or whose earlier mask, is `prior` (not empty)."""
    where = np.argwhere(prior)
    lo, hi = grown(where.min(axis=0), where.max(axis=0) + 1, prior.shape)
    box = ((float(lo[0]), float(lo[1])), (float(hi[0]), float(hi[1])))
    if boxes_only:
        return Ask(box=box)
    y, x = centre(prior)
    return Ask(((float(y), float(x), True), *extra), box)


def bulk(mask: Plane) -> Plane:
    """A network's answer without specks and spurs: a few wrong pixels far off would make the next slice's box too large, and
    what is in a box the network fills. The mask itself where that would take more than a fifth, as of what is thin or in parts.
    """
    from scipy import ndimage

    opened = ndimage.binary_opening(np.pad(mask, 1))[1:-1, 1:-1]
    parts, count = ndimage.label(opened, np.ones((3, 3), bool))
    sizes = np.bincount(parts.ravel())[1:]
    kept = np.isin(parts, 1 + np.flatnonzero(sizes >= 0.1 * sizes.max())) if count else opened
    return kept if kept.sum() >= 0.8 * mask.sum() else mask


def centre(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel (y, x) deepest inside a mask that is not empty; the first of equals."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(depth)), mask.shape)
    return int(y), int(x)


def grown(lo: NDArray[np.intp], hi: NDArray[np.intp], shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A box (y, x) grown by a twentieth of its sides, at least by a pixel, inside a slice of `shape`."""
    margin = np.maximum(1.0, np.rint(0.05 * (hi - lo)))
    return np.maximum(lo - margin, 0.0), np.minimum(hi + margin, np.array(shape, float))


def consistent(found: dict[int, Plane], keys: set[int], *, smooth: bool = True) -> dict[int, Plane]:
    """One body out of slices: what hangs together (by faces, edges or corners) with a key slice, and smoothed.

    Smoothing, for networks that have no memory of the slice before, goes across the slices alone, where such a network errs
    by itself in each: the majority of a voxel and those above and below it. Opening in the slices' own plane would cut off
    corners and thin ends that the network drew rightly. Where it would take more than a fifth it is left out. Key slices
    answer what a person said on them and stay as they are.
    """
    from scipy import ndimage

    filled = sorted(z for z, plane in found.items() if plane.any())
    if len(filled) < 2:
        return {z: found[z] for z in filled}
    bottom, top = filled[0], filled[-1]
    where = [np.argwhere(found[z]) for z in filled]
    lo, hi = np.min([w.min(axis=0) for w in where], axis=0), np.max([w.max(axis=0) for w in where], axis=0) + 1
    body = np.zeros((top - bottom + 1, *(hi - lo)), bool)
    for z in filled:
        body[z - bottom] = found[z][lo[0] : hi[0], lo[1] : hi[1]]
    certain = [z - bottom for z in sorted(keys & set(filled))]
    if smooth:
        said = body[certain]
        body = _smoothed(body)
        body[certain] = said
    parts, count = ndimage.label(body, np.ones((3, 3, 3), bool))
    if count > 1:
        touched = np.unique(parts[certain])
        body = np.isin(parts, touched[touched > 0])
    result = {}
    for index in np.flatnonzero(body.any(axis=(1, 2))):
        plane = np.zeros(found[filled[0]].shape, bool)
        plane[lo[0] : hi[0], lo[1] : hi[1]] = body[index]
        result[bottom + int(index)] = plane
    return result


def _smoothed(body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A voxel whose neighbours in the slices above and below agree is what they are; the ends stay."""
    smooth = body.copy()
    smooth[1:-1] = (body[:-2] & body[2:]) | (body[1:-1] & (body[:-2] | body[2:]))
    return smooth if smooth.sum() >= 0.8 * body.sum() else body


def _style(grey: NDArray[np.uint8], mask: Plane) -> tuple[float, float]:
    """Mean grey of the structure, and how far a slice's mean may be from it."""
    values = grey[mask].astype(np.float64)
    return float(values.mean()), max(_STEPS, _DEVIATIONS * float(values.std()))


def _ended(grey: NDArray[np.uint8], answer: Answer, prior: Plane, style: tuple[float, float], least: float) -> bool:
    """Whether the structure does not go on in this slice. least: the overlap that the network must expect of itself."""
    mask = answer.mask
    size, before = int(mask.sum()), int(prior.sum())
    if size == 0 or size > _GROWTH * before + _GROWTH_PIXELS:
        return True
    if int((mask & prior).sum()) < _OVERLAP * min(size, before):
        return True
    if answer.expected is not None and answer.expected < least:
        return True
    return abs(float(grey[mask].mean()) - style[0]) > style[1]
