"""A case's measurements as CSV, for spreadsheets and statistics."""

from __future__ import annotations

import csv
import io

from isocenter.analysis.report.told import Told

_COLUMNS = (
    "timepoint_id", "day", "track", "name", "lesion_id", "organ", "is_node", "is_target", "is_new", "method", "longest_mm", "short_axis_mm",
    "who_product_mm2", "max_3d_diameter_mm", "volume_mm3", "surface_mm2", "mean", "std", "unit", "sd_mm", "reliability", "touches_border",
    "confidence", "tracking_uid",
)  # fmt: skip


def measurements(told: Told) -> str:
    """One row a lesion and visit; an empty cell where a figure could not be had. tracking_uid: as in the DICOM objects."""
    case = told.case
    days = {v.timepoint.timepoint_id: v.timepoint.day for v in case.visits}
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for lesion in case.lesions:
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


def _plain(value: object) -> object:
    """Numbers short, truth as words, and no text that a spreadsheet would take for a formula."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value
