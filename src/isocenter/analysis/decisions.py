"""A reader's decisions, one by one: what each makes of those before, and which cannot be meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from isocenter.analysis.case import MeasuredVisit, graph_of
from isocenter.analysis.case_edits import Edits, check, edited, effective, in_order
from isocenter.analysis.merge import Merged
from isocenter.analysis.tracking.graph import Node
from isocenter.core.errors import NotFoundError, UsageError
from isocenter.core.patient import Decision

#: What a correction may be.
ACTIONS = ("link", "unlink", "merge", "unmerge", "rename", "role", "measurement", "delete", "undelete")

#: Measures lesions of a visit (visit, names) as one.
Together = Callable[[str, Sequence[str]], Merged]


def decide(edits: Edits, said: Decision, visits: Sequence[MeasuredVisit], together: Together, author: str = "") -> Edits:
    """The decisions with one more. visits: as they were measured, before any correction.

    Raises `UsageError` for what cannot be meant, and `NotFoundError` for a lesion that is not there.
    """
    if said.action not in ACTIONS:
        raise UsageError(f"there is no correction '{said.action[:32]}'; there are: {', '.join(ACTIONS)}")
    if said.lesion is None:
        raise UsageError("say which lesion, as [timepoint_id, lesion_id]")
    node = said.lesion
    check(visits, edits, node)
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


def _holds(edits: Edits, first: Node, second: Node, visits: Sequence[MeasuredVisit]) -> None:
    """Raise `UsageError` for a link that changes nothing: over visits at which one of the two lesions is seen."""
    here = edited(visits, edits)
    if not all(any(v.timepoint.timepoint_id == at and any(f.id == lesion for f in v.found or ()) for v in here) for at, lesion in (first, second)):
        return  # of a lesion that is deleted now: the link is kept for when it is not
    graph = graph_of([v for v in here if v.found is not None], effective(here, edits).links)
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
    detail: dict[str, Any] = {"lesion": list(said.lesion or ())}
    if said.other is not None:
        detail["other"] = list(said.other)
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
