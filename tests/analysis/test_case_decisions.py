"""What a reader says of lesions between visits: what one became or came from, and what could not be assessed; and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from isocenter.analysis.case import Case, MeasuredVisit, assemble
from isocenter.analysis.case_edits import Edits, edited, effective
from isocenter.analysis.case_json import as_dict
from isocenter.analysis.decisions import decide, decided
from isocenter.analysis.merge import Merged
from isocenter.core.errors import IsocenterError, NotFoundError
from isocenter.core.patient import Decision, Patient, Timepoint
from tests.analysis.test_case_edits import visit

#: Middles (z, y, x) and radius: one far from the two others, which lie too far apart to be parts of one by themselves.
FAR, LEFT, RIGHT = (20, 15, 45, 8), (10, 15, 12, 9), (10, 45, 45, 6)


@pytest.fixture(scope="module")
def apart() -> list[MeasuredVisit]:
    """Two lesions, then three, then two again. By size: LEFT is lesion-1, FAR the next, RIGHT the last."""
    return [visit("a", 0, LEFT, FAR), visit("b", 40, LEFT, FAR, RIGHT), visit("c", 80, LEFT, FAR)]


@pytest.fixture(scope="module")
def steady() -> list[MeasuredVisit]:
    """Two lesions that hardly change, of which one is not found at the middle visit."""
    return [visit("a", 0, LEFT, FAR), visit("b", 40, LEFT), visit("c", 80, LEFT, FAR), visit("d", 120, LEFT, FAR)]


def together(name: str, lesions: Sequence[str]) -> Merged:
    raise AssertionError("nothing is merged here")


def said(visits: Sequence[MeasuredVisit], *decisions: Decision, start: Edits | None = None) -> Edits:
    return decided(start or Edits(), decisions, visits, together, "me")


def case(visits: list[MeasuredVisit], edits: Edits, *, growing: bool = False) -> Case:
    here = edited(visits, edits)
    holds = effective(here, edits)
    return assemble(
        Patient("P", tuple(v.timepoint for v in here)),
        here,
        corrections=holds.links,
        regroupings=holds.regroupings,
        inevaluable=holds.inevaluable,
        roles=holds.roles,
        growing=growing,
        uncorrected=visits,
    )


def names(of: Sequence[MeasuredVisit], at: str) -> dict[tuple[float, ...], str]:
    """A visit's lesions by their rough place."""
    (one,) = [v for v in of if v.timepoint.timepoint_id == at]
    return {tuple(round(c, -1) for c in f.size.centroid_lps_mm): f.id for f in one.found or ()}


def categories(of: Case) -> list[str]:
    return [str(r.category) for r in of.responses["recist_1.1"]]


SPLIT = Decision("split", ("a", "lesion-1"), others=(("b", "lesion-1"), ("b", "lesion-3")))
COALESCE = Decision("coalesce", ("c", "lesion-1"), others=(("b", "lesion-1"), ("b", "lesion-3")))


def test_a_lesion_becomes_two_and_they_one_again(apart: list[MeasuredVisit]) -> None:
    plain = case(apart, Edits())
    assert [(str(e.event), e.visit) for e in plain.graph.events] == [("new", "b"), ("disappeared", "c")]
    edits = said(apart, SPLIT, COALESCE)
    assert Edits.of(json.loads(json.dumps(edits.as_dict()))) == edits
    seen = case(apart, edits)
    events = as_dict(seen)["graph"]["events"]
    assert events == [
        {"visit": "b", "event": "split", "lesions": ["lesion-1", "lesion-3"], "parents": ["lesion-1"], "by_user": True},
        {"visit": "c", "event": "merged", "lesions": ["lesion-1"], "parents": ["lesion-1", "lesion-3"], "by_user": True},
    ]
    edges = {(e["from"], e["to"]): (e["by_user"], e["confidence"]) for e in as_dict(seen)["graph"]["edges"]}
    assert edges["lesion-1@a", "lesion-3@b"] == edges["lesion-3@b", "lesion-1@c"] == (True, 1.0)
    # Nothing is new, diameters of the parts add up, and of the whole its own counts (RECIST 1.1, section 4.3.2).
    assert not any(k.is_new for k in seen.lesions)
    assert all(k.is_target for k in seen.lesions), "a part of a target is of it"
    sizes = {(k.timepoint_id, k.lesion_id): k.longest_mm or 0.0 for k in seen.lesions}
    first, second = seen.responses["recist_1.1"]
    assert first.sum == pytest.approx(sum(sizes["b", f"lesion-{k}"] for k in (1, 2, 3)))
    assert second.sum == pytest.approx(sizes["c", "lesion-1"] + sizes["c", "lesion-2"])
    assert "new lesions" in "; ".join(plain.responses["recist_1.1"][0].reasons), "where nobody says otherwise"
    assert "new lesions" not in "; ".join(first.reasons)
    undone = said(apart, Decision("unsplit", ("a", "lesion-1")), Decision("uncoalesce", ("c", "lesion-1")), start=edits)
    assert undone == Edits()
    with pytest.raises(NotFoundError):
        decide(Edits(), Decision("unsplit", ("a", "lesion-1")), apart, together)


