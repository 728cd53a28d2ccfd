"""A case as DICOM objects: for every visit that came as DICOM a SEG of its lesions, and a structured report of their figures.

Tracks keep their identifiers and UIDs over all visits, so that a viewer can follow a lesion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from isocenter.analysis.case import MeasuredVisit
from isocenter.analysis.case_json import as_dict
from isocenter.analysis.report.figures import COLOURS
from isocenter.analysis.report.judged import best, judgements
from isocenter.analysis.report.told import Told, VisitScan
from isocenter.core import terminology
from isocenter.core.errors import UsageError
from isocenter.core.patient import Lesion, Timepoint
from isocenter.core.provenance import Provenance
from isocenter.core.segmentation import Label, Segmentation
from isocenter.io import seg, sr
from isocenter.io.sr_response import Assessment


def objects(told: Told, *, reports: bool) -> Iterator[tuple[str, bytes | None, bytes | None]]:
    """Visit, its SEG (None without lesions) and its report (None where not asked for), for every visit that can have them.

    Raises `UsageError` where no visit can: there is no DICOM image that an object could refer to.
    """
    reasons: dict[str, None] = {}
    done = False
    tracked = _tracked(told)
    for order, visit in enumerate(told.case.visits, start=1):
        name = visit.timepoint.timepoint_id
        scan = told.scan(name) if visit.found is not None else None
        if scan is None:
            continue
        if reason := seg.refusal(scan.volume):
            reasons[reason] = None
            continue
        pair = _visit(told, visit, order, scan, tracked, reports=reports)
        done = True
        yield name, *pair
    if not done:
        why = f": {'; '.join(reasons)}" if reasons else ""
        raise UsageError(f"DICOM objects refer to DICOM images, and no visit has any{why}")


def _tracked(told: Told) -> dict[str, seg.Tracked]:
    """By track: its name, a UID that is the same in every object of this patient, and its organ's code."""
    case = told.case
    organs = {lesion.track: lesion.organ for lesion in reversed(case.lesions)}
    return {t: seg.Tracked(case.called(t)[:64], told.tracking_uid(t), terminology.site(organs.get(t))) for t in case.graph.tracks}


def _numbered(scan: VisitScan, lesions: Sequence[Lesion], merged: Mapping[str, Sequence[str]]) -> NDArray[np.uint16] | None:
    """The visit's mask with its lesions as 1, 2, … in their order; those that a reader took out are gone. None where one is not in it.

    merged: by lesion, what a reader said to be parts of it.
    """
    most = int(scan.lesions.max(initial=0))
    parts = [(value, name) for value, one in enumerate(lesions, start=1) for name in (one.lesion_id, *merged.get(one.lesion_id, ()))]
    # A visit's lesions are named by counting them in the mask: lesion-1, lesion-2, …
    named = [re.fullmatch(r"lesion-([1-9]\d{0,4})", name, re.A) for _, name in parts]
    numbers = [int(match[1]) if match else 0 for match in named]
    if len(set(numbers)) < len(numbers) or not all(0 < n <= most for n in numbers):
        return None
    values = [value for value, _ in parts]
    if numbers == values == list(range(1, most + 1)):
        return scan.lesions
    table = np.zeros(most + 1, np.uint16)
    table[numbers] = values
    return np.asarray(table[scan.lesions], dtype=np.uint16)


def _visit(
    told: Told, visit: MeasuredVisit, order: int, scan: VisitScan, tracked: dict[str, seg.Tracked], *, reports: bool
) -> tuple[bytes | None, bytes | None]:
    case, volume = told.case, scan.volume
    lesions = tuple(case.at(visit.timepoint.timepoint_id))
    mask = _numbered(scan, lesions, visit.merged)
    if mask is None:
        raise UsageError(f"{visit.timepoint.timepoint_id}: the mask does not hold the lesions that were measured; run `isocenter track` again")
    pseudonym = None if told.identity is not None else case.patient.patient_id
    state = blake3(mask.tobytes())
    state.update(json.dumps(as_dict(case), sort_keys=True, default=str).encode())
    made_of = "\0".join((volume.key, state.hexdigest(), pseudonym or "named", told.version, visit.timepoint.timepoint_id))
    segmentation = None
    if lesions:
        labels = tuple(_label(number, lesion, told.case.called(lesion.track)) for number, lesion in enumerate(lesions, start=1))
        by = sorted({lesion.method for lesion in lesions})
        provenance = Provenance(f"isocenter track ({', '.join(by)})", told.version, volume.key, notes=visit.notes)
        result = Segmentation(mask, volume.grid, labels, provenance)
        by_value = {number: tracked[lesion.track] for number, lesion in enumerate(lesions, start=1)}
        segmentation = seg.write(result, volume, tracked=by_value, pseudonym=pseudonym, made_of=made_of)
    if not reports:
        return segmentation, None
    first = next(v.timepoint for v in case.visits if v.found is not None)
    old = frozenset(track for track, seen in case.graph.tracks.items() if first.timepoint_id in seen)
    report = sr.VisitReport(visit.timepoint, order, lesions, tracked, old, _assessments(told, visit, first), made_of, told.version)
    return segmentation, sr.write(report, volume, segmentation, pseudonym=pseudonym)


def _assessments(told: Told, visit: MeasuredVisit, first: Timepoint) -> tuple[Assessment, ...]:
    """What the criteria say of a visit; at the last one with a scan also the best overall responses. first: the first with a scan."""
    case, point = told.case, visit.timepoint
    if point == first:
        return (Assessment("RECIST 1.1", None, told.baseline_sum(), sd=case.baseline_sd_mm),)
    last = [v.timepoint for v in case.visits if v.found is not None][-1]
    overall = {b.confirmed: b for b in best(case)} if point == last else {}
    made = []
    for one in judgements(case):
        if one.day != point.day:
            continue
        said = Assessment(
            one.criterion, one.category, one.response.sum, one.unit, one.sd, one.response.percent_baseline, one.response.percent_nadir, one.chances,
            reasons=one.reasons,
        )  # fmt: skip
        if one.criterion == "RECIST 1.1" and overall:
            why = tuple(b.why for b in overall.values() if b.why)
            confirmed, seen = (overall[k].category if k in overall else None for k in (True, False))
            said = replace(said, best_overall=confirmed, best_seen=seen, reasons=(*one.reasons, *why))
        made.append(said)
    return tuple(made)


def _label(number: int, lesion: Lesion, called: str) -> Label:
    base = terminology.label("lesion", number)
    colour = COLOURS[(number - 1) % len(COLOURS)].lstrip("#")
    red, green, blue = (int(colour[k : k + 2], 16) for k in (0, 2, 4))
    what = " ".join(word for word in (called, lesion.organ or "", "lymph node" if lesion.is_node else "lesion") if word)
    return Label(number, what[:64], base.category, base.type, (red, green, blue))
