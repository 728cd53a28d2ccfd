"""What is said of one voxel near a prompt: numbers without units, from all prompts so far, the mask and the intensities.

A voxel is described by the vote of the regions (`regions.py`), its belief before, geodesic distances from the positive
and from the negative prompts, its appearance against that of mask and surroundings, the course of the intensity across
the outline (as in active shape models, Cootes et al. 1995), what lies beside it, and how it compares with the very
voxel that was clicked, of which the present belief is known to be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.models._geodesic import kernels, voxel_kernels
from isocenter.models._geodesic.regions import OUTSIDE, Click, Family, ratio_table
from isocenter.models._geodesic.window import F32, Anchor, Window, to_logit

CAP = 60.0
"""Distances are cut off here."""
COUNT = 77
"""Numbers a voxel."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What is known around a click, all in the working voxels of its window.

    share: the vote; guess: mask and vote together; outline: distance (steps) to the outline of the mask (of the guess, for
    a first prompt), negative inside; away: distance to the click; room, radius: steps; live: voxels that may change;
    closed: voxels too far off to matter.
    """

    click: Click
    anchors: list[Anchor]
    found: list[Family]
    share: F32
    guess: NDArray[np.bool_]
    outline: F32
    away: F32
    room: float
    radius: float
    live: NDArray[np.bool_]
    closed: NDArray[np.bool_]


def describe(scene: Scene) -> F32:
    """(live voxels, COUNT) numbers."""
    click, window, live = scene.click, scene.click.window, scene.live
    pro = [window.local(a.voxels) for a in scene.anchors if a.positive] + ([click.seeds] if click.positive else [])
    con = [window.local(a.voxels) for a in scene.anchors if not a.positive] + ([] if click.positive else [click.seeds])
    pro, con = [p for p in pro if len(p)], [c for c in con if len(c)]
    ratios = _appearance(scene, pro, con)
    guess = scene.guess.astype(np.float32)
    guess1 = window.blur(guess, 2)
    likely = locally(window, guess, guess1, (8,))[0]
    body = guess if click.first else window.mask.astype(np.float32)
    narrow, local, wide = locally(window, body, window.blur(body, 2), (3, 5, 16))
    logit = to_logit(window.belief) / np.float32(3)
    at = np.flatnonzero(live)  # whole windows are only gone through where neighbours count
    detail, contrast = np.take(window.fine, at) - np.take(window.soft, at), np.take(likely.contrast, at)
    shell = np.log(max(float((scene.away <= scene.room).sum()), 7.0))
    columns = [
        *(np.take(whole, at) for whole in (logit, window.mask, *ratios, window.blur(ratios[0], 2))),
        *_places(scene, at, pro, con, ratios[1]),
        *(np.take(whole, at) for whole in _smoothed(scene, guess1, logit)),
        np.minimum(np.abs(detail), 4),
        np.minimum(np.abs(contrast), 12) / 3,
        *(np.take(level.side, at) for level in (likely, narrow, wide)),
        np.clip(detail * contrast / (np.abs(contrast) + 0.5), -3, 3),
        np.minimum(np.abs(np.take(window.soft, at) - np.median(window.soft[window.near(click.seeds, 4.0) <= 1.5])), 15) / 3,
        *(_rank(family, at, shell) for family in scene.found),
    ]
    places = np.ascontiguousarray(np.argwhere(live))
    surface: F32 = (scene.outline - np.sign(scene.outline) / 2).astype(np.float32)  # zero halfway between a voxel inside and one outside
    picked = np.empty((len(places), COUNT), np.float32)
    for number, column in enumerate(columns):
        picked[:, number] = column
    start = len(columns)
    for part in (
        voxel_kernels.across(places, window.blur(surface, 1), window.fine, window.soft, local.contrast, local.middle, window.steps),
        *(voxel_kernels.beside(places, np.ascontiguousarray(values)) for values in (logit, scene.share, local.side)),
        _compared(scene, places, pro, con, surface, (window.fine, local.side, logit, *ratios)),
    ):
        picked[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    picked[:, start:] = (np.log(scene.radius), np.log(max(scene.room, 0.7)), min(len(scene.anchors), 10) / 3)
    return picked


def _places(scene: Scene, at: NDArray[np.intp], pro: list[NDArray[np.int64]], con: list[NDArray[np.int64]], against: F32) -> list[F32]:
    """Where some voxels (flat indices `at`) lie: seen from the prompts, from the click, from the outline."""
    room, radius = max(scene.room, 1.0), scene.radius
    outline = np.full(len(at), CAP / 3, np.float32) if scene.click.first else np.take(scene.outline, at)
    away = np.take(scene.away, at)
    near_pro, far_pro = _reach(scene, at, pro, -against)
    near_con, far_con = _reach(scene, at, con, against)
    return [
        np.clip(far_pro - far_con, -4, 4),
        far_pro,
        far_con,
        np.exp(-away / room),
        np.minimum(away / room, 12),
        np.minimum(away / radius, 6),
        np.tanh(outline / 3),
        np.clip(outline / radius, -3, 1),
        np.minimum(near_pro / radius, 5),
        np.minimum(near_con / radius, 5),
        np.minimum(near_pro, 30) / 10,
        np.minimum(near_con, 30) / 10,
    ]


def _smoothed(scene: Scene, guess1: F32, logit: F32) -> list[F32]:
    """The vote, the guess and the belief before, as they are and smoothed, in the whole window."""
    blur, share = scene.click.window.blur, scene.share
    belief1 = blur(logit, 1)
    belief4 = blur(belief1, 3)
    return [np.log((share + 0.01) / (1.01 - share)), share, guess1, blur(guess1, 6), blur(share, 2), belief1, belief4, blur(belief4, 8)]


@dataclass(frozen=True, eq=False)
class Local:
    """What is bright and dark right here, inside and outside of the guess (as in local Chan-Vese models, Lankton 2008).

    contrast, middle: inside less outside, and halfway between the two; side: on which side of that a voxel lies.
    """

    contrast: F32
    middle: F32
    side: F32


def _local(window: Window, weight: F32, inside: F32, everything: F32) -> Local:
    """From the guess (`weight`), the intensities in it (`inside`) and all intensities, each smoothed alike."""
    mean_in = inside / np.maximum(weight, np.float32(1e-3))
    mean_out = (everything - inside) / np.maximum(1 - weight, np.float32(1e-3))
    contrast: F32 = np.where((weight > 0.02) & (weight < 0.98), mean_in - mean_out, np.float32(0)).astype(np.float32)
    middle = ((mean_in + mean_out) / 2).astype(np.float32)
    side: F32 = np.clip((window.fine - middle) * contrast / (np.square(contrast) + 1), -2, 2).astype(np.float32)
    return Local(contrast, middle, side)


def locally(window: Window, body: F32, body1: F32, widths: tuple[int, ...]) -> list[Local]:
    """What is bright and dark in neighbourhoods of growing width; body: 0 or 1, body1: that smoothed twice, widths: passes more each."""
    maps = [body1, window.blur(body * window.fine, 2), window.soft]
    out = []
    for times in widths:
        maps = [window.blur(m, times) for m in maps]
        out.append(_local(window, *maps))
    return out


def _rank(family: Family, at: NDArray[np.intp], shell: float) -> F32:
    """How many voxels a family takes in before it reaches some voxels (flat indices `at`), relative to the click's surest ball (logarithms)."""
    table = np.full(256, np.log(family.sizes[-1] * 1.5), np.float32)
    table[: len(family.sizes)] = np.log(family.sizes)
    table[OUTSIDE] = np.log(family.sizes[-1] * 1.5)
    ranks: F32 = np.clip(table - np.float32(shell), -5, 5)[np.take(family.level, at)]
    return ranks