def test_a_part_that_splits_again_counts_for_the_first_lesion() -> None:
    visits = [visit("a", 0, LEFT), visit("b", 40, LEFT, RIGHT), visit("c", 80, LEFT, RIGHT, FAR)]
    right = next(name for place, name in names(visits, "c").items() if place == max(names(visits, "c")))
    order = [f.id for f in visits[2].found or ()]
    edits = said(
        visits,
        Decision("split", ("a", "lesion-1"), others=(("b", "lesion-1"), ("b", "lesion-2"))),
        Decision("split", ("b", "lesion-2"), others=tuple(("c", name) for name in order[1:])),
    )
    assert right in order
    seen = case(visits, edits)
    assert seen.responses["recist_1.1"][1].sum == pytest.approx(sum(k.longest_mm or 0 for k in seen.at("c")))


def test_what_is_said_later_replaces_what_it_contradicts(apart: list[MeasuredVisit]) -> None:
    edits = said(apart, SPLIT)
    linked = decide(edits, Decision("link", ("a", "lesion-2"), ("b", "lesion-3")), apart, together)
    assert (linked.regroupings, len(linked.links)) == ((), 1)
    again = decide(linked, SPLIT, apart, together)
    assert (again.links, len(again.regroupings)) == ((), 1)
    assert decide(again, Decision("unlink", ("a", "lesion-1"), ("b", "lesion-3")), apart, together).regroupings == ()
    # As which part it goes on may be said too.
    chosen = decide(again, Decision("link", ("a", "lesion-1"), ("b", "lesion-3")), apart, together)
    assert len(chosen.regroupings) == 1
    assert case(apart, chosen).graph.track_of("b", "lesion-3") == "L1"
    assert case(apart, again).graph.track_of("b", "lesion-1") == "L1", "by default as the largest"
    # A part that is deleted is none; what is left is the lesion.
    less = decide(again, Decision("delete", ("b", "lesion-1")), apart, together)
    assert case(apart, less).graph.track_of("b", "lesion-3") == "L1"
    assert decide(less, Decision("undelete", ("b", "lesion-1")), apart, together) == again


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        (Decision("split", ("a", "lesion-1")), "two or more"),
        (Decision("split", ("a", "lesion-1"), others=(("b", "lesion-1"),)), "two or more"),
        (Decision("split", ("a", "lesion-1"), others=(("b", "lesion-1"), ("b", "lesion-1"))), "different"),
        (Decision("split", ("a", "lesion-1"), others=(("b", "lesion-1"), ("c", "lesion-1"))), "all of one visit"),
        (Decision("split", ("a", "lesion-1"), others=(("c", "lesion-1"), ("c", "lesion-2"))), "'b' lies between"),
        (Decision("split", ("c", "lesion-1"), others=(("b", "lesion-1"), ("b", "lesion-2"))), "the other way round it is coalesce"),
        (Decision("coalesce", ("a", "lesion-1"), others=(("b", "lesion-1"), ("b", "lesion-2"))), "the other way round it is split"),
        (Decision("coalesce", ("b", "lesion-1"), others=(("b", "lesion-2"), ("b", "lesion-3"))), "is merged"),
        (Decision("split", ("a", "lesion-1"), others=(("b", "lesion-1"), ("b", "lesion-9"))), "no such lesion"),
        (Decision("split", ("x", "lesion-1"), others=(("b", "lesion-1"), ("b", "lesion-2"))), "no such lesion"),
    ],
)
def test_regroupings_that_cannot_be(apart: list[MeasuredVisit], decision: Decision, words: str) -> None:
    with pytest.raises(IsocenterError, match=words):
        decide(Edits(), decision, apart, together)


