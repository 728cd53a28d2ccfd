"""What looks like a slip of whoever described a patient's visits: for notes, since it may be meant all the same."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from isocenter.analysis.tracking.graph import Node


@dataclass(frozen=True)
class Described:
    """A visit that was measured. volume: of its scan's voxels and their place. marks: lesions that were marked, 0 where a mask was given."""

    visit: str
    volume: str
    marks: int
    lesions: Collection[str]


def slips(visits: Sequence[Described], names: Collection[Node]) -> Iterator[str]:
    """In words. names: lesions that somebody gave a name to."""
    by_scan: dict[str, list[str]] = {}
    for one in visits:
        by_scan.setdefault(one.volume, []).append(one.visit)
        if len(one.lesions) < one.marks:
            found = f"{one.marks} lesions were marked, {len(one.lesions)} found"
            yield f"{one.visit}: {found}: two marks lie in one lesion, or what was found is too small"
    for same in by_scan.values():
        if len(same) > 1:
            yield f"{' and '.join(same)} are one and the same scan: no change between them means anything"
    there = {(one.visit, lesion) for one in visits for lesion in one.lesions}
    yield from (f"a name was given to {lesion} at {visit}, which is not there" for visit, lesion in names if (visit, lesion) not in there)
