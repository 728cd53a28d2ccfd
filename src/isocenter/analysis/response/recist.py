"""RECIST 1.1, whole: choice of targets, response at each visit, best overall response.

Sections and tables are those of Eisenhauer et al., Eur J Cancer 45:228-247, 2009; "update" is Schwartz et al., Eur J Cancer
62:132-137, 2016, the working group's clarification.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isocenter.analysis.response.visit import Category, NonTargets, Response, State, Target, Visit, ordered, percent
from isocenter.core.errors import UsageError

#: Section 3.1.1: least longest diameter of a measurable lesion, and short axis of a measurable node.
MEASURABLE_MM, NODE_MEASURABLE_MM = 10.0, 15.0
#: Section 4.2: a node below this short axis is not pathological.
NODE_NORMAL_MM = 10.0
#: Section 4.3.2: what a target counts that is there but too small to measure.
TOO_SMALL_MM = 5.0
MOST_TARGETS, MOST_PER_ORGAN = 5, 2
PR_PERCENT, PD_PERCENT, PD_MM = -30.0, 20.0, 5.0
#: Sums are of tenths of a millimetre at best; a limit that is met up to rounding is met.
_EPSILON = 1e-6


@dataclass(frozen=True)
class Candidate:
    """A lesion at baseline that could become a target. slice_mm: the image's slice thickness."""

    id: str
    organ: str
    longest_mm: float | None
    short_axis_mm: float | None
    node: bool = False
    slice_mm: float = 5.0

    @property
    def measurable(self) -> bool:
        """Section 3.1.1; with slices above 5 mm, twice their thickness (appendix II)."""
        size = self.short_axis_mm if self.node else self.longest_mm
        least = NODE_MEASURABLE_MM if self.node else max(MEASURABLE_MM, 2 * self.slice_mm if self.slice_mm > 5 else 0)
        return size is not None and size >= least - _EPSILON

    @property
    def pathological(self) -> bool:
        """Whether it is disease at all: a node below 10 mm is not (section 4.2)."""
        return not self.node or self.short_axis_mm is None or self.short_axis_mm >= NODE_NORMAL_MM - _EPSILON


def choose_targets(candidates: Sequence[Candidate], said: Mapping[str, bool] | None = None) -> tuple[list[str], list[str]]:
    """(targets, non-targets): at most five and two an organ, the largest first (section 4.2); all other disease is non-target.

    Lymph nodes count as one organ. Equal sizes go by their order. said: lesions that a reader made targets (True) or not
    (False). Raises `UsageError` for a target that is not there at baseline or not measurable, or for more than may be.
    """
    said = said or {}
    wanted = {name for name, target in said.items() if target}
    if missing := sorted(wanted - {c.id for c in candidates}):
        raise UsageError(f"{', '.join(missing)} is not there at baseline, so it cannot be a target (RECIST 1.1, section 4.2)")
    chosen: list[str] = []
    organs: Counter[str] = Counter()
    for lesion in sorted(candidates, key=lambda c: (c.id not in wanted, -(c.longest_mm or 0))):
        organ = "lymph nodes" if lesion.node else lesion.organ.strip().lower()
        room = len(chosen) < MOST_TARGETS and organs[organ] < MOST_PER_ORGAN
        if lesion.id in wanted and not (lesion.measurable and room):
            size = lesion.short_axis_mm if lesion.node else lesion.longest_mm
            small = "it is too small to measure (section 3.1.1)" if size is not None else "it was not measured at baseline"
            why = "five targets, and two an organ, are the most (section 4.2)" if lesion.measurable else small
            raise UsageError(f"{lesion.id} cannot be a target by RECIST 1.1: {why}")
        if lesion.measurable and room and said.get(lesion.id, True):
            chosen.append(lesion.id)
            organs[organ] += 1
    return chosen, [c.id for c in candidates if c.id not in chosen and c.pathological]


