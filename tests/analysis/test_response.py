"""RECIST 1.1 and its relatives, case by case as the guidelines' tables and limits have them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.analysis.response import irecist, mrecist, rano, recist, volumetric
from isocenter.analysis.response.irecist import ICategory, NewLesions
from isocenter.analysis.response.rano import Status, Trend
from isocenter.analysis.response.recist import Candidate, best_overall, choose_targets, respond, unconfirmed
from isocenter.analysis.response.visit import ABSENT, NOT_EVALUATED, TOO_SMALL, Category, NonTargets, Response, Target, Visit, measured
from isocenter.core.errors import UsageError

CR, PR, SD, PD, NE, NON = Category.CR, Category.PR, Category.SD, Category.PD, Category.NE, Category.NON


def visit(day: float, *sizes: float | Target, nodes: str = "", non: NonTargets = NonTargets.NONE, new: bool = False) -> Visit:
    targets = {name: s if isinstance(s, Target) else measured(s) for name, s in zip("abcde", sizes, strict=False)}
    return Visit(day, targets, frozenset(nodes), non, new)


def course(*visits: Visit) -> list[Category]:
    return [r.category for r in recist.respond(visits[0], visits[1:])]


@pytest.mark.parametrize(
    ("baseline", "now", "expected"),
    [
        pytest.param((100,), (119.9,), SD, id="+19.9 %"),
        pytest.param((100,), (120,), PD, id="+20 %"),
        pytest.param((20,), (24.9,), SD, id="+24.5 % but 4.9 mm"),
        pytest.param((20,), (25,), PD, id="+25 % and 5 mm"),
        pytest.param((100,), (70.1,), SD, id="-29.9 %"),
        pytest.param((100,), (70,), PR, id="-30 %"),
        pytest.param((30, 40), (20, 29), PR, id="the sum counts"),
        pytest.param((30, 40), (ABSENT, 28), PR, id="one is gone"),
        pytest.param((30, 40), (ABSENT, ABSENT), CR, id="all are gone"),
        pytest.param((30,), (TOO_SMALL,), PR, id="too small counts 5 mm"),
        pytest.param((11,), (TOO_SMALL,), PR, id="too small is not gone"),
        pytest.param((30, 40), (20, NOT_EVALUATED), NE, id="one was not evaluated"),
        pytest.param((30, 40), (85, NOT_EVALUATED), PD, id="one was not evaluated, the other is enough for progression"),
        pytest.param((30, 40), (20,), NE, id="one was not mentioned"),
    ],
)
def test_limits(baseline: tuple[float, ...], now: tuple[float | Target, ...], expected: Category) -> None:
    assert course(visit(0, *baseline), visit(56, *now)) == [expected]


def test_nodes_are_normal_below_ten() -> None:
    start = visit(0, 30, 20, nodes="b")
    assert course(start, visit(56, ABSENT, 9.9, nodes="b")) == [CR]
    assert course(start, visit(56, ABSENT, 10, nodes="b")) == [PR]
    response = recist.respond(start, [visit(56, ABSENT, 9.9, nodes="b")])[0]
    assert response.sum == pytest.approx(9.9), "a complete response with nodes has a sum above 0 (section 4.3.2)"


def test_progression_is_against_the_smallest_sum() -> None:
    assert course(visit(0, 100), visit(56, 50), visit(112, 59.9), visit(168, 60)) == [PR, PR, PD]
    responses = recist.respond(visit(0, 100), [visit(56, 50), visit(112, 60)])
    assert responses[1].nadir == 50
    assert responses[1].percent_nadir == pytest.approx(20)
    assert responses[1].percent_baseline == pytest.approx(-40)


def test_the_baseline_may_be_the_smallest_sum() -> None:
    assert course(visit(0, 50), visit(56, 59), visit(112, 61)) == [SD, PD]


def test_what_vanished_and_came_back() -> None:
    back_after_complete = course(visit(0, 30), visit(56, ABSENT), visit(112, 4))
    assert back_after_complete == [CR, PD]
    too_small = course(visit(0, 30), visit(56, ABSENT), visit(112, TOO_SMALL))
    assert too_small == [CR, PD]
    # Not after a complete response: it is measured again and counts in the sum.
    assert course(visit(0, 30, 40), visit(56, ABSENT, 30), visit(112, 4, 30)) == [PR, PR]
    # After a complete response a node is normal below 10 mm, and grows from what it was.
    assert course(visit(0, 20, nodes="a"), visit(56, 8, nodes="a"), visit(112, 9.5, nodes="a"), visit(168, 13.5, nodes="a")) == [CR, CR, PD]


def test_nadir_zero() -> None:
    responses = recist.respond(visit(0, 30, non=NonTargets.NON), [visit(56, ABSENT, non=NonTargets.NON), visit(112, 6, non=NonTargets.NON)])
    assert [r.category for r in responses] == [PR, PD]
    assert responses[1].percent_nadir is None, "there is no percentage of nothing"


@pytest.mark.parametrize(
    ("targets", "non", "new", "expected"),
    [
        (ABSENT, NonTargets.CR, False, CR),
        (ABSENT, NonTargets.NONE, False, CR),
        (ABSENT, NonTargets.NON, False, PR),
        (ABSENT, NonTargets.NE, False, PR),
        (60.0, NonTargets.NON, False, PR),
        (60.0, NonTargets.NE, False, PR),
        (95.0, NonTargets.NON, False, SD),
        (95.0, NonTargets.NE, False, SD),
        (NOT_EVALUATED, NonTargets.NON, False, NE),
        (150.0, NonTargets.CR, False, PD),
        (60.0, NonTargets.PD, False, PD),
        (ABSENT, NonTargets.CR, True, PD),
        (NOT_EVALUATED, NonTargets.NE, True, PD),
    ],
)
def test_table_1(targets: float | Target, non: NonTargets, new: bool, expected: Category) -> None:
    assert course(visit(0, 100, non=NonTargets.NON), visit(56, targets, non=non, new=new)) == [expected]


@pytest.mark.parametrize(
    ("non", "new", "expected"),
    [(NonTargets.CR, False, CR), (NonTargets.NON, False, NON), (NonTargets.NE, False, NE), (NonTargets.PD, False, PD), (NonTargets.CR, True, PD)],
)
def test_table_2(non: NonTargets, new: bool, expected: Category) -> None:
    assert course(Visit(0, {}), Visit(56, {}, non_targets=non, new_lesions=new)) == [expected]


def best(*categories: Category, confirm: bool = True, every: float = 42) -> Category:
    responses = [Response(every * (i + 1), c, c, None, None, None, None, None) for i, c in enumerate(categories)]
    return best_overall(responses, 0, confirm=confirm)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ((CR, CR), CR),
        ((CR, SD), SD),
        ((CR, PD), SD),
        ((CR, NE), SD),
        ((PR, CR), PR),
        ((PR, PR), PR),
        ((PR, SD), SD),
        ((PR, PD), SD),
        ((PR, NE), SD),
        ((NE, NE), NE),
        ((PR, NE, PR), PR),
        ((PD, CR), PD),
        ((SD, PD), SD),
    ],
)
def test_table_3(seen: tuple[Category, ...], expected: Category) -> None:
    assert best(*seen) is expected


def test_stability_takes_its_time_and_confirmation_four_weeks() -> None:
    assert best(SD, PD, every=30) is PD, "stable for less than six weeks, then progression"
    assert best(PR, NE, every=30) is NE
    assert best(PR, PR, every=20) is NE, "seen again too soon, and never after"
    assert best(PR, PR, PR, every=20) is PR
    assert best(PR, PD, confirm=False) is PR
    assert best(PD, PR, confirm=False) is PD, "nothing counts after progression"


def test_what_was_not_evaluated_confirms_nothing_and_takes_nothing_away() -> None:
    """Sections 4.4.3, 4.4.4 and 4.6.1: a response stands when it is seen again, over missed visits too; else it is worth stability."""
    assert (best(CR, NE), best(CR, NE, confirm=False)) == (SD, CR)
    assert (best(NE, CR), best(NE, CR, confirm=False)) == (SD, CR), "the last visit has none after it"
    assert best(CR, NE, CR) is CR
    assert best(PR, NE, CR) is PR
    rows = [Response(42.0 * (i + 1), c, c, None, None, None, None, None) for i, c in enumerate((PR, CR, NE))]
    told = unconfirmed(rows, CR, PR)
    assert told is not None
    assert told.startswith("best overall response CR, confirmed PR: CR on day 84 was not seen again at least 4 weeks later (after it: NE).")
    assert (best_overall(rows, 0, confirm=False), best_overall(rows, 0, confirm=True)) == (CR, PR)
    assert unconfirmed([*rows, Response(168, CR, CR, None, None, None, None, None)], CR, CR) is None
    alone = course(Visit(0, {}), Visit(56, {}, non_targets=NonTargets.CR))
    assert alone == [CR]
    judged = respond(Visit(0, {}), [Visit(56, {}, non_targets=NonTargets.CR)])
    assert best_overall(judged, 0, confirm=True) is NON, "without targets there is no stable disease (table 2)"


def test_targets_are_the_largest_five_and_two_an_organ() -> None:
    liver = [Candidate(f"liver{i}", "Liver", 30 - i, 20, slice_mm=1) for i in range(3)]
    nodes = [
        Candidate("node15", "neck", 22, 15, node=True),
        Candidate("node14", "groin", 40, 14.9, node=True),
        Candidate("node9", "neck", 12, 9.9, node=True),
    ]
    others = [Candidate(f"{organ}", organ, 12, 10, slice_mm=1) for organ in ("lung", "adrenal", "bone", "skin")]
    small = [Candidate("small", "spleen", 9.9, 8, slice_mm=1), Candidate("thick", "kidney", 13, 9, slice_mm=7)]
    targets, rest = choose_targets([*liver, *nodes, *others, *small])
    assert targets == ["liver0", "liver1", "node15", "lung", "adrenal"]
    assert rest == ["liver2", "node14", "bone", "skin", "small", "thick"], "a normal node is no disease"


def test_visits_that_do_not_fit_are_refused() -> None:
    start = visit(0, 30)
    for wrong in ([visit(0, 20)], [visit(-5, 20)], [visit(56, 20), visit(56, 25)], [visit(56, 20, 30)], [visit(56, 20, nodes="a")]):
        with pytest.raises(UsageError):
            recist.respond(start, wrong)
    with pytest.raises(UsageError):
        recist.respond(visit(0, ABSENT), [visit(56, 20)])
    for size in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError):
            measured(size)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.lists(st.one_of(st.floats(1, 200), st.just("absent"), st.just("ne")), min_size=2, max_size=2), min_size=1, max_size=6))
def test_laws(table: list[list[float | str]]) -> None:
    """Whatever the course: the order of the visits' list is nothing, nadirs never rise, and PD means +20 % and 5 mm or a return."""
    words = {"absent": ABSENT, "ne": NOT_EVALUATED}
    follow = [visit(10 * (i + 1), *(words[s] if isinstance(s, str) else s for s in row)) for i, row in enumerate(table)]
    start = visit(0, 50, 60)
    responses = recist.respond(start, follow)
    assert responses == recist.respond(start, follow[::-1])
    nadirs = [r.nadir for r in responses if r.nadir is not None]
    assert nadirs == sorted(nadirs, reverse=True)
    for r in responses:
        if r.category is PD and r.sum is not None and r.nadir is not None:
            assert r.sum >= max(1.2 * r.nadir, r.nadir + 5) - 1e-6 or any("back" in reason for reason in r.reasons)


