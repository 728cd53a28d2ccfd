"""Result files that clients fetch later, under random names, for a limited time."""

from __future__ import annotations

import os
import re
import secrets
import string
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from isocenter.core.errors import NotFoundError, StoreError

if TYPE_CHECKING:
    from isocenter.core.settings import Settings
    from isocenter.store.s3 import Shelf

_LETTERS = string.ascii_letters + string.digits
_NAME = re.compile(r"[a-z]{1,16}_[A-Za-z0-9]{8}\.(npz|nii\.gz|nii|nrrd|seg\.nrrd|png|dcm)")
#: A file that is being written.
_PART = re.compile(r"\.(.*?)(?:\.[0-9a-f]{8})?\.part")


def open_artifacts(settings: Settings) -> ArtifactStore:
    """The store of the settings: this machine's folder, and the bucket where there is one, so that several servers share it."""
    folder = settings.home / "artifacts"
    if settings.minio_endpoint is None:
        return ArtifactStore(folder, ttl=settings.artifact_ttl, capacity=settings.artifact_bytes)
    return SharedArtifacts(folder, settings)


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
            if _NAME.fullmatch(_PART.sub(r"\1", entry.name)):
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


class SharedArtifacts(ArtifactStore):
    """As `ArtifactStore`, also in a bucket: a file that another server made is fetched when it is asked for.

    Raises `StoreError` where the bucket is away.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        super().__init__(folder, ttl=settings.artifact_ttl, capacity=settings.artifact_bytes)
        self._settings = settings

    @cached_property
    def shelf(self) -> Shelf:
        """The bucket's own part."""
        from isocenter.store.s3 import Shelf

        return Shelf(self._settings)

    def put(self, kind: str, data: bytes, suffix: str = ".npz") -> str:
        """See `ArtifactStore`."""
        name = super().put(kind, data, suffix)
        try:
            self.shelf.put(name, self._folder / name)
        except BaseException:
            (self._folder / name).unlink(missing_ok=True)
            raise
        return name

    def path(self, name: str) -> Path:
        """See `ArtifactStore`."""
        with suppress(NotFoundError):
            return super().path(name)
        if not _NAME.fullmatch(name):
            raise NotFoundError("File not found")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self._folder / f".{name}.{secrets.token_hex(4)}.part"
        try:
            with partial.open("wb") as file:
                for piece in self.shelf.read(name):
                    file.write(piece)
            partial.replace(self._folder / name)
        except NotFoundError:
            raise NotFoundError("File not found") from None
        except OSError:
            raise StoreError("the disk is full or cannot be written to") from None
        finally:
            partial.unlink(missing_ok=True)
        return self._folder / name

    def sweep(self) -> int:
        """See `ArtifactStore`."""
        gone = super().sweep()
        with suppress(StoreError):
            for name, _, written in self.shelf.items():
                if written < time.time() - self._ttl:
                    self.shelf.delete(name)
                    gone += 1
        return gone
