"""Second half of an answer: every voxel near the prompt is decided by itself, from what all prompts so far tell of it.

A small perceptron with two hidden layers turns the numbers of a voxel (`features.py`) into a new belief. Its coefficients
(`coefficients.npz`) were fitted by `benchmarks/_clicks_fit.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from isocenter.models._distance import distance
from isocenter.models._geodesic import voxel_kernels
from isocenter.models._geodesic.features import CAP, Scene, describe, locally
from isocenter.models._geodesic.regions import Click, Family, clear_cuts, families, score, vote
from isocenter.models._geodesic.window import F32, Anchor, Window

INSIDE = 0.42
"""Probability from which a voxel beside a corrected outline is inside: the mask of the largest expected Dice holds what is likelier
than half of that Dice (Lipton et al. 2014, for the F1 score), and corrections begin at a Dice of about 0.7 and end at 0.9."""
BESIDE = 3.0
"""That holds for prompts this near (steps) to the outline; for one farther off it tends to one half: a piece of its own that is
guessed too large costs more than an outline that is."""
BAND, VOTED = 12, 0.004
"""Only voxels within so many steps of the mask's outline, or for which this part of the vote is, are looked at."""
AGREED = 0.9
"""Vote from which a voxel belongs to a first answer for certain."""
LIKELY, LIKELY_THICK = 0.7, 0.6
"""The same at the end, when no coefficient is fitted on what comes of it; the latter for slices three times as thick as wide,
where the perceptron is too timid."""
NEARLY = 5.0
"""A region that is cut out clearly is taken when its score is within this of the best one."""


@dataclass(frozen=True)
class Table:
    """Fitted coefficients for one kind of click: of the regions' linear score, and of the perceptron."""

    region: tuple[F32, F32, F32]
    voxel: tuple[F32, ...] | None


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
        out[kind] = Table(region, voxel)
    return out


@dataclass(frozen=True, eq=False)
class Study:
    """All that is known about a click. live: voxels that may change; features: (live voxels, numbers); share: the vote."""

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
    outline = _outline(guess if click.first else window.mask, window)
    if click.first:
        room = max(-float(outline[tuple(click.centre)]), 1.0)
        radius = window.radius(max(float((share > 0.5).sum()), 8.0))
    else:
        room, radius = click.room, window.radius(max(float(window.mask.sum()), 8.0))
    away = window.near(click.seeds, 1e4)
    if click.first:
        live = (share > VOTED) | (window.blur(guess.astype(np.float32), 4) > VOTED)
        closed = np.zeros(window.shape, np.bool_)
    else:
        live = ((np.abs(outline) < BAND) | (share > VOTED)) & (away < click.reach)
        closed = (outline > BAND) & (share <= VOTED)
    live[z, y, x] = True
    features = describe(Scene(click, anchors, found, share, guess, outline, away, room, radius, live, closed))
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
    logit = voxel_kernels.perceptron(study_.features, *table.voxel)
    if study_.click.first:  # where all plausible regions agree, there is nothing for the perceptron to decide
        return np.where(study_.share[study_.live] > AGREED, np.maximum(logit, np.float32(0.5)), logit)
    near = min(1.0, BESIDE / max(study_.room, 1.0))
    return logit - np.float32(near * np.log(INSIDE / (1 - INSIDE)))


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
    side = locally(window, body, body1, (8,))[0].side
    plain = np.where((body1 > 0.03) & (body1 < 0.97), 8 * side, 8 * body - 4).astype(np.float32)
    return np.asarray(plain[study_.live], np.float32)


def _outline(inside: NDArray[np.bool_], window: Window) -> F32:
    """Distance (steps) of each voxel to the outline, negative inside; the window's faces are no outline."""
    if inside.all() or not inside.any():
        return np.full(window.shape, -CAP if inside.any() else CAP, np.float32)
    z, y, x = (float(s) for s in window.steps)
    away = distance(inside, (z, y, x), CAP, both=True)
    return np.negative(away, where=inside, out=away)
