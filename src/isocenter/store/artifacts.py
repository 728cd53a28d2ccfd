"""Result files that clients fetch later, under random names, for a limited time."""

from __future__ import annotations

import os
import re
import secrets
import string
import time
from pathlib import Path

from isocenter.core.errors import NotFoundError

_LETTERS = string.ascii_letters + string.digits
_NAME = re.compile(r"[a-z]{1,16}_[A-Za-z0-9]{8}\.(npz|nii\.gz|nii|nrrd|seg\.nrrd|png|dcm)")


class ArtifactStore:
    """Files in one folder, called `<kind>_` and eight random characters; nothing else in it is ever served or removed."""

    def __init__(self, folder: Path, *, ttl: float) -> None:
        self._folder = folder
        self._ttl = ttl

    def put(self, kind: str, data: bytes, suffix: str = ".npz") -> str:
        """Keep `data`; returns its name. The file is complete before its name exists."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = f"{kind}_{''.join(secrets.choice(_LETTERS) for _ in range(8))}{suffix}"
        partial = self._folder / f".{name}.part"
        try:
            partial.write_bytes(data)
            partial.replace(self._folder / name)
        finally:
            partial.unlink(missing_ok=True)
        return name

    def path(self, name: str) -> Path:
        """Where the artifact of this name lies. Raises `NotFoundError` for any name that was not given out."""
        if not _NAME.fullmatch(name):
            raise NotFoundError("File not found")
        path = self._folder / name
        if not path.is_file():
            raise NotFoundError("File not found")
        return path

    def sweep(self) -> int:
        """Remove what is older than the time to live; returns how many files went."""
        removed = 0
        oldest = time.time() - self._ttl
        try:
            entries = list(os.scandir(self._folder))
        except FileNotFoundError:
            return 0
        for entry in entries:
            name = entry.name.removeprefix(".").removesuffix(".part")
            if _NAME.fullmatch(name) and entry.stat(follow_symlinks=False).st_mtime < oldest:
                Path(entry.path).unlink(missing_ok=True)
                removed += 1
        return removed
