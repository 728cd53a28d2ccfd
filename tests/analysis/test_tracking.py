"""Lesions found again: on real pairs of scans, and for every event that there is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.analysis.tracking.graph import Correction, Event, follow
from isocenter.analysis.tracking.match import Located, match
from isocenter.core.errors import NotFoundError, UsageError


def at(name: str, x: float, y: float = 0, z: float = 0, size: float = 20, radius: float | None = None) -> Located:
    return Located(name, (x, y, z), size, size * 0.8, radius if radius is not None else size / 2)


PLACES = st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100), st.floats(5, 60)), max_size=5)


def test_all_together_and_not_each_its_nearest() -> None:
    """b's nearest is what a needs: one by one, both would take the same."""
    matches = match([at("a", 0), at("b", 12)], [at("A", 9), at("B", 22)], position_sd_mm=5)
    assert {(k.before, k.after) for k in matches.links} == {("a", "A"), ("b", "B")}


def test_size_tells_neighbours_apart() -> None:
    matches = match([at("small", 0, size=8), at("large", 6, size=40)], [at("L", 1, size=42), at("S", 5, size=8)], position_sd_mm=8)
    assert {(k.before, k.after) for k in matches.links} == {("small", "S"), ("large", "L")}


def test_a_common_shift_is_found() -> None:
    before = [at("a", 0), at("b", 30, 10), at("c", -20, 40)]
    after = [at(n.id.upper(), *(np.array(n.position) + np.array([35, -20, 10]))) for n in before]
    assert not match(before, after).links or {(k.before, k.after) for k in match(before, after).links} != {("a", "A"), ("b", "B"), ("c", "C")}
    matches = match(before, after, shift_sd_mm=50)
    assert [(k.before, k.after) for k in matches.links] == [("a", "A"), ("b", "B"), ("c", "C")]
    assert matches.shift_mm == pytest.approx((35, -20, 10))


def test_what_is_too_far_is_none() -> None:
    matches = match([at("a", 0)], [at("A", 100)], position_sd_mm=30)
    assert not matches.links
    assert (matches.disappeared, matches.appeared) == (("a",), ("A",))
    assert match([], [at("A", 0)]).appeared == ("A",)
    assert match([at("a", 0)], []).disappeared == ("a",)
    assert match([], []).links == ()


def test_confidence_is_high_where_there_is_no_choice_and_low_where_there_is() -> None:
    alone = match([at("a", 0)], [at("A", 1)]).links[0]
    torn = match([at("a", 0)], [at("A", 4), at("B", -4.2)]).links[0]
    assert alone.confidence > 0.99
    assert 0.5 <= torn.confidence < 0.7


def test_splits_and_merges() -> None:
    whole, parts = [at("w", 0, size=40)], [at("p", -8, size=22), at("q", 11, size=14)]
    graph = follow([("1", whole), ("2", parts), ("3", whole)])
    assert [(e.visit, e.event) for e in graph.events] == [("2", Event.SPLIT), ("3", Event.MERGED)]
    assert graph.events[0].parents == ("w",)
    assert set(graph.events[1].parents) == {"p", "q"}
    assert graph.tracks["L1"] == {"1": "w", "2": "p", "3": "w"}, "the largest part goes on"


def test_what_a_person_decided_stays() -> None:
    before, after = [at("a", 0), at("b", 10)], [at("A", 0), at("B", 10)]
    crossed = [Correction(("1", "a"), ("2", "B"), same=True), Correction(("1", "b"), ("2", "B"), same=False)]
    graph = follow([("1", before), ("2", after)], corrections=crossed)
    links = {(k.before, k.after): k for k in graph.links[("1", "2")]}
    assert links[("a", "B")].by_user
    assert links[("a", "B")].confidence == 1
    assert ("b", "B") not in links
    assert graph.corrections == tuple(crossed)
    with pytest.raises(UsageError):
        follow([("1", before), ("2", after)], corrections=[crossed[0], Correction(("1", "a"), ("2", "B"), same=False)])
    with pytest.raises(UsageError):
        follow([("1", before), ("2", after)], corrections=[crossed[0], Correction(("1", "a"), ("2", "A"), same=True)])


def test_tracks_are_named_as_they_appear() -> None:
    graph = follow([("1", [at("a", 0)]), ("2", [at("a", 1), at("n", 40)]), ("3", [at("n", 41)])])
    assert graph.tracks == {"L1": {"1": "a", "2": "a"}, "L2": {"2": "n", "3": "n"}}
    assert [(e.visit, e.event, e.lesions) for e in graph.events] == [("2", Event.NEW, ("n",)), ("3", Event.DISAPPEARED, ("a",))]
    assert graph.track_of("3", "n") == "L2"
    with pytest.raises(NotFoundError):
        graph.track_of("1", "n")
    plain = graph.as_dict()
    assert json.loads(json.dumps(plain)) == plain
    with pytest.raises(UsageError):
        follow([("1", []), ("1", [])])
    with pytest.raises(UsageError):
        follow([("1", [at("a", 0), at("a", 5)])])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100), st.floats(5, 60)), max_size=5),
    st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100), st.floats(5, 60)), max_size=5),
)
def test_laws(first: list[tuple[float, float, float]], second: list[tuple[float, float, float]]) -> None:
    """Each lesion has one fate, and turning time round turns links round."""
    before = [at(f"a{i}", x, y, size=s) for i, (x, y, s) in enumerate(first)]
    after = [at(f"b{i}", x, y, size=s) for i, (x, y, s) in enumerate(second)]
    matches = match(before, after)
    fates = [k.before for k in matches.links] + list(matches.disappeared) + [k.before for k in matches.merges]
    assert sorted(fates) == sorted(k.id for k in before)
    origins = [k.after for k in matches.links] + list(matches.appeared) + [k.after for k in matches.splits]
    assert sorted(origins) == sorted(k.id for k in after)
    assert all(0.5 - 1e-9 <= k.confidence <= 1 for k in matches.links)
    back = match(after, before)
    assert sum(k.distance_mm for k in back.links) == pytest.approx(sum(k.distance_mm for k in matches.links), abs=1e-6)


