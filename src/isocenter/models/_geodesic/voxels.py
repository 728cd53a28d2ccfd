"""Second half of an answer: every voxel near the prompt is decided by itself, from what all prompts so far tell of it.

A voxel is described by the vote of the regions (`regions.py`), its belief before, geodesic distances from the positive
and from the negative prompts, its appearance against that of mask and surroundings, and its place relative to prompt and
mask; a small two-layer perceptron turns these numbers into a new belief. Its coefficients (`coefficients.npz`) were
fitted by `benchmarks/_clicks_fit.py`; all inputs are ratios, logarithms or multiples of the noise, never Hounsfield units.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import edt
import numpy as np
from numpy.typing import NDArray

from isocenter.models._geodesic import kernels
from isocenter.models._geodesic.regions import OUTSIDE, Click, Family, clear_cuts, families, ratio_table, score, vote
from isocenter.models._geodesic.window import F32, Anchor, Window, to_logit

REACH = 4.0
"""A click changes nothing farther away than this many times its distance from the mask's outline."""
LEAST = 8.0
"""... but this many steps it always may."""
AGREED = 0.9
"""Vote from which a voxel belongs to a first answer for certain."""
LIKELY, LIKELY_THICK = 0.7, 0.6
"""The same at the end, when no coefficient is fitted on what comes of it; the latter for slices three times as thick as wide,
where the perceptron is too timid."""
NEARLY = 5.0
"""A region that is cut out clearly is taken when its score is within this of the best one."""
CAP = 60.0
"""Distances are cut off here."""


@dataclass(frozen=True)
class Table:
    """Fitted coefficients for one kind of click: of the regions' linear score, and of the perceptron."""

    region: tuple[F32, F32, F32]
    voxel: tuple[F32, ...] | None
    threshold: float


@cache
def tables() -> dict[str, Table]:
    """The fitted coefficients by kind of click ("first", "add", "remove")."""
    with files(__package__).joinpath("coefficients.npz").open("rb") as file, np.load(file, allow_pickle=False) as data:
        return unpack(dict(data))


def unpack(data: dict[str, NDArray[np.float32]]) -> dict[str, Table]:
    """Tables from flat arrays named kind_part."""
    parts = ("mean", "scale", "w1", "b1", "w2", "b2", "w3")
    out = {}
    for kind in ("first", "add", "remove"):
        region = (data[f"{kind}_region_mean"], data[f"{kind}_region_scale"], data[f"{kind}_region_weights"])
        voxel = tuple(np.ascontiguousarray(data[f"{kind}_{p}"], np.float32) for p in parts) if f"{kind}_w1" in data else None
        out[kind] = Table(region, voxel, float(data[f"{kind}_threshold"]) if f"{kind}_threshold" in data else 0.5)
    return out


@dataclass(frozen=True, eq=False)
class Study:
    """All that is known about a click. live: voxels that may change; features: (live voxels, 33); share: the vote."""

    click: Click
    found: list[Family]
    share: F32
    live: NDArray[np.bool_]
    features: F32
    room: float


def study(click: Click, anchors: list[Anchor], table: Table, found: list[Family] | None = None) -> Study:
    """Everything that the decision on a click is made from; `found`: its families, where they are known already."""
    window = click.window
    found = families(click) if found is None else found
    share = vote(found, *table.region)
    guess = window.mask | (share > 0.5) if click.positive else window.mask & ~(share > 0.5)
    z, y, x = click.seeds.T
    guess[z, y, x] = click.positive
    if click.first:
        room = float(max(_depth(guess, window)[tuple(click.centre)], 1.0))
        radius = window.radius(max(float((share > 0.5).sum()), 8.0))
        outline = np.full(window.shape, CAP / 3, np.float32)
    else:
        room, radius = click.room, window.radius(max(float(window.mask.sum()), 8.0))
        outline = _outline(window)
    away = window.near(click.seeds, 1e4)
    live = (share > 0.004) | (window.blur(guess.astype(np.float32), 4) > 0.004) if click.first else (np.abs(outline) < 12) | (share > 0.004)
    if not click.first:
        live &= away < max(REACH * max(room, 1.0), LEAST)
    live[z, y, x] = True
    features = _features(click, anchors, found, share, guess, live, outline, away, room, radius)
    return Study(click, found, share, live, features, room)


