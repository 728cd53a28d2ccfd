"""Response by the sum of volumes: RECIST's limits carried over to balls.

A ball whose diameter falls by 30 % keeps 34.3 % of its volume, one whose diameter grows by 20 % has 172.8 % of it. There is no
standard for volumes; these limits are stated with every answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from isocenter.analysis.response.visit import Category, NonTargets, Response, Sums, Visit, each_visit, percent

PR_PERCENT = 100 * (0.7**3 - 1)
PD_PERCENT = 100 * (1.2**3 - 1)
#: The ball of 5 mm that RECIST's least growth would add to nothing.
PD_MM3 = 4 / 3 * 3.141592653589793 * 2.5**3
_EPSILON = 1e-6


def respond(baseline: Visit, followups: Sequence[Visit]) -> list[Response]:
    """The response at every visit after the baseline, in order of days; sizes of targets are volumes in mm³."""
    return each_visit(baseline, followups, _judge)


def _judge(visit: Visit, sums: Sums) -> tuple[Category, Category, tuple[str]]:
    category, reason = _by_volume(visit, sums.start, sums.nadir, sums.total)
    return category, category, (reason,)


def _by_volume(visit: Visit, start: float | None, nadir: float | None, total: float | None) -> tuple[Category, str]:
    if visit.new_lesions or visit.non_targets is NonTargets.PD:
        return Category.PD, "new lesions or progression of what is not measured"
    if start is None or nadir is None or total is None:
        return Category.NE, "a volume is missing"
    if total == 0:
        done = visit.non_targets in (NonTargets.NONE, NonTargets.CR)
        return (Category.CR, "nothing is left") if done else (Category.PR, "targets are gone, other disease is not")
    rise, fall = percent(total, nadir), percent(total, start)
    if total - nadir >= PD_MM3 - _EPSILON and (rise is None or rise >= PD_PERCENT - _EPSILON):
        shown = f"{rise:+.1f} %" if rise is not None else "back"
        return Category.PD, f"volume: {shown} against the smallest, limit {PD_PERCENT:+.1f} %"
    if fall is not None and fall <= PR_PERCENT + _EPSILON:
        return Category.PR, f"volume: {fall:+.1f} % against baseline, limit {PR_PERCENT:+.1f} %"
    return Category.SD, f"volume: between {PR_PERCENT:+.1f} % and {PD_PERCENT:+.1f} %"
