"""A lean reader of DICOM headers (PS3.5 section 7, PS3.10 section 7): the tags that an image needs, and where its pixels start.

Building a pydicom dataset takes 2 ms a slice; this takes a tenth. It never recurses, never allocates by a declared
length, and every length is checked against the file's size.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace

from isal import isal_zlib

from isocenter.core.errors import InputError, LimitError
from isocenter.core.settings import Limits
from isocenter.io.archive import CHUNK, InflateError, Part, Spool, check_ratio
from isocenter.io.dicom_elements import DAMAGED, LONG, PIXEL_TAGS, UNDEFINED, Encoding, Walker, header_too_large

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
#: GE's private syntax: implicit headers, pixels in big endian.
GE_PRIVATE = "1.2.840.113619.5.2"

SHARED_GROUPS, FRAME_GROUPS, DETECTORS = GROUPS = (0x52009229, 0x52009230, 0x00540022)
#: No attribute that is wanted is longer, those sequences aside.
_LONGEST = 1024
_FIRST = 32 * 1024
#: What identifiers may hold (PS3.5 table 6.2-1), letters as anonymisers make them.
_UID = re.compile(r"[0-9A-Za-z.\-]{1,64}")

#: Attributes that are kept, all of the top level (PS3.6).
WANTED = frozenset(
    {
        0x00080008, 0x00080016, 0x00080018, 0x00080020, 0x00080060, 0x00080070, 0x00180050, 0x00180086, 0x00180088, 0x00181164, 0x00182010,
        0x00100010, 0x00100020, 0x00100021, 0x00100030, 0x00120052,
        0x0020000D, 0x0020000E, 0x00200012, 0x00200013, 0x00200032, 0x00200037, 0x00200100, 0x00280002, 0x00280004, 0x00280006,
        0x00280008, 0x00280010, 0x00280011, 0x00280030, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00281052, 0x00281053,
        0x00281054, 0x00283000, 0x00280009, SHARED_GROUPS, FRAME_GROUPS, DETECTORS,
    }
)  # fmt: skip


class _MoreError(Exception):
    """The buffer ends inside an element."""


@dataclass(frozen=True)
class Header:
    """What one file says before its pixels. values: raw bytes by tag. pixel_offset and pixel_length: the value of the
    element pixel_tag in the file; the length is -1 for encapsulated pixels
    (PS3.5 annex A.4). start: where the dataset begins. end: where the header ends and the pixel element begins.
    """

    syntax: str
    encoding: Encoding
    values: dict[int, bytes]
    start: int
    end: int
    pixel_tag: int
    pixel_offset: int
    pixel_length: int
    size: int

    def text(self, tag: int) -> str:
        """The value as text without padding, "" when absent."""
        return self.values.get(tag, b"").decode("latin-1").strip(" \0")

    def uid(self, tag: int) -> str:
        """The value as an identifier, "" when absent or none: what else stands there may be a person's words."""
        text = self.text(tag)
        return text if _UID.fullmatch(text) else ""

    def number(self, tag: int, default: int = 0) -> int:
        """A binary 16-bit unsigned value (US)."""
        value = self.values.get(tag)
        if value is None or len(value) < 2:
            return default
        return int(struct.unpack_from(self.encoding.order + "H", value)[0])

    def numbers(self, tag: int) -> tuple[float, ...] | None:
        """A decimal string (DS, IS) of several values; None when absent or empty."""
        return decimals(self.values.get(tag))


def decimals(value: bytes | None) -> tuple[float, ...] | None:
    """The numbers of a decimal string; None when there are none. Raises `InputError` for text that is no number."""
    if value is None:
        return None
    text = value.decode("latin-1").strip(" \0")
    if not text:
        return None
    try:
        return tuple(float(part) for part in text.split("\\"))
    except ValueError:
        raise InputError("a DICOM header holds text where a number belongs") from None


def read(part: Part, limits: Limits, spool: Spool) -> tuple[Part, Header]:
    """The header of one file, and where the file lies: in `spool`, where it had to be inflated.

    Raises `InputError` for a file that is damaged, `LimitError` for one that is too large.
    """
    count = min(part.size, _FIRST)
    while True:
        data = part.read(0, count)
        if len(data) < count:
            raise InputError(DAMAGED + "it is shorter than it was")
        try:
            return _parse(data, part, limits, spool)
        except _MoreError:
            if count >= part.size:
                raise InputError(DAMAGED + "it ends inside its header") from None
            if count >= limits.max_header_bytes:
                raise header_too_large(limits) from None
            count = min(part.size, count * 4, limits.max_header_bytes)