def test_what_a_radiologist_would_try() -> None:
    """RECIST 1.1, sections 4.3, 4.4 and 4.6: rules that meet."""
    # Over a visit that was not evaluated the smallest sum stays what it was.
    assert course(visit(0, 100), visit(56, 50), visit(112, NOT_EVALUATED), visit(168, 60)) == [PR, NE, PD]
    # Progression against the smallest sum, though the sum is still 40 % below the baseline; and the sum before progression is no new start.
    assert course(visit(0, 100), visit(40, 50), visit(80, 60), visit(120, 55)) == [PR, PD, PR]
    # 20 % and 5 mm each on their own are not enough.
    assert course(visit(0, 24), visit(56, 28.9)) == [SD]
    assert course(visit(0, 200), visit(56, 230)) == [SD]
    # Sums of tenths of a millimetre: 1.2 * 33.3 is met, up to rounding.
    assert course(visit(0, 11.1, 11.1, 11.1), visit(56, 13.32, 13.32, 13.32)) == [PD]
    # Targets gone and nodes at 10: no complete response; at 9.9 with non-target disease: partial.
    assert course(visit(0, 20, 16, nodes="b"), visit(56, ABSENT, 10, nodes="b")) == [PR]
    assert course(visit(0, 20, 16, nodes="b", non=NonTargets.NON), visit(56, ABSENT, 9.9, nodes="b", non=NonTargets.NON)) == [PR]
    # Nodes alone: a complete response has a sum above 0, a node that is gone from the picture counts 0.
    assert [r.sum for r in recist.respond(visit(0, 18, 16, nodes="ab"), [visit(56, 9, ABSENT, nodes="ab")])] == [9]
    assert course(visit(0, 18, 16, nodes="ab"), visit(56, 9, ABSENT, nodes="ab")) == [CR]
    # A lesion that is missing shows no progression by itself, and what is left may.
    assert course(visit(0, 10, 40), visit(56, 10, 20), visit(112, NOT_EVALUATED, 34)) == [PR, NE]
    assert course(visit(0, 10, 40), visit(56, 10, 20), visit(112, NOT_EVALUATED, 36)) == [PR, PD]
    # After a complete response and a missed visit, what is back is progression still.
    assert course(visit(0, 30), visit(56, ABSENT), visit(112, NOT_EVALUATED), visit(168, 3)) == [CR, NE, PD]
    # A complete response of the targets alone is none: what is back is added to the sum.
    rest = NonTargets.NON
    assert course(visit(0, 30, non=rest), visit(56, ABSENT, non=rest), visit(112, 4, non=rest)) == [PR, PR]


