"""Modified RECIST for hepatocellular carcinoma: what counts is the viable tumour, that which enhances in the arterial phase.

Lencioni and Llovet, Semin Liver Dis 30:52-60, 2010, and the 2020 refinement, Llovet and Lencioni, J Hepatol 72:288-306.
Sizes of targets are diameters of the enhancing part; a target without any is `ABSENT`, however large the dead part is,
and one too small to measure is not evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isocenter.analysis.response.visit import Category, NonTargets, Response, Sums, Visit, each_visit, percent

#: Table 2 of 2010: of the sum of viable diameters, against the baseline and against the smallest sum.
PR_PERCENT, PD_PERCENT = -30.0, 20.0
#: "Assessment of target lesions": a new nodule counts from 10 mm with the typical pattern, or after 10 mm of growth.
NEW_NODULE_MM = 10.0
_EPSILON = 1e-6


@dataclass(frozen=True)
class NewNodule:
    """A nodule in the liver that was not there. typical: arterial enhancement that washes out in the portal or late phase."""

    longest_mm: float
    typical: bool
    grown_mm: float = 0.0

    @property
    def is_tumour(self) -> bool:
        """By "new lesions": from 10 mm with the typical pattern; without it, once it has grown by 10 mm."""
        return (self.longest_mm >= NEW_NODULE_MM - _EPSILON and self.typical) or self.grown_mm >= NEW_NODULE_MM - _EPSILON


def respond(baseline: Visit, followups: Sequence[Visit]) -> list[Response]:
    """The response at every visit after the baseline, in order of days (table 3 of 2010)."""

    def judge(visit: Visit, sums: Sums) -> tuple[Category, Category | None, list[str]]:
        targets, reasons = _targets(sums, bool(baseline.targets))
        return _overall(targets, visit, reasons), targets, reasons

    return each_visit(baseline, followups, judge)


def _targets(sums: Sums, any_targets: bool) -> tuple[Category | None, list[str]]:
    if not any_targets:
        return None, []
    start, nadir, total = sums.start, sums.nadir, sums.total
    if total is None or start is None or nadir is None:
        return Category.NE, ["a target was not evaluated"]
    if total == 0:
        return Category.CR, ["no target enhances any more (table 2)"]
    rise, fall = percent(total, nadir), percent(total, start)
    if rise is None or rise >= PD_PERCENT - _EPSILON:
        return Category.PD, [f"viable tumour: {f'{rise:+.1f} %' if rise is not None else 'back'} against the smallest sum (table 2)"]
    if fall is not None and fall <= PR_PERCENT + _EPSILON:
        return Category.PR, [f"viable tumour: {fall:+.1f} % against baseline (table 2)"]
    return Category.SD, ["viable tumour: neither response nor progression (table 2)"]


def _overall(targets: Category | None, visit: Visit, reasons: list[str]) -> Category:
    if visit.new_lesions or visit.non_targets is NonTargets.PD:
        reasons.append("new lesions" if visit.new_lesions else "non-targets progressed")
        return Category.PD
    if targets is None:
        return {NonTargets.CR: Category.CR, NonTargets.NON: Category.NON}.get(visit.non_targets, Category.NE)
    if targets is Category.CR and visit.non_targets in (NonTargets.NON, NonTargets.NE):
        reasons.append("targets without viable tumour, non-targets not all (table 3)")
        return Category.PR
    return targets
