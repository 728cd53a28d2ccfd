"""Treatment as a kill rate over real time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import UsageError


@dataclass(frozen=True)
class Therapy:
    """One course of a treatment. Days count from the same date as the visits' days.

    kind: what is given; courses of one kind share one fitted effect. dose: relative to the usual one, 1. onset_days: the
    effect comes on as 1 - exp(-days / onset_days). decay_per_day: it wears off as exp(-decay * days), resistance.
    Raises `UsageError` for a course that ends before it starts and for doses, onsets or decays below 0.
    """

    kind: str
    start: float
    end: float = math.inf
    dose: float = 1.0
    onset_days: float = 0.0
    decay_per_day: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.start, self.dose, self.onset_days, self.decay_per_day)
        if not all(math.isfinite(n) for n in numbers) or math.isnan(self.end):
            raise UsageError("a treatment's days, dose, onset and decay must be numbers")
        if self.end <= self.start:
            raise UsageError(f"a treatment must end after it starts (day {self.start:g} to {self.end:g})")
        if min(self.dose, self.onset_days, self.decay_per_day) < 0 or self.dose > 100 or self.decay_per_day > 10:
            raise UsageError("a treatment's dose lies between 0 and 100 usual ones, its decay between 0 and 10 a day, its onset is not below 0")

    def moved(self, days: float) -> Therapy:
        """The same course, earlier (below 0) or later."""
        return replace(self, start=self.start + days, end=self.end + days)


def kinds(therapies: Sequence[Therapy]) -> tuple[str, ...]:
    """The different kinds, in their order."""
    return tuple(dict.fromkeys(t.kind for t in therapies))


def events(therapies: Sequence[Therapy], known: Sequence[str]) -> NDArray[np.float64]:
    """(n, 6) for the kernels: kind (index into `known`), start, end, dose, onset, decay."""
    rows = [(known.index(t.kind), t.start, min(t.end, 1e9), t.dose, t.onset_days, t.decay_per_day) for t in therapies]
    return np.array(rows, dtype=np.float64).reshape(-1, 6)
