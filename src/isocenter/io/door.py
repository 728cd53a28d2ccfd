"""The one way in for bytes from outside: what they are is told from their content, then the reader of that kind takes over.

Every failure leaves as one of Isocenter's own errors, with a sentence that holds nothing of the input.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from typing_extensions import Buffer

from isocenter.core.errors import InputError, IsocenterError, MemoryLimitError, UnsupportedError, UsageError
from isocenter.core.rescaled import Voxels, every
from isocenter.core.settings import Limits
from isocenter.core.volume import Volume
from isocenter.io import dicom, dicom_header
from isocenter.io.archive import Part, Walk
from isocenter.io.upload import Upload

_HEAD = 4096
_MODALITY = re.compile(r"[A-Z0-9_]{1,16}")


def read_upload(upload: Upload, *, limits: Limits, series_uid: str | None = None, modality: str | None = None) -> Volume:
    """The volume in an uploaded file: DICOM, a ZIP of it, NIfTI, NRRD, MetaImage, PNG or JPEG.

    series_uid chooses among several DICOM series (default: the one with most voxels). modality overrides what the input says.
    """
    return _guarded(lambda: _finish(_file(Part(upload.size, file=upload.file, name=upload.name), limits, series_uid), modality))


def read_path(path: Path, *, limits: Limits, series_uid: str | None = None, modality: str | None = None) -> Volume:
    """As `read_upload`, for a file or a folder of this machine; in a folder, all DICOM files at any depth are looked at."""

    def read() -> Volume:
        if path.is_dir():
            return _walked(path, limits, series_uid, modality)
        if not path.is_file():
            raise InputError("there is no such file or folder")
        return _finish(_file(Part(path.stat().st_size, path=path, name=path.name), limits, series_uid), modality)

    return _guarded(read)


def _guarded(read: Callable[[], Volume]) -> Volume:
    """`read`, with every fault turned into an error that may be shown."""
    try:
        return read()
    except IsocenterError:
        raise
    except MemoryError:
        raise MemoryLimitError("there is not enough memory to read this input") from None
    except OSError:
        raise InputError("the input cannot be opened or read") from None
    except Exception:  # a parser's own fault must not reach the client with its words
        raise InputError("the input is damaged or written in an unusual way; it cannot be read") from None


def kind_of(head: bytes, suffix: str = "") -> str | None:
    """What a file is, from its first bytes; the name's suffix decides only between NIfTI and other gzip, and for MetaImage."""
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "nifti"
    if head[:4] in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c", b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c"):
        return "nifti"
    if head.startswith(b"NRRD000"):
        return "nrrd"
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return "picture"
    if (b"ObjectType" in head[:512] and b"=" in head[:512]) or (suffix in (".mha", ".mhd") and b"NDims" in head):
        return "nrrd"
    return "dicom" if dicom_header.looks_like(head) else None


def kind_of_upload(upload: Upload) -> str | None:
    """What an uploaded file is; nothing else of it is read."""
    return _kind(Part(upload.size, file=upload.file, name=upload.name))


def _kind(part: Part) -> str | None:
    return kind_of(part.read(0, _HEAD), os.path.splitext(part.name.lower())[1])


def _file(part: Part, limits: Limits, series_uid: str | None) -> Volume:
    if part.size == 0:
        raise InputError("the file is empty")
    kind = _kind(part)
    if kind == "zip":
        with Walk(limits) as walk:
            return _parts(walk.parts(part), limits, series_uid)
    if kind == "dicom":
        return dicom.read([part], limits=limits, series_uid=series_uid)
    if kind is None:
        raise UnsupportedError("the file is none of DICOM, ZIP, NIfTI, NRRD, MetaImage, PNG and JPEG")
    return _single(part, kind, limits)


def _parts(parts: Iterator[Part], limits: Limits, series_uid: str | None) -> Volume:
    """The DICOM series among many files, or else the one volume of another format."""
    others: list[tuple[Part, str]] = []
    with dicom.Scan(limits) as scan:
        for part in parts:
            kind = _kind(part)
            if kind == "dicom":
                scan.add(part)
            elif kind in ("nifti", "nrrd"):
                others.append((part, kind))
        if scan.series or not others:
            return dicom.volume(scan, series_uid)
    if len(others) > 1:
        raise UnsupportedError(f"there are {len(others)} volumes and no DICOM; send one at a time")
    return _single(*others[0], limits)


