"""UIDs of the DICOM study that a volume came from."""

from __future__ import annotations

import io

from isocenter.core.volume import Volume


def study_uid(volume: Volume) -> str | None:
    """The study's instance UID; None where the scan was no DICOM series, or its headers were not kept."""
    if not volume.source.headers:
        return None
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        dataset = dcmread(io.BytesIO(volume.source.headers[0]), force=True, stop_before_pixels=True, specific_tags=["StudyInstanceUID"])
    except (InvalidDicomError, KeyError, ValueError, TypeError, AttributeError, LookupError):
        return None
    return str(dataset.get("StudyInstanceUID", "") or "")[:64] or None
