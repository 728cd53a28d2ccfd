"""An archive of a study as a folder, for what reads folders: a `study.json` with its files, BIDS, DICOM.

Only plain names of letters, digits and a few signs become names on the disk; any other member gets a number for a name.
"""

from __future__ import annotations

import re
from pathlib import Path

from isocenter.core.errors import InputError
from isocenter.core.settings import Limits
from isocenter.io.archive import CHUNK, Part, Walk

_PLAIN = re.compile(r"[^\W_][\w .,+()=@-]{0,80}")
_DEEPEST = 16


def unpack(archive: Path, folder: Path, limits: Limits) -> Path:
    """Write all members below `folder`; returns where the study begins: `folder`, or the one folder that holds everything.

    Raises `InputError` and `LimitError` for what `Walk` refuses, and for an archive without files.
    """
    count = 0
    with Walk(limits) as walk:
        for part in walk.parts(Part(archive.stat().st_size, path=archive, name=archive.name)):
            count += 1
            _write(part, _place(part.name, folder, count))
    if not count:
        raise InputError("the archive holds no files")
    root = folder
    while len(inside := list(root.iterdir())) == 1 and inside[0].is_dir() and not inside[0].name.startswith(("sub-", "ses-")):
        root = inside[0]
    return root


def _place(name: str, folder: Path, number: int) -> Path:
    """Where a member goes. Nothing is ever written over, and nothing outside of `folder`."""
    parts = name.split("/")
    target = folder.joinpath(*parts)
    plain = len(parts) <= _DEEPEST and all(_PLAIN.fullmatch(p) for p in parts)
    if plain and not target.exists() and all(p.is_dir() or not p.exists() for p in target.parents if p.is_relative_to(folder)):
        return target
    suffixes = [s for s in (".nii.gz", *(f".{parts[-1].rpartition('.')[2].lower()}",)) if parts[-1].lower().endswith(s)]
    suffix = suffixes[0] if suffixes and re.fullmatch(r"[a-z0-9.]{2,16}", suffixes[0]) else ""
    return folder / "unnamed" / f"{number:06d}{suffix}"


def _write(part: Part, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        for offset in range(0, part.size, CHUNK):
            file.write(part.read(offset, CHUNK))
