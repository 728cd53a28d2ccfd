"""What a DICOM upload holds, without reading its pixels: one study and its series."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from isocenter.core.errors import InputError, UnsupportedError
from isocenter.core.settings import Limits
from isocenter.io import dicom_header, dicom_image, door
from isocenter.io.archive import Part, Spool, Walk

_TEXTS = {
    "StudyDate": "study_date", "StudyTime": "study_time", "StudyDescription": "study_description", "InstitutionName": "institution_name",
    "SeriesNumber": "series_number", "SeriesDescription": "series_description", "BodyPartExamined": "body_part_examined",
}  # fmt: skip
#: Further attributes of a series for `metadata`; none names a person.
_FACTS = (
    "Modality", "Manufacturer", "ManufacturerModelName", "Rows", "Columns", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "ImageOrientationPatient", "ImagePositionPatient", "ConvolutionKernel", "KVP", "PatientPosition", "ContrastBolusAgent", "ProtocolName",
    "MagneticFieldStrength", "RepetitionTime", "EchoTime", "RescaleSlope", "RescaleIntercept", "RescaleType", "PhotometricInterpretation",
    "BitsStored", "FrameOfReferenceUID", "SOPClassUID",
)  # fmt: skip
_LONGEST = 64


@dataclass(frozen=True)
class SeriesFacts:
    """A series. metadata: technical attributes of its first image, as JSON takes them."""

    series_uid: str
    modality: str
    images: int
    number: int | None
    description: str
    body_part: str
    metadata: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class StudyFacts:
    """A study. Its UID, date and time as DICOM writes them (YYYYMMDD, HHMMSS), empty where absent. files: its images."""

    study_uid: str
    date: str
    time: str
    description: str
    institution: str
    modality: str
    files: int
    series: tuple[SeriesFacts, ...]


def describe(part: Part, limits: Limits, *, named: bool = False) -> StudyFacts:
    """The study in a ZIP archive (or in one DICOM file). Raises `InputError` where there is none, or more than one.

    Images whose UIDs an anonymiser emptied are of the study, and of the series without a name: as where their pixels are
    read. named: such are refused.
    """
    found: dict[str, list[Any]] = {}
    studies: dict[str, str] = {}
    with Walk(limits) as walk, contextlib.closing(Spool()) as spool:
        for member in _members(part, walk):
            if door.kind_of(member.read(0, 4096)) != "dicom":
                continue
            place, header = dicom_header.read(member, limits, spool)
            if dicom_image.not_an_image(header):
                continue
            study, series = header.uid(0x0020000D), header.uid(0x0020000E)
            if named and not study:
                raise InputError("DICOM file missing StudyInstanceUID")
            if named and not series:
                raise InputError("DICOM file missing SeriesInstanceUID")
            if text := header.text(0x0020000D):
                studies.setdefault(text, study)
            if series not in found:
                found[series] = [0, place.read(0, header.end)]
            found[series][0] += 1
    if not found:
        raise InputError("No DICOM files found in ZIP archive")
    if len(studies) > 1:
        raise UnsupportedError(f"the archive holds {len(studies)} studies; upload them one at a time")
    series_facts: list[SeriesFacts] = []
    texts: dict[str, str] = {}
    for uid, (images, head) in found.items():
        own, metadata = _read(head)
        texts = texts or own
        number = own["series_number"]
        series_facts.append(
            SeriesFacts(
                uid,
                str(metadata.get("Modality", "")),
                images,
                int(number) if number.lstrip("-").isdigit() else None,
                own["series_description"],
                own["body_part_examined"],
                metadata,
            )
        )
    series_facts.sort(key=lambda s: (s.number is None, s.number or 0, s.series_uid))
    largest = max(series_facts, key=lambda s: s.images)
    return StudyFacts(
        next(iter(studies.values()), ""),
        texts["study_date"],
        texts["study_time"],
        texts["study_description"],
        texts["institution_name"],
        largest.modality,
        sum(s.images for s in series_facts),
        tuple(series_facts),
    )


def _members(part: Part, walk: Walk) -> Iterator[Part]:
    if door.kind_of(part.read(0, 4096)) == "zip":
        yield from walk.parts(part)
    else:
        yield part


def _read(head: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    """Texts for people, and technical attributes, of one header."""
    import warnings

    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = dcmread(io.BytesIO(head), force=True, stop_before_pixels=True, specific_tags=[*_TEXTS, *_FACTS, "SpecificCharacterSet"])
            texts = {ours: str(dataset.get(name, "") or "")[:_LONGEST] for name, ours in _TEXTS.items()}
            metadata = {name: _plain(dataset.get(name)) for name in _FACTS if dataset.get(name) not in (None, "")}
        except (InvalidDicomError, KeyError, ValueError, TypeError, AttributeError, LookupError):
            return dict.fromkeys(_TEXTS.values(), ""), {}
    return texts, metadata


def _plain(value: Any) -> Any:
    """A value as JSON takes it."""
    if isinstance(value, str):
        return str(value)[:_LONGEST]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    try:
        return [_plain(item) for item in value][:16]
    except TypeError:
        return str(value)[:_LONGEST]
