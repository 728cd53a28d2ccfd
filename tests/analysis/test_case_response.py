"""What the criteria look at in a case: targets that merge, what people say of a visit, and every criterion in the answer."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from isocenter.analysis.case import Case, Found, MeasuredVisit, assemble
from isocenter.analysis.case_json import as_dict
from isocenter.analysis.lesions import lesions
from isocenter.analysis.report import content
from isocenter.analysis.response.visit import Category
from isocenter.core.errors import UsageError
from isocenter.core.geometry import Grid
from isocenter.core.patient import Patient, TherapyEvent, Timepoint

GRID = Grid((24, 60, 60), (1.5, 1.5, 2.0))


def visit(name: str, day: float, *places: tuple[float, float, float, float]) -> MeasuredVisit:
    """A registered visit with balls of lesions: z, y, x of their middles and radius in mm."""
    z, y, x = np.ogrid[:24, :60, :60]
    mask = np.zeros(GRID.shape, np.uint8)
    for a, b, c, radius in places:
        mask[(2 * (z - a)) ** 2 + (1.5 * (y - b)) ** 2 + (1.5 * (x - c)) ** 2 <= radius**2] = 1
    found = tuple(Found(f"lesion-{k + 1}", size, organ="liver") for k, size in enumerate(lesions(mask, GRID)))
    places_ = tuple(f.size.centroid_lps_mm for f in found)
    return MeasuredVisit(Timepoint(name, day, None, "CT"), found, GRID.spacing, places_, onward=((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0)))


def case(*visits: MeasuredVisit, criteria: tuple[str, ...] = (), therapies: tuple[TherapyEvent, ...] = ()) -> Case:
    patient = Patient("P", tuple(v.timepoint for v in visits), therapies)
    return assemble(patient, visits, growing=False, criteria=criteria)


def categories(of: Case, criterion: str = "recist_1.1") -> list[str]:
    return [str(r.category) for r in of.responses[criterion]]


def test_a_response_that_nothing_confirms_is_told_with_the_reason() -> None:
    ball = (12, 30, 30, 12)
    seen = case(visit("a", 0, ball), visit("b", 60), replace(visit("c", 120), found=None, reason="no scan"))
    assert (categories(seen), str(seen.best_overall), str(seen.best_seen)) == (["CR", "NE"], "SD", "CR")
    (note,) = [n for n in seen.notes if "best overall" in n]
    assert "CR on day 60 was not seen again" in note
    told = json.loads(json.dumps(as_dict(seen), allow_nan=False))
    assert (told["best_overall_response"], told["best_overall_response_unconfirmed"]) == ("SD", "CR")


def test_the_sum_has_an_error() -> None:
    two = (8, 15, 15, 10), (16, 45, 45, 8)
    seen = case(visit("a", 0, *two), visit("b", 60, *two), visit("c", 90, two[0]))
    rows = as_dict(seen)["response"]["recist_1.1"]
    at_b = [lesion.sd_mm or 0 for lesion in seen.at("b")]
    assert rows[0]["sum_sd_mm"] == pytest.approx(math.hypot(*at_b))
    assert rows[1]["sum_sd_mm"] == pytest.approx(seen.at("c")[0].sd_mm)
    assert rows[1]["baseline_sd_mm"] == pytest.approx(math.hypot(*(lesion.sd_mm or 0 for lesion in seen.at("a"))))
    assert case(visit("a", 0, *two)).baseline_sd_mm == pytest.approx(rows[1]["baseline_sd_mm"])


def test_the_sum_of_nodes_has_the_error_of_their_short_axes() -> None:
    long = (12, 30, 30, 12), (12, 30, 38, 12)  # one body, longer than wide
    visits = [visit(name, day, *long) for name, day in (("a", 0.0), ("b", 60.0))]
    plain, nodal = (case(*(replace(v, found=tuple(replace(f, node=node) for f in v.found or ())) for v in visits)) for node in (False, True))
    assert nodal.lesions[0].is_node
    assert nodal.responses["recist_1.1"][0].sum == pytest.approx(nodal.lesions[0].short_axis_mm)
    assert (nodal.sums_sd_mm[0] or 0) < (plain.sums_sd_mm[0] or 0) == pytest.approx(plain.at("b")[0].sd_mm)


def test_a_target_that_grew_into_another_lesion_is_not_gone() -> None:
    """RECIST 1.1, section 4.3.2: of lesions that coalesced the longest diameter of the whole is taken."""
    apart = visit("a", 0, (12, 20, 20, 9), (12, 20, 36, 9))
    whole = visit("b", 60, (12, 20, 20, 9), (12, 20, 28, 8), (12, 20, 36, 9))
    assert [len(v.found or ()) for v in (apart, whole)] == [2, 1]
    both = case(apart, whole)
    (judged,) = both.responses["recist_1.1"]
    (one,) = both.at("b")
    assert judged.sum == pytest.approx(one.longest_mm)
    survivor = one.track
    other = next(t for t in both.targets if t != survivor)
    # Only the one that merged away is a target: its size is that of the whole.
    roles = {("a", both.graph.tracks[survivor]["a"]): False}
    lone = assemble(Patient("P", tuple(v.timepoint for v in (apart, whole))), (apart, whole), growing=False, roles=roles)
    assert lone.targets == (other,)
    assert lone.responses["recist_1.1"][0].sum == pytest.approx(one.longest_mm)
    assert lone.sums_sd_mm[0] == pytest.approx(one.sd_mm)
    assert content.rows(lone)[1]["sd"] == f"{one.sd_mm:.1f}", "the table has the error of this very sum"
    assert categories(lone) == ["PD"]


def test_every_criterion_is_in_the_answer() -> None:
    ball = (12, 30, 30, 12)
    grown = (12, 30, 30, 16)
    seen = case(visit("a", 0, ball), visit("b", 40, grown), visit("c", 80, (12, 30, 30, 20)), criteria=("irecist", "mrecist", "rano"))
    told = as_dict(seen)["response"]
    assert [row["category"] for row in told["irecist"]] == ["iUPD", "iCPD"]
    assert [row["category"] for row in told["mrecist"]] == ["PD", "PD"]
    assert [row["category"] for row in told["rano"]] == ["PD", "PD"]
    assert told["rano"][0]["sum"] == pytest.approx(seen.at("b")[0].who_product_mm2)
    assert any(n.startswith("day 40, RANO: PD") for n in seen.notes)
    with pytest.raises(UsageError, match="percist"):
        case(visit("a", 0, ball), visit("b", 40, ball), criteria=("percist",))


def test_a_baseline_long_before_treatment_is_told() -> None:
    ball = (12, 30, 30, 12)

    def told(start_day: float) -> list[str]:
        visits = (visit("a", 0, ball), visit("b", 40, ball), visit("c", 90, ball))
        return [n for n in case(*visits, therapies=(TherapyEvent("t", "chemo", start_day),)).notes if "section 4.1" in n]

    assert not told(28)
    assert "35 days after the baseline:" in told(35)[0]
    assert "45 days after the baseline; b is nearer" in told(45)[0]
    assert not told(-300), "treated before is not too early"


def test_a_response_by_rano_must_last() -> None:
    steady = {"flair": "stable", "clinical": "better", "steroids": "none"}
    start, half = visit("a", 0, (12, 30, 30, 14)), (12, 30, 30, 8)
    for day, lasts in ((80, False), (88, True)):
        later = [replace(visit(name, d, half), assessment=steady) for name, d in (("b", 60), ("c", day))]
        seen = case(start, *later, criteria=("rano",))
        assert categories(seen, "rano") == ["PR", "PR"]
        notes = [n for n in seen.notes if "was not seen again" in n and "RANO" in n]
        assert [n.split(",")[0] for n in notes] == ([] if lasts else ["day 60"])


def test_soon_after_radiotherapy_only_growth_outside_of_its_field_is_progression() -> None:
    start, grown = visit("a", 0, (12, 30, 30, 10)), visit("b", 60, (12, 30, 30, 16))
    beams = (TherapyEvent("r", "radiotherapy", -30.0, 10.0),)
    for where, category in ((None, "NE"), ("in field", "NE"), ("outside field", "PD")):
        now = replace(grown, assessment={"enhancement": where} if where else {})
        assert categories(case(start, now, criteria=("rano",), therapies=beams), "rano") == [category]


def test_each_visit_has_its_own_error_in_the_probabilities() -> None:
    """A target that is large at first and small later: its later size is as sure as small sizes are."""
    seen = case(visit("a", 0, (12, 30, 30, 16)), visit("b", 60, (12, 30, 30, 4.2)), visit("c", 90, (12, 30, 30, 7.4)))
    _, small, now = (seen.at(name)[0] for name in "abc")
    rise = (now.longest_mm or 0) - (small.longest_mm or 0)
    assert categories(seen)[1] == "PD"
    # Rise against five millimetres, both sizes with their own errors; the smallest sum is the drawn one.
    expected = NormalDist().cdf((rise - 5) / math.hypot(small.sd_mm or 0, now.sd_mm or 0))
    assert seen.chances[1][Category.PD] == pytest.approx(expected, abs=0.05)


def test_a_new_lesion_near_ten_millimetres_is_new_with_a_probability() -> None:
    """Whether it is progression hangs on its diameter, which has an error; what a person said of the visit does not."""
    ball, small = (12, 15, 15, 12), (14, 45, 45, 4.4)
    seen = case(visit("a", 0, ball), visit("b", 60, ball, small))
    new = seen.at("b")[1]
    assert 8 < (new.longest_mm or 0) < 10
    assert categories(seen) == ["SD"]
    expected = 1 - NormalDist(new.longest_mm or 0, new.sd_mm or 1).cdf(10)
    assert 0.05 < expected < 0.5
    assert seen.chances[0][Category.PD] == pytest.approx(expected, abs=0.06)
    said = case(visit("a", 0, ball), replace(visit("b", 60, ball, small), new_lesions=False))
    assert said.chances[0].get(Category.PD, 0.0) < 0.06, "by the target alone"
    assert case(visit("a", 0, ball), replace(visit("b", 60, ball, small), new_lesions=True)).chances[0] == {Category.PD: 1.0}


def test_new_lesions_confirm_progression_by_growing_or_by_number() -> None:
    """iRECIST, page e147: a first new lesion is iUPD; 5 mm more of it, or another one, 4 to 8 weeks later confirms, the same lesion does not."""
    ball = (12, 15, 15, 10)

    def immune(*later: tuple[tuple[float, float, float, float], ...]) -> list[str]:
        visits = [visit(f"v{k}", 40.0 * k, ball, *more) for k, more in enumerate(((), *later))]
        seen = case(*visits, criteria=("irecist",))
        assert categories(seen) == ["PD" if more else "SD" for more in later], "RECIST 1.1 does not wait"
        return [str(r.category) for r in seen.irecist]

    new, grown, other = (14, 45, 45, 7), (14, 45, 45, 10.5), (8, 45, 20, 7)
    assert immune((new,), (new,)) == ["iUPD", "iUPD"]
    assert immune((new,), (grown,)) == ["iUPD", "iCPD"]
    assert immune((new,), (new, other)) == ["iUPD", "iCPD"]
    assert immune((new,), ()) == ["iUPD", "iSD"]
    assert immune((new,), (), (new,)) == ["iUPD", "iSD", "iUPD"], "the bar was reset"
    said = [visit("a", 0, ball), replace(visit("b", 40, ball), new_lesions=True), replace(visit("c", 80, ball), new_lesions=True)]
    assert [str(r.category) for r in case(*said, criteria=("irecist",)).irecist] == ["iUPD", "iUPD"], "nobody said that it grew"
    denied = [visit("a", 0, ball), replace(visit("b", 40, ball, new), new_lesions=False)]
    assert [str(r.category) for r in case(*denied, criteria=("irecist",)).irecist] == ["iSD"]


def test_what_people_say_of_a_visit_counts() -> None:
    ball, half = (12, 30, 30, 14), (12, 30, 30, 8)
    start, now = visit("a", 0, ball), visit("b", 60, half)
    assert categories(case(start, now)) == ["PR"]
    assert categories(case(start, replace(now, assessment={"non_targets": "PD"}))) == ["PD"]
    unknown, steady = case(start, now, criteria=("rano",)), {"flair": "stable", "clinical": "better", "steroids": "none"}
    assert categories(unknown, "rano") == ["SD"], "nobody said how the patient is"
    assert categories(case(start, replace(now, assessment=steady), criteria=("rano",)), "rano") == ["PR"]
    worse = replace(now, assessment={"clinical": "worse"})
    assert categories(case(start, worse, criteria=("rano",)), "rano") == ["PD"]
    beam = TherapyEvent("t", "chemoradiotherapy", -10.0, 20.0)
    assert categories(case(start, worse, criteria=("rano",), therapies=(beam,)), "rano") == ["NE"], "within 12 weeks of radiation"


def test_nodes_below_ten_are_normal_among_the_non_targets_too() -> None:
    """RECIST 1.1, section 4.3.3: complete response asks that all nodes are normal in size, not that they are gone; and a normal one is not new."""

    def nodes(of: MeasuredVisit, *which: int) -> MeasuredVisit:
        return replace(of, found=tuple(replace(f, node=k in which, organ="neck" if k in which else "liver") for k, f in enumerate(of.found or ())))

    start = nodes(visit("a", 0, (8, 15, 15, 12), (16, 45, 45, 6)), 1)
    assert start.found is not None
    assert 10 <= start.found[1].size.short_axis_mm < 15
    seen = case(start, nodes(visit("b", 60, (16, 45, 45, 6)), 0), nodes(visit("c", 90, (16, 45, 45, 4)), 0))
    assert seen.non_targets == ("L2",)
    assert categories(seen) == ["PR", "CR"]
    new = nodes(visit("b", 60, (8, 15, 15, 12), (16, 45, 45, 6), (16, 15, 45, 4.5)), 1, 2)
    assert new.found is not None
    for short, expected in ((8.0, "SD"), (11.0, "PD")):
        oval = replace(new.found[2], size=replace(new.found[2].size, longest_mm=14.0, short_axis_mm=short))
        assert categories(case(start, replace(new, found=(*new.found[:2], oval)))) == [expected]
