"""Who and what a scan's DICOM headers say that it is of: UIDs, and the patient where somebody asks; UIDs that are derived."""

from __future__ import annotations

import io
from datetime import date
from typing import Any

from blake3 import blake3

from isocenter.core.patient import Identity
from isocenter.core.volume import Volume


def derived_uid(*parts: str) -> str:
    """A UID made from texts, the same each time (PS3.5 annex B.2: a UUID of version 8 below 2.25)."""
    digest = bytearray(blake3("\0".join(parts).encode(), derive_key_context="isocenter 2026 derived uid").digest(16))
    digest[6], digest[8] = digest[6] & 0x0F | 0x80, digest[8] & 0x3F | 0x80
    return f"2.25.{int.from_bytes(digest, 'big')}"


def _header(volume: Volume, *tags: str) -> Any:
    """Some attributes of the first slice; None where the scan was no DICOM series, or its headers were not kept."""
    if not volume.source.headers:
        return None
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        dataset = dcmread(io.BytesIO(volume.source.headers[0]), force=True, stop_before_pixels=True, specific_tags=[*tags, "SpecificCharacterSet"])
        dataset.decode()
        return dataset
    except (InvalidDicomError, KeyError, ValueError, TypeError, AttributeError, LookupError):
        return None


def study_uid(volume: Volume) -> str | None:
    """The study's instance UID; None where the scan was no DICOM series, or its headers were not kept."""
    dataset = _header(volume, "StudyInstanceUID")
    return None if dataset is None else str(dataset.get("StudyInstanceUID", "") or "")[:64] or None


def identity(volume: Volume) -> Identity | None:
    """Who the patient is; None where the scan was no DICOM series or says nothing."""
    dataset = _header(volume, "PatientID", "PatientName", "PatientBirthDate", "PatientSex")
    if dataset is None:
        return None
    texts = [str(dataset.get(name, "") or "")[:64].strip() for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")]
    if not any(texts):
        return None
    try:
        born = date(int(texts[2][:4]), int(texts[2][4:6]), int(texts[2][6:8]))
    except ValueError:
        born = None
    return Identity(texts[0], texts[1].replace("^", " ").strip(), born, texts[3])
