"""Reading and writing at a place of an open file, whatever other threads do with it.

POSIX has it as one call. Windows has not: there a lock keeps the seek and what follows it together.
"""

from __future__ import annotations

import os
import sys
from threading import Lock

_SEEKING = Lock()


def _pread(descriptor: int, count: int, offset: int) -> bytes:
    with _SEEKING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, count)


def _preadinto(descriptor: int, view: memoryview, offset: int) -> int:
    piece = _pread(descriptor, len(view), offset)
    view[: len(piece)] = piece
    return len(piece)


def _pwrite(descriptor: int, data: bytes | memoryview, offset: int) -> int:
    with _SEEKING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)


if sys.platform == "win32":
    pread, preadinto, pwrite = _pread, _preadinto, _pwrite
else:
    pread, pwrite = os.pread, os.pwrite

    def preadinto(descriptor: int, view: memoryview, offset: int) -> int:
        """Fill `view` (of bytes) from `offset` on, as far as one call goes; how much it was, 0 at the end."""
        return os.preadv(descriptor, [view], offset)
