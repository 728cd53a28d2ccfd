"""What changed between two visits of a patient on record, looked for in their scans; nothing of it is kept but a line in the audit log."""

from __future__ import annotations

import tempfile
from pathlib import Path

from isocenter.analysis.tracking.register import Freedom
from isocenter.core.errors import NotFoundError, UsageError
from isocenter.core.model import QUIET, Run
from isocenter.core.volume import Volume
from isocenter.followup.changes import Compared, compare
from isocenter.io import door
from isocenter.io.upload import Upload
from isocenter.patients.audit import Who
from isocenter.patients.records import VisitRow
from isocenter.patients.service import Patients


def between(
    patients: Patients,
    patient_id: str,
    earlier: str,
    later: str,
    who: Who,
    *,
    region: Upload | None = None,
    bright: bool = True,
    freedom: Freedom = Freedom.RIGID,
    run: Run = QUIET,
) -> Compared:
    """See `followup.changes.compare`. Raises `UsageError` for visits that are not in this order, `NotFoundError` for one without a scan."""
    rows = {r.timepoint_id: r for r in patients.records.visits(patient_id)}
    if earlier not in rows or later not in rows:
        raise NotFoundError("Timepoint not found")
    if rows[earlier].day >= rows[later].day:
        raise UsageError(f"'{earlier}' does not come before '{later}'")
    limits = patients.service.settings
    mask = None if region is None else door.read_upload(region, limits=limits)
    with tempfile.TemporaryDirectory() as folder:
        before, after = (_scan(patients, rows[name], Path(folder)) for name in (earlier, later))
    found = compare(before, after, region=mask, bright=bright, freedom=freedom, run=run)
    patients.records.noted(patient_id, who, "changes", metadata={"earlier": earlier, "later": later, "parts": len(found.parts)})
    return found


def _scan(patients: Patients, row: VisitRow, folder: Path) -> Volume:
    stored = row.file("scan.nii.gz")
    if stored is None:
        raise NotFoundError(f"'{row.timepoint_id}' has no scan")
    path = patients.backend.objects.fetch(stored.digest, folder)
    return door.read_path(path, limits=patients.service.settings, modality=row.modality)
