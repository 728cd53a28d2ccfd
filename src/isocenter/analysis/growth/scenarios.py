"""What if: the same lesion under another treatment, by the names that such scenarios have.

| name | what is given |
|---|---|
| `as_given` | what was given |
| `natural_history` | nothing |
| `earlier_treatment_{w}w`, `later_treatment_{w}w` | every course, w weeks earlier or later, before the first visit too |
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
#: Two curves that differ by less, on the log volume, are one: a course that was cut and goes on is added up anew.
_ALIKE = 1e-6
#: Ten years. Laws fitted to some months say nothing of more.
MOST_WEEKS = 520.0
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

    notes: why it may say little (an effect that the visits do not show). reason: why its curve is the one of what was given, None where
    it is another (and for `as_given`).
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
    reason: str | None = None


def simulate(growth: Growth, name: str, days: Sequence[float] | Floats, *, level: float = 0.8, draws: int = 400) -> Scenario:
    """The volume at `days` under a scenario. Raises `UsageError` for a name that is none, and numbers out of range."""
    therapies, reason = plan(name, growth.therapies, growth.series.days[-1])
    known = tuple(effects(growth)) if growth.therapies else ()
    notes = tuple(f"{e.kind}: {e.reason}" for e in known if not e.identifiable)
    moved = name.startswith(("earlier_", "later_"))
    median, low, high = growth.predict(days, therapies, draws=draws, level=level, moved=moved)
    if reason is None and name != "as_given" and _alike(growth, therapies, days, moved=moved):
        reason = "what it changes lies before the first visit or after the last day of the curve, or changes no dose"
    return Scenario(name, np.asarray(days, dtype=np.float64), median, low, high, level, therapies, known, (*growth.notes, *notes), reason)


def _alike(growth: Growth, therapies: Sequence[Therapy], days: Sequence[float] | Floats, *, moved: bool) -> bool:
    """Whether other treatment leaves the curve as it was; a few draws tell, since each has effects above 0."""
    given, planned = (growth.paths(days, courses, draws=8, moved=moved) for courses in (growth.therapies, therapies))
    return bool(np.abs(given - planned).max() < _ALIKE)


def plan(name: str, given: Sequence[Therapy], now: float) -> tuple[tuple[Therapy, ...], str | None]:
    """(therapies, reason) of a scenario: what is given instead of `given`, and why that is the same, where it is. now: day of the last visit."""
    for pattern, change, idle in _PATTERNS:
        if found := re.fullmatch(pattern, name):
            numbers = [float(n) for n in found.groups() if n is not None]
            if any(number > MOST_WEEKS for number in numbers):
                raise UsageError(f"a scenario's weeks and factors are at most {MOST_WEEKS:g}")
            if name == "as_given":
                return tuple(given), None
            if not given:
                return (), "there is no treatment to change"
            planned = tuple(change(tuple(given), numbers, now))
            return planned, idle(given, numbers, now) if planned == tuple(given) else None
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


def _over(given: Sequence[Therapy], day: float, since: str) -> str:
    """Of a change from a day on, after which nothing is given."""
    last = max(t.end for t in given)
    return f"no course goes on after {since} (day {day:g}): the last one ended on day {last:g}"


def _by_escalation(given: Sequence[Therapy], numbers: Sequence[float], _: float) -> str:
    week = numbers[1] if numbers else 6.0
    return _over(given, _first(given) + WEEK * week, f"week {week:g} of treatment")


def _by_holiday(given: Sequence[Therapy], numbers: Sequence[float], _: float) -> str:
    return f"no course is given in weeks {numbers[0]:g} to {numbers[1]:g} of treatment"


_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_Change = Callable[[tuple[Therapy, ...], Sequence[float], float], Sequence[Therapy]]
_Idle = Callable[[Sequence[Therapy], Sequence[float], float], str]


def _nothing(given: Sequence[Therapy], numbers: Sequence[float], now: float) -> str:
    return "it changes no course"


#: What each does, and why it may do nothing.
_PATTERNS: tuple[tuple[str, _Change, _Idle], ...] = (
    ("as_given", lambda given, numbers, now: given, _nothing),
    ("natural_history", lambda given, numbers, now: (), _nothing),
    (f"earlier_treatment_{_NUMBER}w", lambda given, numbers, now: _shifted(given, -numbers[0]), lambda *_: "moved by no day"),
    (f"later_treatment_{_NUMBER}w", lambda given, numbers, now: _shifted(given, numbers[0]), lambda *_: "moved by no day"),
    (
        f"regimen_switch_effect_{_NUMBER}",
        lambda given, numbers, now: _from(given, now, _scaled(numbers[0])),
        lambda given, numbers, now: _over(given, now, "the last visit"),
    ),
    (f"treatment_holiday_{_NUMBER}-{_NUMBER}w", _holiday, _by_holiday),
    (f"resistance_onset_{_NUMBER}w", _resistance, lambda given, numbers, now: f"every course ended before its week {numbers[0]:g}"),
    ("dose_escalation", _escalation, _by_escalation),
    (f"dose_escalation_{_NUMBER}x_{_NUMBER}w", _escalation, _by_escalation),
    ("combination_therapy", _combination, _nothing),
    (f"combination_therapy_{_NUMBER}", _combination, _nothing),
)
