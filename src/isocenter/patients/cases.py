"""A patient's case out of what is on record: measured visits, people's corrections, and what follows from both.

Nothing is segmented or measured again. What does not depend on a change is not computed again either: the lesions' tracks and
response are kept by visits and corrections, the growth of each track by its volumes and the treatment (`analysis.case_growth`).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import pairwise
from threading import Lock

import numpy as np

from isocenter.analysis.case import Case, MeasuredVisit, assemble, followed
from isocenter.analysis.case_edits import Edits, edited, effective, track_names
from isocenter.analysis.case_growth import TOTAL, TrackGrowth, grow, grow_one
from isocenter.analysis.growth.scenarios import DEFAULTS, Scenario, simulate
from isocenter.core.errors import ConflictError, NotFoundError
from isocenter.core.patient import Patient, Timepoint
from isocenter.followup.between import carried
from isocenter.followup.files import found_of
from isocenter.followup.growth import told_at
from isocenter.followup.slips import Described, slips
from isocenter.patients.options import options_of
from isocenter.patients.records import PatientRow, Records, VisitRow

_MOST_KEPT = 64


@dataclass(frozen=True, eq=False)
class Known:
    """A case and what it was made from. names: what people call the tracks. visits: as measured, before any correction."""

    patient: PatientRow
    case: Case
    edits: Edits
    names: Mapping[str, str]
    rows: tuple[VisitRow, ...]
    visits: tuple[MeasuredVisit, ...]


def measured_of(rows: Sequence[VisitRow]) -> list[MeasuredVisit]:
    """Visits as they were measured, each carried into the next where that is registered. The way back of `job.told`."""
    visits = []
    for row in rows:
        kept = row.measured
        found = None if kept.get("lesions") is None else tuple(found_of(f, f["appearance"] or ()) for f in kept["lesions"])
        when = date.fromisoformat(row.scan_date) if row.scan_date else None
        point = Timepoint(row.timepoint_id, row.day, when, row.modality)
        spacing = kept.get("spacing_mm")
        x, y, z = spacing or (1.0, 1.0, 1.0)
        visits.append(
            MeasuredVisit(
                point,
                found,
                (x, y, z) if spacing else None,
                None,
                kept.get("new_lesions"),
                kept.get("reason"),
                tuple(kept["notes"]),
                assessment=kept.get("assessment") or {},
            )
        )
    seen = [k for k, v in enumerate(visits) if v.found is not None]
    for before, after in pairwise(seen):
        known = rows[after].registration
        if known and (known.get("keys") or ())[:2] == [rows[before].key, rows[after].key]:
            visits[before] = carried(visits[before], visits[after].timepoint.timepoint_id, known)
    return visits


def _slips(rows: Sequence[VisitRow], edits: Edits) -> Iterator[str]:
    """What looks like a slip of whoever sent the visits."""
    described = [
        Described(row.timepoint_id, row.measured.get("volume") or row.id, row.measured.get("marks") or 0, [f["id"] for f in row.measured["lesions"]])
        for row in rows
        if row.measured.get("lesions") is not None
    ]
    return slips(described, edits.names)


def edits_of(records: Records, patient: PatientRow) -> Edits:
    """The corrections that hold at present."""
    return Edits.of(records.version(patient.id, patient.version).edits)


class Cases:
    """The cases of all patients on record."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._lock = Lock()
        self._kept: OrderedDict[str, Case] = OrderedDict()

    def known(self, patient_id: str, edits: Edits | None = None, criteria: Sequence[str] = ()) -> Known:
        """A patient's case without growth. edits: as if these held. criteria: more than the patient's options name.

        Raises `NotFoundError`; `ConflictError` while no visit has a scan that could be used; `UsageError` for edits that contradict.
        """
        patient = self._records.get(patient_id)
        rows = tuple(self._records.visits(patient_id))
        edits = edits_of(self._records, patient) if edits is None else edits
        measured = tuple(measured_of(rows))
        if not any(v.found is not None for v in measured):
            raise ConflictError("no visit of this patient has been measured yet: send a scan, or wait for its job to end")
        case = self._core(patient, rows, measured, edits, criteria)
        names = track_names(edits, case.graph)
        notes = (*dict.fromkeys(note for row in rows for note in row.measured.get("study_notes") or ()), *_slips(rows, edits), *case.notes)
        case = replace(case, patient=Patient(patient_id, tuple(v.timepoint for v in measured), edits.therapies), names=names, notes=notes)
        return Known(patient, case, edits, names, rows, measured)

    def _core(self, patient: PatientRow, rows: Sequence[VisitRow], measured: Sequence[MeasuredVisit], edits: Edits, criteria: Sequence[str]) -> Case:
        """Lesions, tracks and response, which of all treatments only radiotherapy changes (RANO)."""
        options = options_of(patient.options)
        asked = sorted({*options.criteria, *criteria, *(("irecist",) if options.immunotherapy else ())})
        data = {k: v for k, v in edits.as_dict().items() if k not in (("names",) if "rano" in asked else ("therapies", "names"))}
        key = json.dumps([patient.id, asked, [(r.id, (r.registration or {}).get("keys")) for r in rows], data])
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        visits = edited(measured, edits)
        holds = effective(visits, edits)
        case = assemble(
            Patient(patient.id, tuple(v.timepoint for v in visits), edits.therapies),
            visits,
            corrections=holds.links,
            regroupings=holds.regroupings,
            inevaluable=holds.inevaluable,
            roles=holds.roles,
            criteria=asked,
            growing=False,
            uncorrected=measured,
        )
        with self._lock:
            self._kept[key] = case
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return case

    def growth(self, case: Case, track: str = TOTAL) -> TrackGrowth:
        """Growth and forecast of one track, or of all lesions together. Raises `NotFoundError`."""
        if track != TOTAL and track not in case.graph.tracks:
            raise NotFoundError("there is no such track")
        return grow_one(followed(case.visits, case.lesions, case.inevaluable), track, case.patient.therapies, graph=case.graph)

    def growth_at(self, case: Case, timepoint_id: str) -> tuple[tuple[str, ...], tuple[TrackGrowth, ...]]:
        """The visits up to one, and the growth of all lesions together and of each track as it could be told there.

        Raises `NotFoundError` for a visit that is not there, `ConflictError` for one without lesions to look at.
        """
        if timepoint_id not in {v.timepoint.timepoint_id for v in case.visits}:
            raise NotFoundError("Timepoint not found")
        seen = [v.timepoint.timepoint_id for v in case.visits if v.found is not None]
        if timepoint_id not in seen:
            raise ConflictError("nothing was measured at this visit, so growth is as at the visit before")
        return told_at(case, seen.index(timepoint_id) + 1)

    def scenarios(self, case: Case, names: Sequence[str] = (), track: str = TOTAL) -> tuple[Scenario, ...]:
        """What if: the curves of a track under scenarios by their names, by default all there are.

        Raises `UsageError` for unknown names, `ConflictError` where growth cannot be told.
        """
        known = self.growth(case, track)
        if known.growth is None:
            raise ConflictError(f"growth cannot be told: {'; '.join(known.reasons) or 'there are too few visits'}")
        series = known.growth.series
        end = float(known.forecast.days[-1]) if known.forecast is not None else float(series.days[-1])
        days = np.linspace(float(series.days[0]), end, 61)
        return tuple(simulate(known.growth, name, days) for name in names or DEFAULTS)

    def whole(self, known: Known) -> Case:
        """The case with growth of every track and all scenarios of the total, for reports and narratives."""
        case = known.case
        growth = grow(followed(case.visits, case.lesions, case.inevaluable), case.graph.tracks, case.patient.therapies, graph=case.graph)
        return replace(case, growth=growth)
