"""Where the frames of encapsulated pixel data lie (PS3.5 annex A.4): items of a sequence, found without decoding anything."""

from __future__ import annotations

import struct

from isocenter.core.errors import InputError
from isocenter.io.archive import Part

_DAMAGED = "the compressed pixels of an image are damaged: "
#: How a JPEG, JPEG-LS or JPEG 2000 codestream begins.
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")

Pieces = tuple[tuple[int, int], ...]


def frames(part: Part, start: int, count: int) -> list[Pieces]:
    """(offset, length) of the pieces of each of `count` frames whose encapsulated pixels start at `start` of the part."""
    table, fragments = _fragments(part, start, count)
    if count == 1:
        return [tuple(fragments)]
    if len(fragments) == count:
        return [(fragment,) for fragment in fragments]
    if len(table) == count:
        return _by_table(table, fragments)
    groups: list[list[tuple[int, int]]] = []
    for fragment in fragments:
        if part.read(fragment[0], 4).startswith(_STARTS):
            groups.append([])
        if groups:
            groups[-1].append(fragment)
    if len(groups) != count:
        raise InputError(_DAMAGED + "there is another number of frames than declared")
    return [tuple(group) for group in groups]


def _fragments(part: Part, position: int, count: int) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """The basic offset table and all fragments."""
    table: tuple[int, ...] | None = None
    fragments: list[tuple[int, int]] = []
    while True:
        head = part.read(position, 8)
        if len(head) < 8:
            break  # the delimiter is missing; what there is may still be whole
        group, element, length = struct.unpack("<HHL", head)
        position += 8
        if (group, element) == (0xFFFE, 0xE0DD):
            break
        if (group, element) != (0xFFFE, 0xE000):
            raise InputError(_DAMAGED + "something other than fragments")
        if length > part.size - position:
            raise InputError(_DAMAGED + "they are cut short")
        if table is None:
            table = struct.unpack(f"<{length // 4}L", part.read(position, length // 4 * 4)) if length <= 4 * count + 3 else ()
        else:
            fragments.append((position, length))
            if len(fragments) > 64 * count + 1024:
                raise InputError(_DAMAGED + "there are far more fragments than frames")
        position += length
    if not fragments:
        raise InputError(_DAMAGED + "there are none")
    return table or (), fragments


def _by_table(table: tuple[int, ...], fragments: list[tuple[int, int]]) -> list[Pieces]:
    """Frames from the offsets of their first fragments, counted from the first fragment's item tag."""
    first = fragments[0][0] - 8
    groups: list[list[tuple[int, int]]] = []
    starts = set(table)
    for offset, length in fragments:
        if offset - 8 - first in starts:
            groups.append([])
        if groups:
            groups[-1].append((offset, length))
    if len(groups) != len(table):
        raise InputError(_DAMAGED + "the offset table does not fit the fragments")
    return [tuple(group) for group in groups]