def respond(baseline: Visit, followups: Sequence[Visit]) -> list[Response]:
    """The response at every visit after the baseline, in order of days. Raises `UsageError` for visits that do not fit."""
    visits = ordered(baseline, followups)
    start = _sum(baseline, baseline) if baseline.targets else None
    nadir, complete = start, False
    responses: list[Response] = []
    for visit in visits:
        response = _judge(baseline, visit, start, nadir, complete)
        responses.append(response)
        if response.sum is not None and nadir is not None:
            nadir = min(nadir, response.sum)
        complete = response.category is Category.CR or (complete and response.category is Category.NE)
    return responses


def _judge(baseline: Visit, visit: Visit, start: float | None, nadir: float | None, complete: bool) -> Response:
    reasons: list[str] = []
    total = least = None
    targets: Category | None = None
    if start is not None and nadir is not None:
        least = _sum(baseline, visit, missing_as_zero=True)
        total = _sum(baseline, visit)
        targets = _targets(baseline, visit, start, nadir, total, least, reasons)
        if complete and (back := _returned(baseline, visit)):
            reasons.append(f"{back} is back after a complete response, which is progression (section 4.4.3, table 3; update)")
            targets = Category.PD
    category = _overall(targets, visit, reasons)
    return Response(visit.day, category, targets, total, start, nadir, percent(total, start), percent(total, nadir), tuple(reasons))


def _sum(baseline: Visit, visit: Visit, *, missing_as_zero: bool = False) -> float | None:
    """Sum of diameters, nodes with their short axis even when it is normal (section 4.3.2); None when a target is missing."""
    total = 0.0
    for name in baseline.targets:
        target = visit.targets.get(name, Target(State.NOT_EVALUATED))
        if target.state is State.NOT_EVALUATED and not missing_as_zero:
            return None
        total += TOO_SMALL_MM if target.state is State.TOO_SMALL else target.size or 0.0
    return total


def _targets(baseline: Visit, visit: Visit, start: float, nadir: float, total: float | None, least: float | None, reasons: list[str]) -> Category:
    known = total if total is not None else (least or 0.0)
    rise = percent(known, nadir)
    if known - nadir >= PD_MM - _EPSILON and (rise is None or rise >= PD_PERCENT - _EPSILON):
        change = f"{rise:+.1f} % and " if rise is not None else ""
        reasons.append(f"targets: {change}{known - nadir:+.1f} mm against the smallest sum, at least 20 % and 5 mm (section 4.3.1)")
        if total is None:
            reasons.append("a target was not evaluated, but the others alone show progression (section 4.4.2)")
        return Category.PD
    if total is None:
        reasons.append("a target was not evaluated, so the sum is unknown (section 4.4.2)")
        return Category.NE
    if all(_gone(baseline, visit, name) for name in baseline.targets):
        reasons.append("targets: all gone, nodes below 10 mm (section 4.3.1)")
        return Category.CR
    fall = percent(total, start)
    if fall is not None and fall <= PR_PERCENT + _EPSILON:
        reasons.append(f"targets: {fall:+.1f} % against baseline, at least -30 % (section 4.3.1)")
        return Category.PR
    reasons.append("targets: neither enough decrease for response nor enough increase for progression (section 4.3.1)")
    return Category.SD


def _gone(baseline: Visit, visit: Visit, name: str) -> bool:
    target = visit.targets[name]
    if target.state is State.ABSENT:
        return True
    if name not in baseline.nodes:
        return False
    # A node that is there but too small to measure counts 5 mm, which is normal.
    return target.state is State.TOO_SMALL or (target.size is not None and target.size < NODE_NORMAL_MM - _EPSILON)


def _returned(baseline: Visit, visit: Visit) -> str | None:
    """A target, not a node, that is seen. A node that grows again is judged by the sum, since it never was nothing."""
    there = (State.MEASURED, State.TOO_SMALL)
    return next((n for n in sorted(set(baseline.targets) - baseline.nodes) if n in visit.targets and visit.targets[n].state in there), None)


