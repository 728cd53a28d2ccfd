"""`Upload`: bytes from outside on their way in, counted and hashed while they stream to disk.

Nothing here looks at the content. The client's file name is kept only to tell ".nii" from ".zip" and never becomes part
of a path.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

from blake3 import blake3

from isocenter.core.errors import LimitError


class Upload:
    """A file that a client sends, spooled to an anonymous temporary file.

    `write` is fed chunk by chunk; `finish` seals it. Afterwards `file`, `size`, `digest` (BLAKE3, hexadecimal) and
    `suffix` may be read. Close it, or use it as a context manager: the bytes are gone then. Raises `LimitError` in
    `write` as soon as more than `limit` bytes have come.
    """

    def __init__(self, name: str = "", *, limit: int, folder: Path | None = None) -> None:
        self.name = name
        self.size = 0
        self.digest = ""
        self._limit = limit
        self._hash = blake3()
        # Unlinked at once where the system allows it, so a crash leaves nothing behind.
        self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=folder, buffering=0))  # noqa: SIM115 - lives as long as the upload

    @classmethod
    def of(cls, data: bytes, name: str = "", *, limit: int | None = None) -> Upload:
        """A sealed upload of bytes that are already here."""
        upload = cls(name, limit=len(data) if limit is None else limit)
        upload.write(data)
        upload.finish()
        return upload

    @property
    def suffix(self) -> str:
        """Lower-case extension of the client's name, ".nii.gz" as one; "" when there is none."""
        name = self.name.lower().rsplit("/", 1)[-1].rsplit("\\", 1)[-1]
        for double in (".nii.gz", ".seg.nrrd"):
            if name.endswith(double):
                return double
        return os.path.splitext(name)[1]

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next bytes in."""
        self.size += len(chunk)
        if self.size > self._limit:
            raise LimitError("the upload is too large", limit="max_upload_bytes", value=self._limit)
        self._hash.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[self._file.write(view) or 0 :]

    def finish(self) -> None:
        """Seal it."""
        self.digest = self._hash.hexdigest()
        self._file.seek(0)

    @property
    def file(self) -> BinaryIO:
        """The spooled file, seekable, unbuffered; valid until `close`."""
        return self._file

    def close(self) -> None:
        """Drop the bytes."""
        self._file.close()

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
