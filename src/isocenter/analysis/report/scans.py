"""Scans and masks of a case, out of the files that following a patient leaves; one visit is held at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis import slices
from isocenter.analysis.lesions import split
from isocenter.analysis.report.thumbnails import thumbnail
from isocenter.analysis.report.told import VisitScan
from isocenter.core.geometry import Grid
from isocenter.core.patient import Lesion
from isocenter.core.settings import Limits
from isocenter.core.volume import Volume
from isocenter.io import door


def each_lesion(mask: NDArray[np.generic], grid: Grid, least_mm3: float) -> Iterator[tuple[int, tuple[slice, slice, slice], NDArray[np.bool_]]]:
    """Label, box and mask in it of every connected lesion of a label map (z, y, x): by label, the largest first within one.

    This order names a visit's lesions, so whoever needs one of them again finds it by counting.
    """
    from scipy.ndimage import find_objects

    least = max(1, math.ceil(least_mm3 / grid.voxel_mm3))
    # Most rows of a scan hold no lesion: they are left out before boxes are looked for.
    used = np.asarray(mask.any(axis=2))
    if not used.any():
        return
    rows = mask[used]
    z_of, y_of = np.nonzero(used)
    for label, found in enumerate(find_objects(rows if rows.dtype.kind in "iu" else rows.astype(np.uint8)), start=1):
        if found is None:
            continue
        z, y = z_of[found[0]], y_of[found[0]]
        around = (slice(int(z[0]), int(z[-1]) + 1), slice(int(y.min()), int(y.max()) + 1), found[1])
        for box, inside in split(mask[around] == label, least_voxels=least):
            one, two, three = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(around, box, strict=True))
            yield label, (one, two, three), inside


class Shots:
    """Pictures of lesions. home: holds a folder a visit. modalities: by visit.

    They are made from the slices that lie beside the visit's other files; without these, from its scan.
    """

    def __init__(self, modalities: Mapping[str, str | None], home: Path) -> None:
        self._modalities, self._home = modalities, home
        self._name = ""
        self._scan: Volume | None = None
        self._limits = Limits()

    def __call__(self, lesion: Lesion) -> bytes | None:
        if lesion.plane is None or lesion.slice_index is None:
            return None
        folder = self._home / lesion.timepoint_id
        found = slices.read(folder / "slices.npz", lesion.plane, lesion.slice_index)
        if found is None:
            if self._scan is None or lesion.timepoint_id != self._name:
                modality = self._modalities.get(lesion.timepoint_id)
                self._scan = door.read_path(folder / "scan.nii.gz", limits=self._limits, modality=modality)
                self._name = lesion.timepoint_id
            mask = np.load(folder / "mask.npy", mmap_mode="r", allow_pickle=False)
            found = slices.cut(self._scan, mask, lesion.plane, lesion.slice_index)
        return thumbnail(found, lesion, unit=lesion.unit or "")


class Scans:
    """Visits as they came, with their lesions numbered. open: a visit's scan by its id, with its DICOM headers."""

    def __init__(self, open_scan: Callable[[str], Volume | None], home: Path, least_mm3: float) -> None:
        self._open, self._home, self._least = open_scan, home, least_mm3
        self._last: tuple[str, VisitScan | None] = ("", None)

    def __call__(self, name: str) -> VisitScan | None:
        if self._last[0] != name:
            volume = self._open(name)
            if volume is None:
                self._last = (name, None)
                return None
            mask = np.load(self._home / name / "mask.npy", allow_pickle=False)
            numbered = np.zeros(mask.shape, np.uint16)
            for number, (_, box, inside) in enumerate(each_lesion(mask, volume.grid, self._least), start=1):
                numbered[box][inside] = number
            self._last = (name, VisitScan(volume, numbered))
        return self._last[1]
