"""Between two visits: the earlier scan is brought onto the later one, so that each lesion's place is known in both.

How is kept beside the later visit, under keys of both scans' contents: other masks or settings of lesions do not register again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.case import MeasuredVisit
from isocenter.analysis.tracking import transforms
from isocenter.analysis.tracking.deform import deform
from isocenter.analysis.tracking.register import Coarse, Freedom, Registration, align, coarse
from isocenter.core.errors import GeometryError
from isocenter.core.geometry import Triple
from isocenter.core.model import QUIET, Run
from isocenter.core.prompts import Text
from isocenter.core.volume import Volume
from isocenter.followup import files
from isocenter.followup.visit import open_scan
from isocenter.io.visits import VisitFiles
from isocenter.service import Service

#: Anything that changes how scans are registered changes this.
_VERSION = "2"
REGISTRATION, AFFINE, FIELD = "registration.json", "registration.tfm", "deformation.nii.gz"


class Aligner:
    """Registers the scans of one patient, each of which is read once at most where nothing has to be deformed."""

    def __init__(self, service: Service, freedom: Freedom, run: Run = QUIET) -> None:
        self._service, self._freedom, self._run = service, freedom, run
        self._held: dict[str, Coarse] = {}

    def keep(self, name: str, scan: Volume) -> None:
        """Take a visit's scan while it is there; only what alignment looks at is held."""
        if scan.grid.is_orthogonal:
            self._held[name] = coarse(scan)

    def forget(self, name: str) -> None:
        """A visit whose neighbours are done."""
        self._held.pop(name, None)

    def registration(self, before: VisitFiles, after: VisitFiles) -> Registration:
        """Where the scan of `before` lies in the scan of `after`. Not accepted, with a reason, for grids whose axes are not at right angles."""
        try:
            found = align(self._coarse(after), self._coarse(before), affine=self._freedom is not Freedom.RIGID)
        except GeometryError as error:
            return Registration(np.eye(4), 0.0, 0.0, accepted=False, reason=error.message)
        if self._freedom is not Freedom.DEFORMABLE or not found.accepted:
            return found
        fixed, moving = (open_scan(self._service, visit) for visit in (after, before))
        lungs = (self._lungs(fixed), self._lungs(moving)) if fixed.modality == moving.modality == "CT" else None
        regions = deform(fixed, moving, found.matrix, lungs=lungs, check=lambda share, what: self._run.check(None, what))
        return replace(found, regions=regions)

    def _coarse(self, visit: VisitFiles) -> Coarse:
        if visit.id not in self._held:
            self._held[visit.id] = coarse(open_scan(self._service, visit))
        return self._held[visit.id]

    def _lungs(self, volume: Volume) -> NDArray[np.bool_]:
        """Both lungs, empty where there are none."""
        watched = replace(self._run, progress=lambda share, what: None)
        return np.asarray(self._service.segment(volume, [Text("lungs")], model="tissue", run=watched).mask != 0)


def told(found: Registration, freedom: Freedom, places: Sequence[Triple]) -> dict[str, Any]:
    """A registration as plain data; "carried" says where `places` (LPS mm of the earlier scan) are in the later one."""
    points = found.carry(np.array(places, dtype=np.float64).reshape(-1, 3)) if found.accepted else ()
    pairs = [{"from": list(a), "to": b.tolist()} for a, b in zip(places, points, strict=False)]
    return {**found.as_dict(), "freedom": str(freedom), "carried": pairs}


def bring(
    aligner: Aligner, before: MeasuredVisit, after: MeasuredVisit, scans: Mapping[str, VisitFiles], home: Path, freedom: Freedom
) -> MeasuredVisit:
    """`before` with its lesions' positions in the next visit's scan, or unchanged where the two cannot be registered."""
    if before.found is None or after.found is None:
        return before
    name, then = before.timepoint.timepoint_id, after.timepoint.timepoint_id
    keys = [*(files.key_of(home / n, "volume") for n in (name, then)), str(freedom), _VERSION]
    folder = home / then
    stored = files.read_json(folder / REGISTRATION)
    if stored is None or stored.get("keys") != keys or (stored["accepted"] and not (folder / AFFINE).is_file()):
        found = aligner.registration(scans[name], scans[then])
        _save(folder, found)
        stored = {"keys": keys, "before": name, **told(found, freedom, [f.size.centroid_lps_mm for f in before.found])}
        files.save(folder / REGISTRATION, files.json_bytes(stored))
    return carried(before, then, stored, folder / FIELD)


def _save(folder: Path, found: Registration) -> None:
    """The transform in files that others read, see `transforms`. What described the visit before is gone first."""
    for name in (REGISTRATION, AFFINE, FIELD):
        (folder / name).unlink(missing_ok=True)
    if not found.accepted:
        return
    transforms.write_affine(folder / AFFINE, found.matrix)
    field = transforms.field_of(found.regions)
    if field is not None:
        transforms.write_field(folder / FIELD, field)


def carried(before: MeasuredVisit, then: str, stored: Mapping[str, Any], field: Path | None = None) -> MeasuredVisit:
    """`before` with its lesions' positions in the scan of the visit `then`, or a note why they are not known.

    stored: of `told`. field: for lesions that it says nothing of.
    """
    if not stored["accepted"]:
        return replace(before, notes=(*before.notes, f"not registered to {then}: {stored['reason']}"))
    refused = tuple(f"not deformed to {then}: {region['reason']}" for region in stored.get("regions", ()) if region["reason"])
    known = {tuple(pair["from"]): pair["to"] for pair in stored.get("carried", ())}
    matrix = np.array(stored["matrix"])[:3]
    places = [f.size.centroid_lps_mm for f in before.found or ()]
    # A lesion that was drawn anew since lies elsewhere: it goes by the field, and where there is none by the matrix.
    others = np.array([p for p in places if p not in known], dtype=np.float64).reshape(-1, 3)
    shift = transforms.read_field(field) if len(others) and field is not None else None
    moved = others if shift is None else others + shift.at(others)
    rest = iter(moved @ matrix[:, :3].T + matrix[:, 3])
    points = [known[p] if p in known else next(rest) for p in places]
    onward = tuple(tuple(float(v) for v in row) for row in matrix)
    return replace(before, notes=(*before.notes, *refused), onward=onward, carried=tuple((float(p[0]), float(p[1]), float(p[2])) for p in points))