def _appearance(scene: Scene, pro: list[NDArray[np.int64]], con: list[NDArray[np.int64]]) -> tuple[F32, F32]:
    """Log-likelihood ratio of each voxel's intensity, mask against surroundings, in the light and the stronger smoothing."""
    window, guess = scene.click.window, scene.guess
    near = (~guess) & (scene.outline < max(scene.radius, 6.0))
    prompted = [(window.near(p, 4.0) <= 1.5, True) for p in pro] + [(window.near(p, 4.0) <= 1.5, False) for p in con]
    out = []
    for values, step, width in ((window.fine, 2.0, 2.0), (window.soft, 4.0, 3.0)):
        bins = np.clip((values - np.median(values[guess])) * step + 64, 0, 127).astype(np.uint8) if guess.any() else np.zeros(window.shape, np.uint8)
        inside = np.bincount(bins[guess], minlength=128).astype(float)
        outside = np.bincount(bins[near], minlength=128).astype(float)
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


def _reach(scene: Scene, at: NDArray[np.intp], groups: list[NDArray[np.int64]], against: F32) -> tuple[F32, F32]:
    """Straight and geodesic distance (the latter as a logarithm) of some voxels (flat indices `at`) from the nearest of some prompts."""
    window = scene.click.window
    if not groups:
        return np.full(len(at), CAP, np.float32), np.full(len(at), 7.0, np.float32)
    points = np.concatenate(groups)
    unary = (0.5 * np.log1p(np.exp(2 * against))).astype(np.float32)
    seeds = np.ravel_multi_index(tuple(points.T), window.shape).astype(np.int32)
    arrival = kernels.flood(window.fine, unary, scene.closed.view(np.uint8), seeds, window.steps, 0.12, 0.25, 10**9)
    far: F32 = np.log(np.minimum(arrival[at], 30_000) + np.float32(8)).astype(np.float32)
    return np.take(window.near(points, CAP), at), far


