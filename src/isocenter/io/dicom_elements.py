"""The data elements of a DICOM dataset, stepped through one by one (PS3.5 section 7), sequences without recursion.

Nothing is allocated by a declared length; every length is checked against what holds the element.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from isocenter.core.errors import InputError, LimitError
from isocenter.core.settings import Limits

UNDEFINED = 0xFFFFFFFF
PIXELS = 0x7FE00010
#: Float, double float and integer pixel data (PS3.3 C.7.6.3, C.7.6.24, C.7.6.25); what comes behind is not read.
PIXEL_TAGS = (0x7FE00008, 0x7FE00009, PIXELS)
#: Value representations with a length of 32 bits (PS3.5 table 7.1-1).
LONG = frozenset({b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"})
DAMAGED = "the DICOM file is damaged: "


@dataclass(frozen=True)
class Encoding:
    """How a dataset is written down."""

    explicit: bool
    little: bool

    @property
    def order(self) -> str:
        return "<" if self.little else ">"


class Walker:
    """Steps through the elements of one dataset; `element` is where the present one starts, `next` where the next one does."""

    def __init__(self, data: bytes | bytearray, encoding: Encoding, limits: Limits) -> None:
        self._data = data
        self._limits = limits
        self._explicit = encoding.explicit
        self._long = struct.Struct(encoding.order + "L").unpack_from
        self._head = struct.Struct(encoding.order + ("HH2sH" if encoding.explicit else "HHL")).unpack_from
        self._tag = struct.Struct(encoding.order + "HHL").unpack_from
        self._count = 0
        self.element = 0
        self.next = 0

    def elements(self, position: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(tag, start of the value, declared length) of each element between `position` and `end`."""
        head, explicit, count, most = self._head, self._explicit, self._count, self._limits.max_elements
        while position < end:
            self.element = position
            if explicit:
                group, element, kind, length = head(self._data, position)
                if kind in LONG:
                    (length,) = self._long(self._data, position + 8)
                    position += 12
                else:
                    position += 8
            else:
                group, element, length = head(self._data, position)
                kind = b""
                position += 8
            tag = group << 16 | element
            count += 1
            if count > most:
                raise LimitError("a DICOM header holds too many elements", limit="max_elements", value=most)
            if tag in PIXEL_TAGS:
                yield tag, position, length
                return
            self._count = count
            self.next = self._after(tag, kind, position, length, end)
            count = self._count
            yield tag, position, length
            position = self.next

    def _after(self, tag: int, kind: bytes, position: int, length: int, end: int) -> int:
        """Where the element's value ends; sequences are looked into as far as they may nest too deeply."""
        if length == UNDEFINED:
            return self._skip(position, None, True, kind == b"UN" or not self._explicit)
        if length > end - position:
            raise InputError(DAMAGED + "an element is longer than the file")
        if position + length > self._limits.max_header_bytes:
            raise header_too_large(self._limits)
        if length > 16 * self._limits.max_nesting and (kind == b"SQ" or (not kind and self._tag(self._data, position)[:2] == (0xFFFE, 0xE000))):
            return self._skip(position, position + length, True, not self._explicit)
        return position + length

    def item_end(self, position: int) -> int:
        """Where the elements of an item of undefined length end (its delimiter, of 8 bytes, follows)."""
        return self._skip(position, None, False, not self._explicit) - 8

    def _skip(self, position: int, end: int | None, sequence: bool, bare: bool) -> int:
        """Walk over the content of a sequence (or item) that starts at `position`, without recursion: PS3.5 section 7.5.

        The stack holds, for each open sequence and item, its end (None: a delimiter ends it), whether it is a sequence
        and whether its elements have no VR.
        """
        data, deepest = self._data, self._limits.max_nesting
        stack: list[tuple[int | None, bool, bool]] = [(end, sequence, bare)]
        while stack:
            stop, items, bare = stack[-1]
            if stop is not None and position >= stop:
                stack.pop()
                continue
            group, element, length = self._tag(data, position)
            self._count += 1
            if self._count > self._limits.max_elements:
                raise LimitError("a DICOM header holds too many elements", limit="max_elements", value=self._limits.max_elements)
            if group == 0xFFFE:
                position += 8
                if element == 0xE000 and items:
                    if length == UNDEFINED or length > 16 * (deepest - len(stack) // 2):
                        stack.append((None if length == UNDEFINED else position + length, False, bare))
                    else:
                        position += length
                elif stop is None:
                    stack.pop()
                else:
                    raise InputError(DAMAGED + "a sequence ends where it should not")
                continue
            if items:
                raise InputError(DAMAGED + "a sequence holds something other than items")
            kind, length, position = self._nested(position, length, bare)
            if length == UNDEFINED or (length > 16 * (deepest - len(stack) // 2) and kind == b"SQ"):
                if len(stack) // 2 >= deepest:
                    raise LimitError("DICOM sequences nest too deeply", limit="max_nesting", value=deepest)
                stack.append((None if length == UNDEFINED else position + length, True, bare or kind == b"UN"))
            else:
                position += length
        return position

    def _nested(self, position: int, length: int, bare: bool) -> tuple[bytes, int, int]:
        """VR, length and start of the value of an element inside an item."""
        if bare:
            position += 8
            if 16 <= length < UNDEFINED and self._tag(self._data, position)[:2] == (0xFFFE, 0xE000):
                return b"SQ", length, position
            return b"", length, position
        _, _, kind, short = self._head(self._data, position)
        if kind in LONG:
            return kind, int(self._long(self._data, position + 8)[0]), position + 12
        return kind, int(short), position + 8


# -- functional groups -------------------------------------------------------------------------------------------------


def items(data: bytes, encoding: Encoding, limits: Limits) -> list[bytes]:
    """The items of a sequence's value (as kept in `Header.values`)."""
    tag = struct.Struct(encoding.order + "HHL").unpack_from
    found: list[bytes] = []
    walker = Walker(data, encoding, limits)
    position = 0
    try:
        while position + 8 <= len(data):
            group, element, length = tag(data, position)
            if (group, element) != (0xFFFE, 0xE000):
                break
            position += 8
            end = walker.item_end(position) if length == UNDEFINED else position + length
            found.append(data[position : min(end, len(data))])
            position = end + (8 if length == UNDEFINED else 0)
    except struct.error:
        raise InputError(DAMAGED + "a sequence is cut short") from None
    return found


def inside(item: bytes, encoding: Encoding, limits: Limits) -> dict[int, bytes]:
    """Raw values by tag of the elements of one item."""
    walker = Walker(item, encoding, limits)
    try:
        return {tag: item[begin : walker.next] for tag, begin, _ in walker.elements(0, len(item))}
    except struct.error:
        raise InputError(DAMAGED + "a sequence is cut short") from None


def header_too_large(limits: Limits) -> LimitError:
    """The refusal of a header that is longer than allowed."""
    return LimitError("a DICOM header is too large", limit="max_header_bytes", value=limits.max_header_bytes)
