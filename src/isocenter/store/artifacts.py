"""Result files that clients fetch later, under random names, for a limited time."""

from __future__ import annotations

import os
import re
import secrets
import string
import time
from contextlib import suppress
from pathlib import Path

from isocenter.core.errors import NotFoundError

_LETTERS = string.ascii_letters + string.digits
_NAME = re.compile(r"[a-z]{1,16}_[A-Za-z0-9]{8}\.(npz|nii\.gz|nii|nrrd|seg\.nrrd|png|dcm)")


class ArtifactStore:
    """Files in one folder, called `<kind>_` and eight random characters; nothing else in it is ever served or removed.

    ttl: seconds that a file is kept. capacity: bytes of all of them, 0 for any number.
    """

    def __init__(self, folder: Path, *, ttl: float, capacity: int = 0) -> None:
        self._folder = folder
        self._ttl = ttl
        self._capacity = capacity

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

    def files(self) -> list[tuple[float, int, Path]]:
        """When each was written (seconds since 1970), its bytes and where it lies, oldest first; halves included."""
        found = []
        try:
            entries = list(os.scandir(self._folder))
        except FileNotFoundError:
            return []
        for entry in entries:
            if _NAME.fullmatch(entry.name.removeprefix(".").removesuffix(".part")):
                with suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    found.append((facts.st_mtime, facts.st_size, Path(entry.path)))
        return sorted(found)

    def over(self) -> list[tuple[float, int, Path]]:
        """Those that are older than the time to live, and the oldest of those that are too much."""
        files = self.files()
        held, oldest = sum(size for _, size, _ in files), time.time() - self._ttl
        gone = []
        for written, size, path in files:
            if written < oldest or 0 < self._capacity < held:
                gone.append((written, size, path))
                held -= size
        return gone

    def sweep(self) -> int:
        """Remove what is too old or too much; returns how many files went."""
        gone = self.over()
        for _, _, path in gone:
            path.unlink(missing_ok=True)
        return len(gone)
