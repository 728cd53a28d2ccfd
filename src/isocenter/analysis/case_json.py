"""A case as plain data, for JSON."""

from __future__ import annotations

from typing import Any

from isocenter.analysis.case import Case
from isocenter.analysis.case_growth import TrackGrowth
from isocenter.analysis.response.visit import Response
from isocenter.core.patient import Lesion


def as_dict(case: Case) -> dict[str, Any]:
    """Plain data for JSON: numbers as they are, None with reasons where there are none."""
    patient = case.patient
    return {
        "patient_id": patient.patient_id,
        "metadata": dict(patient.metadata),
        "timepoints": [
            {
                "timepoint_id": v.timepoint.timepoint_id,
                "day": v.timepoint.day,
                "scan_date": v.timepoint.scan_date.isoformat() if v.timepoint.scan_date else None,
                "modality": v.timepoint.modality,
                "scan": v.found is not None,
                "reason": v.reason,
                "notes": list(v.notes),
            }
            for v in case.visits
        ],
        "therapies": [vars(t) for t in patient.therapies],
        "lesions": [lesion.as_dict() for lesion in case.lesions],
        "targets": list(case.targets),
        "non_targets": list(case.non_targets),
        "graph": case.graph.as_dict(),
        "names": dict(case.names),
        "not_evaluable": [{"timepoint_id": k.timepoint_id, "track": k.track, "lesion_id": k.lesion_id or None} for k in _not_evaluable(case)],
        "response": _responses(case),
        "best_overall_response": str(case.best_overall) if case.best_overall else None,
        "best_overall_response_unconfirmed": str(case.best_seen) if case.best_seen else None,
        "response_probabilities": [{str(category): p for category, p in c.items()} for c in case.chances],
        "growth": [growth_dict(g) for g in case.growth],
        "notes": list(case.notes),
    }


def _not_evaluable(case: Case) -> list[Lesion]:
    order = {v.timepoint.timepoint_id: n for n, v in enumerate(case.visits)}
    return sorted((*(k for k in case.lesions if not k.evaluable), *case.unseen), key=lambda k: (order[k.timepoint_id], k.track))


def _responses(case: Case) -> dict[str, list[dict[str, Any]]]:
    """By criterion, one row a visit after the baseline."""
    rows = {criterion: [_response(r) for r in responses] for criterion, responses in case.responses.items()}
    if case.irecist:
        rows["irecist"] = [{**_response(r.recist), "category": str(r.category), "reasons": list(r.reasons)} for r in case.irecist]
    # These three add up the same diameters.
    for criterion in ("recist_1.1", "irecist", "mrecist"):
        for row, sd in zip(rows.get(criterion, ()), case.sums_sd_mm, strict=False):
            row |= {"sum_sd_mm": sd, "baseline_sd_mm": case.baseline_sd_mm}
    return rows


def _response(r: Response) -> dict[str, Any]:
    return {
        "day": r.day,
        "category": str(r.category),
        "sum": r.sum,
        "baseline": r.baseline,
        "nadir": r.nadir,
        "percent_change_from_baseline": r.percent_baseline,
        "percent_change_from_nadir": r.percent_nadir,
        "reasons": list(r.reasons),
    }


def growth_dict(track: TrackGrowth) -> dict[str, Any]:
    """Growth of one track as plain data."""
    growth, path = track.growth, track.forecast
    return {
        "track": track.track,
        "days": list(track.days),
        "volumes_mm3": list(track.volumes_mm3),
        "models": [
            {
                "model_name": f.curve.name,
                "formula": f.curve.formula,
                "parameters": dict(f.parameters),
                "aicc": f.aicc,
                "bic": f.bic,
                "akaike_weight": f.weight,
                "fitted_mm3": [float(v) for v in f.fitted_mm3],
            }
            for f in (growth.fits if growth else ())
        ],
        "forecast": None
        if path is None
        else {
            "days": [float(d) for d in path.days],
            "median_mm3": [float(v) for v in path.median_mm3],
            "low_mm3": [float(v) for v in path.low_mm3],
            "high_mm3": [float(v) for v in path.high_mm3],
            "level": path.level,
            "notes": list(path.notes),
        },
        "scenarios": [
            {
                "scenario_name": s.name,
                "days": [float(d) for d in s.days],
                "median_mm3": [float(v) for v in s.median_mm3],
                "low_mm3": [float(v) for v in s.low_mm3],
                "high_mm3": [float(v) for v in s.high_mm3],
                "level": s.level,
                "notes": list(s.notes),
                "reason": s.reason,
            }
            for s in track.scenarios
        ],
        "reasons": [*track.reasons, *(growth.notes if growth else ())],
    }
