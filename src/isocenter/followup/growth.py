"""Growth as it could be told at each visit: `growth.json` beside the visit's other files, from all visits up to that one."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3

from isocenter.analysis.case import Case, followed
from isocenter.analysis.case_growth import TrackGrowth, grow
from isocenter.analysis.case_json import growth_dict
from isocenter.analysis.growth.forecast import BROAD, Population
from isocenter.core.model import QUIET, Run
from isocenter.followup import files

GROWTH = "growth.json"
#: Anything that changes fits or forecasts changes this.
_VERSION = "3"


def save_growth(case: Case, home: Path, population: Population, run: Run = QUIET) -> None:
    """A file for each visit with a scan; one that was made from the same measurements and treatments stays."""
    rows = followed(case.visits, case.lesions, case.inevaluable)
    names = [v.timepoint.timepoint_id for v in case.visits if v.found is not None]
    for k, name in enumerate(names, start=1):
        sizes = [(day, [(k.track, k.volume_mm3, k.sd_mm) for k in lesions]) for day, lesions in rows[:k]]
        happened = [event for event in case.graph.events if event.visit in names[:k]]
        key = blake3(repr((_VERSION, sizes, happened, case.patient.therapies, population)).encode()).hexdigest()[:32]
        file = home / name / GROWTH
        if (files.read_json(file) or {}).get("key") == key:
            continue
        run.check()
        _, known = told_at(case, k, population)
        files.save(file, files.json_bytes({"key": key, "visits": names[:k], "growth": [growth_dict(track) for track in known]}))


def told_at(case: Case, count: int, population: Population = BROAD) -> tuple[tuple[str, ...], tuple[TrackGrowth, ...]]:
    """The first `count` visits with a scan, and growth and forecast by these alone: of all lesions together, then of each track seen by then."""
    rows = followed(case.visits, case.lesions, case.inevaluable)[:count]
    here = {lesion.track for _, lesions in rows for lesion in lesions}
    names = [v.timepoint.timepoint_id for v in case.visits if v.found is not None]
    tracks = [t for t in case.graph.tracks if t in here]
    return tuple(names[:count]), grow(rows, tracks, case.patient.therapies, population, scenarios=(), graph=case.graph)
