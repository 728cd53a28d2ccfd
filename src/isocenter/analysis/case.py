"""A patient's case: from measured lesions, visit by visit, to tracks, response, growth, forecast and scenarios."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from isocenter.analysis.case_growth import TrackGrowth, grow
from isocenter.analysis.growth.forecast import BROAD, Population
from isocenter.analysis.growth.scenarios import DEFAULTS
from isocenter.analysis.lesions import LesionSize
from isocenter.analysis.response import irecist, recist, volumetric
from isocenter.analysis.response.recist import Candidate, choose_targets
from isocenter.analysis.response.visit import ABSENT, NOT_EVALUATED, Category, NonTargets, Response, Target, Visit, measured
from isocenter.analysis.tracking.graph import Correction, Event, LesionGraph, Node, follow
from isocenter.analysis.tracking.match import Located
from isocenter.analysis.uncertainty import of_diameter, probabilities
from isocenter.core.errors import UsageError
from isocenter.core.geometry import Triple
from isocenter.core.patient import Lesion, Patient, Timepoint

#: A lesion that was not there before is unequivocally new from this diameter on (measurable, RECIST 1.1 section 3.1.1).
NEW_MM = 10.0


@dataclass(frozen=True)
class Found:
    """One lesion as it was measured at a visit. label: its value in the mask. appearance: a vector, for matching."""

    id: str
    size: LesionSize
    label: int = 1
    organ: str | None = None
    node: bool = False
    method: str = "model"
    appearance: tuple[float, ...] | None = None


@dataclass(frozen=True)
class MeasuredVisit:
    """A visit and its lesions; found is None where there was no scan (or none that could be used), reason says why.

    spacing: of the scan, mm. carried: the lesions' centroids in the next visit's scan, None where that is not registered.
    new_lesions: what a person said; None lets the tracks decide. onward: 3 x 4, LPS mm of this scan to those of the next visit's.
    """

    timepoint: Timepoint
    found: tuple[Found, ...] | None
    spacing: Triple | None = None
    carried: tuple[Triple, ...] | None = None
    new_lesions: bool | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()
    onward: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """Everything that is known of a patient. responses: by criterion, one a visit after the baseline.

    chances: by visit after the baseline, the probability of each RECIST category. notes: what its reader should know.
    names: what readers call a track.
    """

    patient: Patient
    visits: tuple[MeasuredVisit, ...]
    lesions: tuple[Lesion, ...]
    graph: LesionGraph
    targets: tuple[str, ...]
    non_targets: tuple[str, ...]
    responses: Mapping[str, tuple[Response, ...]]
    best_overall: Category | None
    chances: tuple[Mapping[Category, float], ...]
    growth: tuple[TrackGrowth, ...]
    notes: tuple[str, ...] = field(default=())
    names: Mapping[str, str] = field(default_factory=dict)

    def called(self, track: str) -> str:
        """A track with the name that readers gave it: "L1", or "L1 (the left one)"."""
        name = self.names.get(track)
        return f"{track} ({name})" if name else track

    def at(self, timepoint_id: str) -> list[Lesion]:
        """The lesions of one visit."""
        return [lesion for lesion in self.lesions if lesion.timepoint_id == timepoint_id]


def assemble(
    patient: Patient,
    visits: Sequence[MeasuredVisit],
    *,
    corrections: Sequence[Correction] = (),
    population: Population = BROAD,
    scenarios: Sequence[str] = DEFAULTS,
    immunotherapy: bool = False,
    roles: Mapping[Node, bool] | None = None,
    growing: bool = True,
) -> Case:
    """The case of a patient. Raises `UsageError` where no visit has a scan, or visits are not the patient's.

    roles: lesions of the baseline that a person made targets (True) or no targets (False). growing: False leaves growth,
    forecast and scenarios out, for whoever asks for them later by `followed` and `grow`.
    """
    if tuple(v.timepoint for v in visits) != patient.timepoints:
        raise UsageError("the measured visits are not the patient's visits")
    seen = [v for v in visits if v.found is not None]
    if not seen:
        raise UsageError("no visit has a scan with lesions to look at")
    graph = _graph(seen, corrections)
    targets, non_targets = _choose(seen[0], graph, roles or {})
    lesions = _lesions(visits, graph, targets)
    notes = [*(f"{v.timepoint.timepoint_id}: {v.reason}" for v in visits if v.found is None and v.reason), *_kinds(seen)]
    responses, best, chances, more = _respond(visits, seen[0], graph, lesions, targets, non_targets, immunotherapy)
    growth = grow(followed(visits, lesions), graph.tracks, patient.therapies, population, scenarios) if growing else ()
    return Case(patient, tuple(visits), lesions, graph, targets, non_targets, responses, best, chances, growth, (*notes, *more))


def followed(visits: Sequence[MeasuredVisit], lesions: Sequence[Lesion]) -> list[tuple[float, list[Lesion]]]:
    """Day and lesions of every visit with a scan, as `grow` takes them."""
    return [(v.timepoint.day, [k for k in lesions if k.timepoint_id == v.timepoint.timepoint_id]) for v in visits if v.found is not None]


def _kinds(seen: Sequence[MeasuredVisit]) -> list[str]:
    """A word of warning where scans are of different kinds, whose sizes and intensities do not compare (RECIST 1.1, section 3.2.2)."""
    by_kind: dict[str, list[str]] = {}
    for visit in seen:
        if visit.timepoint.modality:
            by_kind.setdefault(visit.timepoint.modality, []).append(visit.timepoint.timepoint_id)
    if len(by_kind) < 2:
        return []
    told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in by_kind.items())
    return [f"scans of different kinds ({told}): RECIST 1.1 (section 3.2.2) wants one technique throughout, so read sizes and response with care"]


def _graph(seen: Sequence[MeasuredVisit], corrections: Sequence[Correction]) -> LesionGraph:
    """Tracks over the visits that have a scan. Where any two are not registered, a common shift is looked for."""

    def located(found: Sequence[Found], positions: Sequence[Triple] | None = None) -> list[Located]:
        return [
            Located(
                f.id,
                f.size.centroid_lps_mm if positions is None else positions[k],
                f.size.longest_mm,
                f.size.short_axis_mm,
                f.size.max_3d_diameter_mm / 2,
                f.appearance,
            )
            for k, f in enumerate(found)
        ]

    visits = [(v.timepoint.timepoint_id, located(v.found or ())) for v in seen]
    carried = [located(v.found or (), v.carried) for v in seen[:-1]]
    registered = all(v.carried is not None for v in seen[:-1])
    onward = [_way(v.onward) if registered else None for v in seen[:-1]]
    sd, shift = (5.0, 0.0) if registered else (10.0, 50.0)
    return follow(visits, carried, onward=onward, position_sd_mm=sd, shift_sd_mm=shift, corrections=corrections)


def _way(matrix: tuple[tuple[float, ...], ...] | None) -> Callable[[Triple], Triple] | None:
    """A place in one scan to the same in the next."""
    if matrix is None:
        return None

    def way(place: Triple) -> Triple:
        x, y, z = (float(sum(a * b for a, b in zip(row, (*place, 1.0), strict=True))) for row in matrix)
        return x, y, z

    return way


def _choose(baseline: MeasuredVisit, graph: LesionGraph, roles: Mapping[Node, bool]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Targets and non-targets, by track. What a person decided comes first; the rules fill up what is left."""
    visit = baseline.timepoint.timepoint_id
    slice_mm = max(baseline.spacing) if baseline.spacing else 5.0
    candidates = [
        Candidate(graph.track_of(visit, f.id), f.organ or "unknown", f.size.longest_mm, f.size.short_axis_mm, f.node, slice_mm)
        for f in baseline.found or ()
    ]
    said = {graph.track_of(*node): wanted for node, wanted in roles.items()}
    targets, others = choose_targets(candidates, said)
    return tuple(targets), tuple(others)


