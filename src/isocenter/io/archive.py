"""ZIP archives, walked and never extracted: every member becomes a `Part`, a window on bytes that lie somewhere.

What an archive says about itself is not believed. Sizes are counted while members are inflated, names are only looked
at, and what does not fit in memory cheaply goes to an anonymous temporary file. The format is PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from isal import isal_zlib

from isocenter.core.errors import InputError, LimitError, UnsupportedError
from isocenter.core.settings import MIB, Limits
from isocenter.io.positioned import pread, preadinto, pwrite

CHUNK = 256 * 1024
#: What isal raises for a damaged stream (its stub calls the class an instance).
InflateError: type[Exception] = isal_zlib.error  # type: ignore[assignment]
#: Below this an archive's ratio says nothing: a few blank images pack a thousandfold.
RATIO_FROM = 64 * MIB
#: Members that systems and PACS exports add and that hold no images.
_IGNORED = {"dicomdir", ".ds_store", "thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Part:
    """`size` bytes at `start` of an open file, or a whole file of the local disk that is opened when it is read."""

    size: int
    start: int = 0
    file: BinaryIO | None = None
    path: Path | None = None
    name: str = field(default="", repr=False)

    def open(self) -> int:
        """A file descriptor to hand to `pread`; give it back with `close`."""
        if self.file is not None:
            return self.file.fileno()
        return os.open(self.path or "", os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))

    def close(self, descriptor: int) -> None:
        """Give back what `open` gave."""
        if self.file is None:
            os.close(descriptor)

    def readinto(self, view: memoryview, offset: int = 0) -> int:
        """Fill `view` (of bytes) from `offset` of the part on, as far as there is something; how much there was."""
        view = view[: max(self.size - offset, 0)]
        descriptor = self.open()
        try:
            done = 0
            while done < len(view) and (more := preadinto(descriptor, view[done:], self.start + offset + done)):
                done += more
            return done
        finally:
            self.close(descriptor)

    def read(self, offset: int = 0, count: int = -1) -> bytes:
        """Up to `count` bytes (all that follow, when negative) from `offset` of the part on."""
        left = max(self.size - offset, 0)
        count = left if count < 0 else min(count, left)
        descriptor = self.open()
        try:
            pieces = []
            while count > 0 and (piece := pread(descriptor, count, self.start + offset)):
                pieces.append(piece)
                offset, count = offset + len(piece), count - len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            self.close(descriptor)


class Spool:
    """An anonymous temporary file that takes members one after another; gone when closed. packed: what they came from, bytes."""

    def __init__(self) -> None:
        self.packed = 0
        self._file = cast(BinaryIO, tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 - lives as long as the spool
        self._end = 0

    def begin(self) -> int:
        """Where the next member starts."""
        return self._end

    def write(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            done = pwrite(self._file.fileno(), view, self._end)
            self._end += done
            view = view[done:]

    def part(self, start: int, name: str = "") -> Part:
        """What has been written since `start`."""
        return Part(self._end - start, start, file=self._file, name=name)

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class _Entry:
    """One line of the central directory (APPNOTE 4.3.12)."""

    name: str
    method: int
    packed: int
    offset: int
    check: int


class Walk:
    """Goes through an archive and the archives inside it, and keeps count of all that comes out.

    The counts are of the whole upload: nested archives share them. Use it as a context manager; the parts it has handed
    out are valid until it is closed.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._members = 0
        self._bytes = 0
        self._packed = 0
        self._spool = Spool()

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def parts(self, archive: Part) -> Iterator[Part]:
        """All members of `archive` that are files, nested archives opened, in the order of the directory."""
        self._packed = archive.size
        yield from self._walk(archive, 1)

    def _walk(self, archive: Part, depth: int) -> Iterator[Part]:
        if depth > self._limits.max_archive_depth:
            raise LimitError("archives lie inside archives too deeply", limit="max_archive_depth", value=self._limits.max_archive_depth)
        for entry in self._entries(archive):
            part = self._member(archive, entry)
            if part is None:
                continue
            if part.read(0, 4) == b"PK\x03\x04":
                yield from self._walk(part, depth + 1)
            else:
                yield part

    # -- the directory --------------------------------------------------------------------------------------------------

    def _entries(self, archive: Part) -> list[_Entry]:
        """The files in the central directory; raises for what no honest archive of images holds."""
        start, size = _directory(archive)
        data = archive.read(start, min(size, self._limits.max_header_bytes))
        entries, position = [], 0
        while position + 46 <= len(data) and data[position : position + 4] == b"PK\x01\x02":
            self._members += 1
            if self._members > self._limits.max_archive_members:
                raise LimitError("the archive holds too many members", limit="max_archive_members", value=self._limits.max_archive_members)
            fields = struct.unpack_from("<6H3L5H2L", data, position + 4)
            flags, method, packed, unpacked, mode, offset = fields[2], fields[3], fields[7], fields[8], fields[14], fields[15]
            named, extra, comment = fields[9:12]
            name = data[position + 46 : position + 46 + named].decode("utf-8" if flags & 0x800 else "cp437", "replace")
            if 0xFFFFFFFF in (packed, unpacked, offset):
                more = data[position + 46 + named : position + 46 + named + extra]
                unpacked, packed, offset = _zip64(more, unpacked, packed, offset)
            position += 46 + named + extra + comment
            if _check_name(name, mode):
                if flags & 1:
                    raise UnsupportedError("the archive is encrypted; send it without a password")
                entries.append(_Entry(name, method, packed, offset, fields[6]))
        if position == 0 and size:
            raise InputError("the archive's directory cannot be read")
        _check_overlap(entries, start)
        return entries

    # -- the members ----------------------------------------------------------------------------------------------------

    def _member(self, archive: Part, entry: _Entry) -> Part | None:
        """The bytes of one member: a window where it is stored, spooled where it is packed."""
        local = archive.read(entry.offset, 30)
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise InputError("the archive is damaged: a member is not where the directory says")
        named, extra = struct.unpack_from("<2H", local, 26)
        start = entry.offset + 30 + named + extra
        if start + entry.packed > archive.size:
            raise InputError("the archive is damaged: a member ends behind the end of the file")
        name = entry.name.replace("\\", "/")
        if entry.method == 0:
            self._count(entry.packed)
            part = Part(entry.packed, archive.start + start, archive.file, archive.path, name)
            _check_sum(entry, _sum_of(part))
            return part
        if entry.method != 8:
            raise UnsupportedError("the archive is packed with a method other than deflate; make a plain ZIP of it")
        return self._inflate(archive, start, entry, name)

    def _inflate(self, archive: Part, start: int, entry: _Entry, name: str) -> Part:
        begin, check = self._spool.begin(), 0
        inflater = isal_zlib.decompressobj(-15)
        end = start + entry.packed
        try:
            while start < end and not inflater.eof:
                piece = archive.read(start, min(CHUNK, end - start))
                start += len(piece)
                while piece and not inflater.eof:
                    data = inflater.decompress(piece, 4 * CHUNK)
                    self._count(len(data))
                    self._spool.write(data)
                    check = isal_zlib.crc32(data, check)
                    piece = inflater.unconsumed_tail
        except InflateError:
            raise InputError("the archive is damaged: a member cannot be unpacked") from None
        if not inflater.eof:
            raise InputError("the archive is damaged: a member is cut short")
        _check_sum(entry, check)
        return self._spool.part(begin, name)

    def _count(self, count: int) -> None:
        self._bytes += count
        if self._bytes > self._limits.max_archive_bytes:
            raise LimitError("the archive unpacks to too many bytes", limit="max_archive_bytes", value=self._limits.max_archive_bytes)
        check_ratio("the archive unpacks to far more than its size", self._bytes, self._packed, self._limits)