def decide(study_: Study, table: Table) -> F32:
    """Logit of the live voxels; above 0 is inside."""
    if table.voxel is None:
        share = study_.share[study_.live]
        flipped = np.where(share > 0.5, 2.0, -2.0).astype(np.float32)
        inside = study_.click.window.mask[study_.live]
        if study_.click.positive:
            return np.where(inside, np.float32(2), flipped)
        return np.where(inside, -flipped, np.float32(-2))
    logit = kernels.perceptron(study_.features, *table.voxel)
    if study_.click.first:  # where all plausible regions agree, there is nothing for the perceptron to decide
        logit = np.where(study_.share[study_.live] > AGREED, np.maximum(logit, np.float32(0.5)), logit)
    return logit - np.float32(np.log(table.threshold / (1 - table.threshold)))


def clear_cut(study_: Study, table: Table, logit: F32) -> F32:
    """Where a region has a strong edge all around and next to none inside, that region is the first answer, not `logit`.

    The perceptron is not asked what an obvious answer is. The outline is set where the intensity is halfway. Without such
    a region the perceptron still takes nothing away that most of the vote is for.
    """
    found, window = study_.found, study_.click.window
    scores = score(found, *table.region)
    clear = np.concatenate([clear_cuts(f) for f in found]) & (scores > scores.max() - NEARLY)
    if not clear.any():
        likely = LIKELY if window.steps.max() < 3 else LIKELY_THICK
        return np.where(study_.share[study_.live] > likely, np.maximum(logit, np.float32(0.5)), logit)
    best, family = int(np.argmax(np.where(clear, scores, -np.inf))), 0
    while best >= len(found[family].traits):
        best -= len(found[family].traits)
        family += 1
    body = (found[family].level <= best).astype(np.float32)
    body1 = window.blur(body, 2)
    _, side, _ = _local(window, body, body1)
    plain = np.where((body1 > 0.03) & (body1 < 0.97), 8 * side, 8 * body - 4).astype(np.float32)
    return np.asarray(plain[study_.live], np.float32)


def _depth(inside: NDArray[np.bool_], window: Window) -> F32:
    """Distance (steps) of each voxel inside to the nearest one outside; the window's faces are no outside."""
    if inside.all():
        return np.full(window.shape, CAP, np.float32)
    distance: F32 = edt.edt(inside, anisotropy=tuple(float(s) for s in window.steps))
    return np.minimum(distance, np.float32(CAP))


def _outline(window: Window) -> F32:
    """Distance (steps) of each voxel to the mask's outline, negative inside."""
    if window.mask.all() or not window.mask.any():
        return np.full(window.shape, -CAP if window.mask.any() else CAP, np.float32)
    distance: F32 = edt.edt(window.mask.astype(np.uint8) + np.uint8(1), anisotropy=tuple(float(s) for s in window.steps))
    return np.where(window.mask, -1, 1) * np.minimum(distance, np.float32(CAP))


def _features(
    click: Click,
    anchors: list[Anchor],
    found: list[Family],
    share: F32,
    guess: NDArray[np.bool_],
    live: NDArray[np.bool_],
    outline: F32,
    away: F32,
    room: float,
    radius: float,
) -> F32:
    """(live voxels, 33) numbers without units."""
    window = click.window
    pro = [window.local(a.voxels) for a in anchors if a.positive] + ([click.seeds] if click.positive else [])
    con = [window.local(a.voxels) for a in anchors if not a.positive] + ([] if click.positive else [click.seeds])
    fine_ratio, soft_ratio = _appearance(click, guess, radius, pro, con)
    near_pro, far_pro = _reach(window, pro, -soft_ratio)
    near_con, far_con = _reach(window, con, soft_ratio)
    body = guess.astype(np.float32)
    body1 = window.blur(body, 2)
    contrast, side, edge = _local(window, body, body1)
    shell = np.log(max(float((away <= room).sum()), 7.0))
    columns = [
        to_logit(window.belief) / 3,
        window.mask,
        np.log((share + 0.01) / (1.01 - share)),
        share,
        np.clip(far_pro - far_con, -4, 4),
        far_pro,
        far_con,
        fine_ratio,
        soft_ratio,
        window.blur(fine_ratio, 2),
        np.exp(-away / max(room, 1.0)),
        np.minimum(away / max(room, 1.0), 12),
        np.minimum(away / radius, 6),
        np.tanh(outline / 3),
        np.clip(outline / radius, -3, 1),
        np.minimum(near_pro / radius, 5),
        np.minimum(near_con / radius, 5),
        np.minimum(near_pro, 30) / 10,
        np.minimum(near_con, 30) / 10,
        body1,
        window.blur(body1, 6),
        window.blur(share, 2),
        np.minimum(np.abs(window.fine - window.soft), 4),
        contrast,
        side,
        edge,
        np.minimum(np.abs(window.soft - np.median(window.soft[window.near(click.seeds, 4.0) <= 1.5])), 15) / 3,
        *(_rank(family, shell) for family in found),
    ]
    same = (np.log(radius), np.log(max(room, 0.7)), min(len(anchors), 10) / 3)
    picked = np.empty((int(live.sum()), len(columns) + len(same)), np.float32)
    for number, column in enumerate(columns):
        picked[:, number] = column[live]
    picked[:, len(columns) :] = same
    return picked