def _lesions(visits: Sequence[MeasuredVisit], graph: LesionGraph, targets: Sequence[str]) -> tuple[Lesion, ...]:
    fresh = {(e.visit, lesion) for e in graph.events if e.event is Event.NEW for lesion in e.lesions}
    sure = {(pair[1], link.after): link.confidence for pair, links in graph.links.items() for link in links if pair[1] in graph.lesions}
    lesions = []
    for visit in visits:
        for found in visit.found or ():
            name = visit.timepoint.timepoint_id
            size, spacing = found.size, visit.spacing or (1.0, 1.0, 1.0)
            error = of_diameter(size.longest_mm, spacing, drawn=found.method == "drawn")
            track = graph.track_of(name, found.id)
            lesions.append(
                Lesion(
                    lesion_id=found.id,
                    timepoint_id=name,
                    track=track,
                    volume_mm3=size.volume_mm3,
                    longest_mm=size.longest_mm,
                    short_axis_mm=size.short_axis_mm,
                    max_3d_diameter_mm=size.max_3d_diameter_mm,
                    surface_mm2=size.surface_mm2,
                    who_product_mm2=size.who_product_mm2,
                    centroid_lps_mm=size.centroid_lps_mm,
                    mean=size.intensities.mean if size.intensities else None,
                    std=size.intensities.std if size.intensities else None,
                    unit=size.intensities.unit if size.intensities else None,
                    touches_border=size.touches_border,
                    sd_mm=error.total_mm,
                    reliability=error.reliability,
                    longest_ends=size.longest_ends,
                    short_ends=size.short_ends,
                    plane=size.plane,
                    slice_index=size.slice_index,
                    label=found.label,
                    organ=found.organ,
                    is_node=found.node,
                    is_target=track in targets,
                    is_new=(name, found.id) in fresh,
                    method=found.method,
                    confidence=sure.get((name, found.id)),
                    reasons=size.reasons,
                )
            )
    return tuple(lesions)


