"""The studies in a folder, in the order of their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from isocenter.core.errors import InputError, UsageError
from isocenter.io import door

_SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".mhd", ".zip")
_HEAD = 4096


@dataclass(frozen=True)
class Found:
    """A study. name: of its folder in the output, unique there. fingerprint: of its files' names, sizes and times."""

    path: Path
    name: str
    fingerprint: str


def studies_in(folder: Path, out: Path) -> list[Found]:
    """Each folder, archive and scan directly in `folder`; `folder` itself where DICOM files lie in it. `out` is left out.

    Raises `InputError` where there is none, `UsageError` where it is not clear what one study is.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    entries = sorted(e for e in folder.iterdir() if not e.name.startswith(".") and e.resolve() != out.resolve())
    folders = [e for e in entries if e.is_dir()]
    scans = [e for e in entries if e.is_file() and e.name.lower().endswith(_SUFFIXES)]
    if any(_is_dicom(e) for e in entries if e not in scans and e.is_file()):
        if folders or scans:
            raise UsageError(f"{folder} holds DICOM files beside folders or archives; put each study into a folder of its own")
        return [Found(folder, folder.resolve().name or "study", _fingerprint(folder, out))]
    chosen = sorted(folders + scans)
    if not chosen:
        raise InputError(f"there is no study in {folder}: neither folders nor ZIP archives, NIfTI, NRRD or MetaImage files")
    short = Counter(_stem(e).casefold() for e in chosen)
    return [Found(e, _stem(e) if short[_stem(e).casefold()] == 1 else e.name, _fingerprint(e, out)) for e in chosen]


def _stem(path: Path) -> str:
    """A scan's name without its format."""
    if path.is_file():
        for suffix in _SUFFIXES:
            if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
                return path.name[: -len(suffix)]
    return path.name


def _is_dicom(path: Path) -> bool:
    if path.name.upper() == "DICOMDIR":
        return False
    try:
        with path.open("rb") as file:
            return door.kind_of(file.read(_HEAD)) == "dicom"
    except OSError:
        return False


def _fingerprint(path: Path, out: Path) -> str:
    known = blake3()
    for file in _files(path, out):
        facts = file.stat()
        known.update(f"{file.relative_to(path).as_posix()}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode("utf-8", "surrogatepass"))
    return known.hexdigest()[:32]


def _files(path: Path, out: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    within = out.resolve()
    yield from sorted(f for f in path.rglob("*") if f.is_file() and not f.resolve().is_relative_to(within))
