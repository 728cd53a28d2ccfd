"""A reader's decisions, one by one: what each makes of those before, and which cannot be meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from isocenter.analysis.case import MeasuredVisit, graph_of
from isocenter.analysis.case_edits import Edits, check, edited, effective, in_order
from isocenter.analysis.merge import Merged
from isocenter.analysis.tracking.graph import Event, LesionGraph, Node, Regrouping
from isocenter.core.errors import NotFoundError, UsageError
from isocenter.core.patient import ASSESSMENT, Decision

#: What a correction may be.
ACTIONS = (
    "link",
    "unlink",
    "split",
    "unsplit",
    "coalesce",
    "uncoalesce",
    "merge",
    "unmerge",
    "rename",
    "role",
    "measurement",
    "not_evaluable",
    "evaluable",
    "delete",
    "undelete",
    "assess",
)
_REGROUPED = {"split": Event.SPLIT, "coalesce": Event.MERGED}

#: Measures lesions of a visit (visit, names) as one.
Together = Callable[[str, Sequence[str]], Merged]


def decide(edits: Edits, said: Decision, visits: Sequence[MeasuredVisit], together: Together, author: str = "") -> Edits:
    """The decisions with one more. visits: as they were measured, before any correction.

    Raises `UsageError` for what cannot be meant, and `NotFoundError` for a lesion that is not there.
    """
    if said.action not in ACTIONS:
        raise UsageError(f"there is no correction '{said.action[:32]}'; there are: {', '.join(ACTIONS)}")
    if said.action == "assess":
        return _assessed(edits, said, visits)
    if said.lesion is None:
        raise UsageError("say which lesion, as [timepoint_id, lesion_id]")
    node = said.lesion
    check(visits, edits, node)
    if said.action in _REGROUPED:
        return _regrouped(edits, said, node, visits, author)
    if said.action.startswith("un") and said.action[2:] in _REGROUPED:
        return edits.ungrouped(_REGROUPED[said.action[2:]], node)
    if said.action in ("not_evaluable", "evaluable"):
        return _evaluable(edits, said, node, visits)
    if said.action in ("link", "unlink", "merge"):
        if said.other is None:
            raise UsageError("say with which other lesion, as [timepoint_id, lesion_id]")
        check(visits, edits, said.other)
        if said.action == "merge":
            return _merged(edits, said, visits, together)
        first, second = in_order(visits, node, said.other)
        made = edits.linked(first, second, said.action == "link", author)
        if said.action == "link":
            _holds(made, first, second, visits)
        return made
    if said.action == "unmerge":
        return edits.parted(node)
    if said.action == "rename":
        return edits.named(node, said.name or "")
    if said.action == "role":
        return edits.with_role(node, said.target)
    if said.action == "measurement":
        made = edits.with_measurement(node, said.figures or {})
        check(visits, made, node)
        return made
    return edits.without(node, said.action == "delete")


def _seen(visits: Sequence[MeasuredVisit]) -> list[str]:
    return [v.timepoint.timepoint_id for v in visits if v.found is not None]


def _graph(edits: Edits, visits: Sequence[MeasuredVisit]) -> LesionGraph:
    """Who is who, as corrected."""
    here = edited(visits, edits)
    holds = effective(here, edits)
    return graph_of([v for v in here if v.found is not None], holds.links, holds.regroupings)


def _regrouped(edits: Edits, said: Decision, whole: Node, visits: Sequence[MeasuredVisit], author: str) -> Edits:
    """A lesion became `others`, of the next visit with a scan, or came from them, of the one before."""
    parts = said.others
    if len(set(parts)) < 2 or len(set(parts)) < len(parts):
        raise UsageError("say which lesions, two or more different ones, as others: [[timepoint_id, lesion_id], ...]")
    for part in parts:
        check(visits, edits, part)
    if edits.removed & {whole, *parts}:
        raise UsageError("one of these lesions was deleted; undelete it first")
    if len({visit for visit, _ in parts}) > 1:
        raise UsageError("the parts of a lesion are all of one visit")
    one = Regrouping(_REGROUPED[said.action], whole, tuple(parts), author)
    order = _seen(visits)
    first, second = (order.index(name) for name in one.visits)
    if first == second:
        raise UsageError("what is one lesion at one visit is merged; a lesion splits or coalesces from one visit to the next")
    if first > second:
        other = next(name for name in _REGROUPED if name != said.action)
        raise UsageError(f"{said.action} leads from an earlier visit to a later one; the other way round it is {other}")
    if second - first > 1:
        raise UsageError(f"'{order[first + 1]}' lies between these visits; say it from one visit to the next")
    made = edits.regrouped(one)
    events = [e for e in _graph(made, visits).events if e.by_user and e.event is one.event and e.visit == one.visits[1]]
    both = {lesion for _, lesion in parts}
    if not any({*e.lesions} == both if one.event is Event.SPLIT else {*e.parents} == both for e in events):
        raise UsageError("this contradicts what was said of one of these lesions before; take that back first")
    return made


def _evaluable(edits: Edits, said: Decision, node: Node, visits: Sequence[MeasuredVisit]) -> Edits:
    """A lesion, named as it was measured at any visit, could not be assessed `at` a visit (by default its own), or could after all."""
    at = said.at if said.at is not None else node[0]
    if at not in {v.timepoint.timepoint_id for v in visits}:
        raise NotFoundError("there is no such visit")
    if at not in _seen(visits):
        raise UsageError(f"nothing was measured at '{at}': all lesions count as not evaluated there already")
    if node in edits.removed:
        raise UsageError("this lesion was deleted: it is none; undelete it first")
    graph = _graph(edits, visits)
    track = graph.track_of(*node)
    if said.action == "evaluable":
        # It may have been named as it was measured at another visit.
        same = {(visit, of) for visit, of in edits.inevaluable if visit == at and of in graph.tracks[track].items()}
        if not same:
            raise NotFoundError("nobody said that this lesion was not evaluable at this visit")
        return edits.assessed(same)
    first = next(visit for visit in graph.visits if visit in graph.tracks[track])
    if _seen(visits).index(at) < _seen(visits).index(first):
        raise UsageError(f"this lesion is not known before '{first}'; whether it is new there, new_lesions of `assess` says")
    return edits.unassessed(at, node)


def _assessed(edits: Edits, said: Decision, visits: Sequence[MeasuredVisit]) -> Edits:
    """What a reader says of a visit."""
    if said.at not in {v.timepoint.timepoint_id for v in visits}:
        if said.at is None:
            raise UsageError("say which visit is assessed, as at: timepoint_id")
        raise NotFoundError("there is no such visit")
    words = dict(said.assessment or {})
    if not words:
        raise UsageError(f"say what is assessed: new_lesions, {', '.join(ASSESSMENT)}")
    new = words.get("new_lesions")
    if new is not None and not isinstance(new, bool):
        raise UsageError("new_lesions is true, false or null")
    for name, value in words.items():
        if name != "new_lesions" and (name not in ASSESSMENT or (value is not None and value not in ASSESSMENT[name])):
            allowed = "; ".join(f"{key}: {', '.join(values)}" for key, values in ASSESSMENT.items())
            raise UsageError(f"an assessment that is none; there are new_lesions, and {allowed}")
    return edits.judged(str(said.at), words)


def _holds(edits: Edits, first: Node, second: Node, visits: Sequence[MeasuredVisit]) -> None:
    """Raise `UsageError` for a link that changes nothing: over visits at which one of the two lesions is seen."""
    here = edited(visits, edits)
    if not all(any(v.timepoint.timepoint_id == at and any(f.id == lesion for f in v.found or ()) for v in here) for at, lesion in (first, second)):
        return  # of a lesion that is deleted now: the link is kept for when it is not
    graph = _graph(edits, visits)
    if graph.track_of(*first) != graph.track_of(*second):
        raise UsageError("the lesion is seen at a visit between the two; link it visit by visit")


def _merged(edits: Edits, said: Decision, visits: Sequence[MeasuredVisit], together: Together) -> Edits:
    """`other` and all that was merged into it become parts of `lesion`."""
    assert said.lesion is not None  # noqa: S101 - for the type checker
    assert said.other is not None  # noqa: S101
    if said.lesion[0] != said.other[0]:
        raise UsageError("only lesions of one visit are merged; lesions of two visits are linked")
    if said.lesion == said.other:
        raise UsageError("a lesion cannot be merged with itself")
    if {said.lesion, said.other} & edits.removed:
        raise UsageError("one of the two was deleted; undelete it first")
    if {said.lesion, said.other} & set(edits.measured):
        raise UsageError("a reader set figures of one of the two; take them back first, and set those of the whole lesion after")
    parts = [p for node in (said.lesion, said.other) if node in edits.merged for p in edits.merged[node].parts]
    names = (said.lesion[1], *dict.fromkeys((said.other[1], *parts)))
    return edits.joined(said.lesion, together(said.lesion[0], names))


def told(said: Decision) -> dict[str, Any]:
    """A decision as plain data, for logs: only what it says."""
    detail: dict[str, Any] = {} if said.lesion is None else {"lesion": list(said.lesion)}
    if said.other is not None:
        detail["other"] = list(said.other)
    if said.others:
        detail["others"] = [list(node) for node in said.others]
    if said.at is not None:
        detail["at"] = said.at
    if said.assessment is not None:
        detail["assessment"] = dict(said.assessment)
    if said.action == "rename":
        detail["name"] = said.name or ""
    if said.action == "role":
        detail["target"] = said.target
    if said.action == "measurement":
        detail["figures"] = dict(said.figures or {})
    return detail


def decided(edits: Edits, every: Sequence[Decision], visits: Sequence[MeasuredVisit], together: Together, author: str = "") -> Edits:
    """The decisions with a list of others, which are named by their place in it where one of them cannot be."""
    for k, said in enumerate(every, start=1):
        try:
            edits = decide(edits, said, visits, together, author)
        except (UsageError, NotFoundError) as error:
            raise UsageError(f"correction {k} ({said.action[:32]}): {error.message}") from None
    return edits
