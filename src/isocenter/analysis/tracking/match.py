"""Which lesion of one visit is which of the next: one assignment for all of them together.

Every pair costs its distance and its difference in size and appearance, in squares of what is usual (a negative log
likelihood); a lesion that has no partner costs a fixed sum, which is the gate. Assigning all at once (Kuhn, Nav Res Logist
Q 2:83, 1955) does not give a lesion away that another one needs more. What positions share, a patient who lies differently
or an organ that moved, is sought as one common shift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.core.geometry import Triple

#: Usual differences between two visits: log of a diameter (growth and error together), and 1 - cosine of appearances.
SIZE_SD, APPEARANCE_SD = 0.4, 0.3
#: The gate: a pair that is likely worse than this is none. 3 sd in distance and size each.
GATE = 18.0
#: Lesions further apart than this are not the same, whatever else they share.
FARTHEST_MM = 60.0


@dataclass(frozen=True)
class Located:
    """A lesion as matching sees it. position: LPS mm, of the earlier visit carried into the later one's scan.

    radius_mm: how far it reaches, for lesions that split or merge. appearance: a vector of any length, the same for all.
    """

    id: str
    position: Triple
    longest_mm: float | None = None
    short_axis_mm: float | None = None
    radius_mm: float | None = None
    appearance: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Link:
    """Two lesions taken for the same. confidence: 0..1, against the best answer without this link. by_user: not computed."""

    before: str
    after: str
    confidence: float
    distance_mm: float
    by_user: bool = False


@dataclass(frozen=True)
class Matches:
    """Links, and what is left on either side. shift_mm: what all positions were taken to have moved by."""

    links: tuple[Link, ...]
    disappeared: tuple[str, ...]
    appeared: tuple[str, ...]
    splits: tuple[Link, ...]
    merges: tuple[Link, ...]
    shift_mm: Triple


def match(
    before: Sequence[Located],
    after: Sequence[Located],
    *,
    position_sd_mm: float = 5.0,
    shift_sd_mm: float = 0.0,
    links: Sequence[tuple[str, str]] = (),
    never: Sequence[tuple[str, str]] = (),
    splits: Mapping[str, Sequence[str]] | None = None,
    merges: Mapping[str, Sequence[str]] | None = None,
) -> Matches:
    """Match the lesions of two visits.

    position_sd_mm: usual error of a carried position: of the registration, or, without one, of how far lesions lie apart
    once the common shift is taken out. shift_sd_mm: how far all may have moved together; 0 for visits that are registered,
    some 50 where they are not. links, never: pairs (before, after) that a person has decided. splits: by lesion of `before`, all that a
    person says it became; merges: by lesion of `after`, all that a person says it came from. Either goes on as its largest part, unless
    `links` says as which.
    """
    splits, merges = splits or {}, merges or {}
    fixed = {**_onward(splits, after, dict(links)), **{b: a for a, b in _onward(merges, before, {b: a for a, b in links}).items()}, **dict(links)}
    parts = {child for parent, children in splits.items() for child in children if fixed.get(parent) != child}
    melted = {child for whole, children in merges.items() for child in children if fixed.get(child) != whole}
    cost, shift = _costs(before, after, position_sd_mm, shift_sd_mm)
    apart = set(never)
    for i, a in enumerate(before):
        for j, b in enumerate(after):
            elsewhere = a.id in melted or b.id in parts or (a.id, b.id) in apart
            if elsewhere or (fixed.get(a.id, b.id) != b.id) or (b.id in fixed.values() and fixed.get(a.id) != b.id):
                cost[i, j] = np.inf
            elif fixed.get(a.id) == b.id:
                cost[i, j] = -1e6
    pairs, total = _assign(cost)
    found = []
    moved = {a.id: np.array(a.position) + shift for a in before}
    for i, j in pairs:
        distance = float(np.linalg.norm(moved[before[i].id] - np.array(after[j].position)))
        by_user = fixed.get(before[i].id) == after[j].id
        found.append(Link(before[i].id, after[j].id, 1.0 if by_user else _confidence(cost, i, j, total), distance, by_user))
    used_before, used_after = {k.before for k in found}, {k.after for k in found}
    left_before = [a for a in before if a.id not in used_before | melted]
    left_after = [b for b in after if b.id not in used_after | parts]
    here = {b.id: np.array(b.position) for b in after}
    # What a person says of a lesion's parts is all there is of them.
    parted = _within(left_after, here, [a for a in before if a.id in used_before - set(splits)], moved, {(b, a) for a, b in never})
    joined = _within(left_before, moved, [b for b in after if b.id in used_after - set(merges)], here, set(never))

    def said(first: str, second: str) -> Link:
        return Link(first, second, 1.0, float(np.linalg.norm(moved[first] - here[second])), by_user=True)

    split = (
        *(said(parent, child) for parent, children in splits.items() for child in children if child in parts),
        *(Link(parent, child, confidence, distance) for child, parent, confidence, distance in parted),
    )
    merged = (
        *(said(child, whole) for whole, children in merges.items() for child in children if child in melted),
        *(Link(child, parent, confidence, distance) for child, parent, confidence, distance in joined),
    )
    return Matches(
        tuple(sorted(found, key=lambda k: k.before)),
        tuple(a.id for a in left_before if a.id not in {m.before for m in merged}),
        tuple(b.id for b in left_after if b.id not in {s.after for s in split}),
        split,
        merged,
        (float(shift[0]), float(shift[1]), float(shift[2])),
    )


def _onward(wholes: Mapping[str, Sequence[str]], parts: Sequence[Located], links: Mapping[str, str]) -> dict[str, str]:
    """As which of its parts each whole goes on: the one it is linked to, else the largest."""
    by_name = {p.id: p for p in parts}

    def size(name: str) -> float:
        return by_name[name].longest_mm or by_name[name].radius_mm or 0.0

    return {whole: links[whole] if links.get(whole) in names else max(names, key=size) for whole, names in wholes.items()}


def _costs(
    before: Sequence[Located], after: Sequence[Located], position_sd: float, shift_sd: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(before, after) costs at the common shift that lets them be assigned best."""
    there = np.array([a.position for a in before], dtype=np.float64).reshape(-1, 3)
    here = np.array([b.position for b in after], dtype=np.float64).reshape(-1, 3)
    alike = np.array([[_difference(a, b) for b in after] for a in before], dtype=np.float64).reshape(len(before), len(after))
    apart = here[None] - there[:, None]

    def at(shift: NDArray[np.float64]) -> NDArray[np.float64]:
        distance = np.linalg.norm(apart - shift, axis=2)
        cost = (distance / position_sd) ** 2 + alike
        cost[distance > FARTHEST_MM] = np.inf
        return np.asarray(cost)

    none = np.zeros(3)
    if shift_sd <= 0 or not apart.size:
        return at(none), none
    # Each pair that could be one proposes the shift that would lay it exactly; a shift that several share pays for itself.
    shifts = [none, *(apart[i, j] for i in range(len(before)) for j in range(len(after)))]
    totals = [_assign(at(shift))[1] + float((shift / shift_sd) @ (shift / shift_sd)) for shift in shifts]
    best = shifts[int(np.argmin(totals))]
    pairs, _ = _assign(at(best))
    if pairs:
        best = np.mean([apart[i, j] for i, j in pairs], axis=0)
    return at(best), best


