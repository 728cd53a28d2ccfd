"""A case's response to treatment: what the criteria look at, out of tracks and measurements, and what they say of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from isocenter.analysis.case_immune import extent, extent_sd, new_lesions
from isocenter.analysis.response import irecist, mrecist, rano, recist, volumetric
from isocenter.analysis.response.visit import ABSENT, NOT_EVALUATED, Category, NonTargets, Response, Target, Visit, measured
from isocenter.analysis.tracking.graph import Event, LesionGraph, merged_into, split_off
from isocenter.analysis.uncertainty import Uncertainty, of_sum, probabilities
from isocenter.core.errors import UsageError
from isocenter.core.patient import Lesion, TherapyEvent

if TYPE_CHECKING:
    from isocenter.analysis.case import MeasuredVisit

#: A lesion that was not there before is unequivocally new from this diameter on (measurable, RECIST 1.1 section 3.1.1).
NEW_MM = 10.0
#: RECIST 1.1, section 4.1: how long before treatment the baseline may be.
_BASELINE_DAYS = 28.0
#: Criteria that are judged by when they are asked for, and those that always are.
CRITERIA = {"irecist": "iRECIST", "mrecist": "mRECIST", "rano": "RANO"}
ALWAYS = ("recist_1.1", "volumetric")


@dataclass(frozen=True, eq=False)
class Judged:
    """What the criteria say, see the fields of the same names of `Case`."""

    responses: Mapping[str, tuple[Response, ...]] = field(default_factory=dict)
    irecist: tuple[irecist.IResponse, ...] = ()
    best_overall: Category | None = None
    best_seen: Category | None = None
    sums_sd_mm: tuple[float | None, ...] = ()
    baseline_sd_mm: float | None = None
    chances: tuple[Mapping[Category, float], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Seen:
    """One patient's lesions as all criteria look at them."""

    baseline: MeasuredVisit
    graph: LesionGraph
    lesions: Sequence[Lesion]
    targets: tuple[str, ...]
    non_targets: tuple[str, ...]
    parts: Mapping[str, set[str]]
    into: Mapping[str, str]
    nodes: frozenset[str]
    blind: frozenset[tuple[str, str]] = frozenset()


def check(criteria: Iterable[str]) -> None:
    """Raise `UsageError` for a criterion that is none of `ALWAYS` and `CRITERIA`."""
    for name in criteria:
        if name not in CRITERIA and name not in ALWAYS:
            raise UsageError(f"no criterion is called '{name[:40]}'; there are {', '.join((*ALWAYS, *CRITERIA))}")


def respond(
    visits: Sequence[MeasuredVisit],
    baseline: MeasuredVisit,
    graph: LesionGraph,
    lesions: Sequence[Lesion],
    targets: tuple[str, ...],
    non_targets: tuple[str, ...],
    therapies: Sequence[TherapyEvent] = (),
    criteria: frozenset[str] = frozenset(),
    blind: frozenset[tuple[str, str]] = frozenset(),
) -> Judged:
    """The response at every visit after the baseline. criteria: of `CRITERIA`, beside RECIST 1.1 and volumes; `UsageError` for others.

    blind: visit and track of what could not be assessed there.
    """
    check(criteria)
    notes: list[str] = []
    later = [v for v in visits if v.timepoint.day > baseline.timepoint.day]
    nodes = frozenset(lesion.track for lesion in lesions if lesion.is_node and lesion.track in targets)
    seen = _Seen(baseline, graph, lesions, targets, non_targets, split_off(graph), merged_into(graph), nodes, blind)
    baseline_sd = _sum_sd(seen, baseline) if targets else None
    if not later:
        return Judged(baseline_sd_mm=baseline_sd, notes=("one visit only: there is no response, growth or forecast to tell yet",))
    start, follow_ups = _as_visit(seen, baseline, None, notes), [_as_visit(seen, v, None, notes) for v in later]
    by_recist = tuple(recist.respond(start, follow_ups))
    responses = {"recist_1.1": by_recist}
    responses["volumetric"] = tuple(volumetric.respond(_as_visit(seen, baseline, "volume_mm3"), [_as_visit(seen, v, "volume_mm3") for v in later]))
    immune: tuple[irecist.IResponse, ...] = ()
    if "irecist" in criteria:
        news = new_lesions(later, lesions, lambda k: _began_new(k.track, graph), NEW_MM)
        immune = tuple(irecist.respond(start, follow_ups, news))
    if "mrecist" in criteria:
        responses["mrecist"] = tuple(mrecist.respond(start, follow_ups))
    if "rano" in criteria:
        responses["rano"] = _by_rano(seen, later, therapies)
    notes += [f"day {a.day:g}, iRECIST: {a.category} ({'; '.join(a.reasons)})" for a in immune]
    notes += [f"day {a.day:g}, {CRITERIA[c]}: {a.category} ({'; '.join(a.reasons)})" for c in ("mrecist", "rano") for a in responses.get(c, ())]
    notes += _passing(responses.get("rano", ()))
    first_day = baseline.timepoint.day
    notes += _too_early(visits, first_day, therapies)
    best, best_seen = (recist.best_overall(by_recist, first_day, confirm=c) for c in (True, False))
    if taken_away := recist.unconfirmed(by_recist, best_seen, best):
        notes.append(taken_away)
    spread = _errors(seen, (baseline, *later))
    fresh = [_fresh(seen, v) if v.new_lesions is None else None for v in later]
    appeared = [[(extent(k), extent_sd(k)) for k in row] if row is not None else None for row in fresh]
    chances: tuple[Mapping[Category, float], ...] = ()
    if targets:
        chances = tuple(probabilities(start, follow_ups, lambda t, size: spread[t, size], recist.respond, new=appeared, new_mm=NEW_MM, draws=500))
    if not targets:
        notes.append("no lesion at baseline is large enough to be a target (10 mm, nodes 15 mm)")
    return Judged(
        responses,
        immune,
        best,
        best_seen,
        tuple(_sum_sd(seen, v) if r.sum is not None else None for v, r in zip(later, by_recist, strict=True)),
        baseline_sd,
        chances,
        tuple(dict.fromkeys(notes)),
    )


