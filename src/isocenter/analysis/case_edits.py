"""What people decided about a case, against what was computed: kept as data, applied anew whenever the case is computed.

Lesions are named by visit and id, as they were measured; names of tracks (L1, L2) may change when a link does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from isocenter.analysis.case import Found, MeasuredVisit
from isocenter.analysis.lesions import LesionSize
from isocenter.analysis.merge import Merged
from isocenter.analysis.tracking.graph import Correction, Event, LesionGraph, Node, Regrouping
from isocenter.core.errors import NotFoundError, UsageError
from isocenter.core.patient import TherapyEvent

#: Figures that a person may set, and the most that each can sensibly be.
EDITABLE = {"longest_mm": 1000.0, "short_axis_mm": 1000.0, "volume_mm3": 1e8}
_MOST_NAME = 100


@dataclass(frozen=True)
class Edits:
    """All decisions about one patient that hold at present.

    links: two lesions are the same, or are not. names: what the track of a lesion is called. roles: targets and
    non-targets. measured: figures that a person set, in place of the computed ones. removed: lesions that are none. merged: a lesion
    that others of its visit are parts of. regroupings: what a lesion became, or came from. inevaluable: visits, each with a lesion
    (of any visit) that could not be assessed there. assessments: by visit, what a reader says of it, `new_lesions` included.
    """

    links: tuple[Correction, ...] = ()
    names: Mapping[Node, str] = field(default_factory=dict)
    roles: Mapping[Node, bool] = field(default_factory=dict)
    measured: Mapping[Node, Mapping[str, float]] = field(default_factory=dict)
    removed: frozenset[Node] = frozenset()
    therapies: tuple[TherapyEvent, ...] = ()
    merged: Mapping[Node, Merged] = field(default_factory=dict)
    regroupings: tuple[Regrouping, ...] = ()
    inevaluable: frozenset[tuple[str, Node]] = frozenset()
    assessments: Mapping[str, Mapping[str, str | bool]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the same for the same decisions."""
        return {
            "links": [{"before": list(c.before), "after": list(c.after), "same": c.same, "author": c.author} for c in self.links],
            "names": [[*node, name] for node, name in sorted(self.names.items())],
            "roles": [[*node, target] for node, target in sorted(self.roles.items())],
            "measured": [[*node, dict(figures)] for node, figures in sorted(self.measured.items())],
            "removed": [list(node) for node in sorted(self.removed)],
            "therapies": [asdict(t) for t in self.therapies],
            "merged": [[*node, merged.as_dict()] for node, merged in sorted(self.merged.items(), key=lambda item: item[0])],
            "regroupings": [
                {"event": str(r.event), "whole": list(r.whole), "parts": [list(p) for p in r.parts], "author": r.author} for r in self.regroupings
            ],
            "inevaluable": [[at, *node] for at, node in sorted(self.inevaluable)],
            "assessments": {visit: dict(said) for visit, said in sorted(self.assessments.items())},
        }

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Edits:
        """Out of `as_dict`."""
        return cls(
            links=tuple(Correction(_node(c["before"]), _node(c["after"]), bool(c["same"]), str(c["author"])) for c in data.get("links", ())),
            names={(v, lesion): str(name) for v, lesion, name in data.get("names", ())},
            roles={(v, lesion): bool(target) for v, lesion, target in data.get("roles", ())},
            measured={(v, lesion): dict(figures) for v, lesion, figures in data.get("measured", ())},
            removed=frozenset(_node(n) for n in data.get("removed", ())),
            therapies=tuple(TherapyEvent(**t) for t in data.get("therapies", ())),
            merged={(v, lesion): Merged.of(merged) for v, lesion, merged in data.get("merged", ())},
            regroupings=tuple(
                Regrouping(Event(r["event"]), _node(r["whole"]), tuple(_node(p) for p in r["parts"]), str(r["author"]))
                for r in data.get("regroupings", ())
            ),
            inevaluable=frozenset((str(at), (str(v), str(lesion))) for at, v, lesion in data.get("inevaluable", ())),
            assessments={str(visit): dict(said) for visit, said in data.get("assessments", {}).items()},
        )

    # One decision more. Each raises `UsageError` for what cannot be meant.

    def linked(self, before: Node, after: Node, same: bool, author: str = "") -> Edits:
        """Two lesions of two visits are the same, or are not. What was said of these two, or contradicts it, is forgotten."""
        if before[0] == after[0]:
            raise UsageError("a link joins lesions of two visits, not of one")

        def contradicted(c: Correction) -> bool:
            if (c.before, c.after) == (before, after):
                return True
            return same and c.same and (c.before[0], c.after[0]) == (before[0], after[0]) and (c.before == before or c.after == after)

        kept = tuple(r for r in self.regroupings if not _disputed(r, before, after, same))
        if kept == self.regroupings and any((c.before, c.after, c.same) == (before, after, same) for c in self.links):
            return self
        return replace(self, links=(*(c for c in self.links if not contradicted(c)), Correction(before, after, same, author)), regroupings=kept)

    def regrouped(self, one: Regrouping) -> Edits:
        """A lesion became several, or came from several. What was said of these lesions and contradicts it is forgotten."""
        if any((r.event, r.whole, {*r.parts}) == (one.event, one.whole, {*one.parts}) for r in self.regroupings):
            return self
        here = {one.whole, *one.parts}
        kept = tuple(r for r in self.regroupings if r.visits != one.visits or not here & {r.whole, *r.parts})
        links = tuple(c for c in self.links if not _disputed(one, c.before, c.after, c.same))
        return replace(self, regroupings=(*kept, one), links=links)

    def ungrouped(self, event: Event, whole: Node) -> Edits:
        """What was said of a lesion's parts is taken back. Raises `NotFoundError` where nothing was."""
        kept = tuple(r for r in self.regroupings if (r.event, r.whole) != (event, whole))
        if len(kept) == len(self.regroupings):
            raise NotFoundError(f"nobody said that this lesion {'became' if event is Event.SPLIT else 'came from'} several")
        return replace(self, regroupings=kept)

    def unassessed(self, at: str, node: Node) -> Edits:
        """A lesion could not be assessed at a visit."""
        return replace(self, inevaluable=self.inevaluable | {(at, node)})

    def assessed(self, said: Collection[tuple[str, Node]]) -> Edits:
        """Lesions could be assessed after all."""
        return replace(self, inevaluable=self.inevaluable - set(said))

    def judged(self, visit: str, said: Mapping[str, str | bool | None]) -> Edits:
        """What a reader says of a visit; None takes one thing back."""
        now = {k: v for k, v in {**self.assessments.get(visit, {}), **said}.items() if v is not None}
        kept = {name: told for name, told in self.assessments.items() if name != visit}
        return replace(self, assessments={**kept, visit: now} if now else kept)

    def named(self, node: Node, name: str) -> Edits:
        """The track of a lesion has a name; an empty one takes it away."""
        text = " ".join(name.split())
        if len(text) > _MOST_NAME or not text.isprintable():
            raise UsageError(f"a lesion's name has at most {_MOST_NAME} printable characters")
        kept = {n: t for n, t in self.names.items() if n != node}
        return replace(self, names={**kept, node: text} if text else kept)

    def with_role(self, node: Node, target: bool | None) -> Edits:
        """A lesion is a target, is none, or (None) is what the rules make of it."""
        kept = {n: t for n, t in self.roles.items() if n != node}
        return replace(self, roles=kept if target is None else {**kept, node: target})

    def with_measurement(self, node: Node, figures: Mapping[str, float | None]) -> Edits:
        """Figures of a lesion as a reader has them; None goes back to the computed one."""
        now = dict(self.measured.get(node, {}))
        if not figures:
            raise UsageError(f"say which figure is changed: {', '.join(EDITABLE)}")
        for name, value in figures.items():
            if name not in EDITABLE:
                raise UsageError(f"'{name[:40]}' cannot be set; these can: {', '.join(EDITABLE)}")
            if value is None:
                now.pop(name, None)
                continue
            if isinstance(value, bool) or not math.isfinite(value) or not 0 < value <= EDITABLE[name]:
                raise UsageError(f"{name} must lie above 0 and be at most {EDITABLE[name]:g}; delete a lesion that is not there")
            now[name] = float(value)
        kept = {n: f for n, f in self.measured.items() if n != node}
        return replace(self, measured={**kept, node: now} if now else kept)

    def without(self, node: Node, removed: bool = True) -> Edits:
        """A lesion is none (or is one after all)."""
        return replace(self, removed=self.removed | {node} if removed else self.removed - {node})

    def joined(self, node: Node, merged: Merged) -> Edits:
        """Lesions of one visit are parts of `node`; what was said to be part of one of them is part of it too (`merged` has all)."""
        kept = {n: m for n, m in self.merged.items() if n[0] != node[0] or n[1] not in (node[1], *merged.parts)}
        return replace(self, merged={**kept, node: merged})

    def parted(self, node: Node) -> Edits:
        """What was merged into a lesion is lesions of their own again. Raises `NotFoundError` where nothing was."""
        if node not in self.merged:
            raise NotFoundError("nothing was merged into this lesion")
        return replace(self, merged={n: m for n, m in self.merged.items() if n != node})

    def with_therapy(self, therapy: TherapyEvent) -> Edits:
        """A course of treatment; one of the same id is replaced."""
        from isocenter.analysis.growth.therapy import Therapy

        end = math.inf if therapy.end_day is None else therapy.end_day
        if not all(math.isfinite(v) for v in (therapy.start_day, therapy.dose, therapy.onset_days, therapy.decay_per_day)) or math.isnan(end):
            raise UsageError("a therapy's days, dose, onset and decay must be numbers")
        if abs(therapy.start_day) > 1e5 or therapy.dose > 100:
            raise UsageError("a therapy starts within 100,000 days of the first visit, and its dose is at most 100 times the usual one")
        Therapy(therapy.therapy_type, therapy.start_day, end, therapy.dose, therapy.onset_days, therapy.decay_per_day)
        kept = [t for t in self.therapies if t.therapy_id != therapy.therapy_id]
        same = next((t for t in kept if (t.therapy_type, t.start_day, t.end_day) == (therapy.therapy_type, therapy.start_day, therapy.end_day)), None)
        if same is not None:
            raise UsageError(f"this course is there already, as '{same.therapy_id}': two would count as twice the dose; change its dose instead")
        return replace(self, therapies=tuple(sorted((*kept, therapy), key=lambda t: (t.start_day, t.therapy_id))))

    def without_therapy(self, therapy_id: str) -> Edits:
        """Raises `NotFoundError` where there is no such course."""
        kept = tuple(t for t in self.therapies if t.therapy_id != therapy_id)
        if len(kept) == len(self.therapies):
            raise NotFoundError("there is no such therapy")
        return replace(self, therapies=kept)