def _sum_of(part: Part) -> int:
    """CRC-32 of a part's bytes."""
    check = 0
    for offset in range(0, part.size, 4 * CHUNK):
        check = isal_zlib.crc32(part.read(offset, 4 * CHUNK), check)
    return check


def _check_sum(entry: _Entry, found: int) -> None:
    """A damaged member could still be an image, with wrong values. Writers that keep no sum leave 0."""
    if entry.check not in (0, found):
        raise InputError("the archive is damaged: the checksum of a member is wrong")


def check_ratio(what: str, unpacked: float, packed: int, limits: Limits) -> None:
    """Raises `LimitError` where the ratio is beyond the limit and the amount worth caring about."""
    if unpacked > RATIO_FROM and unpacked > limits.max_archive_ratio * packed:
        raise LimitError(what, limit="max_archive_ratio", value=limits.max_archive_ratio)


def _directory(archive: Part) -> tuple[int, int]:
    """Start and size of the central directory (APPNOTE 4.3.14 to 4.3.16)."""
    tail_start = max(archive.size - 65557, 0)
    tail = archive.read(tail_start)
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or found + 22 > len(tail):
        raise InputError("the archive is cut short: its directory is missing")
    size, start = struct.unpack_from("<2L", tail, found + 12)
    if 0xFFFFFFFF in (size, start) and found >= 20 and tail[found - 20 : found - 16] == b"PK\x06\x07":
        (where,) = struct.unpack_from("<Q", tail, found - 12)
        record = archive.read(where, 56)
        if len(record) < 56 or record[:4] != b"PK\x06\x06":
            raise InputError("the archive is damaged: its directory cannot be found")
        size, start = struct.unpack_from("<2Q", record, 40)
    if start + size > archive.size:
        raise InputError("the archive is damaged: its directory lies outside the file")
    return start, size


def _zip64(extra: bytes, unpacked: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The 64-bit fields for those that read 0xFFFFFFFF (APPNOTE 4.5.3)."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{min(length, len(extra) - position - 4) // 8}Q", extra, position + 4))
            try:
                unpacked, packed, offset = (next(values) if field == 0xFFFFFFFF else field for field in (unpacked, packed, offset))
            except RuntimeError:  # too few of them: a StopIteration inside the generator
                break
            return unpacked, packed, offset
        position += 4 + length
    raise InputError("the archive is damaged: the size of a large member is missing")


def _check_name(name: str, attributes: int) -> bool:
    """Whether the member is worth opening; raises for names and kinds that only an attack has."""
    path = name.replace("\\", "/")
    if path.startswith("/") or path[1:2] == ":" or ".." in path.split("/"):
        raise InputError("the archive holds a member whose name points outside of it")
    if stat.S_ISLNK(attributes >> 16):
        raise InputError("the archive holds a symbolic link")
    base = path.rsplit("/", 1)[-1].lower()
    return bool(base) and base not in _IGNORED and not base.startswith("._") and not path.startswith("__MACOSX/")


def _check_overlap(entries: list[_Entry], end: int) -> None:
    """Members that share bytes are how a small archive unpacks to a large one."""
    last = 0
    for entry in sorted(entries, key=lambda e: e.offset):
        if entry.offset < last:
            raise InputError("the archive holds members that overlap")
        last = entry.offset + 30 + len(entry.name) + entry.packed
    # The name counts characters here, bytes in the file: never more than there are.
    if last > end:
        raise InputError("the archive holds members that overlap its directory")