def test_confirmation_and_stability_to_the_day() -> None:
    def rows(*seen: tuple[float, Category]) -> list[Response]:
        return [Response(day, c, c, None, None, None, None, None) for day, c in seen]

    assert best_overall(rows((42, PR), (70, PR)), 0, confirm=True) is PR, "four weeks"
    assert best_overall(rows((42, PR), (69, PR)), 0, confirm=True) is SD
    assert best_overall(rows((42, SD), (50, PD)), 0, confirm=True) is SD, "six weeks"
    assert best_overall(rows((41, SD), (50, PD)), 0, confirm=True) is PD
    assert best_overall(rows((41, SD)), 0, confirm=True) is NE
    assert best_overall(rows((56, SD)), 14, confirm=True) is SD, "from the baseline on, whatever its day"
    assert best_overall(rows((55, SD)), 14, confirm=True) is NE
    assert best_overall(rows((42, PR), (60, SD), (90, PR)), 0, confirm=True) is SD, "interrupted by stability"
    assert best_overall(rows((42, CR), (84, PR), (126, PR)), 0, confirm=True) is PR, "the first may not have been complete (table 3, note)"
    assert best_overall(rows((84, PR), (42, PR)), 0, confirm=True) is PR, "in any order"
    assert best_overall([], 0, confirm=True) is NE


