"""A patient's visits in DICOM files: whose images they are, of which day, and of which series.

The images of two patients are never put together: what their headers say of the patient must not contradict, and where they say
nothing, only images of one study, or of one name, are of one patient.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from blake3 import blake3

from isocenter.core.errors import InputError, LimitError, UnsupportedError
from isocenter.core.settings import Limits
from isocenter.io import dicom_header, dicom_image, door
from isocenter.io.archive import Part, Spool

_HEAD = 4096
_FILES = 8  # times the members that an archive may have


@dataclass(frozen=True)
class Whose:
    """What a header says of its patient (PS3.3 C.7.1.1), "" for nothing. study: its StudyInstanceUID."""

    patient_id: str
    issuer: str
    name: str
    birth_date: str
    study: str

    def differs(self, other: Whose) -> str | None:
        """The attribute by which two cannot be one patient. Names are written in many ways and may change, so they count without a number only."""
        for attribute, mine, theirs in (
            ("PatientID", self.patient_id, other.patient_id),
            ("IssuerOfPatientID", self.issuer, other.issuer),
            ("PatientBirthDate", self.birth_date, other.birth_date),
        ):
            if mine and theirs and mine != theirs:
                return attribute
        if not (self.patient_id and other.patient_id) and self.name and other.name and self.name != other.name:
            return "PatientName"
        return None

    def same(self, other: Whose) -> bool:
        """Whether something says that two are one patient."""
        return any(
            mine and mine == theirs
            for mine, theirs in zip((self.patient_id, self.name, self.study), (other.patient_id, other.name, other.study), strict=True)
        )


@dataclass(frozen=True)
class Image:
    """One file of a series. offset: days from an event, where a de-identified header has them instead of a date."""

    file: Path
    series: str
    study_date: str
    offset: float | None
    modality: str
    whose: Whose

    @property
    def called(self) -> str:
        """The series, as an error names it."""
        return f"series {self.series[:64]}"


def images(files: Iterable[Path], limits: Limits) -> Iterator[Image]:
    """What the headers of those files say that are DICOM images; others are passed over. Raises `LimitError` for too many."""
    with closing(Spool()) as spool:
        for k, file in enumerate(files):
            if k >= limits.max_archive_members * _FILES:
                raise LimitError("the folder holds too many files", limit="max_archive_members x 8", value=limits.max_archive_members * _FILES)
            part = Part(file.stat().st_size, path=file, name=file.name)
            if door.kind_of(part.read(0, _HEAD), file.suffix) != "dicom":
                continue
            try:
                _, header = dicom_header.read(part, limits, spool)
            except InputError:
                continue
            if dicom_image.not_an_image(header):
                continue
            yield Image(file, header.text(0x0020000E), header.text(0x00080020), _offset(header), header.text(0x00080060), _whose(header))


def _whose(header: dicom_header.Header) -> Whose:
    # A name's components and spaces say nothing: Doe^Jane and DOE^JANE^^^ are one.
    name = " ".join(header.text(0x00100010).replace("^", " ").replace("=", " ").split()).casefold()
    return Whose(header.text(0x00100020), header.text(0x00100021), name, header.text(0x00100030), header.text(0x0020000D))


def _offset(header: dicom_header.Header) -> float | None:
    """LongitudinalTemporalOffsetFromEvent (PS3.3 C.7.2.3), days."""
    value = header.values.get(0x00120052, b"")
    days = float(struct.unpack(header.encoding.order + "d", value)[0]) if len(value) == 8 else math.nan
    return days if math.isfinite(days) else None


def check_one_patient(found: Iterable[Image], *, listed: bool = False) -> None:
    """Raises `UnsupportedError` for images of two patients, by their series; and where nobody says whose they are, unless a person listed them."""
    known: dict[Whose, Image] = {}
    for image in found:
        if image.whose in known:
            continue
        for whose, other in known.items():
            attribute = whose.differs(image.whose)
            if attribute is not None:
                what = "the study lists images" if listed else "the folder holds images"
                hint = 'where they are one all the same, say "one_patient": true in the study.json' if listed else "keep one patient in a folder"
                raise UnsupportedError(
                    f"{what} of more than one patient, nothing was read: {other.called} and {image.series[:64]} differ in {attribute}; {hint}"
                )
        if known and not listed and not any(whose.same(image.whose) for whose in known):
            raise UnsupportedError(
                f"nothing says whose images these are: {next(iter(known.values())).called} and {image.series[:64]} have no common PatientID "
                "or name; list the visits of one patient in a study.json"
            )
        known[image.whose] = image


def series_by_day(found: Iterable[Image]) -> tuple[str, dict[float, tuple[date | None, dict[str, list[Image]]]]]:
    """A pseudonym, and for each day after the first its date and its series. By study dates, or where there are none by days from an event.

    Raises `UnsupportedError` for a second patient, `InputError` for series without a day.
    """
    by_date: dict[date, dict[str, list[Image]]] = {}
    by_offset: dict[float, dict[str, list[Image]]] = {}
    every = list(found)
    if not every:
        raise InputError("the folder holds no study.json, no BIDS subject and no DICOM images")
    check_one_patient(every)  # before anything is said of days
    for image in every:
        when = _date(image)
        if when is not None:
            by_date.setdefault(when, {}).setdefault(image.series, []).append(image)
        elif image.offset is not None:
            by_offset.setdefault(image.offset, {}).setdefault(image.series, []).append(image)
        else:
            raise InputError(f"{image.called} has no study date; list the visits with their days in a study.json")
    if by_date and by_offset:
        raise InputError("some series have a study date and some have days from an event instead; list the visits with their days in a study.json")
    whose = every[0].whose
    name = pseudonym(whose.patient_id or whose.name or whose.study)
    if by_offset:
        start = min(by_offset)
        return name, {offset - start: (None, series) for offset, series in sorted(by_offset.items())}
    begin = min(by_date)
    return name, {float((day - begin).days): (day, series) for day, series in sorted(by_date.items())}


def _date(image: Image) -> date | None:
    text = image.study_date
    try:
        if text and not (len(text) == 8 and text.isdigit()):
            raise ValueError
        return date(int(text[:4]), int(text[4:6]), int(text[6:])) if text else None
    except ValueError:
        raise InputError(f"{image.called} has a study date that is none") from None


def pseudonym(patient: str) -> str:
    """A name that says nothing of the patient, the same each time for one PatientID."""
    return "P-" + blake3(patient.encode(), derive_key_context="isocenter 2026 patient pseudonym").hexdigest()[:12]
