"""A patient's lesions over all visits: who is who, and what happened to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from isocenter.analysis.tracking.match import Link, Located, Matches, match
from isocenter.core.errors import NotFoundError, UsageError
from isocenter.core.geometry import Triple

Node = tuple[str, str]  #: (visit, lesion)


class Event(StrEnum):
    """What happened at a visit, against the one before."""

    NEW = "new"
    DISAPPEARED = "disappeared"
    SPLIT = "split"
    MERGED = "merged"
    RETURNED = "returned"
    NOT_EVALUABLE = "not evaluable"


@dataclass(frozen=True)
class Happening:
    """An event. lesions: of this visit, for `DISAPPEARED` as they were last seen. parents: where they came from.

    Of what was not evaluable lesions has the lesion where there was one, parents how it was last seen where there was none.
    For `RETURNED` the parent is the lesion as it was last seen, at an earlier visit than the one before. by_user: a person said so.
    """

    visit: str
    event: Event
    lesions: tuple[str, ...]
    parents: tuple[str, ...] = ()
    by_user: bool = False


@dataclass(frozen=True)
class Regrouping:
    """What a person decided: that a lesion became several (`SPLIT`), or came from several (`MERGED`), at neighbouring visits.

    parts: all of them, of one visit: the one after for `SPLIT`, the one before for `MERGED`.
    """

    event: Event
    whole: Node
    parts: tuple[Node, ...]
    author: str = ""

    @property
    def visits(self) -> tuple[str, str]:
        """The earlier visit and the later one."""
        pair = self.whole[0], self.parts[0][0]
        return pair if self.event is Event.SPLIT else (pair[1], pair[0])


@dataclass(frozen=True)
class Correction:
    """What a person decided: that two lesions are the same, or that they are not. Kept when matching runs again."""

    before: Node
    after: Node
    same: bool
    author: str = ""


@dataclass(frozen=True)
class LesionGraph:
    """Lesions by visit, the links between neighbouring visits (and over visits at which one was gone), events, and their tracks.

    tracks: by name ("L1", …, in order of first appearance), the lesion at each visit at which it is seen. A lesion that
    split or merged goes on as its largest part.
    """

    visits: tuple[str, ...]
    lesions: dict[str, tuple[str, ...]]
    links: dict[tuple[str, str], tuple[Link, ...]]
    events: tuple[Happening, ...]
    tracks: dict[str, dict[str, str]]
    corrections: tuple[Correction, ...] = field(default=())

    def track_of(self, visit: str, lesion: str) -> str:
        """The name under which a lesion is followed. Raises `NotFoundError` for one that is not there."""
        for name, track in self.tracks.items():
            if track.get(visit) == lesion:
                return name
        raise NotFoundError("there is no such lesion at this visit")

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: nodes `lesion@visit` and edges with their confidence."""
        nodes = [{"id": f"{lesion}@{visit}", "visit": visit, "lesion": lesion} for visit in self.visits for lesion in self.lesions[visit]]
        edges = [
            {
                "from": f"{link.before}@{pair[0]}",
                "to": f"{link.after}@{pair[1]}",
                "confidence": round(link.confidence, 4),
                "distance_mm": round(link.distance_mm, 2),
                "by_user": link.by_user,
            }
            for pair, links in self.links.items()
            for link in links
        ]
        events = [
            {"visit": e.visit, "event": str(e.event), "lesions": list(e.lesions), "parents": list(e.parents), "by_user": e.by_user}
            for e in self.events
        ]
        return {"nodes": nodes, "edges": edges, "events": events, "tracks": self.tracks}


