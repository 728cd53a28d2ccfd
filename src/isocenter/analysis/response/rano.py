"""RANO for high-grade glioma: enhancing area, T2/FLAIR, corticosteroids and clinical state together.

Wen et al., J Clin Oncol 28:1963-1972, 2010; tables and pages are its. Sizes of targets are products of perpendicular
diameters in mm² (`Diameters.product_mm2`), of lesions of at least 10 mm both ways, at most five.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from isocenter.analysis.response.visit import Category, NonTargets, Response, Sums, Visit, each_visit, percent
from isocenter.core.errors import UsageError

MEASURABLE_MM = 10.0
PR_PERCENT, PD_PERCENT = -50.0, 25.0
#: Page 1967: complete and partial response must last.
SUSTAINED_DAYS = 28.0
#: Page 1966: so long after chemoradiotherapy enhancement inside the field may be its effect.
PSEUDOPROGRESSION_DAYS = 84.0
_EPSILON = 1e-6


class Trend(StrEnum):
    """Since the baseline or the best state, as the criterion says."""

    BETTER = "better"
    STABLE = "stable"
    WORSE = "worse"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Status:
    """What RANO asks beside the sizes. steroids: the dose; NONE where none are given. outside_field: new enhancement there."""

    flair: Trend = Trend.UNKNOWN
    clinical: Trend = Trend.UNKNOWN
    steroids: Trend = Trend.UNKNOWN
    no_steroids: bool = False
    outside_field: bool = False


def respond(baseline: Visit, followups: Sequence[Visit], status: Mapping[float, Status], *, radiotherapy_end: float | None = None) -> list[Response]:
    """The response at every visit after the baseline, in order of days (table 4); CR and PR as they are seen, see `confirmed`.

    status: by the visits' days. radiotherapy_end: day on which chemoradiotherapy ended.
    """
    if baseline.nodes:
        raise UsageError("RANO knows no lymph nodes")

    def judge(visit: Visit, sums: Sums) -> tuple[Category, Category | None, list[str]]:
        state = status.get(visit.day, Status())
        category, targets, reasons = _judge(visit, state, sums)
        early = radiotherapy_end is not None and 0 <= visit.day - radiotherapy_end <= PSEUDOPROGRESSION_DAYS
        if category is Category.PD and early and not state.outside_field:
            reasons.append("within 12 weeks of chemoradiotherapy and not said to be outside of its field: not to be told from its effect (page 1966)")
            category = Category.NE
        return category, targets, reasons

    return each_visit(baseline, followups, judge)


def _judge(visit: Visit, state: Status, sums: Sums) -> tuple[Category, Category | None, list[str]]:
    """One visit by table 4: any sign is progression, response needs all of its conditions."""
    reasons: list[str] = []
    start, nadir, total = sums.start, sums.nadir, sums.total
    rise, fall = percent(total, nadir), percent(total, start)
    grown = total is not None and total > 0 and (rise is None or rise >= PD_PERCENT - _EPSILON)
    # Growth while steroids are being reduced is not progression for certain; table 4 asks for stable or rising doses.
    if grown and state.steroids is not Trend.BETTER:
        reasons.append(f"enhancing area: {f'{rise:+.1f} %' if rise is not None else 'back'} against the smallest (table 4)")
    if visit.new_lesions:
        reasons.append("a new lesion (table 4)")
    if state.flair is Trend.WORSE and state.steroids is not Trend.BETTER:
        reasons.append("T2/FLAIR grew significantly (table 4)")
    if state.clinical is Trend.WORSE:
        reasons.append("clinical deterioration (table 4)")
    if visit.non_targets is NonTargets.PD:
        reasons.append("non-measurable disease grew (table 4)")
    targets = _targets(start, total, fall, grown)
    if reasons:
        return Category.PD, targets, reasons
    if targets is Category.NE:
        return Category.NE, targets, ["the enhancing area is not known"]
    steady = state.flair in (Trend.STABLE, Trend.BETTER) and state.clinical in (Trend.STABLE, Trend.BETTER)
    gone = visit.non_targets in (NonTargets.NONE, NonTargets.CR)
    if targets is None:
        known = steady and visit.non_targets is not NonTargets.NE
        return Category.SD if known else Category.NE, None, ["no measurable enhancing disease at baseline: at best stable (page 1967)"]
    if targets is Category.CR and steady and state.no_steroids and gone:
        return Category.CR, targets, ["no enhancement, T2/FLAIR and clinical state stable or better, no steroids (table 4)"]
    if targets in (Category.CR, Category.PR) and steady and (state.no_steroids or state.steroids in (Trend.STABLE, Trend.BETTER)):
        return Category.PR, targets, [f"enhancing area: {fall:+.1f} % against baseline, the rest stable or better (table 4)"]
    if targets in (Category.CR, Category.PR):
        return Category.SD, targets, ["the area fell enough, but T2/FLAIR, clinical state or steroids are worse or unknown (table 4)"]
    return Category.SD, targets, ["neither response nor progression (table 4)"]


def _targets(start: float | None, total: float | None, fall: float | None, grown: bool) -> Category | None:
    if start is None:
        return None
    if total is None:
        return Category.NE
    if total == 0:
        return Category.CR
    if grown:
        return Category.PD
    return Category.PR if fall is not None and fall <= PR_PERCENT + _EPSILON else Category.SD


def confirmed(responses: Sequence[Response]) -> list[Category]:
    """Each visit with CR and PR only where they were seen again at least 4 weeks later, else SD (page 1967)."""
    answers = []
    for i, response in enumerate(responses):
        kept = response.category
        if kept in (Category.CR, Category.PR):
            good = (Category.CR,) if kept is Category.CR else (Category.CR, Category.PR)
            lasts = False
            for later in responses[i + 1 :]:
                if later.category not in (*good, Category.NE):
                    break
                lasts = lasts or (later.category in good and later.day - response.day >= SUSTAINED_DAYS - _EPSILON)
            kept = kept if lasts else Category.SD
        answers.append(kept)
    return answers
