"""First half of an answer: nested regions around the prompt, and how likely each is the one that is meant.

Geodesic arrival maps with different step costs each give a family of nested regions (a component tree as in MSER, Matas
et al. 2002, but rooted in the prompt). Every region is described by a few numbers without units: size, how well the
prompt lies in its middle (people click the middle of what they mean), contrast along its outline, spread inside, how
slowly it grows. A linear score turns them into weights (softmax), and the weighted vote of all regions is the answer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.models._geodesic import kernels
from isocenter.models._geodesic.window import F32, Window

GROWTH, MOST, SMALLEST = 1.22, 52, 7
"""Nested regions grow by this factor, are at most this many, and start at this many voxels."""
OUTSIDE = 255
"""Level of voxels that no region holds."""
FITTED = 4.0
"""Standardised traits are cut off here: nothing is extrapolated far beyond what was seen in fitting."""
CLEAR = (3.0, 0.97, 1.2)
"""Logarithm of the contrast along an outline (in units of the noise), part of it that has any, logarithm of that contrast
over the texture inside: from here on a region needs no further evidence."""
TRAITS = {"first": 27, "add": 34, "remove": 34}
"""How many numbers describe a region."""
LIMIT = 80_000
"""Voxels of the largest region."""
REACH = 4.0
"""A click changes nothing farther away than this many times its distance from the mask's outline."""
LEAST = 12.0
"""... but this many steps it always may."""


@dataclass(frozen=True, eq=False)
class Click:
    """A point, line or area that asks for a change, in voxels of a window.

    seeds: (n, 3); centre: the seed in their middle; closed: voxels that may not change; room: distance (steps) from the
    centre to the nearest voxel that is already as asked for; first: there is no mask yet.
    """

    window: Window
    positive: bool
    first: bool
    seeds: NDArray[np.int64]
    centre: NDArray[np.int64]
    closed: NDArray[np.uint8]
    room: float

    @property
    def reach(self) -> float:
        """How far away (steps) a correction changes something."""
        return max(REACH * max(self.room, 1.0), LEAST)

    @property
    def kind(self) -> str:
        """Which table of coefficients applies."""
        return "first" if self.first else "add" if self.positive else "remove"


@dataclass(frozen=True, eq=False)
class Family:
    """One arrival map's nested regions: region k holds the voxels with level <= k. traits: (regions, numbers)."""

    level: NDArray[np.uint8]
    sizes: NDArray[np.float64]
    traits: NDArray[np.float64]