def _disputed(one: Regrouping, before: Node, after: Node, same: bool) -> bool:
    """Whether a link contradicts a regrouping: it says that the whole is no such part, or that one of them is another lesion."""
    earlier, later = ((one.whole,), one.parts) if one.event is Event.SPLIT else (one.parts, (one.whole,))
    within = before in earlier and after in later
    return within if not same else not within and (before in earlier or after in later)


def _node(pair: Sequence[Any]) -> Node:
    visit, lesion = pair
    return str(visit), str(lesion)


def edited(visits: Sequence[MeasuredVisit], edits: Edits) -> list[MeasuredVisit]:
    """The measured visits as people corrected them. Decisions about lesions that are not there (any more) change nothing."""
    return [_judged(_edited(visit, edits), edits.assessments.get(visit.timepoint.timepoint_id, {})) for visit in visits]


def _judged(visit: MeasuredVisit, said: Mapping[str, str | bool]) -> MeasuredVisit:
    """A visit with what a reader says of it, in place of what came with its scan."""
    if not said:
        return visit
    new = said.get("new_lesions", visit.new_lesions)
    words = {name: str(value) for name, value in said.items() if name != "new_lesions"}
    return replace(visit, new_lesions=None if new is None else bool(new), assessment={**visit.assessment, **words})


