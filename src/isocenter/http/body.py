"""Request bodies, read as they come: files go to disk chunk by chunk, hashed and counted; fields stay in memory, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from python_multipart.multipart import MultipartParser, parse_options_header

from isocenter.core.errors import InputError, LimitError, UsageError
from isocenter.core.settings import Settings
from isocenter.io.upload import Upload

MAX_FIELD_BYTES = 4 * 1024 * 1024
MAX_PARTS = 10_000
ONE_FILE = "send one file; the images of a DICOM series or study go into one ZIP archive"
#: File bytes that are written at a time; one batch is written while the next one is filled.
BATCH_BYTES = 1024 * 1024
#: Room in a batch for the piece that makes it full.
SLACK_BYTES = 512 * 1024


@dataclass
class Form:
    """A multipart body. Field values by name, in order; files by field name, further ones of a name by "name#number"."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, Upload] = field(default_factory=dict)

    def text(self, name: str, default: str = "") -> str:
        """The last value of a field."""
        return self.fields.get(name, [default])[-1]

    def file(self, name: str) -> Upload | None:
        """The file of a field. Raises `UsageError` for several: of a series that is sent slice by slice, one slice would be taken for all."""
        if any(other.startswith(f"{name}#") for other in self.files):
            raise UsageError(ONE_FILE)
        return self.files.get(name)

    def close(self) -> None:
        """Drop the files."""
        for upload in self.files.values():
            upload.close()


class _Reader:
    """Builds a `Form` out of the multipart parser's callbacks."""

    def __init__(self, boundary: bytes, limit: int) -> None:
        self.form = Form()
        self._limit = limit
        self._parts = 0
        self._text_bytes = 0
        self._header = (bytearray(), bytearray())
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._text: bytearray | None = None
        self._file: Upload | None = None
        #: Bytes of files that are parsed and not yet written, in order; None ends a file.
        self.pending: list[tuple[Upload, memoryview | None]] = []
        self.pending_bytes = 0
        self._batches: list[NDArray[np.uint8]] = []
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda d, a, b: self._header[0].extend(d[a:b]),
                "on_header_value": lambda d, a, b: self._header[1].extend(d[a:b]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_done,
                "on_part_data": self._data,
                "on_part_end": self._end,
            },
        )

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise LimitError("the form has too many parts", limit="form parts", value=MAX_PARTS)
        self._headers = {}

    def _header_end(self) -> None:
        self._headers[bytes(self._header[0]).lower()] = bytes(self._header[1])
        self._header[0].clear()
        self._header[1].clear()

    def _headers_done(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._text = self._file = None
        if b"filename" in options:
            name = options[b"filename"].decode("utf-8", "replace")
            self._file = Upload(name, limit=self._limit)
            if self._name in self.form.files:
                self.form.files[f"{self._name}#{self._parts}"] = self._file
            else:
                self.form.files[self._name] = self._file
        else:
            self._text = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._keep(self._file, memoryview(data)[start:end])
        elif self._text is not None:
            self._text_bytes += end - start
            if self._text_bytes > MAX_FIELD_BYTES:
                raise LimitError("the form's text fields are too large", limit="form field bytes", value=MAX_FIELD_BYTES)
            self._text += data[start:end]

    def _keep(self, file: Upload, piece: memoryview) -> None:
        """Small pieces are copied into a batch, so that the network's own buffer is free again and stays in the processor's cache."""
        if len(piece) >= SLACK_BYTES:
            self.pending.append((file, piece))
            self.pending_bytes += len(piece)
            return
        if not self._batches:
            self._batches = [np.empty(BATCH_BYTES + SLACK_BYTES, np.uint8) for _ in range(2)]
        first, last = self.pending_bytes, self.pending_bytes + len(piece)
        batch = self._batches[0].data
        if last <= len(batch):
            batch[first:last] = piece
            piece = batch[first:last]
            if self.pending and self.pending[-1][0] is file and (before := self.pending[-1][1]) is not None and before.obj is batch.obj:
                piece = batch[first - len(before) : last]
                self.pending.pop()
        self.pending.append((file, piece))
        self.pending_bytes = last

    def take(self) -> list[tuple[Upload, memoryview | None]]:
        """What is pending; the batch taken before must be written."""
        taken, self.pending, self.pending_bytes = self.pending, [], 0
        self._batches.reverse()
        return taken

    def _end(self) -> None:
        if self._file is not None:
            self.pending.append((self._file, None))
        elif self._text is not None:
            self.form.fields.setdefault(self._name, []).append(self._text.decode("utf-8", "replace"))


@asynccontextmanager
async def read_form(request: Request, settings: Settings) -> AsyncIterator[Form]:
    """The multipart (or, for fields alone, urlencoded) body of a request; its files live as long as the block.

    Raises `LimitError` as soon as a limit is passed, `InputError` for a body that is not well formed.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > settings.max_upload_bytes + MAX_FIELD_BYTES:
        raise LimitError("the upload is too large", limit="max_upload_bytes", value=settings.max_upload_bytes)
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 256:
        # A body without files: let the framework's parser take it, within the same bound.
        if kind == b"application/x-www-form-urlencoded":
            if not length.isdigit() or int(length) > MAX_FIELD_BYTES:
                raise LimitError("the form is too large", limit="form field bytes", value=MAX_FIELD_BYTES)
            values = await request.form()
            yield Form({key: [str(v) for v in values.getlist(key)] for key in values})
            return
        yield Form()
        return
    reader = _Reader(boundary, settings.max_upload_bytes)
    writing: asyncio.Future[None] | None = None
    try:
        total = 0
        async for chunk in request.stream():
            total += len(chunk)
            if total > settings.max_upload_bytes + MAX_FIELD_BYTES:
                raise LimitError("the upload is too large", limit="max_upload_bytes", value=settings.max_upload_bytes)
            _feed(reader, chunk)
            if reader.pending_bytes >= BATCH_BYTES:
                writing = await _flush(reader, writing)
        # Kept in `writing` until it is done: the files must not be closed under the thread, whatever interrupts the wait.
        writing = await _flush(reader, writing)
        await writing
        if any(not upload.digest for upload in reader.form.files.values()):
            raise InputError("the upload ended before its last byte; send it again")
        yield reader.form
    finally:
        if writing is not None:
            await asyncio.wait([writing])
        reader.form.close()


async def _flush(reader: _Reader, writing: asyncio.Future[None] | None) -> asyncio.Future[None]:
    """Have a thread write what is pending, once the batch before it is written: the disk and the network work side by side."""
    if writing is not None:
        await writing
    return asyncio.get_running_loop().run_in_executor(None, _write, reader.take())


def _write(batch: list[tuple[Upload, memoryview | None]]) -> None:
    for upload, data in batch:
        if data is None:
            upload.finish()
        else:
            upload.write(data)


def _feed(reader: _Reader, chunk: bytes) -> None:
    from python_multipart.exceptions import FormParserError

    try:
        reader.parser.write(chunk)
    except FormParserError:
        raise InputError("the multipart body is not well formed") from None