def ratio_table(inside: NDArray[np.float64], outside: NDArray[np.float64], width: float) -> F32:
    """Log-likelihood ratio per histogram bin, both histograms smoothed over `width` bins."""
    reach = int(3 * width)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    bell /= bell.sum()

    def density(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.convolve(counts, bell, "same") / max(float(counts.sum()), 1.0) + 2e-3

    return np.log(density(inside) / density(outside)).astype(np.float32)


def families(click: Click) -> list[Family]:
    """The nested regions of three arrival maps: by likeness, by edges, and by the appearance of mask and rest."""
    window = click.window
    ball = _ball(click)
    colour, spread = _colour(window.fine[ball])
    likeness = _squared(window.fine, colour, spread)
    third = _squared(window.soft, float(np.median(window.soft[ball])), 0.7 * spread) if click.first else _unlike(click, ball)
    costs = (
        (0.3 * likeness, 0.15, 0.0),
        (np.zeros(window.shape, np.float32), 0.1, 1.0),
        ((0.3 if click.first else 0.7) * third, 0.12, 0.15),
    )
    seeds = np.ravel_multi_index(tuple(click.seeds.T), window.shape).astype(np.int32)
    same = window.mask.astype(np.uint8) if click.positive else (~window.mask).astype(np.uint8)
    limit = LIMIT if click.first else min(LIMIT, len(seeds) + int(window.ball(click.reach)))
    out = []
    for number, (unary, spatial, edge) in enumerate(costs):
        arrival = kernels.flood(window.fine, unary.astype(np.float32), click.closed, seeds, window.steps, spatial, edge, limit)
        level, ends, still = _levels(arrival)
        level = level.reshape(window.shape)
        sums = kernels.nested_statistics(level, window.fine, same, click.centre, window.steps, len(ends))
        traits = np.column_stack([_traits(click, sums, ends, colour, spread), still])
        which = np.zeros((len(traits), 2 * (len(costs) - 1)))
        if number:
            which[:, number - 1] = 1
            which[:, len(costs) - 2 + number] = traits[:, 0]
        out.append(Family(level, sums[:, 0], np.hstack([traits, which])))
    return out


def score(found: list[Family], mean: F32, scale: F32, weights: F32) -> NDArray[np.float64]:
    """How plausible each region is, comparable between families and resolutions."""
    scores: NDArray[np.float64] = np.clip((np.vstack([f.traits for f in found]) - mean) / scale, -FITTED, FITTED) @ weights
    return scores


def clear_cuts(family: Family) -> NDArray[np.bool_]:
    """Which regions are cut out of their surroundings by a strong edge all around, with next to none inside."""
    contrast, complete, against_texture, border = (family.traits[:, c] for c in (5, 7, 8, 12))
    clear: NDArray[np.bool_] = (contrast > CLEAR[0]) & (complete > CLEAR[1]) & (against_texture > CLEAR[2]) & (border < 0.3)
    return clear


def vote(found: list[Family], mean: F32, scale: F32, weights: F32) -> F32:
    """Share (0..1) of the regions, weighted by their scores, that hold each voxel."""
    scores = score(found, mean, scale, weights)
    share = np.exp(scores - scores.max())
    share /= share.sum()
    total = np.zeros(found[0].level.shape, np.float32)
    start = 0
    for family in found:
        count = len(family.traits)
        table = np.zeros(256, np.float32)
        table[:count] = np.cumsum(share[start : start + count][::-1])[::-1]
        total += table[family.level]
        start += count
    return np.minimum(total, 1, out=total)


def _ball(click: Click) -> NDArray[np.bool_]:
    """Voxels that surely look like what is meant: within 2.5 steps of the seeds, less where there is less room."""
    near = click.window.near(click.seeds, 8.0) <= min(2.5, max(1.0, 0.6 * click.room))
    open_ = near & (click.closed == 0)
    return open_ if open_.any() else near


def _colour(values: F32) -> tuple[float, float]:
    """Median and robust spread, the latter at least the noise (1)."""
    middle = float(np.median(values))
    return middle, max(1.4826 * float(np.median(np.abs(values - middle))), 1.0)


def _squared(values: F32, middle: float, spread: float) -> F32:
    difference: F32 = np.minimum(np.abs(values - np.float32(middle)) / np.float32(spread), np.float32(5))
    return np.square(difference)


def _unlike(click: Click, ball: NDArray[np.bool_]) -> F32:
    """Cost of voxels that look less like the prompt and its side than like the other, from histograms near the prompt."""
    window = click.window
    middle, spread = _colour(window.soft[ball])
    bins = np.clip((window.soft - middle) / spread * 4 + 32, 0, 63).astype(np.uint8)
    near = window.near(click.centre[None], 1e4) < max(4 * click.room, 12.0)
    held = np.bincount(bins[window.mask & near], minlength=64).astype(float)
    rest = np.bincount(bins[~window.mask & near], minlength=64).astype(float)
    here = np.bincount(bins[ball], minlength=64).astype(float)
    mine, other = (held, rest) if click.positive else (rest, held)
    mixed = 0.5 * mine / max(mine.sum(), 1) + 0.5 * here / max(here.sum(), 1)
    table = ratio_table(mixed, other / max(other.sum(), 1), 1.5)
    cost: F32 = np.log1p(np.exp(-1.5 * table))[bins].astype(np.float32)
    return cost


def _levels(arrival: NDArray[np.int32]) -> tuple[NDArray[np.uint8], NDArray[np.intp], NDArray[np.float64]]:
    """Level of each voxel, the arrival that ends each level, and how much (logarithm) the region grows right after it.

    Regions grow by about GROWTH in size; in each such span the one is taken that the front leaves most slowly, so that a
    region with a complete edge is among them exactly.
    """
    reached = arrival[arrival != kernels.FAR]
    last = int(reached.max())
    cumulative = np.cumsum(np.bincount(reached, minlength=last + 1))
    time = np.arange(last + 1)
    growth = cumulative[np.minimum(time + 3 + time // 16, last)] / cumulative - 1
    spans = np.searchsorted(cumulative, SMALLEST * GROWTH ** np.arange(MOST))
    spans = np.unique(np.append(spans[spans <= last], last))
    ends = np.unique([a + int(np.argmin(growth[a:b])) for a, b in itertools.pairwise(spans)] + [last])[:MOST]
    table = np.searchsorted(ends, np.arange(last + 2))
    numbers = np.where(table < len(ends), table, OUTSIDE).astype(np.uint8)
    numbers[last + 1] = OUTSIDE
    level: NDArray[np.uint8] = numbers[np.minimum(arrival, last + 1)]
    return level, ends, np.log(growth[ends] + 0.01)


def _traits(click: Click, sums: NDArray[np.float64], ends: NDArray[np.intp], colour: float, spread: float) -> NDArray[np.float64]:
    """Numbers without units for each of some nested regions, from `kernels.nested_statistics`; (regions, 22 or 29)."""
    window = click.window
    flat, cell = window.flat, float(np.prod(window.steps))
    count = sums[:, 0]
    size = count * window.voxel
    radius = np.maximum(np.sqrt(size / np.pi) if flat else (3 * size / (4 * np.pi)) ** (1 / 3), 0.5)
    # A picture's two large faces are no outline.
    area = np.maximum(sums[:, 7] - 2 * count if flat else sums[:, 7] * cell, 1e-3)
    border = np.maximum(sums[:, 8] - 2 * count, 0) if flat else sums[:, 8] * cell
    near = np.minimum(sums[:, 6], 50 * radius)
    mean = sums[:, 4] / count
    deviation = np.sqrt(np.maximum(sums[:, 5] / count - mean**2, 0))
    outline = np.maximum(sums[:, 10], 1e-3)
    contrast = sums[:, 9] / outline
    texture = sums[:, 13] / np.maximum(sums[:, 14], 1e-3)
    k = np.arange(len(count))
    before, after, beyond = np.maximum(k - 2, 0), np.minimum(k + 2, len(k) - 1), np.minimum(k + 3, len(k) - 1)
    time = np.log(ends + 8.0)
    growth = (np.log(count[after] / count[before]) + 0.01) / (time[after] - time[before] + 0.02)
    around = np.where(count[beyond] > count, (sums[beyond, 4] - sums[:, 4]) / np.maximum(count[beyond] - count, 1), mean)
    shell = np.abs(around - mean)
    size_log, depth_log = np.log(radius), np.log(np.maximum(near, 0.3) / radius)
    columns = [
        size_log,
        size_log**2,
        depth_log,
        np.sqrt((sums[:, 1:4] ** 2).sum(axis=1)) / count / radius,
        np.log(radius * area / ((2 if flat else 3) * size)),
        np.log(contrast + 0.1),
        sums[:, 11] / outline,
        sums[:, 12] / outline,
        np.log((contrast + 0.1) / (texture + 0.1)),
        np.log(deviation / spread + 0.1),
        np.minimum(np.abs(mean - colour) / spread, 5),
        np.log(growth),
        border / area,
        np.log(np.sqrt(sums[:, 17] / count) / radius + 0.3),
        np.log(shell / spread + 0.1),
        size_log * depth_log,
        (k == len(k) - 1) * 1.0,
        np.log(shell / (deviation + 0.3) + 0.1),
        np.maximum(sums[:, 11] / outline - 0.8, 0),
        sums[:, 12] / outline * np.log((contrast + 0.1) / (texture + 0.1)),
    ]
    if click.first:
        coarse = np.full(len(count), np.log(window.unit / window.finest))
        columns += [coarse, coarse * size_log]
    else:
        touching = sums[:, 15] * (1.0 if flat else cell) / area
        seam = np.log(sums[:, 16] / np.maximum(sums[:, 15], 1e-3) + 0.1)
        relative = np.log(radius / click.room)
        share = np.log(size / max(float(window.mask.sum()) * window.voxel, 1.0))
        columns += [relative, relative**2, np.minimum(near / click.room, 1.5), touching, touching * seam, share, np.maximum(share, 0)]
        columns += [relative * np.log(contrast + 0.1), share * relative]
    return np.stack(columns, axis=1)