def test_a_visit_that_comes_in_between_is_noted(apart: list[MeasuredVisit]) -> None:
    edits = said([apart[0], apart[2]], Decision("split", ("a", "lesion-1"), others=(("c", "lesion-1"), ("c", "lesion-2"))))
    assert any("what a reader said of its parts does not hold" in note for note in case(apart, edits).notes)


NOT_SEEN = Decision("not_evaluable", ("a", "lesion-2"), at="b")


def test_not_evaluable_is_neither_gone_nor_there(steady: list[MeasuredVisit]) -> None:
    """RECIST 1.1, section 4.4.2: a sum with a lesion that was not assessed is not known."""
    absent = case(steady, Edits())
    assert [(str(e.event), e.visit) for e in absent.graph.events] == [("disappeared", "b"), ("returned", "c")]
    assert categories(absent) == ["PR", "PD", "PD"]
    edits = said(steady, NOT_SEEN)
    assert Edits.of(json.loads(json.dumps(edits.as_dict()))) == edits
    seen = case(steady, edits, growing=True)
    assert categories(seen) == ["NE", "SD", "SD"]
    first, second, _ = seen.responses["recist_1.1"]
    assert first.sum is None
    assert seen.sums_sd_mm[0] is None
    assert second.nadir == second.baseline, "what was not assessed is no smallest sum"
    assert [(str(e.event), e.visit, e.parents) for e in seen.graph.events] == [("not evaluable", "b", ("lesion-2",))]
    told = as_dict(seen)
    assert told["not_evaluable"] == [{"timepoint_id": "b", "track": "L2", "lesion_id": None}]
    assert any("b: L2 was not evaluable" in note for note in told["notes"])
    assert seen.volume_at("b") is None
    growth = {g["track"]: g["volumes_mm3"] for g in told["growth"]}
    assert growth["L2"][1] is None
    assert growth["total"][1] is None
    assert None not in growth["L1"]
    assert seen.chances[0] == {seen.responses["recist_1.1"][0].category: 1.0}
    assert decide(edits, Decision("evaluable", ("c", "lesion-2"), at="b"), steady, together) == Edits(), "named as at any visit"


def test_a_lesion_in_the_mask_that_could_not_be_assessed_has_no_figures(steady: list[MeasuredVisit]) -> None:
    seen = case(steady, said(steady, Decision("not_evaluable", ("c", "lesion-2"))))
    (one,) = [k for k in seen.at("c") if not k.evaluable]
    assert (one.longest_mm, one.volume_mm3, one.sd_mm, one.longest_ends) == (None, None, None, None)
    assert "not evaluable" in one.reasons["longest_mm"]
    assert one.track == "L2", "it is followed all the same"
    assert categories(seen) == ["PR", "NE", "PD"]
    assert as_dict(seen)["not_evaluable"] == [{"timepoint_id": "c", "track": "L2", "lesion_id": "lesion-2"}]


def test_progression_that_the_others_show_stays(steady: list[MeasuredVisit]) -> None:
    grown = [*steady[:2], visit("c", 80, (10, 30, 30, 22)), steady[3]]
    linked = Decision("link", ("b", "lesion-1"), ("c", "lesion-1"))
    edits = said(grown, linked, NOT_SEEN, Decision("not_evaluable", ("a", "lesion-2"), at="c"))
    seen = case(grown, edits)
    assert categories(seen)[:2] == ["NE", "PD"]
    assert "the others alone show progression" in "; ".join(seen.responses["recist_1.1"][1].reasons)
    assert [(str(e.event), e.visit) for e in seen.graph.events] == [("not evaluable", "b"), ("not evaluable", "c")]


