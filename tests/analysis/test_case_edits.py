"""A reader's decisions: data that holds for lesions as they were measured, applied anew each time, and refused where it cannot be."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from isocenter.analysis.case import Found, MeasuredVisit, assemble
from isocenter.analysis.case_edits import Edits, check, edited, effective, in_order, track_names
from isocenter.analysis.decisions import Together, decide, decided
from isocenter.analysis.lesions import lesions
from isocenter.analysis.merge import chosen, merge
from isocenter.analysis.report.scans import each_lesion
from isocenter.core.errors import NotFoundError, UsageError
from isocenter.core.geometry import Grid
from isocenter.core.patient import Decision, Patient, TherapyEvent, Timepoint
from isocenter.core.volume import Volume

GRID = Grid((30, 60, 60), (1.5, 1.5, 2.0))


def visit(name: str, day: float, *places: tuple[float, float, float, float]) -> MeasuredVisit:
    z, y, x = np.ogrid[:30, :60, :60]
    mask = np.zeros(GRID.shape, np.uint8)
    for a, b, c, radius in places:
        mask[(2 * (z - a)) ** 2 + (1.5 * (y - b)) ** 2 + (1.5 * (x - c)) ** 2 <= radius**2] = 1
    found = tuple(Found(f"lesion-{k + 1}", size, organ="liver") for k, size in enumerate(lesions(mask, GRID)))
    return MeasuredVisit(Timepoint(name, day), found, GRID.spacing)


@pytest.fixture(scope="module")
def visits() -> list[MeasuredVisit]:
    three = (10, 15, 15, 12), (10, 45, 45, 9), (20, 15, 45, 8)
    return [visit("a", 0, *three), visit("b", 40, *three), visit("c", 80, *three)]


def case(visits: list[MeasuredVisit], edits: Edits) -> object:
    here = edited(visits, edits)
    holds = effective(here, edits)
    return assemble(Patient("P", tuple(v.timepoint for v in here)), here, corrections=holds.links, roles=holds.roles, growing=False)


def test_edits_are_plain_data_and_come_back() -> None:
    therapy = TherapyEvent("t", "x", 1.0, 9.0)
    edits = (
        Edits()
        .linked(("a", "1"), ("b", "2"), True, "me")
        .named(("a", "1"), "  liver   dome ")
        .with_role(("a", "1"), False)
        .with_measurement(("b", "2"), {"longest_mm": 12})
        .without(("c", "3"))
        .with_therapy(therapy)
    )
    assert Edits.of(json.loads(json.dumps(edits.as_dict()))) == edits
    assert edits.names == {("a", "1"): "liver dome"}
    undone = edits.with_role(("a", "1"), None).named(("a", "1"), "").with_measurement(("b", "2"), {"longest_mm": None}).without(("c", "3"), False)
    assert undone == Edits(links=edits.links, therapies=(therapy,))
    with pytest.raises(NotFoundError):
        edits.without_therapy("other")
    assert edits.without_therapy("t").therapies == ()


def test_a_link_replaces_what_contradicts_it() -> None:
    edits = Edits().linked(("a", "1"), ("b", "1"), True).linked(("a", "1"), ("b", "2"), True)
    assert [(c.before, c.after) for c in edits.links] == [(("a", "1"), ("b", "2"))]
    assert [c.same for c in edits.linked(("a", "1"), ("b", "2"), False).links] == [False]


@pytest.mark.parametrize(
    "figures", [{}, {"longest_mm": 0}, {"longest_mm": float("nan")}, {"longest_mm": 1e9}, {"mean": 1.0}, {"volume_mm3": True}], ids=str
)
def test_figures_that_cannot_be(figures: dict[str, float | None]) -> None:
    with pytest.raises(UsageError):
        Edits().with_measurement(("a", "1"), figures)


def test_the_case_follows(visits: list[MeasuredVisit]) -> None:
    from isocenter.analysis.case import Case

    plain = case(visits, Edits())
    assert isinstance(plain, Case)
    assert plain.targets == ("L1", "L2"), "two an organ, the largest"
    smaller = case(visits, Edits().with_role(("a", "lesion-1"), False))
    assert isinstance(smaller, Case)
    assert smaller.targets == ("L2", "L3")
    wanted = case(visits, Edits().with_role(("b", "lesion-3"), True))
    assert isinstance(wanted, Case)
    assert wanted.targets == ("L3", "L1")
    grown = case(visits, Edits().with_measurement(("c", "lesion-1"), {"longest_mm": 90}))
    assert isinstance(grown, Case)
    assert str(grown.responses["recist_1.1"][-1].category) == "PD"
    lesion = grown.at("c")[0]
    assert (lesion.method, lesion.reasons["longest_mm"]) == ("drawn", "set by a reader")
    gone = case(visits, Edits().without(("a", "lesion-2")).with_role(("a", "lesion-2"), True).linked(("a", "lesion-2"), ("b", "lesion-2"), True))
    assert isinstance(gone, Case)
    assert len(gone.at("a")) == 2, "what concerns a lesion that is gone changes nothing"
    apart = Edits().linked(("a", "lesion-1"), ("b", "lesion-1"), False).named(("b", "lesion-1"), "new one")
    parted = case(visits, apart)
    assert isinstance(parted, Case)
    assert parted.graph.track_of("a", "lesion-1") != parted.graph.track_of("b", "lesion-1")
    assert track_names(apart, parted.graph) == {parted.graph.track_of("b", "lesion-1"): "new one"}


def test_a_lesion_that_is_missing_at_a_middle_visit_stays_one(visits: list[MeasuredVisit]) -> None:
    """Deleted there, it goes on after; a reader may say that it does not, or that another one is it; a link over a visit that has it says nothing."""
    from isocenter.analysis.case import Case

    gone = Edits().without(("b", "lesion-1"))
    kept = case(visits, gone)
    assert isinstance(kept, Case)
    assert kept.graph.tracks["L1"] == {"a": "lesion-1", "c": "lesion-1"}
    parted = case(visits, gone.linked(("a", "lesion-1"), ("c", "lesion-1"), False))
    assert isinstance(parted, Case)
    assert parted.graph.tracks["L1"] == {"a": "lesion-1"}
    said = case(visits, Edits().linked(("a", "lesion-1"), ("c", "lesion-2"), True))
    assert isinstance(said, Case)
    assert said.graph.tracks["L1"]["c"] == "lesion-1"
    assert [n for n in said.notes if "in between" in n] == [
        "lesion-1 at a was linked to lesion-2 at c, but is seen in between; link it visit by visit"
    ]


def test_what_the_rules_forbid_is_refused(visits: list[MeasuredVisit]) -> None:
    both = Edits().with_role(("a", "lesion-1"), True).with_role(("a", "lesion-2"), True).with_role(("a", "lesion-3"), True)
    with pytest.raises(UsageError, match="two an organ"):
        case(visits, both)
    small = Edits().with_measurement(("a", "lesion-3"), {"longest_mm": 8, "short_axis_mm": 5}).with_role(("a", "lesion-3"), True)
    with pytest.raises(UsageError, match="too small"):
        case(visits, small)
    late = [replace(visits[0], found=visits[0].found[:2] if visits[0].found else ()), *visits[1:]]
    with pytest.raises(UsageError, match="not there at baseline"):
        case(late, Edits().with_role(("b", "lesion-3"), True))


def test_lesions_and_visits_that_are_there(visits: list[MeasuredVisit]) -> None:
    assert in_order(visits, ("b", "lesion-1"), ("a", "lesion-1")) == (("a", "lesion-1"), ("b", "lesion-1"))
    assert in_order(visits, ("c", "lesion-1"), ("a", "lesion-1")) == (("a", "lesion-1"), ("c", "lesion-1"))
    with pytest.raises(UsageError, match="merged"):
        in_order(visits, ("a", "lesion-1"), ("a", "lesion-2"))
    with pytest.raises(NotFoundError):
        check(visits, Edits(), ("a", "lesion-9"))
    with pytest.raises(NotFoundError):
        in_order(visits, ("a", "lesion-1"), ("z", "lesion-1"))
    with pytest.raises(UsageError, match="short axis"):
        check(visits, Edits().with_measurement(("a", "lesion-1"), {"longest_mm": 5}), ("a", "lesion-1"))


@pytest.mark.parametrize(
    "therapy",
    [
        TherapyEvent("t", "x", 5.0, 1.0),
        TherapyEvent("t", "x", float("nan")),
        TherapyEvent("t", "x", 1e9),
        TherapyEvent("t", "x", 1.0, dose=1000.0),
        TherapyEvent("t", "x", 1.0, dose=-1.0),
        TherapyEvent("t", "x", 1.0, onset_days=float("inf")),
    ],
    ids=str,
)
def test_absurd_treatment_is_refused(therapy: TherapyEvent) -> None:
    with pytest.raises(UsageError):
        Edits().with_therapy(therapy)


def test_scans_of_different_kinds_are_named(visits: list[MeasuredVisit]) -> None:
    kinds = ("CT", "MR", None)
    mixed = [replace(v, timepoint=replace(v.timepoint, modality=kind)) for v, kind in zip(visits, kinds, strict=True)]
    for given, words in ((visits, []), (mixed, ["scans of different kinds (CT: a; MR: b)"])):
        made = assemble(Patient("P", tuple(v.timepoint for v in given)), given, growing=False)
        assert [note[: note.index("):") + 1] for note in made.notes if "kinds" in note] == words


def parts_of(visit: MeasuredVisit, *places: tuple[float, float, float, float]) -> Together:
    """Measures lesions of the visit as one, from the mask that `visit` made."""
    z, y, x = np.ogrid[:30, :60, :60]
    mask = np.zeros(GRID.shape, np.uint8)
    for a, b, c, radius in places:
        mask[(2 * (z - a)) ** 2 + (1.5 * (y - b)) ** 2 + (1.5 * (x - c)) ** 2 <= radius**2] = 1
    scan = Volume(mask.astype(np.int16), GRID.spacing, modality="CT", unit="HU")
    return lambda name, names: merge(chosen(each_lesion(mask, GRID, 0), names), names, scan)


def test_pieces_of_one_lesion_are_merged_and_taken_apart_again(visits: list[MeasuredVisit]) -> None:
    """Two balls in one slice: volumes add up exactly, the diameter reaches over both; a merger of other pieces changes nothing."""
    places = (10, 15, 15, 12), (10, 15, 45, 9), (20, 45, 45, 8)
    two = [visit("a", 0, *places), visit("b", 40, *places)]
    together = parts_of(two[0], *places)
    said = Decision("merge", ("a", "lesion-1"), ("a", "lesion-2"))
    edits = decide(Edits(), said, two, together)
    assert Edits.of(json.loads(json.dumps(edits.as_dict()))) == edits
    one, whole = two[0], edited(two, edits)[0]
    assert one.found
    assert whole.found
    assert [f.id for f in whole.found] == ["lesion-1", "lesion-3"]
    first, second = one.found[0].size, one.found[1].size
    size = whole.found[0].size
    assert size.volume_mm3 == first.volume_mm3 + second.volume_mm3
    assert size.longest_mm == pytest.approx(30 * 1.5 + first.longest_mm / 2 + second.longest_mm / 2, abs=1.5)
    assert any("lesion-2 into lesion-1" in note for note in whole.notes)
    # The place in the next scan is that of the whole.
    placed = replace(one, carried=((0.0, 0.0, 0.0), (10.0, 0.0, 0.0), (5.0, 5.0, 5.0)))
    carried = edited([placed], edits)[0].carried
    assert carried
    assert carried[0] == pytest.approx((10 * second.voxels / size.voxels, 0, 0))
    assert carried[1] == (5.0, 5.0, 5.0)
    # A third one on top, named by the whole; its parts cannot be named any more.
    three = decide(edits, Decision("merge", ("a", "lesion-3"), ("a", "lesion-1")), two, together)
    assert [f.id for f in edited(two, three)[0].found or ()] == ["lesion-3"]
    with pytest.raises(UsageError, match="merged into lesion-1"):
        decide(edits, Decision("delete", ("a", "lesion-2")), two, together)
    assert edited(two, decide(edits, Decision("unmerge", ("a", "lesion-1")), two, together)) == two
    # The visit was measured anew: what is called lesion-2 now is another one.
    anew = [visit("a", 0, places[0], places[2]), two[1]]
    assert edited(anew, edits) == anew
    with pytest.raises(UsageError, match=r"correction 2 \(merge\): only lesions of one visit"):
        decided(Edits(), (Decision("rename", ("a", "lesion-1"), name="x"), Decision("merge", ("a", "lesion-1"), ("b", "lesion-1"))), two, together)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Decision("merge", ("a", "lesion-1")), "which other"),
        (Decision("merge", ("a", "lesion-1"), ("a", "lesion-1")), "itself"),
        (Decision("merge", ("a", "lesion-1"), ("a", "lesion-9")), "no such lesion"),
        (Decision("merge", ("a", "lesion-1"), ("a", "lesion-2")), "deleted"),
        (Decision("merge", ("a", "lesion-1"), ("a", "lesion-3")), "take them back"),
        (Decision("unmerge", ("a", "lesion-1")), "nothing was merged"),
        (Decision("bless", ("a", "lesion-1")), "there are: link"),
        (Decision("delete"), "say which lesion"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.action,
)
def test_mergers_that_cannot_be(visits: list[MeasuredVisit], said: Decision, words: str) -> None:
    edits = Edits().without(("a", "lesion-2")).with_measurement(("a", "lesion-3"), {"longest_mm": 40})
    with pytest.raises((UsageError, NotFoundError), match=words):
        decide(edits, said, visits, parts_of(visits[0]))


def test_names_stay_when_a_lesion_is_taken_away(visits: list[MeasuredVisit]) -> None:
    """L2 is L2 also without L1; what a correction cuts off gets a number that nobody had."""

    def tracks(edits: Edits) -> dict[str, dict[str, str]]:
        here = edited(visits, edits)
        holds = effective(here, edits)
        patient = Patient("P", tuple(v.timepoint for v in here))
        return assemble(patient, here, corrections=holds.links, roles=holds.roles, growing=False, uncorrected=visits).graph.tracks

    plain = tracks(Edits())
    assert list(plain) == ["L1", "L2", "L3"]
    gone = Edits()
    for place in plain["L1"].items():
        gone = gone.without(place)
    assert tracks(gone) == {"L2": plain["L2"], "L3": plain["L3"]}
    # Only at the first visit: it is the same lesion later on.
    assert tracks(Edits().without(("a", plain["L1"]["a"]))).keys() == plain.keys()
    apart = tracks(Edits().linked(("a", plain["L1"]["a"]), ("b", plain["L1"]["b"]), False))
    assert list(apart) == ["L1", "L2", "L3", "L4"]
    assert apart["L1"] == {"a": plain["L1"]["a"]}
    assert {k: v for k, v in apart.items() if k in ("L2", "L3")} == {"L2": plain["L2"], "L3": plain["L3"]}