def _compared(
    scene: Scene, places: NDArray[np.int64], pro: list[NDArray[np.int64]], con: list[NDArray[np.int64]], surface: F32, maps: tuple[F32, ...]
) -> F32:
    """Each live voxel against the clicked one, of which the belief is known to be wrong, and against the nearest prompts of both kinds."""
    window = scene.click.window
    fine, side, logit, fine_ratio, soft_ratio = maps
    z, y, x = places.T
    centre = tuple(int(c) for c in scene.click.centre)
    inside = scene.guess if scene.click.first else window.mask
    near = scene.away < max(4 * scene.room, 10.0)
    held, rest = fine[inside & near], fine[~inside & near]
    overall = float(held.mean() - rest.mean()) if held.size and rest.size else 0.0
    sign, unit = (-1.0 if overall < 0 else 1.0), abs(overall) + 1
    mine, depth = fine[z, y, x], surface[z, y, x]
    offset = (places - scene.click.centre) * window.steps
    smooth = window.blur(surface, 1)
    normal = np.array([(np.gradient(smooth, axis=a)[centre] if smooth.shape[a] > 1 else 0.0) / window.steps[a] for a in range(3)])
    along = offset @ (normal / (np.linalg.norm(normal) + 1e-3))
    aside = np.sqrt(np.maximum((offset**2).sum(axis=1) - along**2, 0))
    room = max(scene.room, 1.0)
    columns = [
        np.clip((mine - fine[centre]) * sign / unit, -3, 3),
        np.clip((mine - fine[centre]) * sign / 4, -4, 4),
        np.clip(side[z, y, x] - side[centre], -3, 3),
        logit[z, y, x] - logit[centre],
        fine_ratio[z, y, x] - fine_ratio[centre],
        soft_ratio[z, y, x] - soft_ratio[centre],
        np.clip(depth - surface[centre], -8, 8) / 3,
        np.clip(depth, -6, 6) / 3,
        np.clip(along / room, -6, 6) / 2,
        np.minimum(aside / room, 12) / 3,
        np.full(len(places), min(abs(overall), 20) / 5),
        np.full(len(places), logit[centre]),
        np.full(len(places), side[centre]),
    ]
    for group in (pro, con):
        if not group:
            columns += [np.zeros(len(places))] * 3
            continue
        points = np.stack([g[len(g) // 2] for g in group])
        number, away = voxel_kernels.closest(places, points, window.steps)
        pz, py, px = points[number].T
        columns += [
            np.clip((mine - fine[pz, py, px]) * sign / unit, -3, 3),
            np.clip(side[z, y, x] - side[pz, py, px], -3, 3),
            1 / (1 + away / 3),
        ]
    return np.stack(columns, axis=1).astype(np.float32)
