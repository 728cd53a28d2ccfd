"""From a prompt to an edit of the belief: which part of the volume is looked at, how finely, and what is written back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isocenter.core.prompts import Box
from isocenter.models._geodesic import boxed, kernels
from isocenter.models._geodesic.prepared import Index, Prepared
from isocenter.models._geodesic.regions import LEAST, REACH, Click, Family, families, score, vote
from isocenter.models._geodesic.voxels import Study, Table, clear_cut, decide, study, tables
from isocenter.models._geodesic.window import BOUND, F32, HALF, Anchor, Window, cut, make_box, to_logit

FIRST, LATER = 220_000, 200_000
"""Working voxels in a window, at most: for the first prompt, and for corrections."""
CLEARLY = 3.0
"""A coarser look at a first prompt is believed when its best region scores higher than the finer one's by this much,
or when the finer answer is cut off by its window."""
ENOUGH = 0.2
"""A window that holds this part of the volume is wide enough for any first answer."""
EDGE = 0.02
"""Logit of a voxel that is kept where it was against its belief."""
MARGIN = 5
"""Working voxels that a window holds beyond what may change."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of the belief inside a box, and the anchors to remember.

    belief: its new values there; or logit: those of working voxels (stride full-resolution voxels each) that begin at the
    box's corner, of which the live ones are written, adding only (sign 1), taking away only (-1) or both (0).
    """

    box: Box
    belief: NDArray[np.uint8] | None = None
    anchors: list[Anchor] = field(default_factory=list)
    logit: F32 | None = None
    live: NDArray[np.bool_] | None = None
    stride: Index = (1, 1, 1)
    sign: int = 0

    def apply(self, belief: NDArray[np.uint8]) -> None:
        """Write it into the belief of the volume."""
        if self.belief is not None:
            belief[self.box.slices] = self.belief
        elif self.logit is not None and self.live is not None:
            kernels.enlarge(self.logit, self.live.view(np.uint8), np.array(self.stride), np.array(self.box.lo), self.sign, belief)


def from_voxels(prepared: Prepared, belief: NDArray[np.uint8], anchors: list[Anchor], voxels: NDArray[np.intp], positive: bool) -> Edit:
    """The answer to a point, a line or a filled outline."""
    made = examine(prepared, belief, anchors, voxels, positive, tables())
    if made is None:
        box = make_box(voxels.min(axis=0), voxels.max(axis=0) + 1)
        return Edit(box, anchors=[Anchor(voxels, positive)])
    table = tables()[made.click.kind]
    logit = decide(made, table)
    return write(made, belief.shape, voxels, clear_cut(made, table, logit) if made.click.first else logit)


def examine(
    prepared: Prepared, belief: NDArray[np.uint8], anchors: list[Anchor], voxels: NDArray[np.intp], positive: bool, table: dict[str, Table]
) -> Study | None:
    """Look at a prompt, at the finest resolution that shows all of the answer; None when it asks for nothing new."""
    z, y, x = voxels.T
    wrong = voxels[(belief[z, y, x] >= HALF) != positive]
    first = not any(a.positive for a in anchors) and not belief[z.min() : z.max() + 1].any() and not belief.any()
    if len(wrong) == 0 or (first and not positive):
        return None
    if first:
        seen = views(prepared, belief, anchors, wrong)
        best = [float(score(found, *table["first"].region).max()) for _, found in seen]
        chosen = 0
        for level in range(1, len(seen)):
            click, found = seen[chosen]
            cut_off = click.window.faces(vote(found, *table["first"].region) > 0.5)
            if cut_off or best[level] > best[chosen] + CLEARLY:
                chosen = level
        click, found = seen[chosen]
        return study(click, anchors, table["first"], found)
    room = _room(prepared, belief, wrong, positive)
    level = next((n for n in range(len(prepared.levels)) if _fits(prepared, n, wrong, room)), len(prepared.levels) - 1)
    window = _around(prepared, belief, level, wrong, LATER, room)
    click = _click(window, anchors, window.local(wrong), positive, False)
    return study(click, anchors, table[click.kind])


def views(prepared: Prepared, belief: NDArray[np.uint8], anchors: list[Anchor], voxels: NDArray[np.intp]) -> list[tuple[Click, list[Family]]]:
    """The nested regions around a first prompt, finest resolution first, until a window holds a good part of the volume."""
    extent = voxels.max(axis=0) - voxels.min(axis=0) + 1
    out = []
    for level, at in enumerate(prepared.levels):
        if np.prod(extent / at.stride) > FIRST / 4 and level + 1 < len(prepared.levels):
            continue
        window = _around(prepared, belief, level, voxels, FIRST, 0.0)
        click = _click(window, anchors, window.local(voxels), True, True)
        out.append((click, families(click)))
        if window.fine.size > ENOUGH * np.prod(at.shape):
            break
    return out


def write(made: Study, shape: tuple[int, ...], voxels: NDArray[np.intp], logit: F32) -> Edit:
    """Bring the decision on the live voxels (`logit`) to full resolution; shape: of the volume.

    A positive prompt only adds to the mask and a negative one only takes away, whatever the beliefs say: what earlier
    prompts won is never lost by the way. (It also gives the better masks.)
    """
    window, positive = made.click.window, made.click.positive
    fresh = np.clip(logit, -BOUND, BOUND)
    if not made.click.first:
        held = window.mask[made.live]
        fresh = np.where(held == positive, np.maximum(fresh, EDGE) if positive else np.minimum(fresh, -EDGE), fresh)
    whole = to_logit(window.belief)
    whole[made.live] = fresh
    changed = int(((whole > 0) != window.mask).sum())
    won = min(made.room, window.radius(max(changed, 1))) * window.unit
    part = _tight(made.live)
    stride = window.prepared.levels[window.level].stride
    lo = (np.array(window.lo) + [s.start for s in part]) * stride
    hi = np.minimum((np.array(window.lo) + [s.stop for s in part]) * stride, shape)
    sign = 0 if made.click.first or window.level == 0 else 1 if positive else -1
    logit, live = np.ascontiguousarray(whole[part]), np.ascontiguousarray(made.live[part])
    return Edit(make_box(lo, hi), None, [Anchor(voxels, positive, won)], logit, live, stride, sign)


def _tight(live: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """The smallest box around what is true, widened by a voxel to interpolate from; all, where nothing is."""
    if not live.any():
        return slice(None), slice(None), slice(None)
    out = []
    for axis in range(3):
        where = np.flatnonzero(live.any(axis=tuple(a for a in range(3) if a != axis)))
        out.append(slice(max(int(where[0]) - 1, 0), min(int(where[-1]) + 2, live.shape[axis])))
    return out[0], out[1], out[2]


def from_box(prepared: Prepared, belief: NDArray[np.uint8], anchors: list[Anchor], box: Box) -> Edit:
    """A positive box: the structure that it is drawn around, nothing beyond it. A negative one: nothing inside of it.

    A box of one slice binds that slice; the slices beside it are open within the box's outline, as far as half its size.
    """
    lo, hi = np.array(box.lo), np.array(box.hi)
    middle = (lo + hi)[None] // 2
    if not box.positive:
        return Edit(box, np.zeros_like(belief[box.slices]), [Anchor(middle, False, box=box)])
    thin = (hi - lo == 1) & (np.array(belief.shape) > 1)
    spacing = np.array(prepared.volume.spacing_zyx)
    depth = np.where(thin, np.ceil(0.5 * (spacing * (hi - lo))[~thin].mean() / spacing) if not thin.all() else 1, 0).astype(int)
    drawn = int(lo[0])
    lo, hi = np.maximum(lo - depth, 0), np.minimum(hi + depth, belief.shape)
    level = 0
    while level + 1 < len(prepared.levels) and np.prod((hi - lo) / prepared.levels[level].stride) > FIRST / 2:
        level += 1
    stride = np.array(prepared.levels[level].stride)
    window = cut(prepared, belief, level, np.maximum(lo - MARGIN * stride, 0), np.minimum(hi + MARGIN * stride, belief.shape))
    first, last = lo // stride, -(-hi // stride)  # working voxels, rounded outwards
    z, y, x = (slice(int(a - o), int(b - o)) for a, b, o in zip(first, last, window.lo, strict=True))
    free = np.ones(window.shape, np.bool_)
    for anchor in (a for a in anchors if not a.positive):  # what earlier prompts took away stays away
        if anchor.box is not None:
            free[window.inner(anchor.box)] = False
        fixed = window.local(anchor.voxels)
        if len(fixed):
            free &= window.near(fixed, 1e3) > anchor.radius / window.unit + 0.01
    found = boxed.part(window, (z, y, x), free, int(drawn // stride[0] - window.lo[0]) if thin[0] else None)
    if found is None:
        return Edit(box)
    working = make_box(first * stride, np.minimum(last * stride, belief.shape))
    values = belief[working.slices].copy()
    live = np.ones(found.logit[z, y, x].shape, np.uint8)
    kernels.enlarge(np.ascontiguousarray(found.logit[z, y, x]), live, stride, np.zeros(3, np.int64), 1, values)
    core = (_middle(np.argwhere(found.mask)) + window.lo) * stride + stride // 2
    won = window.radius(max(int((found.mask & ~window.mask).sum()), 1)) * window.unit
    bound = make_box(lo, hi)
    a, b, c = (slice(p - o, q - o) for p, q, o in zip(bound.lo, bound.hi, working.lo, strict=True))
    return Edit(bound, values[a, b, c], [Anchor(np.clip(core, lo, hi - 1)[None], True, won, hold=False)])


def _middle(voxels: NDArray[np.int64] | NDArray[np.intp]) -> NDArray[np.int64]:
    """The voxel of a set that lies nearest to its mean."""
    offsets = voxels - voxels.mean(axis=0)
    nearest = int(np.argmin((offsets**2).sum(axis=1)))
    return np.array(voxels[nearest], np.int64)


def _room(prepared: Prepared, belief: NDArray[np.uint8], voxels: NDArray[np.intp], positive: bool) -> float:
    """Distance (mm) from the middle of a prompt to the nearest voxel that is already as asked for, in growing cubes."""
    centre = _middle(voxels)
    spacing = np.array(prepared.volume.spacing_zyx)
    fine = float(spacing[np.array(belief.shape) > 1].min())
    reach = 8.0 * fine
    while True:
        half = np.ceil(reach / spacing).astype(int)
        lo, hi = np.maximum(centre - half, 0), np.minimum(centre + half + 1, belief.shape)
        part = belief[lo[0] : hi[0], lo[1] : hi[1], lo[2] : hi[2]]
        step = max(1, round((part.size / 100_000) ** (1 / 3)))
        found = np.argwhere((part[::step, ::step, ::step] >= HALF) == positive) * step + lo
        distance = float(np.sqrt((((found - centre) * spacing) ** 2).sum(axis=1).min())) if len(found) else np.inf
        if distance <= reach or np.all(hi - lo == belief.shape):
            return distance if np.isfinite(distance) else float(reach)
        reach *= 2


def _extent(prepared: Prepared, level: int, room: float) -> NDArray[np.float64]:
    """Half the size (working voxels) of the window that a correction with this much room needs."""
    spacing = np.array(prepared.levels[level].spacing)
    fine = float(spacing[np.array(prepared.volume.shape) > 1].min())
    return np.asarray(max(REACH * room, LEAST * fine) / spacing + MARGIN, np.float64)


def _fits(prepared: Prepared, level: int, voxels: NDArray[np.intp], room: float) -> bool:
    """Whether the window of a correction stays within its budget at this resolution."""
    at = prepared.levels[level]
    lo = voxels.min(axis=0) / at.stride - _extent(prepared, level, room)
    hi = voxels.max(axis=0) / at.stride + _extent(prepared, level, room)
    size = np.minimum(hi, at.shape) - np.maximum(lo, 0)
    return float(np.prod(size)) <= LATER


def _around(prepared: Prepared, belief: NDArray[np.uint8], level: int, voxels: NDArray[np.intp], budget: int, room: float) -> Window:
    """The largest window around a prompt within the budget (first prompt), or as large as it needs (corrections)."""
    at = prepared.levels[level]
    stride, shape = np.array(at.stride), np.array(at.shape)
    first, last = voxels.min(axis=0) // stride, voxels.max(axis=0) // stride + 1
    if room > 0:
        half = _extent(prepared, level, room)
        lo, hi = np.maximum(first - half, 0), np.minimum(last + half, shape)
        if np.prod(hi - lo) <= max(budget, LATER) * 1.5:
            return cut(prepared, belief, level, lo.astype(np.intp) * stride, np.ceil(hi).astype(np.intp) * stride)
    spacing = np.array(at.spacing)
    reach = 1.0
    lo, hi = first.astype(float), last.astype(float)
    while True:  # grow the same number of mm to all sides until the budget is spent or the volume ends
        grown_lo = np.maximum(np.floor(first - reach / spacing), 0)
        grown_hi = np.minimum(np.ceil(last + reach / spacing), shape)
        if np.prod(grown_hi - grown_lo) > budget:
            break
        lo, hi = grown_lo, grown_hi
        if np.all(lo == 0) and np.all(hi == shape):
            break
        reach += float(spacing.min())
    return cut(prepared, belief, level, lo.astype(np.intp) * stride, hi.astype(np.intp) * stride)


def _click(window: Window, anchors: list[Anchor], seeds: NDArray[np.int64], positive: bool, first: bool) -> Click:
    """The prompt in the window's voxels, and what it may not change: what is as asked for, and opposite prompts."""
    centre = _middle(seeds)
    settled = window.mask if positive else ~window.mask
    points = np.argwhere(settled)
    room = 1e3
    if not first and len(points):
        room = max(float(np.sqrt((((points - centre) * window.steps) ** 2).sum(axis=1).min())), 0.5)
    closed = settled.copy()
    for anchor in anchors:
        if anchor.positive == positive:
            continue
        if anchor.box is not None:
            closed[window.inner(anchor.box)] = True
        fixed = window.local(anchor.voxels)
        if len(fixed):
            apart = float(np.sqrt((((fixed - centre) * window.steps) ** 2).sum(axis=1).min()))
            closed |= window.near(fixed, 1e3) <= min(0.5 * apart, 0.7 * anchor.radius / window.unit) + 0.01
    z, y, x = seeds.T
    closed[z, y, x] = False
    return Click(window, positive, first, seeds, centre, closed.view(np.uint8), room)