def looks_like(head: bytes) -> bool:
    """Whether a file that starts with `head` is DICOM: with the preamble, or (as old scanners write it) without."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8:
        return False
    group, element = struct.unpack_from("<HH", head)
    if (group, element) in ((2, 0), (2, 1), (8, 0), (8, 1), (8, 5), (8, 8), (8, 0x16), (8, 0x18)):
        return (head[4:6].isalpha() and head[4:6].isupper()) or struct.unpack_from("<L", head, 4)[0] <= 256
    return False


def _parse(data: bytes, part: Part, limits: Limits, spool: Spool) -> tuple[Part, Header]:
    start = 132 if data[128:132] == b"DICM" else 0
    meta: dict[int, bytes] = {}
    if data[start : start + 2] == b"\x02\x00":
        start = _meta(data, start, meta)
    syntax = meta.get(0x00020010, b"").decode("latin-1").strip(" \0")
    if syntax == DEFLATED:
        return _deflated(_Inflate(part, data[:start], spool), limits)
    encoding = _encoding(data, start, syntax)
    return part, _dataset(data, start, part.size, syntax or (EXPLICIT if encoding.explicit else IMPLICIT), encoding, limits)


def _meta(data: bytes, position: int, found: dict[int, bytes]) -> int:
    """Group 2, always explicit little endian; returns where it ends."""
    try:
        while True:
            group, element, kind, length = struct.unpack_from("<HH2sH", data, position)
            if group != 2:
                return position
            position += 8
            if kind in LONG:
                (length,) = struct.unpack_from("<L", data, position)
                position += 4
            if element == 0x0010:
                found[0x00020010] = data[position : position + length]
            position += length
    except struct.error:
        raise _MoreError from None


def _encoding(data: bytes, start: int, syntax: str) -> Encoding:
    """From the syntax, corrected by what the first element looks like: some writers say one and do the other."""
    if len(data) < start + 6:
        raise _MoreError
    if syntax == BIG_ENDIAN:
        return Encoding(True, False)
    kind = data[start + 4 : start + 6]
    return Encoding(kind.isalpha() and kind.isupper(), True)


def _dataset(data: bytes | bytearray, start: int, size: int, syntax: str, encoding: Encoding, limits: Limits) -> Header:
    """The elements of the top level, up to the pixels."""
    values: dict[int, bytes] = {}
    walker = Walker(data, encoding, limits)
    try:
        for tag, begin, length in walker.elements(start, size):
            if tag in PIXEL_TAGS:
                length = -1 if length == UNDEFINED else length
                if length > size - begin:
                    raise InputError(DAMAGED + "it ends inside its pixels")
                return Header(syntax, encoding, values, start, walker.element, tag, begin, length, size)
            if tag in WANTED:
                end = walker.next if tag in GROUPS else min(walker.next, begin + _LONGEST)
                if end > len(data):
                    raise _MoreError
                values[tag] = bytes(data[begin:end])
    except struct.error:
        raise _MoreError from None
    return Header(syntax, encoding, values, start, size, 0, size, 0, size)


# -- deflated files ----------------------------------------------------------------------------------------------------


def _deflated(inflate: _Inflate, limits: Limits) -> tuple[Part, Header]:
    """Deflated explicit little endian (PS3.5 annex A.5): inflated as far as the header says that there is something to read."""
    count = _FIRST
    while True:
        data = inflate.upto(count)
        # An unfinished stream may still hold any length; a finished one says how long it is.
        size = len(data) if inflate.done else 1 << 62
        try:
            header = _dataset(data, inflate.start, size, EXPLICIT, Encoding(True, True), limits)
            break
        except _MoreError:
            if inflate.done:
                raise InputError(DAMAGED + "it ends inside its header") from None
            if count >= limits.max_header_bytes:
                raise header_too_large(limits) from None
            count = min(count * 4, limits.max_header_bytes)
    whole = header.pixel_offset + max(header.pixel_length, 0)
    frames = header.numbers(0x00280008) or (1.0,)
    bits = header.number(0x00280100, 8) * max(header.number(0x00280002, 1), 1)
    declared = header.number(0x00280010) * header.number(0x00280011) * max(frames[0], 1) * bits / 8
    if not whole - header.pixel_offset <= declared + 1:
        raise InputError(DAMAGED + "it holds more pixels than it declares")
    check_ratio("a deflated DICOM file inflates to far more than its size", declared, inflate.part.size, limits)
    if whole > limits.max_inflate_bytes:
        raise LimitError("a deflated DICOM file inflates to too many bytes", limit="max_inflate_bytes", value=limits.max_inflate_bytes)
    inflate.spool.packed += inflate.part.size
    total = inflate.spool.begin() + whole
    check_ratio("the deflated DICOM files inflate to far more than their size", total, inflate.spool.packed, limits)
    if total > limits.max_archive_bytes:
        raise LimitError("the deflated DICOM files inflate to too many bytes", limit="max_archive_bytes", value=limits.max_archive_bytes)
    return inflate.spooled(whole), replace(header, size=whole)


class _Inflate:
    """A deflated file on its way to the spool: first as much in memory as its header needs, then the rest piece by piece.

    What is spooled reads like a file that was stored plainly, so nobody behind has to inflate anything.
    """

    def __init__(self, part: Part, head: bytes, spool: Spool) -> None:
        self.part = part
        self.spool = spool
        self.start = len(head)
        self.done = False
        self._position = len(head)
        self._inflater = isal_zlib.decompressobj(-15)
        self._data = bytearray(head.replace(DEFLATED.encode(), EXPLICIT.encode().ljust(len(DEFLATED), b"\0")))
        self._tail = b""

    def upto(self, count: int) -> bytearray:
        """At least `count` bytes of the plain file, or all when it has fewer; one growing buffer, not a copy."""
        while len(self._data) < count and not self.done:
            self._data += self._next(count - len(self._data))
        return self._data

    def spooled(self, whole: int) -> Part:
        """The first `whole` bytes of the plain file, in the spool."""
        begin = self.spool.begin()
        self.spool.write(self._data[:whole])
        left = whole - len(self._data)
        while left > 0 and not self.done:
            piece = self._next(min(left, CHUNK))
            self.spool.write(piece)
            left -= len(piece)
        if left > 0:
            raise InputError(DAMAGED + "it ends inside its pixels")
        return self.spool.part(begin)

    def _next(self, most: int) -> bytes:
        """Up to `most` bytes more."""
        piece = self._tail or self.part.read(self._position, CHUNK)
        if not self._tail:
            self._position += len(piece)
        try:
            data = self._inflater.decompress(piece, most)
        except InflateError:
            raise InputError(DAMAGED + "it cannot be inflated") from None
        self._tail = self._inflater.unconsumed_tail
        self.done = self._inflater.eof or not piece
        return data