def _edited(visit: MeasuredVisit, edits: Edits) -> MeasuredVisit:
    if visit.found is None:
        return visit
    name = visit.timepoint.timepoint_id
    visit = _joined(visit, {lesion: merged for (at, lesion), merged in edits.merged.items() if at == name})
    if visit.found is None:
        return visit
    stays = [k for k, f in enumerate(visit.found) if (name, f.id) not in edits.removed]
    found = tuple(_measured(visit.found[k], edits.measured.get((name, visit.found[k].id), {})) for k in stays)
    carried = tuple(visit.carried[k] for k in stays) if visit.carried is not None else None
    return replace(visit, found=found, carried=carried)


def _joined(visit: MeasuredVisit, merged: Mapping[str, Merged]) -> MeasuredVisit:
    """A visit with its merged lesions as one each. A merger of lesions that are not there (any more) changes nothing."""
    found, carried, parts = list(visit.found or ()), visit.carried, dict(visit.merged)
    for kept, one in merged.items():
        at = {f.id: k for k, f in enumerate(found)}
        names = (kept, *one.parts)
        if not all(n in at for n in names) or not one.still_of([found[at[n]].size for n in names]):
            continue
        if carried is not None:
            weights = [found[at[n]].size.voxels / one.size.voxels for n in names]
            x, y, z = (sum(w * carried[at[n]][k] for w, n in zip(weights, names, strict=True)) for k in range(3))
            carried = tuple((x, y, z) if k == at[kept] else place for k, place in enumerate(carried) if found[k].id not in one.parts)
        found[at[kept]] = replace(found[at[kept]], size=one.size, appearance=one.appearance)
        found = [f for f in found if f.id not in one.parts]
        parts[kept] = one.parts
    said = tuple(f"a reader merged {', '.join(more)} into {kept}" for kept, more in parts.items() if kept not in visit.merged)
    return replace(visit, found=tuple(found), carried=carried, merged=parts, notes=(*visit.notes, *said))