def _walked(root: Path, limits: Limits, series_uid: str | None, modality: str | None) -> Volume:
    """What the files of a folder hold."""
    links: list[Path] = []
    try:
        volume = _finish(_parts(_folder(root, links), limits, series_uid), modality)
    except UnsupportedError as error:
        if links:
            raise UnsupportedError(f"{error.message}; {len(links)} symbolic links were not followed") from None
        raise
    if links:
        volume = volume.with_modality(volume.modality, volume.unit, f"{len(links)} symbolic links were not followed.")
    return volume


def _folder(root: Path, links: list[Path]) -> Iterator[Part]:
    """All files under a folder, in the order of their names. Symbolic links may lead out of it, so they are only counted."""
    for folder, folders, names in os.walk(root, followlinks=False):
        folders.sort()
        links += [path for name in folders if (path := Path(folder, name)).is_symlink()]
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_symlink():
                links.append(path)
            elif path.is_file():
                yield Part(path.stat().st_size, path=path, name=name)


def _single(part: Part, kind: str, limits: Limits) -> Volume:
    """A file of one of the formats that hold exactly one volume."""
    from isocenter.io import nifti, nrrd, picture

    read = {"nifti": nifti.read, "nrrd": nrrd.read, "picture": picture.read}[kind]
    if part.path is not None and part.start == 0:
        with part.path.open("rb") as file:
            return read(file, part.size, limits=limits)
    return read(io.BufferedReader(_Window(part), 1 << 18), part.size, limits=limits)


class _Window(io.RawIOBase):
    """A part as a file of its own."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._part.size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        count = self._part.readinto(view, self._position)
        self._position += count
        return count


# -- the modality ------------------------------------------------------------------------------------------------------


def _finish(volume: Volume, modality: str | None) -> Volume:
    """The modality that was asked for, or CT where a format without modality holds what only CT does."""
    if modality is not None:
        modality = modality.strip().upper()
        if not _MODALITY.fullmatch(modality):
            raise UsageError("the modality must be one of DICOM's, such as CT, MR, US or OT")
        if modality == "CT" and volume.source.format == "picture":
            raise UsageError("a picture holds grey levels, not Hounsfield units: say which, with window=width/level in HU, such as window=400/40")
        if modality == volume.modality and (modality != "CT" or volume.unit == "HU"):
            return volume  # as it says itself, with the unit that it says
        return volume.with_modality(modality, "HU" if modality == "CT" else "a.u.", f"Read as {modality}, as asked for.")
    if volume.modality == "CT" and volume.unit != "HU":
        # The header does not say that these are Hounsfield units; most often it merely forgot to.
        if looks_like_ct(volume.voxels):
            return volume.with_modality("CT", "HU", "The header names no unit; the values are those of Hounsfield units.")
        return volume.with_modality("CT", volume.unit, "The header does not say that the values are Hounsfield units, and they do not look so.")
    if volume.modality is None and volume.source.format in ("nifti", "nrrd", "metaimage") and looks_like_ct(volume.voxels):
        return volume.with_modality("CT", "HU", "The file names no modality; its values are those of a CT in Hounsfield units, so it was read as CT.")
    return volume


def looks_like_ct(voxels: Voxels) -> bool:
    """Whether the values are Hounsfield units: a peak of soft tissue where water is 0, with air at -1000 or fat below it.

    No other modality is calibrated so: MR and PET start at 0, normalised images lie within a few units, and maps that
    run through 0 (phase, subtraction) have no peak between 0 and 100 that stands out from both sides.
    """
    sample = np.asarray(every(voxels, max(voxels.size // 200_000, 1) | 1), np.float32)
    if sample.size < 1000 or not -4096 <= sample.min() <= -50 or sample.max() < 60:
        return False

    def share(low: float, high: float) -> float:
        return float(np.mean((sample >= low) & (sample < high)))

    air, soft, fat = share(-1100, -850), share(0, 100), share(-150, -30)
    body = 1 - share(-4097, -850)
    if body < 0.01 or soft < 0.1 * body:
        return False
    stands_out = soft / 100 > 2 * share(-500, -200) / 300 and soft / 100 > 1.5 * share(150, 400) / 250
    return stands_out and (air > 0.005 or (fat > 0.02 and soft + fat > 0.5))