def _parts(graph: LesionGraph) -> dict[str, set[str]]:
    """Tracks that split off from another one, by that one: their diameters are added to it (RECIST 1.1, section 4.3.2)."""
    parts: dict[str, set[str]] = {}
    order = list(graph.visits)
    for event in graph.events:
        if event.event is Event.SPLIT:
            before = order[order.index(event.visit) - 1]
            parent = graph.track_of(before, event.parents[0])
            parts.setdefault(parent, set()).update(graph.track_of(event.visit, lesion) for lesion in event.lesions)
    return parts


def _visit(
    visit: MeasuredVisit, lesions: Sequence[Lesion], targets: Sequence[str], parts: Mapping[str, set[str]], value: str | None
) -> dict[str, Target]:
    """The targets at a visit: `value` of each lesion, or the diameter that RECIST takes."""
    if visit.found is None:
        return dict.fromkeys(targets, NOT_EVALUATED)
    here = [lesion for lesion in lesions if lesion.timepoint_id == visit.timepoint.timepoint_id]
    states = {}
    for target in targets:
        sizes = []
        for lesion in here:
            if lesion.track == target or lesion.track in parts.get(target, ()):
                sizes.append(getattr(lesion, value or ("short_axis_mm" if lesion.is_node else "longest_mm")))
        states[target] = measured(sum(sizes)) if sizes and None not in sizes else NOT_EVALUATED if sizes else ABSENT
    return states


def _respond(
    visits: Sequence[MeasuredVisit],
    baseline: MeasuredVisit,
    graph: LesionGraph,
    lesions: Sequence[Lesion],
    targets: tuple[str, ...],
    non_targets: tuple[str, ...],
    immunotherapy: bool,
) -> tuple[dict[str, tuple[Response, ...]], Category | None, tuple[Mapping[Category, float], ...], list[str]]:
    notes: list[str] = []
    later = [v for v in visits if v.timepoint.day > baseline.timepoint.day]
    if not later:
        return {}, None, (), ["one visit only: there is no response, growth or forecast to tell yet"]
    parts = _parts(graph)
    nodes = frozenset(lesion.track for lesion in lesions if lesion.is_node and lesion.track in targets)

    def as_visit(visit: MeasuredVisit, value: str | None) -> Visit:
        new, others = _beyond(visit, lesions, non_targets, graph, notes if value is None else [])
        return Visit(visit.timepoint.day, _visit(visit, lesions, targets, parts, value), nodes if value is None else frozenset(), others, new)

    start, follow_ups = as_visit(baseline, None), [as_visit(v, None) for v in later]
    responses = {"recist_1.1": tuple(recist.respond(start, follow_ups))}
    responses["volumetric"] = tuple(volumetric.respond(as_visit(baseline, "volume_mm3"), [as_visit(v, "volume_mm3") for v in later]))
    if immunotherapy:
        answers = irecist.respond(start, follow_ups)
        notes += [f"day {a.day:g}, iRECIST: {a.category} ({'; '.join(a.reasons)})" for a in answers]
    best = recist.best_overall(responses["recist_1.1"], baseline.timepoint.day, confirm=True)
    spread = {t: max((lesion.sd_mm or 0.0 for lesion in lesions if lesion.track == t), default=0.0) for t in targets}
    chances = tuple(probabilities(start, follow_ups, spread, recist.respond, draws=500)) if targets else ()
    if not targets:
        notes.append("no lesion at baseline is large enough to be a target (10 mm, nodes 15 mm)")
    return responses, best, chances, list(dict.fromkeys(notes))


def _beyond(
    visit: MeasuredVisit, lesions: Sequence[Lesion], non_targets: Sequence[str], graph: LesionGraph, notes: list[str]
) -> tuple[bool, NonTargets]:
    """Whether there are new lesions, and the state of all non-targets."""
    here = {lesion.track: lesion for lesion in lesions if lesion.timepoint_id == visit.timepoint.timepoint_id}
    fresh = [lesion for lesion in here.values() if _began_new(lesion.track, graph)]
    new = visit.new_lesions
    if new is None:
        new = any((lesion.longest_mm or 0) >= NEW_MM for lesion in fresh)
        small = [lesion.track for lesion in fresh if (lesion.longest_mm or 0) < NEW_MM]
        if small and not new:
            name = visit.timepoint.timepoint_id
            notes.append(f"{name}: {', '.join(small)} new but below {NEW_MM:g} mm, not taken as unequivocally new; say new_lesions to decide")
    if not non_targets:
        return new, NonTargets.NONE
    if visit.found is None:
        return new, NonTargets.NE
    return new, NonTargets.NON if any(track in here for track in non_targets) else NonTargets.CR


def _began_new(track: str, graph: LesionGraph) -> bool:
    first = next(visit for visit in graph.visits if visit in graph.tracks[track])
    lesion = graph.tracks[track][first]
    return any(e.event is Event.NEW and e.visit == first and lesion in e.lesions for e in graph.events)