def test_real_pairs_of_scans_without_registration(data: Path) -> None:
    """144 pairs of CTs with two to five lesions each: coordinates and sizes alone, against each lesion's nearest neighbour."""
    pairs: dict[tuple[str, str], list[dict[str, list[float]]]] = {}
    for pair in json.loads((data / "dlt_lesion_pairs" / "valid.json").read_text()).values():
        pairs.setdefault((pair["source"], pair["target"]), []).append(pair)
    several = [p for p in pairs.values() if len(p) > 1]
    assert len(several) == 144
    right = nearest = lesions = gone = 0
    for group in several:
        sides = []
        for side in ("source", "target"):
            located = []
            for i, pair in enumerate(group):
                spacing = np.array(pair[f"{side} spacing"])
                x, y, z = (float(v) for v in np.array(pair[f"{side} center"]) * spacing)
                long, short = (float(v * spacing[0]) for v in pair[f"{side} recist diameter"])
                located.append(Located(str(i), (x, y, z), long, short))
            sides.append(located)
        before, after = sides
        found = match(before, after, position_sd_mm=10, shift_sd_mm=50)
        right += sum(k.before == k.after for k in found.links)
        lesions += len(group)
        for a in before:
            distances = [np.linalg.norm(np.array(a.position) - b.position) for b in after]
            nearest += after[int(np.argmin(distances))].id == a.id
        # One lesion heals: the others keep their names, and it is the one that is missed.
        healed = match(before, after[1:], position_sd_mm=10, shift_sd_mm=50)
        gone += "0" in healed.disappeared and all(k.before == k.after for k in healed.links)
    assert nearest / lesions < 0.89
    assert right / lesions > 0.99
    assert gone / len(several) > 0.9


def test_a_lesion_that_was_gone_and_is_back_is_the_same() -> None:
    """It keeps its track over the visits at which nothing was seen, also where the patient lies differently; one elsewhere is new."""

    first, second = [at("a", 0), at("b", 80)], [at("b", 80)]
    third = [at("b", 180), at("a", 102, 3), at("c", 140, 50)]  # the third scan's places are 100 mm further on
    carried = [first, [at("b", 180)]]
    graph = follow([("v1", first), ("v2", second), ("v3", third)], carried, onward=[None, lambda p: (p[0] + 100, p[1], p[2])])
    assert graph.tracks == {"L1": {"v1": "a", "v3": "a"}, "L2": {"v1": "b", "v2": "b", "v3": "b"}, "L3": {"v3": "c"}}
    events = [(e.visit, e.event, e.lesions, e.parents) for e in graph.events]
    assert (("v2", Event.DISAPPEARED, ("a",), ()) in events, ("v3", Event.RETURNED, ("a",), ("a",)) in events) == (True, True)
    assert [e.lesions for e in graph.events if e.event is Event.NEW] == [("c",)]
    (link,) = graph.links["v1", "v3"]
    assert (link.before, link.after, link.distance_mm < 5) == ("a", "a", True)
    said = [Correction(("v1", "a"), ("v3", "a"), same=False)]
    parted = follow([("v1", first), ("v2", second), ("v3", third)], carried, onward=[None, lambda p: (p[0] + 100, p[1], p[2])], corrections=said)
    assert parted.tracks["L1"] == {"v1": "a"}
    assert sorted(e.lesions for e in parted.events if e.event is Event.NEW) == [("a",), ("c",)]
    # A person may say which one it is, wherever it lies; what is at its place is another one then.
    said = [Correction(("v1", "a"), ("v3", "c"), same=True)]
    moved = follow([("v1", first), ("v2", second), ("v3", third)], carried, onward=[None, lambda p: (p[0] + 100, p[1], p[2])], corrections=said)
    assert moved.tracks == {"L1": {"v1": "a", "v3": "c"}, "L2": {"v1": "b", "v2": "b", "v3": "b"}, "L3": {"v3": "a"}}
    (link,) = moved.links["v1", "v3"]
    assert (link.by_user, link.confidence) == (True, 1.0)
    # Also where it would be taken for one that was never gone.
    said = [Correction(("v1", "a"), ("v3", "b"), same=True)]
    taken = follow([("v1", first), ("v2", second), ("v3", third)], carried, onward=[None, lambda p: (p[0] + 100, p[1], p[2])], corrections=said)
    assert taken.tracks["L1"] == {"v1": "a", "v3": "b"}
    assert "v3" not in taken.tracks["L2"]
