"""iRECIST: response under immunotherapy, where a first progression must be confirmed.

Seymour et al., Lancet Oncol 18:e143-e152, 2017. Until the first progression everything is RECIST 1.1; that one is
unconfirmed (iUPD) and confirmed (iCPD) by more of it 4 to 8 weeks later (page e147). Where the disease shrinks back to
response or stability against the baseline instead, the bar is reset. `NonTargets.PD` of a visit means more than at the
visit before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from isocenter.analysis.response import recist
from isocenter.analysis.response.visit import Category, NonTargets, Response, Visit
from isocenter.core.errors import UsageError

EARLIEST_DAYS, LATEST_DAYS = 28.0, 56.0
#: Page e147: the least further growth, of the targets or of the measured new lesions, that confirms.
FURTHER_MM = 5.0
_EPSILON = 1e-6


class ICategory(StrEnum):
    """The five of iRECIST, and not evaluable."""

    ICR = "iCR"
    IPR = "iPR"
    ISD = "iSD"
    IUPD = "iUPD"
    ICPD = "iCPD"
    NON = "NON-iCR/NON-iUPD"
    NE = "NE"


@dataclass(frozen=True)
class NewLesions:
    """New lesions at one visit, apart from the baseline's targets (page e146: at most five, two an organ).

    targets_mm: their sizes by id, of those large enough to measure; others: how many more there are;
    others_grew: whether those plainly grew since the last visit.
    """

    targets_mm: Mapping[str, float] = field(default_factory=dict)
    others: int = 0
    others_grew: bool = False

    @property
    def count(self) -> int:
        return len(self.targets_mm) + self.others


@dataclass(frozen=True)
class IResponse:
    """One visit judged. recist: the same by RECIST 1.1's sums, judged against the present bar."""

    day: float
    category: ICategory
    recist: Response
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Unconfirmed:
    """What is known at the progression that waits: since when, sums, and what progressed."""

    day: float
    sum: float | None
    new_sum: float
    new_count: int
    targets: bool
    non_targets: bool


def respond(baseline: Visit, followups: Sequence[Visit], new_lesions: Sequence[NewLesions] | None = None) -> list[IResponse]:
    """Every visit after the baseline, in order of days. new_lesions: one for each of `followups`, in their order.

    Without it, a visit's `new_lesions` counts as one new lesion that was not there before.
    """
    news = list(new_lesions) if new_lesions is not None else [NewLesions(others=int(v.new_lesions)) for v in followups]
    if len(news) != len(followups):
        raise UsageError("give the new lesions of every visit, or none")
    order = sorted(range(len(followups)), key=lambda i: followups[i].day)
    visits, news = [followups[i] for i in order], [news[i] for i in order]
    answers: list[IResponse] = []
    waiting: _Unconfirmed | None = None
    confirmed = False
    known = 0  # new lesions that an earlier bar has already counted
    plain = recist.respond(baseline, [Visit(v.day, v.targets, v.nodes, v.non_targets) for v in visits])
    for visit, fresh, response in zip(visits, news, plain, strict=True):
        if confirmed:
            answers.append(IResponse(visit.day, ICategory.ICPD, response, ("progression was confirmed before",)))
            continue
        shows = _progress(visit, fresh, response, known)
        if waiting is None:
            if shows:
                waiting = _waiting(visit, fresh, response)
                answers.append(IResponse(visit.day, ICategory.IUPD, response, (*shows, "first progression: unconfirmed until the next visit")))
            else:
                answers.append(IResponse(visit.day, _plain(response), response, response.reasons))
            continue
        more = _more(visit, fresh, response, waiting)
        if more:
            late = visit.day - waiting.day
            if late < EARLIEST_DAYS - _EPSILON:
                answers.append(IResponse(visit.day, ICategory.IUPD, response, (*more, f"{late:g} days after: confirmation takes at least 4 weeks")))
                continue
            note = () if late <= LATEST_DAYS + _EPSILON else (f"confirmed {late:g} days after, later than the 8 weeks that are asked for",)
            confirmed = True
            answers.append(IResponse(visit.day, ICategory.ICPD, response, (*more, *note)))
        elif _recovered(response, fresh, waiting):
            known, waiting = fresh.count, None
            answers.append(IResponse(visit.day, _plain(response), response, (*response.reasons, "not confirmed: the bar is reset")))
        elif response.sum is None and response.targets is Category.NE:
            answers.append(IResponse(visit.day, ICategory.NE, response, response.reasons))
        else:
            answers.append(IResponse(visit.day, ICategory.IUPD, response, ("progression neither grew nor went back: it stays unconfirmed",)))
    return answers


def _progress(visit: Visit, fresh: NewLesions, response: Response, known: int) -> list[str]:
    """What of a visit is progression by RECIST 1.1."""
    shows = []
    if response.targets is Category.PD:
        shows += [r for r in response.reasons if r.startswith("targets")] or ["targets: progression"]
    if visit.non_targets is NonTargets.PD:
        shows.append("non-targets: unequivocal progression")
    if fresh.count > known:
        shows.append(f"{fresh.count - known} new lesion(s)")
    return shows


def _waiting(visit: Visit, fresh: NewLesions, response: Response) -> _Unconfirmed:
    return _Unconfirmed(
        visit.day,
        response.sum,
        sum(fresh.targets_mm.values()),
        fresh.count,
        response.targets is Category.PD,
        visit.non_targets is NonTargets.PD,
    )


def _more(visit: Visit, fresh: NewLesions, response: Response, waiting: _Unconfirmed) -> list[str]:
    """What confirms (page e147, panel): more of what was seen, or progression of another kind."""
    more = []
    if waiting.targets and response.sum is not None and waiting.sum is not None and response.sum - waiting.sum >= FURTHER_MM - _EPSILON:
        more.append(f"targets: {response.sum - waiting.sum:+.1f} mm since the unconfirmed progression")
    if not waiting.targets and response.targets is Category.PD:
        more.append("targets progressed as well")
    if visit.non_targets is NonTargets.PD:
        more.append("non-targets: progression " + ("continued" if waiting.non_targets else "as well"))
    grown = sum(fresh.targets_mm.values()) - waiting.new_sum
    if fresh.count > waiting.new_count:
        more.append(f"{fresh.count - waiting.new_count} further new lesion(s)")
    elif waiting.new_count and (grown >= FURTHER_MM - _EPSILON or fresh.others_grew):
        more.append("the new lesions grew")
    return more


def _recovered(response: Response, fresh: NewLesions, waiting: _Unconfirmed) -> bool:
    """Whether the disease went back to response or stability against the bar before, and no new lesion stays."""
    settled = response.category in (Category.CR, Category.PR, Category.SD, Category.NON)
    return settled and (fresh.count < waiting.new_count or not waiting.new_count)


def _plain(response: Response) -> ICategory:
    return {
        Category.CR: ICategory.ICR,
        Category.PR: ICategory.IPR,
        Category.SD: ICategory.ISD,
        Category.PD: ICategory.IUPD,
        Category.NON: ICategory.NON,
        Category.NE: ICategory.NE,
    }[response.category]
