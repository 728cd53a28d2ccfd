"""What if: the same lesion under another treatment, by the names that such scenarios have.

| name | what is given |
|---|---|
| `as_given` | what was given |
| `natural_history` | nothing |
| `earlier_treatment_{w}w`, `later_treatment_{w}w` | every course, w weeks earlier or later |
| `regimen_switch_effect_{x}` | from the last visit on, x times the effect |
| `treatment_holiday_{a}-{b}w` | nothing from week a to week b after the first course begins |
| `resistance_onset_{w}w` | from w weeks after each course begins, half the effect is lost every four weeks |
| `dose_escalation`, `dose_escalation_{x}x_{w}w` | 1.5 (x) times the dose from week 6 (w) after the first course begins |
| `combination_therapy`, `combination_therapy_{x}` | with each course a second agent with 1 (x) times its effect; kill rates add up |

Every scenario runs over the same draws of the same fits, so that two differ by the treatment alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.growth.fit import Effect, Growth, effects
from isocenter.analysis.growth.therapy import Therapy
from isocenter.core.errors import UsageError

Floats = NDArray[np.float64]
WEEK = 7.0
#: Half of the effect is lost in so many days once resistance sets in.
RESISTANCE_HALF_DAYS = 28.0
DEFAULTS = (
    "as_given",
    "natural_history",
    "earlier_treatment_2w",
    "later_treatment_2w",
    "regimen_switch_effect_0.75",
    "treatment_holiday_4-8w",
    "resistance_onset_8w",
    "dose_escalation",
    "combination_therapy",
)


@dataclass(frozen=True, eq=False)
class Scenario:
    """One scenario's curve. low_mm3, high_mm3: the interval of `level`. effects: what is known of the treatments' effects.

    notes: why it may say nothing (no treatment to change, an effect that the visits do not show).
    """

    name: str
    days: Floats
    median_mm3: Floats
    low_mm3: Floats
    high_mm3: Floats
    level: float
    therapies: tuple[Therapy, ...]
    effects: tuple[Effect, ...]
    notes: tuple[str, ...]


def simulate(growth: Growth, name: str, days: Sequence[float] | Floats, *, level: float = 0.8, draws: int = 400) -> Scenario:
    """The volume at `days` under a scenario. Raises `UsageError` for a name that is none, and numbers out of range."""
    therapies, notes = plan(name, growth.therapies, growth.series.days[-1])
    known = tuple(effects(growth)) if growth.therapies else ()
    notes += tuple(f"{e.kind}: {e.reason}" for e in known if not e.identifiable)
    median, low, high = growth.predict(days, therapies, draws=draws, level=level)
    return Scenario(name, np.asarray(days, dtype=np.float64), median, low, high, level, therapies, known, (*growth.notes, *notes))


def plan(name: str, given: Sequence[Therapy], now: float) -> tuple[tuple[Therapy, ...], tuple[str, ...]]:
    """(therapies, notes) of a scenario: what is given instead of `given`. now: day of the last visit."""
    for pattern, change in _PATTERNS:
        if found := re.fullmatch(pattern, name):
            numbers = [float(n) for n in found.groups() if n is not None]
            if not given and name not in ("as_given", "natural_history"):
                return (), ("there is no treatment to change",)
            return tuple(change(tuple(given), numbers, now)), ()
    raise UsageError(f"no scenario is called '{name[:60]}'; there are {', '.join(DEFAULTS)}, with other numbers too")


def split(therapy: Therapy, day: float) -> tuple[list[Therapy], list[Therapy]]:
    """A course until `day`, and from then on as if it had never been cut: its onset and decay go on from where they were."""
    if day <= therapy.start:
        return [], [therapy]
    if day >= therapy.end:
        return [therapy], []
    since = day - therapy.start
    dose = therapy.dose * math.exp(-therapy.decay_per_day * since)
    rest = replace(therapy, start=day, dose=dose)
    if therapy.onset_days <= 0:
        return [replace(therapy, end=day)], [rest]
    # 1 - exp(-(a + s) / o) = (1 - A) + A (1 - exp(-s / o)) with A = exp(-a / o).
    share = math.exp(-since / therapy.onset_days)
    return [replace(therapy, end=day)], [replace(rest, dose=dose * (1 - share), onset_days=0.0), replace(rest, dose=dose * share)]


def _from(given: Sequence[Therapy], day: float, change: Callable[[Therapy], Therapy | None]) -> list[Therapy]:
    """All courses, from `day` on as `change` has them (None: not at all)."""
    planned = []
    for therapy in given:
        before, after = split(therapy, day)
        planned += before + [c for c in map(change, after) if c is not None]
    return planned


def _first(given: Sequence[Therapy]) -> float:
    return min(t.start for t in given)


def _shifted(given: Sequence[Therapy], weeks: float) -> list[Therapy]:
    return [t.moved(WEEK * weeks) for t in given]


def _scaled(factor: float) -> Callable[[Therapy], Therapy]:
    if factor > 100:
        raise UsageError("an effect is changed by a factor between 0 and 100")
    return lambda t: replace(t, dose=t.dose * factor)


def _holiday(given: Sequence[Therapy], numbers: Sequence[float], _: float) -> list[Therapy]:
    first, last = numbers
    if last <= first:
        raise UsageError("a treatment holiday ends after it begins: treatment_holiday_4-8w")
    start = _first(given)
    planned = []
    for therapy in given:
        before, after = split(therapy, start + WEEK * first)
        planned += before
        for piece in after:
            planned += split(piece, start + WEEK * last)[1]
    return planned


def _resistance(given: Sequence[Therapy], numbers: Sequence[float], _: float) -> list[Therapy]:
    lost = math.log(2) / RESISTANCE_HALF_DAYS
    planned = []
    for therapy in given:
        before, after = split(therapy, therapy.start + WEEK * numbers[0])
        planned += before + [replace(t, decay_per_day=t.decay_per_day + lost) for t in after]
    return planned


def _escalation(given: Sequence[Therapy], numbers: Sequence[float], _: float) -> list[Therapy]:
    factor, week = numbers if numbers else (1.5, 6.0)
    return _from(given, _first(given) + WEEK * week, _scaled(factor))


def _combination(given: Sequence[Therapy], numbers: Sequence[float], _: float) -> list[Therapy]:
    second = _scaled(numbers[0] if numbers else 1.0)
    return [*given, *map(second, given)]


_NUMBER = r"(\d+(?:\.\d+)?)"
_Change = Callable[[tuple[Therapy, ...], Sequence[float], float], Sequence[Therapy]]
_PATTERNS: tuple[tuple[str, _Change], ...] = (
    ("as_given", lambda given, numbers, now: given),
    ("natural_history", lambda given, numbers, now: ()),
    (f"earlier_treatment_{_NUMBER}w", lambda given, numbers, now: _shifted(given, -numbers[0])),
    (f"later_treatment_{_NUMBER}w", lambda given, numbers, now: _shifted(given, numbers[0])),
    (f"regimen_switch_effect_{_NUMBER}", lambda given, numbers, now: _from(given, now, _scaled(numbers[0]))),
    (f"treatment_holiday_{_NUMBER}-{_NUMBER}w", _holiday),
    (f"resistance_onset_{_NUMBER}w", _resistance),
    ("dose_escalation", _escalation),
    (f"dose_escalation_{_NUMBER}x_{_NUMBER}w", _escalation),
    ("combination_therapy", _combination),
    (f"combination_therapy_{_NUMBER}", _combination),
)
