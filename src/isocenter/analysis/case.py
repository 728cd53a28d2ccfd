"""A patient's case: from measured lesions, visit by visit, to tracks, response, growth, forecast and scenarios."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from isocenter.analysis.case_growth import TrackGrowth, grow
from isocenter.analysis.case_response import respond
from isocenter.analysis.growth.forecast import BROAD, Population
from isocenter.analysis.growth.scenarios import DEFAULTS
from isocenter.analysis.lesions import LesionSize
from isocenter.analysis.response.irecist import IResponse
from isocenter.analysis.response.recist import Candidate, choose_targets
from isocenter.analysis.response.visit import Category, Response
from isocenter.analysis.track_names import named_as
from isocenter.analysis.tracking.graph import Correction, Event, LesionGraph, Node, Regrouping, follow, not_evaluable, split_off
from isocenter.analysis.tracking.match import Located
from isocenter.analysis.uncertainty import of_diameter
from isocenter.core.errors import UsageError
from isocenter.core.geometry import Triple
from isocenter.core.patient import Lesion, Patient, Timepoint

#: What is measured of a lesion: nothing of it where it could not be assessed.
_FIGURES = (
    "volume_mm3", "longest_mm", "short_axis_mm", "max_3d_diameter_mm", "surface_mm2", "who_product_mm2",
    "mean", "std", "unit", "sd_mm", "reliability", "longest_ends", "short_ends",
)  # fmt: skip
#: Why a visit is not evaluated at which nothing was scanned.
NO_SCAN = "no scan"


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
    new_lesions: what a person said; None lets the tracks decide. assessment: more of that, as a `study.json` has it.
    onward: 3 x 4, LPS mm of this scan to those of the next visit's.
    merged: by lesion, what a reader said to be parts of it.
    """

    timepoint: Timepoint
    found: tuple[Found, ...] | None
    spacing: Triple | None = None
    carried: tuple[Triple, ...] | None = None
    new_lesions: bool | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()
    onward: tuple[tuple[float, ...], ...] | None = None
    merged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    assessment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Case:
    """Everything that is known of a patient. responses: by criterion, one a visit after the baseline.

    irecist: the same by iRECIST, where that was asked for. best_overall: with confirmation, best_seen: without. sums_sd_mm: standard
    deviation of RECIST's sum, by visit after the baseline; baseline_sd_mm: of the baseline's. chances: by visit, the probability of each
    RECIST category. inevaluable: visit and track of what a reader could not assess there.
    notes: what its reader should know. names: what readers call a track.
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
    irecist: tuple[IResponse, ...] = ()
    best_seen: Category | None = None
    sums_sd_mm: tuple[float | None, ...] = ()
    baseline_sd_mm: float | None = None
    inevaluable: frozenset[tuple[str, str]] = frozenset()

    def called(self, track: str) -> str:
        """A track with the name that readers gave it: "L1", or "L1 (the left one)"."""
        name = self.names.get(track)
        return f"{track} ({name})" if name else track

    def at(self, timepoint_id: str) -> list[Lesion]:
        """The lesions of one visit."""
        return [lesion for lesion in self.lesions if lesion.timepoint_id == timepoint_id]

    def volume_at(self, timepoint_id: str) -> float | None:
        """The volume of all lesions at a visit, mm³; None where one of them could not be assessed."""
        return sum(lesion.volume_mm3 or 0.0 for lesion in self.at(timepoint_id)) if self.assessed(timepoint_id) else None

    def assessed(self, timepoint_id: str, track: str = "") -> bool:
        """Whether a lesion could be assessed at a visit; without `track`, whether all could."""
        return not any(visit == timepoint_id and track in ("", of) for visit, of in self.inevaluable)

    @property
    def unseen(self) -> tuple[Lesion, ...]:
        """What a reader could not assess and no mask shows: by visit and track, without figures."""
        return unseen(self.visits, self.lesions, self.inevaluable)


def assemble(
    patient: Patient,
    visits: Sequence[MeasuredVisit],
    *,
    corrections: Sequence[Correction] = (),
    regroupings: Sequence[Regrouping] = (),
    inevaluable: Collection[tuple[str, Node]] = (),
    population: Population = BROAD,
    scenarios: Sequence[str] = DEFAULTS,
    immunotherapy: bool = False,
    criteria: Sequence[str] = (),
    roles: Mapping[Node, bool] | None = None,
    growing: bool = True,
    uncorrected: Sequence[MeasuredVisit] | None = None,
) -> Case:
    """The case of a patient. Raises `UsageError` where no visit has a scan, or visits are not the patient's.

    roles: lesions of the baseline that a person made targets (True) or no targets (False). growing: False leaves growth,
    forecast and scenarios out, for whoever asks for them later by `followed` and `grow`. uncorrected: the visits before readers' corrections;
    lesions keep the names that they have without these. regroupings: what lesions became, or came from, as readers say. inevaluable: visits,
    each with a lesion of any visit that a reader could not assess there.
    """
    if tuple(v.timepoint for v in visits) != patient.timepoints:
        raise UsageError("the measured visits are not the patient's visits")
    seen = [v for v in visits if v.found is not None]
    if not seen:
        raise UsageError("no visit has a scan with lesions to look at")
    graph = graph_of(seen, corrections, regroupings)
    if uncorrected is not None:
        graph = named_as(graph, graph_of([v for v in uncorrected if v.found is not None], ()))
    blind = frozenset((at, graph.track_of(*node)) for at, node in inevaluable if at in graph.visits)
    graph = not_evaluable(graph, blind)
    targets, non_targets = _choose(seen[0], graph, roles or {}, blind)
    lesions = _lesions(visits, graph, targets, blind)
    notes = [
        *(f"{v.timepoint.timepoint_id}: {v.reason}" for v in visits if v.found is None and v.reason),
        *(
            f"{v.timepoint.timepoint_id}: no lesion is seen, so all that were known count as gone; say not_evaluable of what could not be assessed"
            for v in seen
            if not v.found
        ),
        *_kinds(seen),
        *_unkept(graph, corrections),
        *_apart(graph, regroupings),
        *(f"{visit}: {track} was not evaluable, as a reader said" for visit, track in sorted(blind, key=lambda b: (graph.visits.index(b[0]), b[1]))),
    ]
    asked = frozenset({*criteria, *(("irecist",) if immunotherapy else ())})
    judged = respond(visits, seen[0], graph, lesions, targets, non_targets, patient.therapies, asked, blind)
    growth = grow(followed(visits, lesions, blind), graph.tracks, patient.therapies, population, scenarios, graph=graph) if growing else ()
    return Case(
        patient,
        tuple(visits),
        lesions,
        graph,
        targets,
        non_targets,
        judged.responses,
        judged.best_overall,
        judged.chances,
        growth,
        (*notes, *judged.notes),
        irecist=judged.irecist,
        best_seen=judged.best_seen,
        sums_sd_mm=judged.sums_sd_mm,
        baseline_sd_mm=judged.baseline_sd_mm,
        inevaluable=blind,
    )


def followed(
    visits: Sequence[MeasuredVisit], lesions: Sequence[Lesion], inevaluable: Collection[tuple[str, str]] = ()
) -> list[tuple[float, list[Lesion]]]:
    """Day and lesions of every visit with a scan, as `grow` takes them; what could not be assessed is among them, without a volume."""
    every = (*lesions, *unseen(visits, lesions, inevaluable))
    return [(v.timepoint.day, [k for k in every if k.timepoint_id == v.timepoint.timepoint_id]) for v in visits if v.found is not None]


def unseen(visits: Sequence[MeasuredVisit], lesions: Sequence[Lesion], inevaluable: Collection[tuple[str, str]]) -> tuple[Lesion, ...]:
    """Of (visit, track) that could not be assessed, those without a lesion there, as lesions without figures. By day."""
    there = {(k.timepoint_id, k.track) for k in lesions}
    order = {v.timepoint.timepoint_id: n for n, v in enumerate(visits)}
    known = {k.track: k for k in reversed(lesions)}
    missing = sorted((one for one in inevaluable if one not in there and one[1] in known), key=lambda one: (order[one[0]], one[1]))
    return tuple(replace(_blank(known[track]), lesion_id="", timepoint_id=visit, is_new=False, confidence=None) for visit, track in missing)


def _blank(lesion: Lesion) -> Lesion:
    """A lesion that could not be assessed: no figure of it means anything."""
    nothing: dict[str, Any] = dict.fromkeys(_FIGURES)
    return replace(lesion, **nothing, evaluable=False, reasons=dict.fromkeys(_FIGURES[:6], "not evaluable at this visit, as a reader said"))


def _apart(graph: LesionGraph, regroupings: Sequence[Regrouping]) -> list[str]:
    """A word for each split or merger that a reader told of visits that are no neighbours any more."""
    neighbours = set(pairwise(graph.visits))
    return [
        f"{one.whole[1]} at {one.whole[0]}: what a reader said of its parts does not hold, since there is a visit between the two by now"
        for one in regroupings
        if one.visits not in neighbours
    ]


def _unkept(graph: LesionGraph, corrections: Sequence[Correction]) -> list[str]:
    """A word for each link that changes nothing, since one of its lesions is seen at a visit between the two."""
    return [
        f"{c.before[1]} at {c.before[0]} was linked to {c.after[1]} at {c.after[0]}, but is seen in between; link it visit by visit"
        for c in corrections
        if c.same and all(lesion in graph.lesions.get(visit, ()) for visit, lesion in (c.before, c.after))
        if graph.track_of(*c.before) != graph.track_of(*c.after)
    ]


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


def graph_of(seen: Sequence[MeasuredVisit], corrections: Sequence[Correction], regroupings: Sequence[Regrouping] = ()) -> LesionGraph:
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
    return follow(visits, carried, onward=onward, position_sd_mm=sd, shift_sd_mm=shift, corrections=corrections, regroupings=regroupings)


def _way(matrix: tuple[tuple[float, ...], ...] | None) -> Callable[[Triple], Triple] | None:
    """A place in one scan to the same in the next."""
    if matrix is None:
        return None

    def way(place: Triple) -> Triple:
        x, y, z = (float(sum(a * b for a, b in zip(row, (*place, 1.0), strict=True))) for row in matrix)
        return x, y, z

    return way


def _choose(
    baseline: MeasuredVisit, graph: LesionGraph, roles: Mapping[Node, bool], blind: Collection[tuple[str, str]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Targets and non-targets, by track. What a person decided comes first; the rules fill up what is left. blind: not evaluable."""
    visit = baseline.timepoint.timepoint_id
    slice_mm = max(baseline.spacing) if baseline.spacing else 5.0
    candidates = []
    for f in baseline.found or ():
        track = graph.track_of(visit, f.id)
        longest, short = (None, None) if (visit, track) in blind else (f.size.longest_mm, f.size.short_axis_mm)
        candidates.append(Candidate(track, f.organ or "unknown", longest, short, f.node, slice_mm))
    said = {graph.track_of(*node): wanted for node, wanted in roles.items()}
    targets, others = choose_targets(candidates, said)
    return tuple(targets), tuple(others)


def _lesions(visits: Sequence[MeasuredVisit], graph: LesionGraph, targets: Sequence[str], blind: Collection[tuple[str, str]]) -> tuple[Lesion, ...]:
    fresh = {(e.visit, lesion) for e in graph.events if e.event is Event.NEW for lesion in e.lesions}
    # What split off from a target is of it, and in its sum (RECIST 1.1, section 4.3.2).
    parts = split_off(graph)
    counted = {*targets, *(part for target in targets for part in parts.get(target, ()))}
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
                    is_target=track in counted,
                    is_new=(name, found.id) in fresh,
                    method=found.method,
                    confidence=sure.get((name, found.id)),
                    reasons=size.reasons,
                )
            )
    return tuple(_blank(k) if (k.timepoint_id, k.track) in blind else k for k in lesions)
