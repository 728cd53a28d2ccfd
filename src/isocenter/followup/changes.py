"""What changed between two scans of one patient, from files to a mask, figures and a picture; nobody has to draw a lesion for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.tracking.change import changes
from isocenter.analysis.tracking.change_parts import KINDS, Part, below_surface, parts
from isocenter.analysis.tracking.register import Freedom, Registration, register
from isocenter.core.errors import GeometryError, UnsupportedError, UsageError
from isocenter.core.geometry import onto
from isocenter.core.model import QUIET, Run
from isocenter.core.provenance import RESEARCH_USE, Provenance
from isocenter.core.segmentation import Label, Segmentation
from isocenter.core.volume import Volume
from isocenter.io import preview, uids, write

NAME, VERSION = "changes", "1"
#: Names of the files, and what each is.
FILES = {"changes.nii.gz": "application/gzip", "changes.json": "application/json", "changes.png": "image/png"}
_COLOURS = {1: (255, 70, 60), 2: (255, 170, 40), 3: (90, 200, 255), 4: (80, 220, 120), 5: (255, 70, 60), 6: (90, 200, 255)}


@dataclass(frozen=True, eq=False)
class Compared:
    """result: the parts on the later scan's grid, values as `KINDS`. parts: largest first. noise: sd of the difference that is none."""

    later: Volume
    result: Segmentation
    parts: tuple[Part, ...]
    noise: float
    registration: Registration
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        kinds = {label.name: label.value for label in self.result.labels}
        return {
            "kinds": kinds,
            "volume_mm3": {kind: float(sum(p.size.volume_mm3 for p in self.parts if p.kind == kind)) for kind in kinds},
            "parts": [{"id": f"change-{k}", **part.as_dict()} for k, part in enumerate(self.parts, start=1)],
            "noise": self.noise,
            "registration": self.registration.as_dict(),
            "notes": list(self.notes),
            "disclaimer": RESEARCH_USE,
        }

    def file(self, name: str) -> bytes:
        """One of `FILES`."""
        if name == "changes.json":
            import json

            return json.dumps(self.as_dict(), indent=1, allow_nan=False).encode()
        return preview.png(self.later, self.result) if name == "changes.png" else write.encode(self.result, ".nii.gz", self.later)


def compare(
    earlier: Volume,
    later: Volume,
    *,
    region: Volume | None = None,
    bright: bool = True,
    freedom: Freedom = Freedom.RIGID,
    run: Run = QUIET,
) -> Compared:
    """Lesions of `later` that are new or have grown since `earlier`, and those that have shrunk or gone.

    region: a mask in which to look, on the grid of either scan (a brain's); by default all that lies deeper than 5 mm. bright: lesions are
    brighter than the tissue around, as on FLAIR and T2; False for any change. Raises `UnsupportedError` for CT and for scans of two patients,
    `GeometryError` where the scans cannot be brought onto each other, and what `changes` raises.
    """
    _check(earlier, later)
    run.check(0.0, "bringing the scans onto each other")
    found = register(later, earlier, freedom=Freedom.AFFINE if freedom is Freedom.DEFORMABLE else freedom)
    if not found.accepted:
        raise GeometryError(f"the two scans cannot be compared: {found.reason}")
    run.check(0.5, "looking for changes")
    notes = (*earlier.source.notes, *later.source.notes)
    if region is None:
        notes = (*notes, "no region was given: what lies deeper than 5 mm below the surface was looked at")
    inside = below_surface(later) if region is None else _region(region, earlier, later, found)
    change = changes(later, earlier, found.matrix, inside, bright=bright)
    mask, each = parts(change, later, bright=bright)
    values = (1, 2, 3, 4) if bright else (5, 6)
    labels = tuple(Label(v, KINDS[v], colour=_COLOURS[v]) for v in values)
    settings = {"earlier": earlier.key, "bright": bright, "freedom": str(freedom)}
    result = Segmentation(mask, later.grid, labels, Provenance(NAME, VERSION, later.key, settings=settings))
    run.check(1.0, "done")
    return Compared(later, result, each, change.noise, found, notes)


def _check(earlier: Volume, later: Volume) -> None:
    if "HU" in (earlier.unit, later.unit) or "CT" in (earlier.modality, later.modality):
        raise UnsupportedError("changes are looked for in MR; lesions on CT are followed by `isocenter track`")
    ids = {who.patient_id for who in (uids.identity(earlier), uids.identity(later)) if who is not None}
    if len(ids) > 1:
        raise UnsupportedError("the two scans are of two patients: their PatientID differs")
    if earlier.key == later.key:
        raise UsageError("the two scans are one and the same")


def _region(region: Volume, earlier: Volume, later: Volume, found: Registration) -> NDArray[np.bool_]:
    """A mask on the later scan's grid. Raises `UsageError` where it fits neither scan."""
    from scipy.ndimage import affine_transform

    try:
        return np.asarray(onto(region.array, region.grid, later.grid) != 0)
    except GeometryError:
        pass
    try:
        there = onto(region.array, region.grid, earlier.grid) != 0
    except GeometryError:
        raise UsageError("the region fits neither scan's grid; resample it to one of them") from None
    to = np.linalg.inv(earlier.grid.affine_lps) @ np.linalg.inv(found.matrix) @ later.grid.affine_lps
    moved = affine_transform(there.astype(np.uint8), to[:3, :3][::-1, ::-1], to[:3, 3][::-1], output_shape=later.shape, order=0)
    return np.asarray(moved > 0)
