"""Lesions of a visit on record, measured as one out of the visit's own mask and scan."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isocenter.analysis.decisions import Together
from isocenter.analysis.merge import Merged, chosen, merge
from isocenter.analysis.report.scans import each_lesion
from isocenter.core.errors import NotFoundError
from isocenter.core.settings import Limits
from isocenter.io import door
from isocenter.patients.options import options_of
from isocenter.patients.records import Records
from isocenter.store.objects import Objects


def together(records: Records, objects: Objects, limits: Limits, patient_id: str) -> Together:
    """Measures lesions of one of a patient's visits as one. Raises `NotFoundError` where the visit's files are gone."""

    def work(timepoint_id: str, names: Sequence[str]) -> Merged:
        row, options = records.visit(patient_id, timepoint_id), options_of(records.get(patient_id).options)
        scan, mask = row.file("scan.nii.gz"), row.file("mask.npy")
        if scan is None or mask is None:
            raise NotFoundError("the visit's scan or mask is not on record any more; send the visit again")
        with tempfile.TemporaryDirectory() as folder:
            image = door.read_path(objects.fetch(scan.digest, Path(folder)), limits=limits, modality=row.modality)
            labels = np.load(objects.fetch(mask.digest, Path(folder)), allow_pickle=False)
        return merge(chosen(each_lesion(labels, image.grid, options.least_mm3), names), names, image)

    return work
