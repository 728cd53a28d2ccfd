"""What a track is called: as it was before a reader corrected the case, so that taking one lesion away renames no other."""

from __future__ import annotations

from dataclasses import replace

from isocenter.analysis.tracking.graph import LesionGraph


def named_as(graph: LesionGraph, before: LesionGraph) -> LesionGraph:
    """`graph` with the names of `before`, the graph without corrections; by name.

    A track is called as the first of its lesions was, unless another track is already. Tracks that a correction made (a part that was cut off) get
    numbers beyond all that there were, so no name ever means two lesions.
    """
    was = {node: name for name, seen in before.tracks.items() for node in seen.items()}
    most = max((_number(name) for name in before.tracks), default=0)
    tracks: dict[str, dict[str, str]] = {}
    for seen in graph.tracks.values():
        name = next((was[node] for node in seen.items() if node in was), None)
        if name is None or name in tracks:
            most += 1
            name = f"L{most}"
        tracks[name] = seen
    return replace(graph, tracks=dict(sorted(tracks.items(), key=lambda item: _number(item[0]))))


def _number(name: str) -> int:
    return int(name[1:])
