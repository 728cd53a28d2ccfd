"""How a case's lesions grow: each track, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from isocenter.analysis.growth.fit import Growth, effects, fit_growth
from isocenter.analysis.growth.forecast import BROAD, Forecast, Population, forecast
from isocenter.analysis.growth.scenarios import DEFAULTS, Scenario, simulate
from isocenter.analysis.growth.series import Series
from isocenter.analysis.growth.therapy import Therapy
from isocenter.analysis.uncertainty import Uncertainty, relative_volume_sd
from isocenter.core.errors import UsageError
from isocenter.core.patient import Lesion, TherapyEvent

#: How far ahead a forecast looks, as a share of the time that was followed, and at most.
_AHEAD, _AHEAD_DAYS = 0.5, 365.0


@dataclass(frozen=True, eq=False)
class TrackGrowth:
    """Growth of one lesion, or of all together ("total"). Each part is None with its reason where it cannot be had."""

    track: str
    days: tuple[float, ...]
    volumes_mm3: tuple[float | None, ...]
    growth: Growth | None
    forecast: Forecast | None
    scenarios: tuple[Scenario, ...] = ()
    reasons: tuple[str, ...] = ()


def grow(
    visits: Sequence[tuple[float, Sequence[Lesion]]],
    tracks: Iterable[str],
    courses: Sequence[TherapyEvent],
    population: Population = BROAD,
    scenarios: Sequence[str] = DEFAULTS,
) -> tuple[TrackGrowth, ...]:
    """Growth of all lesions together, with scenarios, then of each track. visits: day and lesions of every visit with a scan."""
    therapies = tuple(
        Therapy(t.therapy_type, t.start_day, math.inf if t.end_day is None else t.end_day, t.dose, t.onset_days, t.decay_per_day) for t in courses
    )
    days = tuple(day for day, _ in visits)
    rows: dict[str, list[list[Lesion]]] = {"total": [list(lesions) for _, lesions in visits]}
    rows |= {track: [[lesion for lesion in lesions if lesion.track == track] for _, lesions in visits] for track in tracks}
    answers = []
    for track, seen in rows.items():
        volumes = tuple(sum(lesion.volume_mm3 or 0.0 for lesion in row) for row in seen)
        errors = tuple(max((e for e in map(_error, row) if e is not None), default=None) for row in seen)
        answers.append(_track(track, days, volumes, errors, therapies, population, tuple(scenarios) if track == "total" else ()))
    return tuple(answers)


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
    growth = fit_growth(series, therapies)
    reasons = [f"{e.kind}: {e.reason}" for e in effects(growth) if not e.identifiable] if therapies else []
    end = series.days[-1]
    if volumes[-1] == 0:
        return replace(empty, growth=growth, reasons=(*reasons, "gone at the last visit: nothing to forecast"))
    reach = min(_AHEAD * (end - series.days[0]), _AHEAD_DAYS)
    ahead = np.linspace(end, end + reach, 13)[1:]
    rates = {kind: growth.best.parameters[f"effect:{kind}"] for kind in growth.kinds}
    path = forecast(series, ahead, population=population, therapies=therapies, effects_per_day=rates)
    whole = np.linspace(series.days[0], end + reach, 61)
    ran = tuple(simulate(growth, name, whole) for name in (scenarios if therapies else ("as_given",))) if scenarios else ()
    return TrackGrowth(track, days, volumes, growth, path, ran, tuple(reasons))