def test_immune_windows_to_the_day_and_against_the_progression_that_waits() -> None:
    assert immune(visit(0, 50), visit(42, 62), visit(70, 67)) == [ICategory.IUPD, ICategory.ICPD], "four weeks, 5 mm"
    assert immune(visit(0, 50), visit(42, 62), visit(69, 67)) == [ICategory.IUPD, ICategory.IUPD]
    late = irecist.respond(visit(0, 50), [visit(42, 62), visit(99, 67)])
    assert late[-1].category is ICategory.ICPD
    assert "later than the 8 weeks" in late[-1].reasons[-1]
    # A missed visit neither confirms nor resets; back to stability resets, and the next progression waits anew.
    assert immune(visit(0, 50), visit(42, 62), visit(77, NOT_EVALUATED), visit(90, 68)) == [ICategory.IUPD, ICategory.NE, ICategory.ICPD]
    assert immune(visit(0, 50), visit(42, 62), visit(77, 55), visit(119, 62), visit(154, 62)) == [
        ICategory.IUPD,
        ICategory.ISD,
        ICategory.IUPD,
        ICategory.IUPD,
    ]
    # Nothing that is seen afterwards takes confirmed progression back.
    assert immune(visit(0, 50), visit(42, 62), visit(77, 68), visit(119, ABSENT)) == [ICategory.IUPD, ICategory.ICPD, ICategory.ICPD]


