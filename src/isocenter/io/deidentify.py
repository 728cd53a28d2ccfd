"""De-identification of DICOM images by PS3.15 Annex E: the Basic Application Level Confidentiality Profile (113100), with the
options Clean Descriptors (113105), Retain Longitudinal Temporal Information with Modified Dates (113107), and UIDs that
are replaced consistently.

Which attribute gets which action is the standard's table E.1-1, as the library dicom-anonymizer keeps it; the actions
are done here, at every depth of sequences, and with one secret key: the same patient gets the same pseudonym and the same
shift of days, the same UID the same other UID, in every run that has the key, and without it neither can be undone.

Pixels are not looked at: what is burned into an image stays there.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from isocenter.core.errors import InputError, LimitError, UnsupportedError
from isocenter.core.settings import Limits
from isocenter.io import dicom_header, door
from isocenter.io.archive import Part, Spool

#: Version of the standard's table.
TABLE = "2026c"
#: The day shift: always into the past, up to five years, in whole days.
_MOST_DAYS = 5 * 365
#: Words that descriptors (PS3.15 E.3.5) may keep; all others might name somebody. Lower case.
_VOCABULARY = (
    "ct mr mri pet pt cr dx us nm ax axial cor coronal sag sagittal oblique scan series image images study volume slice slices recon "
    "abdomen abdominal thorax chest lung lungs liver kidney kidneys spleen pancreas pelvis head neck brain skull spine cervical "
    "thoracic lumbar heart cardiac aorta knee hip shoulder ankle wrist foot hand breast prostate bladder whole body upper lower "
    "extremity left right bilateral with without and or of the for pre post contrast enhanced native plain arterial portal venous late "
    "delayed early dynamic phase bolus iv oral soft tissue bone window kernel standard smooth sharp thin thick mm cm ms kv mas sec t1 "
    "t2 pd t1w t2w flair stir dwi adc swi gre se tse fse spgr vibe dixon fat sat fs water in out opp mip mpr low high dose localizer "
    "scout topogram survey follow up baseline routine protocol 2d 3d 4d angio cta mra ctpa hrct b0 perfusion diffusion map corrected "
    "nac ac fdg "
)
_WORDS = frozenset(_VOCABULARY.split())
_NUMBER = re.compile(r"\d{1,2}([.,]\d{1,2})?")
_CLEANED = {0x00081030, 0x0008103E, 0x00181030, 0x00081032, 0x00400254, 0x00321060}
_TEXTS = frozenset(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"))
#: Sequences that only point to other objects: their UIDs are replaced, which keeps the pointers right.
_POINTERS = {0x00081140, 0x00082112, 0x00081111, 0x00081110}


@dataclass(frozen=True)
class Cleaned:
    """A file without its patient. pseudonym, series, name: for folders and file, made of nothing but replaced identifiers."""

    data: bytes
    pseudonym: str
    series: str
    name: str


class Deidentifier:
    """De-identifies one file after the other with one secret key (32 bytes or more)."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 32:
            raise InputError("the key for de-identification has less than 32 bytes; delete its file to get a new one")
        self._key = key

    def pseudonym(self, patient: str) -> str:
        """What a patient is called instead."""
        return "P-" + self._digest("patient", patient).hex()[:16]

    def days(self, patient: str) -> int:
        """By how many days all of a patient's dates are moved: 1 to 1825 into the past."""
        return -1 - int.from_bytes(self._digest("days", patient)[:8], "big") % _MOST_DAYS

    def uid(self, uid: str) -> str:
        """The UID that stands for another one (a UUID of version 8 below 2.25)."""
        digest = bytearray(self._digest("uid", uid)[:16])
        digest[6], digest[8] = digest[6] & 0x0F | 0x80, digest[8] & 0x3F | 0x80
        return f"2.25.{int.from_bytes(digest, 'big')}"

    def _digest(self, what: str, text: str) -> bytes:
        return hmac.new(self._key, f"{what}\0{text}".encode(), hashlib.sha256).digest()

    def clean(self, data: bytes, *, burned_in: bool = False) -> Cleaned:
        """A DICOM image without its patient.

        burned_in: take images that say that identity is burned into their pixels. Raises `UnsupportedError` for those
        otherwise, and for objects that are no images (reports, documents, annotations: their texts would have to be read by
        a person); `InputError` for files that cannot be read.
        """
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError

        try:
            dataset = dcmread(io.BytesIO(data), force=True)
            dataset.decode()
        except (InvalidDicomError, KeyError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError):
            raise InputError("a DICOM file could not be read") from None
        if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise UnsupportedError("not an image: its texts cannot be cleaned by rule")
        if str(dataset.get("BurnedInAnnotation", "")).upper() == "YES" and not burned_in:
            raise UnsupportedError("identity is burned into its pixels, which are not cleaned")
        try:
            return self._clean(dataset)
        except (KeyError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError):
            raise InputError("a DICOM file could not be de-identified: its elements are not as the standard has them") from None

    def _clean(self, dataset: Any) -> Cleaned:
        from pydicom.uid import ExplicitVRLittleEndian

        for name in ("SOPClassUID", "SOPInstanceUID"):
            # Some anonymisers empty these, yet leave them in the file's meta information.
            if not dataset.get(name) and hasattr(dataset, "file_meta") and dataset.file_meta.get(f"MediaStorage{name}"):
                setattr(dataset, name, dataset.file_meta[f"MediaStorage{name}"].value)
        # Without a number and a name every study is a patient of its own: two people must never become one.
        keys = ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        patient = next(filter(None, (str(dataset.get(name, "") or "") for name in keys)), "")
        if not dataset.get("SOPInstanceUID") or not patient:
            raise UnsupportedError("it has no SOP instance UID")
        names = _identifying(dataset)
        self._walk(dataset, self.days(patient), top=True)
        _forget(dataset, names)
        pseudonym = self.pseudonym(patient)
        dataset.PatientID = dataset.PatientName = pseudonym
        for name in ("PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
            if name not in dataset:
                setattr(dataset, name, "")
        _say_so(dataset)
        meta = dataset.file_meta if hasattr(dataset, "file_meta") else None
        syntax = getattr(meta, "TransferSyntaxUID", None) or ExplicitVRLittleEndian
        from pydicom.dataset import FileMetaDataset

        # A new file head: the old one may name the station that sent the file, and hold private information.
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
        dataset.preamble = b"\0" * 128
        out = io.BytesIO()
        dataset.save_as(out, enforce_file_format=True)
        return Cleaned(out.getvalue(), pseudonym, str(dataset.get("SeriesInstanceUID") or "series"), f"{dataset.SOPInstanceUID}.dcm")

    def _walk(self, dataset: Any, days: int, *, top: bool = False) -> None:
        """Do to every element what the table says, and the same within sequences."""
        from pydicom.datadict import dictionary_has_tag

        for tag in list(dataset.keys()):
            number = int(tag)
            if tag.is_private or not (dictionary_has_tag(tag) or _action(number)):
                # Private elements (X), and such that the standard does not know, so that nobody can say what they hold.
                del dataset[tag]
                continue
            element, action = dataset[tag], _action(number)
            if number in _CLEANED and element.VR in _TEXTS:
                element.value = clean_words(str(element.value))
            elif element.VR == "SQ":
                self._sequence(dataset, element, action, days)
            elif element.VR == "UI":
                if action:
                    element.value = (
                        [self.uid(str(u)) for u in element.value] if element.VM > 1 else self.uid(str(element.value)) if element.value else ""
                    )
            elif element.VR in ("DA", "DT") and number >> 16 != 0x0010:
                element.value = [shifted(str(v), days) for v in element.value] if element.VM > 1 else shifted(str(element.value or ""), days)
            elif element.VR == "TM" and number >> 16 != 0x0010:
                continue  # whole days are shifted, so times of day stay as they are
            elif action and not (top and number in (0x00100010, 0x00100020)):
                _act(dataset, element, action)

    def _sequence(self, dataset: Any, element: Any, action: str, days: int) -> None:
        """Pointers are followed, sequences without an action too; others are emptied or removed."""
        if not action or int(element.tag) in _POINTERS:
            for item in element.value:
                self._walk(item, days)
        elif action == "Z":
            element.value = []
        else:
            # X, and D: a dummy that is right for every sequence does not exist.
            del dataset[element.tag]


def _act(dataset: Any, element: Any, action: str) -> None:
    """X removes, Z empties, D puts a dummy in place."""
    if action == "X":
        del dataset[element.tag]
    elif action == "Z" or element.VR not in _TEXTS:
        element.value = "" if element.VR in _TEXTS or element.VR in ("AS", "DS", "IS", "UR", "DA", "TM", "DT") else None
    else:
        element.value = "ANONYMIZED"


@cache
def _tables() -> tuple[dict[int, str], tuple[tuple[int, int, str], ...]]:
    """Actions by tag, and those by mask (tag, mask, action), for repeating groups."""
    import importlib

    table = importlib.import_module(f"dicomanonymizer.dicom_anonymization_databases.dicomfields_{TABLE}")
    # Z/D, X/Z and so on: the first that keeps the object valid. Empty does for all but those that must have a value.
    kinds = {
        "D_TAGS": "D", "Z_TAGS": "Z", "X_TAGS": "X", "U_TAGS": "U", "Z_D_TAGS": "Z", "X_Z_TAGS": "Z", "X_D_TAGS": "D", "X_Z_D_TAGS": "Z",
        "X_Z_U_STAR_TAGS": "U",
    }  # fmt: skip
    single: dict[int, str] = {}
    masked = []
    for name, action in kinds.items():
        for row in getattr(table, name):
            tag = row[0] << 16 | row[1]
            if len(row) == 2:
                single[tag] = action
            else:
                masked.append((tag, row[2] << 16 | row[3], action))
    return single, tuple(masked)


def _action(tag: int) -> str:
    """The profile's action for a tag: X, Z, D, U or nothing."""
    single, masked = _tables()
    found = single.get(tag)
    if found is None:
        found = next((action for value, mask, action in masked if tag & mask == value & mask), "")
    return found


def shifted(text: str, days: int) -> str:
    """A date (DA) or a moment (DT) moved by whole days; empty where it is no full date, whose parts could not be moved."""
    head = text.strip()[:8]
    if len(head) != 8 or not head.isdigit():
        return ""
    try:
        moved = date(int(head[:4]), int(head[4:6]), int(head[6:])) + timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return f"{moved:%Y%m%d}".rjust(8, "0") + text.strip()[8:]


def clean_words(text: str) -> str:
    """A descriptor with those of its words that are known to be nobody's name, and short numbers."""
    # Dots and commas stay within a token, so that no part of a date passes for a number.
    words = [word.strip(".,") for word in re.split(r"[\s_^/\\:;()+-]+", text)]
    return " ".join(word for word in words if word.lower() in _WORDS or _NUMBER.fullmatch(word))


def _identifying(dataset: Any) -> list[str]:
    """Parts of the patient's name and numbers, to be looked for in what is left."""
    words: set[str] = set()
    for name in ("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "ReferringPhysicianName", "OperatorsName"):
        words.update(re.findall(r"[^\W\d_]{3,}", str(dataset.get(name, "") or "")))
    for name in ("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "IssuerOfPatientID"):
        value = str(dataset.get(name, "") or "").strip()
        if len(value) >= 4:
            words.add(value)
    return sorted(word.lower() for word in words)


def _forget(dataset: Any, names: list[str]) -> None:
    """Empty every text that still holds one of these: what the table lets stay, a technician may have filled with a name."""
    if not names:
        return

    def look(owner: Any, element: Any) -> None:
        if element.VR in _TEXTS and element.value and element.keyword not in ("ImageType", "Modality"):
            text = str(element.value).lower()
            if any(re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", text) for name in names):
                element.value = ""

    dataset.walk(look)


def _say_so(dataset: Any) -> None:
    """What was done, as PS3.15 E.1.1 wants it said."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED"
    dataset.DeidentificationMethod = f"Isocenter, PS3.15 {TABLE}"
    codes = (
        ("113100", "Basic Application Confidentiality Profile"),
        ("113105", "Clean Descriptors Option"),
        ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    )
    items = []
    for value, meaning in codes:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        items.append(item)
    dataset.DeidentificationMethodCodeSequence = Sequence(items)


def clean_folder(place: Path, cleaner: Deidentifier, limits: Limits, *, burned_in: bool = False) -> Iterator[Cleaned | InputError]:
    """Every DICOM file below a folder (or the one file) cleaned, or why it was not; one is held at a time.

    What is no DICOM file is passed over. Raises `InputError` where there is none.
    """
    files = sorted(p for p in place.rglob("*") if p.is_file() and not p.is_symlink()) if place.is_dir() else [place]
    found = False
    with closing(Spool()) as spool:
        for file in files:
            try:
                part = Part(file.stat().st_size, path=file, name=file.name)
                if door.kind_of(part.read(0, 4096), file.suffix) != "dicom":
                    continue
                found = True
                # Guards against headers and deflated files that grow beyond their limits; hands out the plain file.
                part, _ = dicom_header.read(part, limits, spool)
                if part.size > limits.max_archive_bytes:
                    raise LimitError("a DICOM file is too large", limit="max_archive_bytes", value=limits.max_archive_bytes)
                yield cleaner.clean(part.read(0, part.size), burned_in=burned_in)
            except InputError as error:
                yield error
            except OSError:
                yield InputError("a file could not be opened")
    if not found:
        raise InputError("there is no DICOM file in it")


def key_of(file: Path) -> bytes:
    """The key in a file, which is made when it is not there, for its owner's eyes only."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file.read_bytes()
    key = secrets.token_bytes(32)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(key)
    return key
