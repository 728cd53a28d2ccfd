"""The report of a batch: one table with a line a study, one with a line a structure, as CSV and as a workbook."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: The first eight are the inference service's bulk client's, in its order, so that what reads its reports reads these.
STUDY_COLUMNS = (
    "path_to_study", "study_uid", "series_uid", "probability_of_pathology", "pathology", "processing_status", "time_of_processing",
    "pathology_localization", "structures_found", "volume_mm3", "model", "error",
)  # fmt: skip
STRUCTURE_COLUMNS = (
    "path_to_study", "label", "name", "voxels", "volume_mm3", "mean_hu", "longest_mm", "short_axis_mm", "presence", "touches_border",
    "x_min", "x_max", "y_min", "y_max", "z_min", "z_max",
)  # fmt: skip
SHEETS = ("CT Pathology Classification", "Structures")


def write_csv(out: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write report.csv and structures.csv."""
    for name, columns, lines in _tables(records):
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows([_safe(value) for value in line] for line in lines)
        put(out / name, text.getvalue().encode("utf-8", "replace"))


def write_xlsx(out: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write report.xlsx."""
    from openpyxl import Workbook
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    from openpyxl.styles import Font
    from openpyxl.utils import get_column_letter

    book = Workbook()
    book.remove(book.active)
    for sheet_name, (_, columns, lines) in zip(SHEETS, _tables(records), strict=True):
        sheet = book.create_sheet(sheet_name)
        sheet.append(columns)
        for number, line in enumerate(lines, start=2):
            for column, value in enumerate(line, start=1):
                cell = sheet.cell(number, column)
                cell.value = ILLEGAL_CHARACTERS_RE.sub("", value) if isinstance(value, str) else value
                if isinstance(value, str):
                    cell.data_type = "s"  # text whatever it begins with: a file's name is no formula
        for column, title in enumerate(columns, start=1):
            sheet.cell(1, column).font = Font(bold=True)
            sheet.column_dimensions[get_column_letter(column)].width = max(len(title), 10) + 2
        sheet.freeze_panes = "B2"
    data = io.BytesIO()
    book.save(data)
    put(out / "report.xlsx", data.getvalue())


def _tables(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, tuple[str, ...], list[list[Any]]]]:
    structures = [line for record in records for line in _structures(record)]
    return [("report.csv", STUDY_COLUMNS, [_study(r) for r in records]), ("structures.csv", STRUCTURE_COLUMNS, structures)]


def _study(record: Mapping[str, Any]) -> list[Any]:
    done = record["status"] == "completed"
    found = [entry for entry in record.get("labels", []) if entry["voxels"]]
    sure = [entry["presence"] for entry in record.get("labels", []) if entry["presence"] is not None]
    return [
        record["study"],
        record.get("study_uid"),
        record.get("image", {}).get("series_uid"),
        max(sure, default=None),
        int(bool(found)) if done else None,
        "Success" if done else "Failure",
        record["seconds"],
        ",".join(str(v) for v in _around(found)) if found else None,
        len(found) if done else None,
        volume_of(found) if done else None,
        record["batch"]["model"],
        record["error"],
    ]


def volume_of(labels: Sequence[Mapping[str, Any]]) -> float | None:
    """Cubic millimetres of some labels together; None where their image has no scale."""
    sizes = [entry["volume_mm3"] for entry in labels if entry["voxels"]]
    return None if None in sizes else round(sum(sizes), 3)


def _structures(record: Mapping[str, Any]) -> list[list[Any]]:
    lines = []
    for entry in record.get("labels", []):
        figures = [entry[name] for name in STRUCTURE_COLUMNS[1:10]]
        lines.append([record["study"], *figures, *(_around([entry]) if entry["box"] else [None] * 6)])
    return lines


def _around(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """The box around all structures: x_min, x_max, y_min, y_max, z_min, z_max, first and last voxels inside."""
    corners = [entry["box"] for entry in entries]
    return [edge for axis in range(3) for edge in (min(low[axis] for low, _ in corners), max(high[axis] for _, high in corners))]


def _safe(value: Any) -> Any:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def put(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    from isocenter.store.places import whole

    with whole(path) as part:
        part.write_bytes(data)