def immune(*visits: Visit, new: list[NewLesions] | None = None) -> list[ICategory]:
    return [r.category for r in irecist.respond(visits[0], visits[1:], new)]


def test_first_progression_waits_for_confirmation() -> None:
    assert immune(visit(0, 50), visit(42, 62), visit(77, 68)) == [ICategory.IUPD, ICategory.ICPD]
    assert immune(visit(0, 50), visit(42, 62), visit(77, 66.9)) == [ICategory.IUPD, ICategory.IUPD], "4.9 mm more is not enough"
    assert immune(visit(0, 50), visit(42, 62), visit(60, 70)) == [ICategory.IUPD, ICategory.IUPD], "18 days are too soon"


def test_pseudoprogression_resets_the_bar() -> None:
    seen = immune(visit(0, 50), visit(42, 62), visit(84, 30), visit(126, 37), visit(168, 43))
    assert seen == [ICategory.IUPD, ICategory.IPR, ICategory.IUPD, ICategory.ICPD]


def test_new_lesions_confirm_by_growing_or_by_number() -> None:
    visits = (visit(0, 50), visit(42, 50), visit(80, 50))
    one, grown = NewLesions({"n1": 12.0}), NewLesions({"n1": 17.0})
    assert immune(*visits, new=[one, grown]) == [ICategory.IUPD, ICategory.ICPD]
    assert immune(*visits, new=[one, NewLesions({"n1": 12.0}, others=1)]) == [ICategory.IUPD, ICategory.ICPD]
    assert immune(*visits, new=[one, one]) == [ICategory.IUPD, ICategory.IUPD]
    assert immune(*visits, new=[one, NewLesions()]) == [ICategory.IUPD, ICategory.ISD]


def test_progression_of_another_kind_confirms() -> None:
    assert immune(visit(0, 50), visit(42, 62), visit(80, 62, non=NonTargets.PD)) == [ICategory.IUPD, ICategory.ICPD]


def test_mrecist_counts_what_is_viable() -> None:
    def seen(*visits: Visit) -> list[Category]:
        return [r.category for r in mrecist.respond(visits[0], visits[1:])]

    assert seen(visit(0, 40), visit(60, ABSENT)) == [CR]
    assert seen(visit(0, 40), visit(60, 28)) == [PR]
    assert seen(visit(0, 40), visit(60, 28.1)) == [SD]
    assert seen(visit(0, 20), visit(60, 24)) == [PD], "no least growth in millimetres"
    assert seen(visit(0, 40), visit(60, TOO_SMALL)) == [NE]
    assert mrecist.NewNodule(10, typical=True).is_tumour
    assert not mrecist.NewNodule(15, typical=False).is_tumour
    assert mrecist.NewNodule(15, typical=False, grown_mm=10).is_tumour


