"""New lesions of a case as iRECIST follows them: each by its size, apart from the baseline's targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from isocenter.analysis.response.irecist import FURTHER_MM, NewLesions
from isocenter.analysis.response.recist import MEASURABLE_MM, MOST_PER_ORGAN, MOST_TARGETS, NODE_MEASURABLE_MM
from isocenter.analysis.uncertainty import of_short_axis
from isocenter.core.patient import Lesion

if TYPE_CHECKING:
    from isocenter.analysis.case import MeasuredVisit


def new_lesions(visits: Sequence[MeasuredVisit], lesions: Sequence[Lesion], is_new: Callable[[Lesion], bool], new_mm: float) -> list[NewLesions]:
    """The new lesions at each of `visits`, which are in order.

    is_new: whether a lesion was not there at the baseline. One counts from the first visit on at which it has `new_mm`. Of those that are
    measurable at most five, two an organ, are followed by size, the largest first (page e146); one of the others plainly grew where its
    diameter gained `FURTHER_MM` since it was last seen. What a person said of a visit comes first.
    """
    chosen: dict[str, Lesion] = {}
    counted: set[str] = set()
    before: dict[str, float] = {}
    answers = []
    for visit in visits:
        here = [k for k in lesions if k.timepoint_id == visit.timepoint.timepoint_id and k.evaluable and is_new(k)]
        counted |= {k.track for k in here if extent(k) >= new_mm or visit.new_lesions}
        there = [k for k in here if k.track in counted]
        for lesion in sorted(there, key=lambda k: -(k.longest_mm or 0)):
            organs = Counter(_organ(k) for k in chosen.values())
            least = NODE_MEASURABLE_MM if lesion.is_node else MEASURABLE_MM
            if lesion.track not in chosen and extent(lesion) >= least and len(chosen) < MOST_TARGETS and organs[_organ(lesion)] < MOST_PER_ORGAN:
                chosen[lesion.track] = lesion
        others = [k for k in there if k.track not in chosen]
        grew = any(extent(k) - before.get(k.track, extent(k)) >= FURTHER_MM for k in others)
        sizes = {k.track: extent(k) for k in there if k.track in chosen}
        before |= {k.track: extent(k) for k in there}
        if visit.new_lesions is False:
            answers.append(NewLesions())
        else:
            said = int(bool(visit.new_lesions) and not there)
            answers.append(NewLesions(sizes, len(others) + said, grew))
    return answers


def extent(lesion: Lesion) -> float:
    """The diameter that says whether a lesion is disease: of nodes the short axis (RECIST 1.1, section 4.2)."""
    return (lesion.short_axis_mm if lesion.is_node else lesion.longest_mm) or 0.0


def extent_sd(lesion: Lesion) -> float:
    """Standard deviation of that diameter in mm; 0 where nothing is known of it."""
    if lesion.sd_mm is None or not lesion.is_node or lesion.longest_mm is None or lesion.short_axis_mm is None:
        return lesion.sd_mm or 0.0
    return of_short_axis(lesion.sd_mm, lesion.longest_mm, lesion.short_axis_mm)


def _organ(lesion: Lesion) -> str:
    return "lymph nodes" if lesion.is_node else (lesion.organ or "unknown").strip().lower()
