"""The demo's second patient: the phantom over five visits, with two liver lesions under treatment whose true sizes are known."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from isocenter.core.phantom import LESIONS, Lesion, phantom

#: Days of the visits, and the course of treatment between the second and the fourth.
DAYS = (0.0, 42.0, 84.0, 126.0, 182.0)
TREATED = (45.0, 130.0)
#: Growth of a volume without treatment, and what treatment takes off it, 1/day.
GROWTH, KILL = 0.006, 0.024
#: Voxels (z, y, x) of 4 x 4 x 4 mm: quick to make.
SHAPE = (96, 96, 96)
#: The patient never lies the same way twice: LPS mm.
SHIFTS = ((0.0, 0.0, 0.0), (3.0, -2.0, 4.0), (-4.0, 1.0, -3.0), (2.0, 3.0, 2.0), (-2.0, -3.0, 5.0))


@dataclass(frozen=True)
class Truth:
    """What a visit's lesions truly measure: voxels of the painted balls, mm³, in the order of `LESIONS`."""

    day: float
    volumes_mm3: tuple[float, ...]


def true_scale(day: float) -> float:
    """Edge of a lesion at `day` against the first visit: the cube root of its volume's."""
    log_volume = GROWTH * day - KILL * (min(day, TREATED[1]) - TREATED[0] if day > TREATED[0] else 0.0)
    return math.exp(log_volume / 3)


def write_study(folder: Path, *, shape: tuple[int, int, int] = SHAPE, masks: bool = False) -> list[Truth]:
    """Write five scans and a study.json into `folder`; returns the truth.

    Lesions are marked by one click each, at their true centre; masks: by their true masks instead.
    """
    import numpy as np

    from isocenter.io import nifti, write

    folder.mkdir(parents=True, exist_ok=True)
    truths, visits = [], []
    for k, (day, shift) in enumerate(zip(DAYS, SHIFTS, strict=True)):
        scale = true_scale(day)
        lesions = tuple(Lesion(one.centre, one.radius * scale, one.hu) for one in LESIONS)
        made = phantom(shape, lesions=lesions, shift_mm=shift, seed=k)
        found = [made.masks["lesion_1"], made.masks["lesion_2"]]
        name = f"visit-{k + 1}"
        (folder / f"{name}.nii.gz").write_bytes(write.encode_image(made.volume, ".nii.gz"))
        visit: dict[str, object] = {"id": name, "day": day, "image": f"{name}.nii.gz", "modality": "CT"}
        if masks:
            label = (found[0] + 2 * found[1].astype(np.uint8)).astype(np.uint8)
            (folder / f"{name}_mask.nii.gz").write_bytes(nifti.write(label, made.volume.grid, header=None, compress=True, description="truth"))
            visit["mask"] = f"{name}_mask.nii.gz"
        else:
            visit["clicks"] = [[[round(float(v)) for v in np.argwhere(mask).mean(axis=0)[::-1]]] for mask in found]
        visits.append(visit)
        truths.append(Truth(day, tuple(float(mask.sum()) * made.volume.grid.voxel_mm3 for mask in found)))
    therapy = {"id": "course-1", "type": "chemotherapy", "start": TREATED[0], "end": TREATED[1]}
    labels = {"1": {"organ": "liver"}, "2": {"organ": "liver"}}
    study = {"patient_id": "phantom", "visits": visits, "therapies": [therapy], "labels": labels}
    (folder / "study.json").write_text(json.dumps(study, indent=1))
    return truths
