"""A lean reader of DICOM headers (PS3.5 section 7, PS3.10 section 7): the tags that an image needs, and where its pixels start.

Building a pydicom dataset takes 2 ms a slice; this takes a tenth. It never recurses, never allocates by a declared
length, and every length is checked against the file's size.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from isal import isal_zlib

from isocenter.core.errors import InputError, LimitError
from isocenter.core.settings import Limits
from isocenter.io.archive import RATIO_FROM, InflateError, Part
from isocenter.io.dicom_elements import DAMAGED, LONG, PIXEL_TAGS, UNDEFINED, Encoding, Walker, header_too_large

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
#: GE's private syntax: implicit headers, pixels in big endian.
GE_PRIVATE = "1.2.840.113619.5.2"

SHARED_GROUPS, FRAME_GROUPS = 0x52009229, 0x52009230
_FIRST = 32 * 1024

#: Attributes that are kept, all of the top level (PS3.6).
WANTED = frozenset(
    {
        0x00080008, 0x00080016, 0x00080018, 0x00080060, 0x00080070, 0x00180050, 0x00180086, 0x00180088, 0x00181164, 0x00182010,
        0x0020000D, 0x0020000E, 0x00200012, 0x00200013, 0x00200032, 0x00200037, 0x00200100, 0x00280002, 0x00280004, 0x00280006,
        0x00280008, 0x00280010, 0x00280011, 0x00280030, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00281052, 0x00281053,
        0x00281054, 0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203, 0x00283000, SHARED_GROUPS, FRAME_GROUPS,
    }
)  # fmt: skip


class _MoreError(Exception):
    """The buffer ends inside an element."""


@dataclass(frozen=True)
class Header:
    """What one file says before its pixels. values: raw bytes by tag. pixel_offset and pixel_length: the value of the
    element pixel_tag in the file (in `inflated`, where the file is deflated); the length is -1 for encapsulated pixels
    (PS3.5 annex A.4). end: where the header ends and the pixel element begins.
    """

    syntax: str
    encoding: Encoding
    values: dict[int, bytes]
    end: int
    pixel_tag: int
    pixel_offset: int
    pixel_length: int
    size: int
    inflated: bytearray | None = None

    def text(self, tag: int) -> str:
        """The value as text without padding, "" when absent."""
        return self.values.get(tag, b"").decode("latin-1").strip(" \0")

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


def read(part: Part, limits: Limits) -> Header:
    """The header of one file. Raises `InputError` for one that is damaged, `LimitError` for one that is too large."""
    count = min(part.size, _FIRST)
    while True:
        data = part.read(0, count)
        if len(data) < count:
            raise InputError(DAMAGED + "it is shorter than it was")
        try:
            return _parse(data, part.size, limits, part)
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


def _parse(data: bytes, size: int, limits: Limits, part: Part) -> Header:
    start = 132 if data[128:132] == b"DICM" else 0
    meta: dict[int, bytes] = {}
    if data[start : start + 2] == b"\x02\x00":
        start = _meta(data, start, meta)
    syntax = meta.get(0x00020010, b"").decode("latin-1").strip(" \0")
    if syntax == DEFLATED:
        return _deflated(part, data[:start], start, limits)
    encoding = _encoding(data, start, syntax)
    return _dataset(data, start, size, syntax or (EXPLICIT if encoding.explicit else IMPLICIT), encoding, limits, None)


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


def _dataset(data: bytes | bytearray, start: int, size: int, syntax: str, encoding: Encoding, limits: Limits, inflated: bytearray | None) -> Header:
    """The elements of the top level, up to the pixels."""
    values: dict[int, bytes] = {}
    walker = Walker(data, encoding, limits)
    try:
        for tag, begin, length in walker.elements(start, size):
            if tag in PIXEL_TAGS:
                length = -1 if length == UNDEFINED else length
                if length > size - begin:
                    raise InputError(DAMAGED + "it ends inside its pixels")
                return Header(syntax, encoding, values, walker.element, tag, begin, length, size, inflated)
            if tag in WANTED:
                end = walker.next
                if end > len(data):
                    raise _MoreError
                values[tag] = bytes(data[begin:end])
    except struct.error:
        raise _MoreError from None
    return Header(syntax, encoding, values, size, 0, size, 0, size, inflated)


# -- deflated files ----------------------------------------------------------------------------------------------------


def _deflated(part: Part, head: bytes, start: int, limits: Limits) -> Header:
    """Deflated explicit little endian (PS3.5 annex A.5): inflated as far as the header says that there is something to read."""
    # The dataset is kept as if it were stored plainly, so that who reads its header next need not inflate it again.
    inflate = _Inflate(part, start, head.replace(DEFLATED.encode(), EXPLICIT.encode().ljust(len(DEFLATED), b"\0")))
    count = _FIRST
    while True:
        data = inflate.upto(count)
        # An unfinished stream may still hold any length; a finished one says how long it is.
        size = len(data) if inflate.done else 1 << 62
        try:
            header = _dataset(data, len(head), size, EXPLICIT, Encoding(True, True), limits, None)
        except _MoreError:
            if inflate.done:
                raise InputError(DAMAGED + "it ends inside its header") from None
            if count >= limits.max_header_bytes:
                raise header_too_large(limits) from None
            count = min(count * 4, limits.max_header_bytes)
            continue
        whole = header.pixel_offset + max(header.pixel_length, 0)
        return _inflated(header, inflate, whole, limits)


def _inflated(header: Header, inflate: _Inflate, whole: int, limits: Limits) -> Header:
    frames = max(int((header.numbers(0x00280008) or (1,))[0]), 1)
    bits = header.number(0x00280100, 8) * max(header.number(0x00280002, 1), 1)
    declared = header.number(0x00280010) * header.number(0x00280011) * frames * bits // 8
    if whole - header.pixel_offset > declared + 1:
        raise InputError(DAMAGED + "it holds more pixels than it declares")
    if declared > RATIO_FROM and declared > limits.max_archive_ratio * inflate.part.size:
        raise LimitError("a deflated DICOM file inflates to far more than its size", limit="max_archive_ratio", value=limits.max_archive_ratio)
    if whole > limits.max_inflate_bytes:
        raise LimitError("a deflated DICOM file inflates to too many bytes", limit="max_inflate_bytes", value=limits.max_inflate_bytes)
    data = inflate.upto(whole)
    if len(data) < whole:
        raise InputError(DAMAGED + "it ends inside its pixels")
    return Header(EXPLICIT, header.encoding, header.values, header.end, header.pixel_tag, header.pixel_offset, header.pixel_length, len(data), data)


class _Inflate:
    """The first bytes of a raw deflate stream behind a prefix, as many as are asked for."""

    def __init__(self, part: Part, start: int, prefix: bytes) -> None:
        self.part = part
        self.done = False
        self._position = start
        self._inflater = isal_zlib.decompressobj(-15)
        self._data = bytearray(prefix)
        self._tail = b""

    def upto(self, count: int) -> bytearray:
        """At least `count` bytes of prefix and stream, or all when there are fewer; one growing buffer, not a copy."""
        try:
            while len(self._data) < count and not self.done:
                piece = self._tail or self.part.read(self._position, 65536)
                if not self._tail:
                    self._position += len(piece)
                self._data += self._inflater.decompress(piece, max(count - len(self._data), 1))
                self._tail = self._inflater.unconsumed_tail
                self.done = self._inflater.eof or not piece
        except InflateError:
            raise InputError(DAMAGED + "it cannot be inflated") from None
        return self._data