def follow(
    visits: Sequence[tuple[str, Sequence[Located]]],
    carried: Sequence[Sequence[Located]] | None = None,
    *,
    onward: Sequence[Callable[[Triple], Triple] | None] = (),
    position_sd_mm: float = 5.0,
    shift_sd_mm: float = 0.0,
    corrections: Sequence[Correction] = (),
    regroupings: Sequence[Regrouping] = (),
) -> LesionGraph:
    """Follow lesions through visits in their order.

    visits: (name, lesions in that visit's own scan). carried: for each visit but the last, its lesions with their
    positions carried into the next visit's scan; by default as they are. onward: the same for any place, so that lesions that are gone are
    known again where they return; without it by the common shift. regroupings: those of visits that are no neighbours change nothing.
    See `match` for the rest.
    Raises `UsageError` for visits of one name, two lesions of one id in a visit, or corrections that contradict.
    """
    names = [name for name, _ in visits]
    if len(set(names)) != len(names) or any(len({k.id for k in found}) != len(found) for _, found in visits):
        raise UsageError("visits need different names, and the lesions of a visit different ids")
    _agree(corrections)
    links: dict[tuple[str, str], tuple[Link, ...]] = {}
    events: list[Happening] = []
    tracks: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    gone: dict[str, Located] = {}  # by track, where each would be in this visit's scan
    for k, (name, found) in enumerate(visits):
        if k == 0:
            current = _begin(tracks, name, [lesion.id for lesion in found])
            continue
        last, before = visits[k - 1]
        moved = carried[k - 1] if carried is not None else before
        said = [c for c in corrections if (c.before[0], c.after[0]) == (last, name)]
        # What a person said to be a lesion that was gone is no other's before that one is looked for.
        ends = {list(tracks[track].items())[-1]: track for track in gone}
        here = [p for p in regroupings if p.visits == (last, name)]
        splits = {p.whole[1]: [lesion for _, lesion in p.parts] for p in here if p.event is Event.SPLIT}
        merges = {p.whole[1]: [lesion for _, lesion in p.parts] for p in here if p.event is Event.MERGED}
        linked = {c.after[1] for c in said if c.same} | {*merges, *(lesion for parts in splits.values() for lesion in parts)}
        over = [(ends[c.before], c.after[1]) for c in corrections if c.same and c.before in ends and c.after[0] == name and c.after[1] not in linked]
        matches = match(
            moved,
            found,
            position_sd_mm=position_sd_mm,
            shift_sd_mm=shift_sd_mm,
            links=[(c.before[1], c.after[1]) for c in said if c.same],
            never=[*((c.before[1], c.after[1]) for c in said if not c.same), *((a.id, lesion) for a in moved for _, lesion in over)],
            splits=splits,
            merges=merges,
        )
        links[(last, name)] = (*matches.links, *matches.splits, *matches.merges)
        going = {link.after: current[link.before] for link in matches.links}
        way = onward[k - 1] if k <= len(onward) else None
        gone = {track: _moved(one, way, matches.shift_mm) for track, one in gone.items()}
        back = _returned(gone, [b for b in found if b.id in matches.appeared], over, ends, name, position_sd_mm, corrections)
        for link in back:
            seen, parent = list(tracks[link.before].items())[-1]
            links[(seen, name)] = (*links.get((seen, name), ()), replace(link, before=parent))
            events.append(Happening(name, Event.RETURNED, (link.after,), (parent,)))
            going[link.after] = link.before
            del gone[link.before]
        events += _happened(name, replace(matches, appeared=tuple(b for b in matches.appeared if b not in going)), {*splits}, {*merges})
        carried_there = {a.id: a for a in moved}
        gone |= {current[a]: _moved(replace(carried_there[a], id=current[a]), None, matches.shift_mm) for a in matches.disappeared}
        for lesion, track in going.items():
            tracks[track][name] = lesion
        fresh = _begin(tracks, name, [lesion.id for lesion in found if lesion.id not in going])
        current = {**going, **fresh}
    lesions = {name: tuple(lesion.id for lesion in found) for name, found in visits}
    return LesionGraph(tuple(names), lesions, links, tuple(events), tracks, tuple(corrections))


def _moved(one: Located, way: Callable[[Triple], Triple] | None, shift: Triple) -> Located:
    x, y, z = one.position
    return replace(one, position=way(one.position) if way is not None else (x + shift[0], y + shift[1], z + shift[2]))


def _returned(
    gone: Mapping[str, Located],
    appeared: Sequence[Located],
    over: Sequence[tuple[str, str]],
    ends: Mapping[Node, str],
    visit: str,
    position_sd_mm: float,
    corrections: Sequence[Correction],
) -> tuple[Link, ...]:
    """Of what appeared, the lesions that are back where one of `gone` was; links from tracks. RECIST 1.1 follows them as what they were.

    over: track and lesion that a person linked. ends: the track of each lesion that is gone, as it was last seen.
    """
    if not gone or not appeared:
        return ()
    never = [(ends[c.before], c.after[1]) for c in corrections if not c.same and c.after[0] == visit and c.before in ends]
    return match(list(gone.values()), appeared, position_sd_mm=position_sd_mm, links=over, never=never).links