def _local(window: Window, body: F32, body1: F32) -> tuple[F32, F32, F32]:
    """What is bright and dark right here, inside and outside of the guess (as in local Chan-Vese models, Lankton 2008).

    Returns the size of that contrast, on which side of its middle a voxel lies, and on which side of the edge (the sign
    of the Laplacian, as in Marr and Hildreth 1980).
    """
    weight = window.blur(body1, 8)
    inside = window.blur(body * window.fine, 10)
    everything = window.blur(window.soft, 8)
    mean_in = inside / np.maximum(weight, np.float32(1e-3))
    mean_out = (everything - inside) / np.maximum(1 - weight, np.float32(1e-3))
    contrast: F32 = np.where((weight > 0.02) & (weight < 0.98), mean_in - mean_out, np.float32(0)).astype(np.float32)
    size = (np.minimum(np.abs(contrast), 12) / 3).astype(np.float32)
    side = np.clip((window.fine - 0.5 * (mean_in + mean_out)) * contrast / (np.square(contrast) + 1), -2, 2)
    edge = np.clip((window.fine - window.soft) * contrast / (np.abs(contrast) + 0.5), -3, 3)
    return size, side.astype(np.float32), edge.astype(np.float32)


def _rank(family: Family, shell: float) -> F32:
    """How many voxels a family takes in before it reaches a voxel, relative to the click's surest ball (logarithms)."""
    table = np.full(256, np.log(family.sizes[-1] * 1.5), np.float32)
    table[: len(family.sizes)] = np.log(family.sizes)
    table[OUTSIDE] = np.log(family.sizes[-1] * 1.5)
    ranks: F32 = np.clip(table - np.float32(shell), -5, 5)[family.level]
    return ranks


def _appearance(click: Click, guess: NDArray[np.bool_], radius: float, pro: list[NDArray[np.int64]], con: list[NDArray[np.int64]]) -> tuple[F32, F32]:
    """Log-likelihood ratio of each voxel's intensity, mask against surroundings, in the light and the stronger smoothing."""
    window = click.window
    around = (~guess) & (_depth(~guess, window) < max(radius, 6.0))
    prompted = [(window.near(p, 4.0) <= 1.5, True) for p in pro if len(p)] + [(window.near(p, 4.0) <= 1.5, False) for p in con if len(p)]
    out = []
    for values, step, width in ((window.fine, 2.0, 2.0), (window.soft, 4.0, 3.0)):
        bins = np.clip((values - np.median(values[guess])) * step + 64, 0, 127).astype(np.uint8) if guess.any() else np.zeros(window.shape, np.uint8)
        inside = np.bincount(bins[guess], minlength=128).astype(float)
        outside = np.bincount(bins[around], minlength=128).astype(float)
        totals = (max(inside.sum(), 1.0), max(outside.sum(), 1.0))
        for ball, positive in prompted:
            counts = np.bincount(bins[ball], minlength=128)
            weight = 0.15 / len(prompted) / max(int(counts.sum()), 1)
            if positive:
                inside += weight * totals[0] * counts
            else:
                outside += weight * totals[1] * counts
        out.append(ratio_table(inside, outside, width)[bins])
    return out[0], out[1]


def _reach(window: Window, groups: list[NDArray[np.int64]], against: F32) -> tuple[F32, F32]:
    """Straight and geodesic distance (the latter as a logarithm) from the nearest of some prompts."""
    points = np.concatenate(groups) if groups else np.empty((0, 3), np.int64)
    if len(points) == 0:
        return np.full(window.shape, CAP, np.float32), np.full(window.shape, 7.0, np.float32)
    unary = (0.5 * np.log1p(np.exp(2 * against))).astype(np.float32)
    nothing = np.zeros(window.shape, np.uint8)
    seeds = np.ravel_multi_index(tuple(points.T), window.shape).astype(np.int32)
    arrival = kernels.flood(window.fine, unary, nothing, seeds, window.steps, 0.12, 0.25, 10**9)
    far: F32 = np.log(np.minimum(arrival, 30_000) + np.float32(8)).astype(np.float32).reshape(window.shape)
    return window.near(points, CAP), far