def _difference(a: Located, b: Located) -> float:
    """How unlike two lesions are, apart from their places; what is not known of both costs nothing."""
    total = 0.0
    for x, y in ((a.longest_mm, b.longest_mm), (a.short_axis_mm, b.short_axis_mm)):
        if x and y:
            total += (math.log(y / x) / SIZE_SD) ** 2 / 2
    if a.appearance is not None and b.appearance is not None and len(a.appearance) == len(b.appearance):
        x_, y_ = np.array(a.appearance), np.array(b.appearance)
        norm = float(np.linalg.norm(x_) * np.linalg.norm(y_))
        total += ((1 - float(x_ @ y_) / norm) / APPEARANCE_SD) ** 2 if norm > 0 else 0.0
    return total


def _assign(cost: NDArray[np.float64]) -> tuple[list[tuple[int, int]], float]:
    """Pairs and the total, where being left alone costs half a gate on either side."""
    from scipy.optimize import linear_sum_assignment

    n, m = cost.shape
    table = np.zeros((n + m, n + m))
    table[:n, :m] = np.where(np.isfinite(cost), cost, 1e9)
    table[:n, m:] = np.where(np.eye(n, dtype=bool), GATE / 2, 1e9)
    table[n:, :m] = np.where(np.eye(m, dtype=bool), GATE / 2, 1e9)
    rows, columns = linear_sum_assignment(table)
    pairs = [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if i < n and j < m]
    return pairs, float(table[rows, columns].sum())


def _confidence(cost: NDArray[np.float64], i: int, j: int, total: float) -> float:
    """How much likelier the answer is with this link than the best without it."""
    without = cost.copy()
    without[i, j] = np.inf
    return 1 / (1 + math.exp(-min((_assign(without)[1] - total) / 2, 50)))


def _within(
    left: Sequence[Located],
    places: Mapping[str, NDArray[np.float64]],
    parents: Sequence[Located],
    parent_places: Mapping[str, NDArray[np.float64]],
    never: set[tuple[str, str]],
) -> list[tuple[str, str, float, float]]:
    """(left, parent, confidence, distance): lesions without a partner that lie inside of what another one reaches over."""
    found = []
    for lesion in left:
        near = [
            (float(np.linalg.norm(parent_places[p.id] - places[lesion.id])), p) for p in parents if p.radius_mm and (lesion.id, p.id) not in never
        ]
        if near:
            distance, parent = min(near, key=lambda pair: pair[0] / (pair[1].radius_mm or 1))
            reach = parent.radius_mm or 0.0
            if distance <= 1.25 * reach:
                found.append((lesion.id, parent.id, max(0.5, 1 - distance / (2.5 * reach)), distance))
    return found