def _passing(responses: Sequence[Response]) -> list[str]:
    """A word for the first of each run of responses by RANO that did not last."""
    before = [None, *(r.category for r in responses)]
    return [
        f"day {r.day:g}, RANO: {r.category} was not seen again at least 4 weeks later, so it is worth {kept} so far (page 1967)"
        for r, kept, last in zip(responses, rano.confirmed(responses), before, strict=False)
        if r.category is not kept and last not in (r.category, Category.CR)
    ]


def _too_early(visits: Sequence[MeasuredVisit], baseline_day: float, therapies: Sequence[TherapyEvent]) -> list[str]:
    """A word where treatment began long after the baseline, or after another scan (RECIST 1.1, section 4.1), since the first scan is the baseline."""
    start = min((t.start_day for t in therapies), default=baseline_day)
    between = [v.timepoint.timepoint_id for v in visits if v.found is not None and baseline_day < v.timepoint.day <= start]
    if start - baseline_day <= _BASELINE_DAYS and not between:
        return []
    nearer = f"; {between[-1]} is nearer to it" if between else ""
    return [
        f"treatment began {start - baseline_day:g} days after the baseline{nearer}: RECIST 1.1 (section 4.1) wants a baseline as close as "
        "possible to its start, at most 4 weeks before. Leave earlier scans out to judge from a later one"
    ]


def _by_rano(seen: _Seen, later: Sequence[MeasuredVisit], therapies: Sequence[TherapyEvent]) -> tuple[Response, ...]:
    """Products of diameters of the targets that RANO can measure: 10 mm both ways, no nodes; state and steroids as the visits say."""
    visit = seen.baseline.timepoint.timepoint_id
    able = {
        k.track
        for k in seen.lesions
        if k.timepoint_id == visit and not k.is_node and min(k.longest_mm or 0, k.short_axis_mm or 0) >= rano.MEASURABLE_MM
    }
    seen = replace(
        seen, targets=tuple(t for t in seen.targets if t in able), non_targets=(*seen.non_targets, *(t for t in seen.targets if t not in able))
    )
    status = {v.timepoint.day: _status(v.assessment) for v in later}
    ends = [t.end_day for t in therapies if "radi" in t.therapy_type.lower() and t.end_day is not None]
    value = "who_product_mm2"
    follow_ups = [_as_visit(seen, v, value) for v in later]
    return tuple(rano.respond(_as_visit(seen, seen.baseline, value), follow_ups, status, radiotherapy_end=max(ends, default=None)))


def _status(said: Mapping[str, str]) -> rano.Status:
    steroids = said.get("steroids", "unknown")
    none = steroids == "none"
    return rano.Status(
        flair=rano.Trend(said.get("flair", "unknown")),
        clinical=rano.Trend(said.get("clinical", "unknown")),
        steroids=rano.Trend("stable" if none else steroids),
        no_steroids=none,
        outside_field=said.get("enhancement") == "outside field",
    )


def _errors(seen: _Seen, visits: Iterable[MeasuredVisit]) -> dict[tuple[str, float], float]:
    """By target and its size at a visit: the standard deviation in mm of that size, of several parts together in squares."""
    errors = {}
    for visit in visits:
        here = {k.track: k for k in seen.lesions if k.timepoint_id == visit.timepoint.timepoint_id}
        for target, state in _targets(seen, visit, None).items():
            if state.size is not None:
                errors[target, state.size] = of_sum([Uncertainty(0.0, 0.0, extent_sd(here[t])) for t in _of(seen, target, here)])
    return errors