def _measured(found: Found, figures: Mapping[str, float]) -> Found:
    """A lesion with what a reader set. A short axis above the longest diameter is refused by `check`."""
    if not figures:
        return found
    changes: dict[str, Any] = dict(figures)
    size: LesionSize = replace(found.size, **changes)
    reasons = {**size.reasons, **dict.fromkeys(figures, "set by a reader")}
    if "longest_mm" in figures or "short_axis_mm" in figures:
        size = replace(size, who_product_mm2=size.longest_mm * size.short_axis_mm)
    return replace(found, size=replace(size, reasons=reasons), method="drawn" if set(figures) & {"longest_mm", "short_axis_mm"} else found.method)


def check(visits: Sequence[MeasuredVisit], edits: Edits, node: Node) -> None:
    """Raise for a decision about a lesion that does not exist, or that leaves it with figures that contradict each other."""
    whole = replace(edits, measured={}, removed=frozenset())
    for visit in (_edited(v, whole) for v in visits if v.timepoint.timepoint_id == node[0]):
        for kept, parts in visit.merged.items():
            if node[1] in parts:
                raise UsageError(f"{node[1]} was merged into {kept}; name that one, or unmerge it first")
        for found in visit.found or ():
            if found.id == node[1]:
                size = _measured(found, edits.measured.get(node, {})).size
                if size.short_axis_mm > size.longest_mm + 1e-9:
                    raise UsageError("the short axis cannot be longer than the longest diameter; set both")
                return
    raise NotFoundError("there is no such lesion at this visit")


def effective(visits: Sequence[MeasuredVisit], edits: Edits) -> Edits:
    """`edits` without what concerns lesions that are not there (any more); nothing of it is forgotten. visits: as `edited` has them."""
    nodes = {(v.timepoint.timepoint_id, f.id) for v in visits for f in v.found or ()}
    links = [c for c in edits.links if c.before in nodes and c.after in nodes]
    regroupings = []
    for one in edits.regroupings:
        parts = tuple(p for p in one.parts if p in nodes)
        if one.whole in nodes and len(parts) > 1:
            regroupings.append(replace(one, parts=parts))
        elif one.whole in nodes and parts:  # the only one that is left is the lesion itself
            before, after = (one.whole, parts[0]) if one.event is Event.SPLIT else (parts[0], one.whole)
            if not any(c.same and (c.before, c.after) == (before, after) for c in links):
                links.append(Correction(before, after, True, one.author))
    return replace(
        edits,
        links=tuple(links),
        roles={n: r for n, r in edits.roles.items() if n in nodes},
        regroupings=tuple(regroupings),
        inevaluable=frozenset((at, n) for at, n in edits.inevaluable if n in nodes),
    )


def in_order(visits: Sequence[MeasuredVisit], one: Node, other: Node) -> tuple[Node, Node]:
    """Two lesions, the earlier first. Raises `UsageError` for two of one visit.

    Over visits at which it was not seen a lesion may be linked too; where it was, that link changes nothing, which `assemble` notes.
    """
    seen = [v.timepoint.timepoint_id for v in visits if v.found is not None]
    if one[0] not in seen or other[0] not in seen:
        raise NotFoundError("there is no such lesion at this visit")
    if one[0] == other[0]:
        raise UsageError("only lesions of two visits are linked; those of one visit are merged")
    first, second = sorted((one, other), key=lambda n: seen.index(n[0]))
    return first, second


def track_names(edits: Edits, graph: LesionGraph) -> dict[str, str]:
    """Names that people gave, by track."""
    by_node = {node: track for track, at in graph.tracks.items() for node in at.items()}
    return {by_node[node]: name for node, name in edits.names.items() if node in by_node}