def _begin(tracks: dict[str, dict[str, str]], visit: str, lesions: Sequence[str]) -> dict[str, str]:
    started = {}
    for lesion in lesions:
        name = f"L{len(tracks) + 1}"
        tracks[name] = {visit: lesion}
        started[lesion] = name
    return started


def _happened(visit: str, matches: Matches, split: Set[str], merged: Set[str]) -> list[Happening]:
    """split, merged: lesions of which a person said it."""
    events = [Happening(visit, Event.NEW, (lesion,)) for lesion in matches.appeared]
    events += [Happening(visit, Event.DISAPPEARED, (lesion,)) for lesion in matches.disappeared]
    partner = {link.before: link.after for link in matches.links}
    for parent in dict.fromkeys(s.before for s in matches.splits):
        parts = (partner[parent], *(s.after for s in matches.splits if s.before == parent))
        events.append(Happening(visit, Event.SPLIT, parts, (parent,), parent in split))
    origin = {link.after: link.before for link in matches.links}
    for whole in dict.fromkeys(m.after for m in matches.merges):
        parents = (origin[whole], *(m.before for m in matches.merges if m.after == whole))
        events.append(Happening(visit, Event.MERGED, (whole,), parents, whole in merged))
    return events


def _agree(corrections: Sequence[Correction]) -> None:
    same = [c for c in corrections if c.same]
    for side in ("before", "after"):
        ends = [(getattr(c, side), c.before[0], c.after[0]) for c in same]
        if len(set(ends)) != len(ends):
            raise UsageError("two corrections give one lesion two partners")
    if {(c.before, c.after) for c in same} & {(c.before, c.after) for c in corrections if not c.same}:
        raise UsageError("two corrections contradict each other")


def not_evaluable(graph: LesionGraph, said: Set[Node]) -> LesionGraph:
    """The graph with (visit, track) of `said`, which nobody could assess there: what is not seen then is neither gone nor, later, back."""
    events = list(graph.events)
    for track, seen in graph.tracks.items():
        blind = {visit for visit, of in said if of == track and visit in graph.visits}
        last: str | None = None
        doubtful = gone = False
        for visit in graph.visits:
            if visit in blind:
                lesions, parents = ((seen[visit],), ()) if visit in seen else ((), (last,) if last is not None else ())
                events.append(Happening(visit, Event.NOT_EVALUABLE, lesions, parents, by_user=True))
            if visit in seen:
                if doubtful and not gone:
                    events = [e for e in events if (e.visit, e.event, e.lesions) != (visit, Event.RETURNED, (seen[visit],))]
                last, doubtful, gone = seen[visit], False, False
            elif last is not None and visit in blind and not gone:
                events = [e for e in events if (e.visit, e.event, e.lesions) != (visit, Event.DISAPPEARED, (last,))]
                doubtful = True
            elif last is not None and not gone:
                if doubtful:
                    events.append(Happening(visit, Event.DISAPPEARED, (last,)))
                gone = True
    order = list(graph.visits)
    return replace(graph, events=tuple(sorted(events, key=lambda e: order.index(e.visit))))


def split_off(graph: LesionGraph) -> dict[str, set[str]]:
    """Tracks that split off from another one, by that one, which they go on counting for (RECIST 1.1, section 4.3.2)."""
    parts: dict[str, set[str]] = {}
    order = list(graph.visits)
    for event in graph.events:
        if event.event is Event.SPLIT:
            before = order[order.index(event.visit) - 1]
            parent = graph.track_of(before, event.parents[0])
            pieces = {graph.track_of(event.visit, lesion) for lesion in event.lesions} - {parent}
            parts.setdefault(parent, set())
            for track, owned in parts.items():
                if track == parent or parent in owned:  # pieces of a piece are pieces of the whole
                    owned |= pieces
    return parts


def merged_into(graph: LesionGraph) -> dict[str, str]:
    """By track that grew into another one, that one: its longest diameter is theirs from then on (RECIST 1.1, section 4.3.2)."""
    into: dict[str, str] = {}
    order = list(graph.visits)
    for event in graph.events:
        if event.event is Event.MERGED:
            whole, before = graph.track_of(event.visit, event.lesions[0]), order[order.index(event.visit) - 1]
            into |= {track: whole for parent in event.parents if (track := graph.track_of(before, parent)) != whole}
    return into