def _sum_sd(seen: _Seen, visit: MeasuredVisit) -> float:
    """Standard deviation in mm of the sum of targets at a visit, errors of diameters added in squares."""
    here = {k.track: k for k in seen.lesions if k.timepoint_id == visit.timepoint.timepoint_id}
    counted = {t for target in seen.targets for t in _of(seen, target, here)}
    return of_sum([Uncertainty(0.0, 0.0, extent_sd(here[t])) for t in sorted(counted)])


def _as_visit(seen: _Seen, visit: MeasuredVisit, value: str | None, notes: list[str] | None = None) -> Visit:
    """A visit with its targets' `value`, or the diameter that RECIST takes."""
    new, others = _beyond(seen, visit, notes if notes is not None else [])
    return Visit(visit.timepoint.day, _targets(seen, visit, value), seen.nodes if value is None else frozenset(), others, new)


def _of(seen: _Seen, target: str, here: Mapping[str, Lesion]) -> list[str]:
    """Tracks at a visit that are a target: itself, what split off from it, or the lesion that it merged into, where that is no target too."""
    found = [t for t in here if t == target or t in seen.parts.get(target, ())]
    if not found:
        whole = target
        while whole in seen.into and whole not in here:
            whole = seen.into[whole]
        others = [t for t in seen.targets if seen.into.get(t) == seen.into.get(target) and t not in here]
        if whole in here and whole not in seen.targets and (not others or others[0] == target):
            return [whole]
    return found


def _targets(seen: _Seen, visit: MeasuredVisit, value: str | None) -> dict[str, Target]:
    if visit.found is None:
        return dict.fromkeys(seen.targets, NOT_EVALUATED)
    here = {lesion.track: lesion for lesion in seen.lesions if lesion.timepoint_id == visit.timepoint.timepoint_id}
    blind = {track for name, track in seen.blind if name == visit.timepoint.timepoint_id}
    states = {}
    for target in seen.targets:
        # A sum with a lesion that nobody could assess is not known (section 4.4.2), nor is it with a part of one.
        if blind & {target, *seen.parts.get(target, ())}:
            states[target] = NOT_EVALUATED
            continue
        sizes = [getattr(here[t], value or ("short_axis_mm" if here[t].is_node else "longest_mm")) for t in _of(seen, target, here)]
        states[target] = measured(sum(sizes)) if sizes and None not in sizes else NOT_EVALUATED if sizes else ABSENT
    return states


def _beyond(seen: _Seen, visit: MeasuredVisit, notes: list[str]) -> tuple[bool, NonTargets]:
    """Whether there are new lesions, and the state of all non-targets; what a person said of either comes first."""
    here = {lesion.track: lesion for lesion in seen.lesions if lesion.timepoint_id == visit.timepoint.timepoint_id}
    fresh = _fresh(seen, visit)
    new = visit.new_lesions
    if new is None:
        new = any(extent(lesion) >= NEW_MM for lesion in fresh)
        small = [lesion.track for lesion in fresh if extent(lesion) < NEW_MM]
        if small and not new:
            name = visit.timepoint.timepoint_id
            notes.append(f"{name}: {', '.join(small)} new but below {NEW_MM:g} mm, not taken as unequivocally new; say new_lesions to decide")
    if said := visit.assessment.get("non_targets"):
        return new, NonTargets(said)
    if not seen.non_targets:
        return new, NonTargets.NONE
    if visit.found is None or any((visit.timepoint.timepoint_id, track) in seen.blind for track in seen.non_targets):
        return new, NonTargets.NE
    # Nodes are normal below 10 mm, and their disease is gone (section 4.3.3).
    left = [here[t] for t in seen.non_targets if t in here and not (here[t].is_node and extent(here[t]) < recist.NODE_NORMAL_MM)]
    return new, NonTargets.NON if left else NonTargets.CR


def _fresh(seen: _Seen, visit: MeasuredVisit) -> list[Lesion]:
    """Lesions of a visit that were not there at the baseline. What cannot be assessed is judged when it can (section 4.3.5)."""
    here = [k for k in seen.lesions if k.timepoint_id == visit.timepoint.timepoint_id and k.evaluable]
    return [k for k in here if _began_new(k.track, seen.graph)]


def _began_new(track: str, graph: LesionGraph) -> bool:
    first = next(visit for visit in graph.visits if visit in graph.tracks[track])
    lesion = graph.tracks[track][first]
    return any(e.event is Event.NEW and e.visit == first and lesion in e.lesions for e in graph.events)
