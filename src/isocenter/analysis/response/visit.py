"""What the criteria look at: target lesions, the others, new ones, visit by visit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from isocenter.core.errors import UsageError


class Category(StrEnum):
    """Response at one visit. NON: neither complete response nor progression, where there are no targets."""

    CR = "CR"
    PR = "PR"
    SD = "SD"
    PD = "PD"
    NON = "NON-CR/NON-PD"
    NE = "NE"


class State(StrEnum):
    """What became of a target at a visit."""

    MEASURED = "measured"
    ABSENT = "absent"  #: looked for and not there
    TOO_SMALL = "too small to measure"  #: there, but not to be measured
    NOT_EVALUATED = "not evaluated"  #: no image, or not to be told


@dataclass(frozen=True)
class Target:
    """One target at one visit. size: in mm (mm² for RANO, mm³ for volumes); None unless measured.

    Raises `UsageError` for a measured target without a size, or one that is not measured and has one.
    """

    state: State
    size: float | None = None

    def __post_init__(self) -> None:
        if (self.state is State.MEASURED) != (self.size is not None) or (self.size is not None and not 0 < self.size < float("inf")):
            raise UsageError("a measured target has a size above 0; one that is absent, too small or not evaluated has none")


#: Says at a glance what the tests and the callers mean.
ABSENT, TOO_SMALL, NOT_EVALUATED = Target(State.ABSENT), Target(State.TOO_SMALL), Target(State.NOT_EVALUATED)


def measured(size: float) -> Target:
    """A target of this size."""
    return Target(State.MEASURED, float(size))


class NonTargets(StrEnum):
    """All lesions that are followed without being measured, together."""

    NONE = "none"  #: there never were any
    CR = "CR"  #: all gone, nodes below 10 mm, markers normal
    NON = "NON-CR/NON-PD"
    PD = "PD"  #: unequivocal progression
    NE = "NE"  #: not all were evaluated


@dataclass(frozen=True)
class Visit:
    """One assessment. day: days since any fixed date, the same for all visits. targets: by lesion id.

    nodes: ids of the targets that are lymph nodes, whose size is the short axis. new_lesions: unequivocally new ones.
    """

    day: float
    targets: Mapping[str, Target]
    nodes: frozenset[str] = frozenset()
    non_targets: NonTargets = NonTargets.NONE
    new_lesions: bool = False


@dataclass(frozen=True)
class Response:
    """One visit judged. sum, baseline, nadir: in the targets' unit. percent_*: change against them, None where it has no meaning.

    reasons: the rules that led there, in words, with the guideline's section.
    """

    day: float
    category: Category
    targets: Category | None
    sum: float | None
    baseline: float | None
    nadir: float | None
    percent_baseline: float | None
    percent_nadir: float | None
    reasons: tuple[str, ...] = field(default=())


def ordered(baseline: Visit, followups: Sequence[Visit]) -> list[Visit]:
    """Follow-ups by day. Raises `UsageError` when two share a day, one precedes the baseline or has other targets."""
    visits = sorted(followups, key=lambda v: v.day)
    days = [baseline.day, *(v.day for v in visits)]
    if any(b <= a for a, b in pairwise(days)):
        raise UsageError("visits need different days, all after the baseline's")
    for visit in visits:
        if extra := set(visit.targets) - set(baseline.targets):
            raise UsageError(f"targets are chosen at baseline and stay: {', '.join(sorted(extra))} was not among them")
        if visit.nodes - baseline.nodes or (baseline.nodes & set(visit.targets)) - visit.nodes - baseline.nodes:
            raise UsageError("a target is a lymph node at all visits or at none")
    for target in baseline.targets.values():
        if target.state is not State.MEASURED:
            raise UsageError("every target is measured at baseline")
    return visits


def percent(now: float | None, before: float | None) -> float | None:
    """Change in percent, None from nothing or to the unknown."""
    return None if now is None or before is None or before <= 0 else 100 * (now - before) / before


def sum_of_targets(baseline: Visit, visit: Visit) -> float | None:
    """Sum of the targets' sizes, absent ones 0. None when one was not evaluated, or is there but cannot be measured."""
    found = 0.0
    for name in baseline.targets:
        target = visit.targets.get(name, NOT_EVALUATED)
        if target.state in (State.NOT_EVALUATED, State.TOO_SMALL):
            return None
        found += target.size or 0.0
    return found


@dataclass(frozen=True)
class Sums:
    """What a visit is judged by: the sums of the targets' sizes at baseline, the smallest before this visit, and now. None where unknown."""

    start: float | None
    nadir: float | None
    total: float | None


#: A visit and its sums to the category, that of the targets alone, and the rules that led there.
Judge = Callable[[Visit, Sums], tuple[Category, Category | None, Sequence[str]]]


def each_visit(baseline: Visit, followups: Sequence[Visit], judge: Judge) -> list[Response]:
    """The response at every visit after the baseline, in order of days, by rules that look at the targets' sum, its start and its nadir.

    Raises `UsageError` for visits that do not fit.
    """
    visits = ordered(baseline, followups)
    start = sum_of_targets(baseline, baseline) if baseline.targets else None
    nadir = start
    responses = []
    for visit in visits:
        total = sum_of_targets(baseline, visit) if start is not None else None
        category, targets, reasons = judge(visit, Sums(start, nadir, total))
        responses.append(Response(visit.day, category, targets, total, start, nadir, percent(total, start), percent(total, nadir), tuple(reasons)))
        if total is not None and nadir is not None:
            nadir = min(nadir, total)
    return responses
