"""A case as CSV, for spreadsheets and statistics: its measurements, and the response to treatment."""

from __future__ import annotations

import csv
import io

from isocenter.analysis.report.judged import best, judgements
from isocenter.analysis.report.told import Told
from isocenter.analysis.response.visit import Category

_COLUMNS = (
    "timepoint_id", "day", "track", "name", "lesion_id", "organ", "is_node", "is_target", "is_new", "evaluable", "method",
    "longest_mm", "short_axis_mm", "who_product_mm2", "max_3d_diameter_mm", "volume_mm3", "surface_mm2", "mean", "std", "unit",
    "sd_mm", "reliability", "touches_border", "confidence", "tracking_uid",
)  # fmt: skip
_RESPONSE = (
    "assessment", "criterion", "timepoint_id", "day", "category", "sum", "sum_sd", "sum_unit", "baseline", "nadir",
    "percent_change_from_baseline", "percent_change_from_nadir", *(f"probability_{c}" for c in Category), "reasons",
)  # fmt: skip


def measurements(told: Told) -> str:
    """One row a lesion and visit; an empty cell where a figure could not be had. tracking_uid: as in the DICOM objects."""
    case = told.case
    days = {v.timepoint.timepoint_id: v.timepoint.day for v in case.visits}
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    order = {name: n for n, name in enumerate(days)}
    for lesion in sorted((*case.lesions, *case.unseen), key=lambda k: order[k.timepoint_id]):
        row = {name: _plain(value) for name, value in lesion.as_dict().items()}
        writer.writerow(
            {
                **row,
                "name": _plain(case.names.get(lesion.track, "")),
                "day": f"{days[lesion.timepoint_id]:g}",
                "tracking_uid": told.tracking_uid(lesion.track),
            }
        )
    return out.getvalue()


def responses(told: Told) -> str:
    """One row a criterion and visit after the baseline, then the best overall responses with confirmation and without.

    Probabilities are 0..1; a cell is empty where nothing is known, or where a criterion has none.
    """
    case = told.case
    names = {v.timepoint.day: v.timepoint.timepoint_id for v in case.visits}
    out = io.StringIO()
    writer = csv.DictWriter(out, _RESPONSE, lineterminator="\n")
    writer.writeheader()
    for one in judgements(case):
        r = one.response
        row = {
            "assessment": "visit",
            "criterion": one.criterion,
            "timepoint_id": names[one.day],
            "day": f"{one.day:g}",
            "category": one.category,
            "sum": r.sum,
            "sum_sd": one.sd,
            "sum_unit": one.unit,
            "baseline": r.baseline,
            "nadir": r.nadir,
            "percent_change_from_baseline": r.percent_baseline,
            "percent_change_from_nadir": r.percent_nadir,
            "reasons": "; ".join(one.reasons),
        }
        # A category that never came up in the draws is not impossible, but it has no share of them.
        chances = {f"probability_{c}": one.chances.get(str(c), 0.0) for c in Category} if one.chances else {}
        writer.writerow({name: _plain(value) for name, value in (row | chances).items()})
    for overall in best(case):
        writer.writerow({"assessment": overall.words, "criterion": "RECIST 1.1", "category": overall.category, "reasons": _plain(overall.why)})
    return out.getvalue()


def _plain(value: object) -> object:
    """Numbers short, truth as words, and no text that a spreadsheet would take for a formula."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value