def _overall(targets: Category | None, visit: Visit, reasons: list[str]) -> Category:
    """Table 1 (with targets) and table 2 (without)."""
    if visit.new_lesions:
        reasons.append("new lesions are progression (section 4.3.5)")
        return Category.PD
    if visit.non_targets is NonTargets.PD:
        reasons.append("non-targets: unequivocal progression (section 4.3.4)")
        return Category.PD
    if targets is None:
        table2 = {NonTargets.CR: Category.CR, NonTargets.NON: Category.NON}
        reasons.append("no targets: the non-targets decide (table 2)")
        return table2.get(visit.non_targets, Category.NE)
    if targets is Category.CR and visit.non_targets in (NonTargets.NON, NonTargets.NE):
        reasons.append("targets gone, non-targets not all (table 1)")
        return Category.PR
    return targets


def best_overall(
    responses: Sequence[Response], baseline_day: float, *, confirm: bool, least_sd_days: float = 42, confirm_days: float = 28
) -> Category:
    """Best response from the baseline up to the first progression (section 4.4.3).

    confirm: whether CR and PR must be seen again at least `confirm_days` later (section 4.6.1: where response is the primary end
    point of a trial without a control arm; elsewhere it is not needed), by table 3. Visits that were not evaluated between the two
    are passed over (section 4.4.4: PR, NE, PR is a confirmed response); where nothing but such visits follows, the response was not
    seen again. SD counts when seen at least `least_sd_days` after the baseline (section 4.6.1: not less than six to eight weeks),
    otherwise the visit gives no response.
    """
    visits = _until_progression(responses)
    best = Category.NE
    for i, response in enumerate(visits):
        seen = response.category
        if confirm and seen in (Category.CR, Category.PR):
            seen = _confirmed(visits, i, confirm_days)
        if seen is Category.SD and response.day - baseline_day < least_sd_days:
            seen = Category.NE
        best = min(best, seen, key=_ORDER.index)
    return best


def unconfirmed(responses: Sequence[Response], seen: Category, kept: Category) -> str | None:
    """In words, what was seen that confirmation takes away, and why; None where both best responses are the same.

    seen, kept: `best_overall` without confirmation, and with it.
    """
    if seen is kept:
        return None
    visits = _until_progression(responses)
    i = next(k for k, r in enumerate(visits) if r.category is seen)
    after = ", ".join(str(r.category) for r in visits[i + 1 :])
    what = f"{seen} on day {visits[i].day:g} was not seen again at least 4 weeks later ({f'after it: {after}' if after else 'the last visit'})"
    return (
        f"best overall response {seen}, confirmed {kept}: {what}. RECIST 1.1 wants confirmation where response is the end point "
        "of a trial without a control arm (sections 4.4.3 and 4.6.1)"
    )


def _until_progression(responses: Sequence[Response]) -> list[Response]:
    visits: list[Response] = []
    for response in sorted(responses, key=lambda r: r.day):
        visits.append(response)
        if response.category is Category.PD:
            break
    return visits


#: From best to worst; what was not seen well enough says less than progression.
_ORDER = [Category.CR, Category.PR, Category.SD, Category.NON, Category.PD, Category.NE]


def _confirmed(visits: Sequence[Response], i: int, confirm_days: float) -> Category:
    """Table 3: what a CR or PR is worth, given the visits after it; without targets what is no CR is neither (table 2)."""
    first = visits[i]
    for later in visits[i + 1 :]:
        if later.category is Category.NE or (later.day - first.day < confirm_days - _EPSILON and later.category in (Category.CR, Category.PR)):
            continue
        if later.category is Category.CR:
            return first.category
        if later.category is Category.PR and first.category is Category.PR:
            return Category.PR
        break
    return Category.NON if first.targets is None and first.reasons else Category.SD