def test_rano_needs_all_for_response_and_one_for_progression() -> None:
    good = Status(Trend.STABLE, Trend.STABLE, Trend.STABLE, no_steroids=True)

    def seen(now: float | Target, status: Status = good, day: float = 120, end: float | None = None) -> Category:
        return rano.respond(visit(0, 800), [visit(day, now)], {day: status}, radiotherapy_end=end)[0].category

    assert seen(ABSENT) is CR
    assert seen(ABSENT, Status(Trend.STABLE, Trend.STABLE, Trend.STABLE)) is PR, "on steroids there is no complete response"
    assert seen(400) is PR
    assert seen(400.1) is SD
    assert seen(400, Status(Trend.UNKNOWN, Trend.STABLE, Trend.STABLE)) is SD
    assert seen(999.9) is SD
    assert seen(1000) is PD
    assert seen(1000, Status(Trend.STABLE, Trend.STABLE, Trend.BETTER)) is SD, "on falling steroids growth is not certain"
    assert seen(800, Status(Trend.WORSE, Trend.STABLE, Trend.STABLE)) is PD
    assert seen(800, Status(Trend.STABLE, Trend.WORSE, Trend.STABLE)) is PD
    assert seen(1000, day=60, end=0) is NE, "within twelve weeks of radiotherapy"
    assert seen(1000, Status(Trend.STABLE, Trend.STABLE, Trend.STABLE, outside_field=True), day=60, end=0) is PD
    assert seen(1000, day=85, end=0) is PD
    assert seen(800, Status(Trend.STABLE, Trend.STABLE, Trend.WORSE)) is SD, "more steroids alone are no progression"
    assert seen(400, Status(Trend.STABLE, Trend.STABLE, Trend.WORSE)) is SD, "and no response"
    assert seen(800, Status(Trend.WORSE, Trend.STABLE, Trend.BETTER)) is SD, "on falling steroids oedema is not certain either"
    assert seen(800, Status(Trend.STABLE, Trend.WORSE, Trend.STABLE), day=60, end=0) is NE, "clinical decline alone is not enough in 12 weeks"
    assert seen(NOT_EVALUATED) is NE


def test_rano_without_measurable_disease_is_stable_at_best() -> None:
    good = Status(Trend.STABLE, Trend.STABLE, Trend.STABLE, no_steroids=True)

    def seen(non: NonTargets, status: Status = good, *, new: bool = False) -> Category:
        return rano.respond(Visit(0, {}), [Visit(120, {}, non_targets=non, new_lesions=new)], {120: status})[0].category

    assert seen(NonTargets.NON) is SD
    assert seen(NonTargets.CR) is SD
    assert seen(NonTargets.NE) is NE
    assert seen(NonTargets.NON, Status()) is NE, "nobody said how the patient is"
    assert seen(NonTargets.PD) is PD
    assert seen(NonTargets.NON, new=True) is PD


def test_rano_responses_last_four_weeks() -> None:
    good = Status(Trend.STABLE, Trend.STABLE, Trend.STABLE, no_steroids=True)
    days = dict.fromkeys((60.0, 80.0, 95.0), good)
    responses = rano.respond(visit(0, 800), [visit(60, 300), visit(80, 300), visit(95, 300)], days)
    assert rano.confirmed(responses) == [PR, SD, SD]


def test_volumes_follow_the_ball() -> None:
    def seen(now: float) -> Category:
        return volumetric.respond(visit(0, 1000), [visit(60, now)])[0].category

    assert [seen(v) for v in (342.9, 343.1, 1727, 1729)] == [PR, SD, SD, PD]


def test_real_series(data: Path) -> None:
    """Real patients' changes of the target sum in percent, with gaps: every category is where the limits put it."""
    with (data / "rds_pembrolizumab" / "ctDNA.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    patients: dict[str, dict[float, float | None]] = {}
    for row in rows:
        patients.setdefault(row["id"], {})[float(row["time"])] = float(row["size_change"]) if row["size_change"] else None
    assert len(patients) > 50
    checked = 0
    for series in patients.values():
        follow = {week: change for week, change in sorted(series.items()) if week > 0}
        size = {None: NOT_EVALUATED, -100.0: ABSENT}
        visits = [visit(7 * week, size[change] if change in size else 100 + (change or 0)) for week, change in follow.items()]
        responses = recist.respond(visit(0, 100.0), visits)
        lowest = 100.0
        for change, response in zip(follow.values(), responses, strict=True):
            if change is None:
                assert response.category is NE
                continue
            now = 100 + change
            assert (response.category is PD) == (now >= lowest + 5 - 1e-6 and now >= 1.2 * lowest - 1e-6)
            assert (response.category is CR) == (now == 0)
            if response.category is not PD and now > 0:
                assert (response.category is PR) == (now <= 70 + 1e-6)
            lowest = min(lowest, now)
            checked += 1
    assert checked > 150
