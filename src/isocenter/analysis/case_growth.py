"""How a case's lesions grow: each track, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from isocenter.analysis.growth.absence import explained, unexplained, unseen_yet
from isocenter.analysis.growth.fit import Growth, effects
from isocenter.analysis.growth.forecast import BROAD, Forecast, Population, forecast
from isocenter.analysis.growth.scenarios import DEFAULTS, Scenario, simulate
from isocenter.analysis.growth.series import Series
from isocenter.analysis.growth.therapy import Therapy
from isocenter.analysis.tracking.graph import LesionGraph, merged_into, split_off
from isocenter.analysis.uncertainty import Uncertainty, relative_volume_sd
from isocenter.core.errors import UsageError
from isocenter.core.patient import Lesion, TherapyEvent

#: All lesions together.
TOTAL = "total"
#: How far ahead a forecast looks, as a share of the time that was followed, and at most.
_AHEAD, _AHEAD_DAYS = 0.5, 365.0


@dataclass(frozen=True, eq=False)
class TrackGrowth:
    """Growth of one lesion, or of all together ("total"). Each part is None with its reason where it cannot be had.

    unexplained: it was not seen at visits at which growth and treatments would have it there.
    """

    track: str
    days: tuple[float, ...]
    volumes_mm3: tuple[float | None, ...]
    growth: Growth | None
    forecast: Forecast | None
    scenarios: tuple[Scenario, ...] = ()
    reasons: tuple[str, ...] = ()
    unexplained: bool = False


def grow(
    visits: Sequence[tuple[float, Sequence[Lesion]]],
    tracks: Iterable[str],
    courses: Sequence[TherapyEvent],
    population: Population = BROAD,
    scenarios: Sequence[str] = DEFAULTS,
    *,
    graph: LesionGraph | None = None,
) -> tuple[TrackGrowth, ...]:
    """Growth of all lesions together, with scenarios, then of each track. visits: day and lesions of every visit with a scan.

    graph: says which tracks split and merged. A track counts with what split off from it and what grew into it; a part is not
    absent while it belongs to another track, its volume is not known.
    """
    everything = grow_one(visits, TOTAL, courses, population, scenarios, graph=graph)
    return (everything, *(grow_one(visits, track, courses, population, (), graph=graph) for track in tracks))


def grow_one(
    visits: Sequence[tuple[float, Sequence[Lesion]]],
    track: str,
    courses: Sequence[TherapyEvent],
    population: Population = BROAD,
    scenarios: Sequence[str] = (),
    *,
    graph: LesionGraph | None = None,
) -> TrackGrowth:
    """Growth of one track, or of all lesions together (`TOTAL`), see `grow`. What was missed of one lesion is not known of the whole either."""
    therapies = tuple(
        Therapy(t.therapy_type, t.start_day, math.inf if t.end_day is None else t.end_day, t.dose, t.onset_days, t.decay_per_day) for t in courses
    )
    days = tuple(day for day, _ in visits)
    rows = [list(lesions) for _, lesions in visits]
    away: list[bool] = [False] * len(rows)
    notes: tuple[str, ...] = ()
    if track != TOTAL:
        whole, rows, away = _with_relatives(track, rows, graph)
        notes = (f"its volume counts {', '.join(whole)}: one lesion with it at some visits",) if whole else ()
    volumes = tuple(None if apart else _volume(row) for row, apart in zip(rows, away, strict=True))
    if track == TOTAL and (missed := _missed(visits, courses, population, graph)):
        return TrackGrowth(TOTAL, days, volumes, None, None, reasons=missed, unexplained=True)
    found = _track(track, days, volumes, tuple(map(_error_of_all, rows)), therapies, population, tuple(scenarios))
    return replace(found, reasons=(*notes, *found.reasons)) if notes else found


def _missed(
    visits: Sequence[tuple[float, Sequence[Lesion]]], courses: Sequence[TherapyEvent], population: Population, graph: LesionGraph | None
) -> tuple[str, ...]:
    """Of each track that was not seen at some visit after its first, though nothing explains that: the reason, with its name."""
    rows = [list(lesions) for _, lesions in visits]
    told = []
    for track in dict.fromkeys(k.track for row in rows for k in row):
        _, own, away = _with_relatives(track, rows, graph)
        first = next(n for n, row in enumerate(own) if row)
        if any(not row and not apart for row, apart in zip(own[first:], away[first:], strict=True)):
            found = grow_one(visits, track, courses, population, graph=graph)
            told += [f"{track}: {found.reasons[-1]}"] if found.unexplained else []
    return tuple(told)


def _with_relatives(track: str, rows: Sequence[Sequence[Lesion]], graph: LesionGraph | None) -> tuple[list[str], list[list[Lesion]], list[bool]]:
    """Tracks that count with this one, the lesions that are it by visit, and whether it is a part of another one there."""
    parts, into = (split_off(graph), merged_into(graph)) if graph is not None else ({}, {})
    first = {k.track: n for n, row in reversed(list(enumerate(rows))) for k in row}
    # What happens after these visits is not known at them: a merger is seen when a part is gone, a split when both are there.
    last = {k.track: n for n, row in enumerate(rows) for k in row}
    merged = [t for t, whole in into.items() if whole == track and last.get(t, len(rows)) < last.get(track, -1)]
    own = {track, *(t for t in parts.get(track, ()) if t in first), *merged}
    of = {parent for parent, pieces in parts.items() if track in pieces}
    lesions = [[k for k in row if k.track in own] for row in rows]
    away = []
    for n, row in enumerate(lesions):
        before_split = bool(of) and n < first.get(track, 0)
        after_merger = track in into and n > last.get(track, len(rows))
        away.append(not row and (before_split or after_merger))
    return sorted(own - {track}), lesions, away


def _volume(lesions: Sequence[Lesion]) -> float | None:
    """The volume of lesions together: 0 where there are none, None where one's is not known."""
    known = [lesion.volume_mm3 for lesion in lesions if lesion.volume_mm3 is not None]
    return sum(known) if len(known) == len(lesions) else None


