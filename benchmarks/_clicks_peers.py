"""Public peers of the click engine, given the same clicks; for `clicks.py`.

The slow ones work on a box around the clicks, `MARGIN` voxels larger than these, whose sides count as background;
a click marks 3 x 3 x 3 voxels there, as they were made for scribbles.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from skimage.segmentation import random_walker

from benchmarks._clicks_data import Case, Mask
from isocenter.core.model import ModelContext
from isocenter.core.prompts import Point
from isocenter.core.volume import Volume
from isocenter.models import graphcut
from isocenter.models._graphcut.maxflow import cut

MARGIN = 16
WINDOW, BINS, LAMDA, SIGMA = (-300.0, 200.0), 64, 1.0, 0.1
"""Defaults of MONAI Label's graph cuts."""
Place = tuple[slice, slice, slice]


def confidence_connected(volume: Volume, points: list[Point]) -> Mask:
    """SimpleITK's region growing from all positive clicks; a negative click cuts out the region grown from it."""
    image = SimpleITK.GetImageFromArray(volume.array.astype(np.float32))

    def grown(positive: bool) -> Mask:
        seeds = [p.zyx[::-1] for p in points if p.positive == positive]
        if not seeds:
            return np.zeros(volume.shape, np.bool_)
        region = SimpleITK.ConfidenceConnected(image, seedList=seeds, numberOfIterations=2, multiplier=2.5, initialNeighborhoodRadius=1)
        inside: Mask = SimpleITK.GetArrayFromImage(region) > 0
        return inside

    positive, negative = grown(True), grown(False)
    return positive & ~negative if 2 * int((positive & negative).sum()) < int(positive.sum()) else positive


def _around(places: NDArray[np.intp], shape: tuple[int, ...]) -> Place:
    lo, hi = np.maximum(places.min(axis=0) - MARGIN, 0), np.minimum(places.max(axis=0) + MARGIN + 1, shape)
    return slice(lo[0], hi[0]), slice(lo[1], hi[1]), slice(lo[2], hi[2])


def _marked(volume: Volume, points: list[Point]) -> tuple[Place, NDArray[np.uint8]]:
    """A box around the clicks: 1 in the 3 x 3 x 3 voxels at positive ones, 2 at negative ones and on the box's sides."""
    box = _around(np.array([p.zyx for p in points]), volume.shape)
    marks = np.zeros(volume.shape, np.uint8)[box]
    for axis in range(3):
        if marks.shape[axis] > 2:
            np.moveaxis(marks, axis, 0)[[0, -1]] = 2
    for point in points:
        marks[tuple(slice(max(p - s.start - 1, 0), p - s.start + 2) for p, s in zip(point.zyx, box, strict=True))] = 1 if point.positive else 2
    return box, marks


def walker(volume: Volume, points: list[Point]) -> Mask:
    """scikit-image's random walker, with its own beta."""
    box, marks = _marked(volume, points)
    out = np.zeros(volume.shape, np.bool_)
    part = volume.array[box].astype(np.float64)
    flat = part.shape[0] == 1
    labels = random_walker(part[0] if flat else part, marks[0] if flat else marks, beta=130, mode="cg_j", tol=1e-2)
    out[box] = (labels == 1)[None] if flat else labels == 1
    return out


def label_graphcut(volume: Volume, points: list[Point]) -> Mask:
    """The histogram graph cut of MONAI Label by its own terms and defaults, solved exactly at full resolution.

    Histograms of the marks with one pseudo-count a bin, softmax of the two as a probability, its logarithm as the cost of
    a voxel, lamda exp(-dI^2 / 2 sigma^2) as that of a pair. A scan that is no CT is scaled from its 0.5 and 99.5 % values.
    """
    box, marks = _marked(volume, points)
    values = volume.array[box].astype(np.float64)
    low, high = WINDOW if volume.array.min() < -500 else np.percentile(volume.array.astype(np.float64), (0.5, 99.5))
    image = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    bins = np.minimum((image * BINS).astype(np.intp), BINS - 1)
    likely = [(counts := np.bincount(bins[marks == mark], minlength=BINS) + 1.0) / counts.sum() for mark in (1, 2)]
    inside = 1 / (1 + np.exp(likely[1] - likely[0]))[bins]
    inside[marks == 1], inside[marks == 2] = 1 - 1e-7, 1e-7
    weights = []
    for axis in range(3):
        steps = np.diff(image, axis=axis, append=np.take(image, [-1], axis))
        weights.append(LAMDA * np.exp(-(steps**2) / (2 * SIGMA**2)))
    out = np.zeros(volume.shape, np.bool_)
    out[box] = cut(-np.log(inside), -np.log(1 - inside), weights)
    return out


def our_graphcut(volume: Volume, points: list[Point]) -> Mask:
    """`Histogram+GraphCut` of this project with its own defaults."""
    box, marks = _marked(volume, points)
    model = graphcut.HistogramGraphCut()
    model.load(ModelContext())
    part = Volume(volume.array[box], volume.spacing)
    out = np.zeros(volume.shape, np.bool_)
    out[box] = model.separate(part, marks == 1, marks == 2) != 0
    return out


PEERS: dict[str, Callable[[Volume, list[Point]], Mask]] = {
    "SimpleITK ConfidenceConnected": confidence_connected,
    "scikit-image random_walker": walker,
    "MONAI Label's GraphCut": label_graphcut,
    "Histogram+GraphCut (ours)": our_graphcut,
}


def feasible(cases: list[Case], most: int) -> list[str]:
    """The targets, named as by `clicks.play`, around which a box of `MARGIN` holds at most so many voxels."""
    out = []
    named = [(case.volume.shape, name, target) for case in cases for name, target in case.targets.items()]
    for number, (shape, name, target) in enumerate(named):
        if np.prod([s.stop - s.start for s in _around(np.argwhere(target), shape)]) <= most:
            out.append(f"{number} {name}")
    return out