def test_gone_after_a_visit_at_which_it_could_not_be_assessed(steady: list[MeasuredVisit]) -> None:
    visits = [*steady[:2], visit("c", 80, LEFT), steady[3]]
    seen = case(visits, said(visits, NOT_SEEN))
    assert [(str(e.event), e.visit) for e in seen.graph.events] == [("not evaluable", "b"), ("disappeared", "c"), ("returned", "d")]


def test_not_evaluable_at_baseline_is_no_target(steady: list[MeasuredVisit]) -> None:
    edits = said(steady, Decision("not_evaluable", ("a", "lesion-2")))
    seen = case(steady, edits)
    assert (seen.targets, seen.non_targets) == (("L1",), ("L2",))
    with pytest.raises(IsocenterError, match="was not measured at baseline"):
        case(steady, decide(edits, Decision("role", ("a", "lesion-2"), target=True), steady, together))


def test_non_targets_that_could_not_be_assessed(steady: list[MeasuredVisit]) -> None:
    role = Decision("role", ("a", "lesion-2"), target=False)
    alone = [visit("a", 0, FAR), visit("b", 40), visit("c", 80, FAR)]
    of_all = said(alone, Decision("role", ("a", "lesion-1"), target=False), Decision("not_evaluable", ("a", "lesion-1"), at="b"))
    assert categories(case(alone, of_all)) == ["NE", "NON-CR/NON-PD"], "without targets the non-targets decide (table 2)"
    both = said(steady, role, NOT_SEEN)
    assert categories(case(steady, both)) == ["SD", "SD", "SD"], "table 1: SD, not all evaluated"


def test_what_is_new_but_could_not_be_assessed_counts_when_it_can(apart: list[MeasuredVisit]) -> None:
    visits = [*apart[:2], visit("c", 80, LEFT, FAR, RIGHT)]
    seen = case(visits, said(visits, Decision("not_evaluable", ("b", "lesion-3"))))
    assert categories(seen) == ["SD", "PD"]


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        (Decision("not_evaluable", ("a", "lesion-2"), at="x"), "no such visit"),
        (Decision("not_evaluable", ("a", "lesion-9"), at="b"), "no such lesion"),
        (Decision("not_evaluable", ("b", "lesion-3"), at="a"), "not known before 'b'"),
        (Decision("not_evaluable", ("a", "lesion-1"), at="none"), "nothing was measured"),
        (Decision("evaluable", ("a", "lesion-1")), "nobody said"),
        (Decision("assess", at="b"), "say what is assessed"),
        (Decision("assess", assessment={"new_lesions": True}), "which visit"),
        (Decision("assess", at="x", assessment={"new_lesions": True}), "no such visit"),
        (Decision("assess", at="b", assessment={"new_lesions": "yes"}), "true, false or null"),
        (Decision("assess", at="b", assessment={"non_targets": "better"}), "non_targets: CR"),
        (Decision("assess", at="b", assessment={"mood": "better"}), "non_targets: CR"),
    ],
)
def test_what_cannot_be_meant_of_a_visit(apart: list[MeasuredVisit], decision: Decision, words: str) -> None:
    nothing = MeasuredVisit(Timepoint("none", 60), None, reason="no scan")
    with pytest.raises(IsocenterError, match=words):
        decide(Edits(), decision, [*apart[:2], nothing, apart[2]], together)


def test_what_a_reader_says_of_a_visit_comes_before_what_came_with_it(apart: list[MeasuredVisit]) -> None:
    def told(**words: Any) -> Decision:
        return Decision("assess", at="b", assessment=words)

    assert categories(case(apart, said(apart, told(new_lesions=False))))[0] == "SD"
    edits = said(apart, told(new_lesions=False, non_targets="PD"))
    assert categories(case(apart, edits))[0] == "PD"
    assert Edits.of(json.loads(json.dumps(edits.as_dict()))) == edits
    assert said(apart, told(new_lesions=None, non_targets=None), start=edits) == Edits()
