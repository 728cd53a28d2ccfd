"""Files by their content: what was uploaded and what was made, in a folder or in a bucket of an S3 server.

An object's name is the BLAKE3 of its bytes, so equal files are kept once, nothing is ever overwritten, and what is read can
be checked. Whatever fails half-way leaves nothing that could be taken for an object.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from blake3 import blake3

from isocenter.core.errors import NotFoundError, StoreError

if TYPE_CHECKING:
    from isocenter.core.settings import Settings

CHUNK = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_AWAY = "the object store cannot be reached or written just now"


@dataclass(frozen=True)
class Stored:
    """An object: BLAKE3 of its bytes (64 hexadecimal digits), and how many there are."""

    digest: str
    bytes: int


class Objects(Protocol):
    """A store of objects. Every method raises `StoreError` when the store is away or full, which is worth another try."""

    def put(self, data: bytes | Path | BinaryIO, digest: str | None = None) -> Stored:
        """Keep a file, streamed. digest: where the caller has it already. An object that is there already is left as it is."""

    def has(self, digest: str) -> bool:
        """Whether the object is there."""

    def size(self, digest: str) -> int:
        """Its bytes. Raises `NotFoundError`."""

    def written(self, digest: str) -> float:
        """When it was last put, also where it was there already (within the hour): seconds since 1970. Raises `NotFoundError`."""

    def read(self, digest: str) -> Iterator[bytes]:
        """Its bytes, piece by piece; the last piece is only given out when all of them are right. Raises `NotFoundError`."""

    def fetch(self, digest: str, folder: Path) -> Path:
        """Its bytes, checked, as a file: one in `folder`, or the store's own, which nobody may change."""

    def link(self, digest: str, *, name: str, media_type: str, seconds: int = 3600) -> str | None:
        """An address to fetch it from without asking this program, None where there is none."""

    def delete(self, digest: str) -> None:
        """Forget it; nothing happens where it is not there."""

    def items(self) -> Iterator[tuple[Stored, float]]:
        """All objects, and when each was written (seconds since 1970)."""

    def check(self) -> None:
        """Raise `StoreError` unless something can be written."""


def open_objects(settings: Settings) -> Objects:
    """The store that the settings name."""
    if settings.minio_endpoint:
        from isocenter.store.s3 import Bucket

        return Bucket(settings)
    return Folder(settings.home / "objects", settings.min_free_bytes)


def checked(pieces: Iterator[bytes], digest: str) -> Iterator[bytes]:
    """`pieces`, the last held back until the hash of all is right. Raises `StoreError` for damaged ones."""
    check = blake3()
    held: bytes | None = None
    for piece in pieces:
        check.update(piece)
        if held is not None:
            yield held
        held = piece
    if check.hexdigest() != digest:
        raise StoreError("a stored file is damaged: its content is not what was written")
    if held is not None:
        yield held


@contextmanager
def source(data: bytes | Path | BinaryIO, digest: str | None) -> Iterator[tuple[BinaryIO, Stored]]:
    """`data` as a file at its start, with its digest and size; read twice where the digest is not known."""
    with open(data, "rb") if isinstance(data, Path) else io.BytesIO(data) if isinstance(data, bytes) else _borrowed(data) as file:
        if digest is None:
            check = blake3()
            file.seek(0)
            while piece := file.read(CHUNK):
                check.update(piece)
            digest = check.hexdigest()
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        yield file, Stored(digest, size)


@contextmanager
def _borrowed(file: BinaryIO) -> Iterator[BinaryIO]:
    yield file


def valid(digest: str) -> str:
    """`digest`, where it is one. Raises `NotFoundError`: no name from outside becomes a path."""
    if not _DIGEST.fullmatch(digest):
        raise NotFoundError("there is no such file")
    return digest