def _error_of_all(lesions: Sequence[Lesion]) -> float | None:
    """Relative error of that volume, errors of lesions added in squares; None where there is none, or one's is not known."""
    parts = [(lesion.volume_mm3 or 0.0, _error(lesion)) for lesion in lesions]
    total = sum(volume for volume, _ in parts)
    if total <= 0 or any(error is None for _, error in parts):
        return None
    return math.sqrt(sum((volume * (error or 0.0)) ** 2 for volume, error in parts)) / total


def _error(lesion: Lesion) -> float | None:
    """Relative error of a lesion's volume."""
    if not lesion.volume_mm3 or lesion.sd_mm is None:
        return None
    return min(relative_volume_sd(lesion.volume_mm3, Uncertainty(0.0, 0.0, lesion.sd_mm)), 0.5)


@lru_cache(maxsize=256)
def _track(
    track: str,
    days: tuple[float, ...],
    volumes: tuple[float | None, ...],
    errors: tuple[float | None, ...],
    therapies: tuple[Therapy, ...],
    population: Population,
    scenarios: tuple[str, ...],
) -> TrackGrowth:
    """One track, or the whole. Kept: a correction of one lesion leaves the others' growth as it was."""
    empty = TrackGrowth(track, days, volumes, None, None)
    try:
        series = Series.of(days, volumes, errors)
    except UsageError as error:
        return replace(empty, reasons=(error.message,))
    growth, why = explained(series, therapies)
    if growth is None:
        return replace(empty, reasons=(why,), unexplained=True)
    series, end = growth.series, float(growth.series.days[-1])
    reasons = [f"{e.kind}: {e.reason}" for e in effects(growth) if not e.identifiable] if therapies else []
    if series.absent[-1]:
        return replace(empty, growth=growth, reasons=(*reasons, "gone at the last visit: nothing to forecast"))
    reach = min(_AHEAD * (end - series.days[0]), _AHEAD_DAYS)
    ahead = np.linspace(end, end + reach, 13)[1:]
    rates = {kind: growth.best.parameters[f"effect:{kind}"] for kind in growth.kinds}
    path = None
    for visits in (series, *((unseen_yet(series),) if series.absent[0] else ())):
        try:
            path = forecast(visits, ahead, population=population, therapies=therapies, effects_per_day=rates)
            break
        except UsageError:
            continue
    if path is None and growth.best.aicc is None:
        return replace(empty, reasons=(unexplained(series),), unexplained=True)
    if path is None:
        reasons.append("no forecast: it was not seen at some visits, which treatments and growth at a usual rate do not explain")
    whole = np.linspace(series.days[0], end + reach, 61)
    ran = tuple(simulate(growth, name, whole) for name in (scenarios if therapies else ("as_given",))) if scenarios else ()
    return TrackGrowth(track, days, volumes, growth, path, ran, tuple(reasons))