class Folder:
    """Objects as files of one folder, two levels deep. Free space is kept for what must still be written."""

    def __init__(self, folder: Path, min_free_bytes: int = 0) -> None:
        self._folder = folder
        self._parts = folder / "parts"
        self._min_free = min_free_bytes

    def _path(self, digest: str) -> Path:
        return self._folder / valid(digest)[:2] / digest

    def put(self, data: bytes | Path | BinaryIO, digest: str | None = None) -> Stored:
        """See `Objects`. The file is complete, checked and on the disk before its name exists."""
        with source(data, digest) as (file, stored):
            target = self._path(stored.digest)
            if target.is_file():
                with suppress(OSError):
                    os.utime(target)
                return stored
            try:
                self._parts.mkdir(parents=True, exist_ok=True, mode=0o700)
                target.parent.mkdir(exist_ok=True, mode=0o700)
                part = self._parts / secrets.token_hex(8)
                try:
                    self._write(file, part, stored)
                    with suppress(FileExistsError):
                        os.link(part, target)  # unlike a rename, this cannot replace anything
                finally:
                    part.unlink(missing_ok=True)
                _sync(target.parent)
            except OSError:
                raise StoreError("the disk is full or cannot be written to") from None
        return stored

    def _write(self, file: BinaryIO, part: Path, stored: Stored) -> None:
        check = blake3()
        with part.open("xb", buffering=0) as out:
            os.fchmod(out.fileno(), 0o400) if hasattr(os, "fchmod") else None
            while piece := file.read(CHUNK):
                check.update(piece)
                view = memoryview(piece)
                while view:
                    view = view[out.write(view) or 0 :]
            os.fsync(out.fileno())
        if check.hexdigest() != stored.digest:
            raise StoreError("the file changed while it was being kept")

    def has(self, digest: str) -> bool:
        """See `Objects`."""
        return self._path(digest).is_file()

    def size(self, digest: str) -> int:
        """See `Objects`."""
        return self._facts(digest).st_size

    def written(self, digest: str) -> float:
        """See `Objects`."""
        return self._facts(digest).st_mtime

    def _facts(self, digest: str) -> os.stat_result:
        try:
            return self._path(digest).stat()
        except FileNotFoundError:
            raise NotFoundError("there is no such file (any more)") from None

    def read(self, digest: str) -> Iterator[bytes]:
        """See `Objects`."""
        try:
            file = self._path(digest).open("rb", buffering=0)
        except FileNotFoundError:
            raise NotFoundError("there is no such file (any more)") from None
        with file:
            yield from checked(iter(lambda: file.read(CHUNK), b""), digest)

    def fetch(self, digest: str, folder: Path) -> Path:
        """See `Objects`: the store's own file, once its content is checked."""
        for _ in self.read(digest):
            pass
        return self._path(digest)

    def link(self, digest: str, *, name: str, media_type: str, seconds: int = 3600) -> str | None:
        """None: files are served by this program."""
        return None

    def delete(self, digest: str) -> None:
        """See `Objects`."""
        self._path(digest).unlink(missing_ok=True)

    def items(self) -> Iterator[tuple[Stored, float]]:
        """See `Objects`."""
        for path in self._folder.glob("??/*"):
            with suppress(FileNotFoundError):
                if _DIGEST.fullmatch(path.name):
                    facts = path.stat()
                    yield Stored(path.name, facts.st_size), facts.st_mtime

    def check(self) -> None:
        """See `Objects`; also when little space is left, and old halves are removed."""
        try:
            self._parts.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = self._parts / f"probe-{secrets.token_hex(4)}"
            try:
                probe.write_bytes(b"\0" * 4096)
            finally:
                probe.unlink(missing_ok=True)
            for part in self._parts.iterdir():
                if part.stat().st_mtime < time.time() - 86400:
                    part.unlink(missing_ok=True)
            free = shutil.disk_usage(self._folder).free
        except OSError:
            raise StoreError("the disk is full or cannot be written to") from None
        if free < self._min_free:
            raise StoreError("the disk is nearly full")


def _sync(folder: Path) -> None:
    """Have the folder's own entry on the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
