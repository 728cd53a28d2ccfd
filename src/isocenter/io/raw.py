"""Voxels out of a stream of bytes: checked against the header first, read without a second copy, and made finite.

What every format has in common that stores plain numbers behind a header (NIfTI, NRRD, MetaImage).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError, InputError, LimitError, MemoryLimitError, UnsupportedError
from isocenter.core.settings import Limits
from isocenter.core.volume import Scale

#: Bytes handled at once: small enough for the processor's cache and for nobody's memory to notice.
STEP = 2 << 20
#: No position of a voxel lies further away, in mm.
MOST_MM = 1e12
NO_SCALE = "The image does not say how large its pixels are; 1 mm was assumed, so measurements mean nothing."
NO_THICKNESS = "The image does not say how far apart its slices are; 1 mm was assumed, so there are no volumes."
SHORT = "the file is cut short: it holds fewer voxels than its header declares"


class Stream(ABC):
    """Bytes in a row, packed in the file or not."""

    @abstractmethod
    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as there are bytes; returns how many came."""

    @abstractmethod
    def check(self) -> None:
        """Verify the checksum, where there is one and the data end here."""

    def read(self, count: int) -> bytes:
        """Up to `count` bytes."""
        data = bytearray(count)
        return bytes(data[: self.readinto(memoryview(data))])

    def skip(self, count: int) -> None:
        """Let `count` bytes pass."""
        while count > 0:
            got = len(self.read(min(count, STEP)))
            if not got:
                raise InputError(SHORT)
            count -= got


class Plain(Stream):
    """A file that is not packed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as there are bytes; returns how many came."""
        done = 0
        while done < len(buffer) and (count := self._file.readinto(buffer[done:])):  # type: ignore[attr-defined]
            done += count
        return done

    def check(self) -> None:
        """There is no checksum."""

    def skip(self, count: int) -> None:
        """Let `count` bytes pass."""
        self._file.seek(count, 1)


def check_declared(voxels: int, needed: int, available: int, limits: Limits) -> None:
    """Hold what a header declares against the limit and against the bytes there can be, before anything is allocated."""
    if voxels > limits.max_voxels:
        raise LimitError(f"the header declares {voxels} voxels", limit="max_voxels", value=limits.max_voxels)
    if needed > available:
        raise InputError(SHORT)


def check_affine(affine: NDArray[np.float64]) -> None:
    """Refuse a matrix with which one could not even calculate."""
    if not np.isfinite(affine).all() or np.abs(affine).max() > MOST_MM:
        raise GeometryError("the header's position or spacing is not a finite number, or out of all proportion")


def scale_of(given: Sequence[bool]) -> tuple[Scale, tuple[str, ...]]:
    """The scale of an image, and what is to be said of it. given: by axis (x, y and perhaps z), whether its file states the spacing."""
    if not all(given[:2]):
        return "none", (NO_SCALE,)
    if all(given[2:]) and len(given) > 2:
        return "full", ()
    return "plane", (NO_THICKNESS,) if len(given) > 2 else ()


def allocate(count: int, kind: np.dtype[np.generic] | type[np.generic]) -> NDArray[np.generic]:
    """An array of `count` voxels; its memory is taken only where voxels arrive."""
    try:
        return np.empty(count, kind)
    except MemoryError:
        raise MemoryLimitError(f"there is no memory for {count} voxels") from None


def fill(stream: Stream, target: NDArray[np.generic]) -> None:
    """Read into the whole of a one-dimensional array."""
    view = target.view(np.uint8).data
    if stream.readinto(view) < len(view):
        raise InputError(SHORT)


def pieces(stream: Stream, count: int, width: int) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """`count` voxels of `width` bytes, some at a time: which they are, and their bytes (the buffer is used again)."""
    step = max(1, STEP // width)
    buffer = np.empty(min(step, count) * width, np.uint8)
    for start in range(0, count, step):
        stop = min(start + step, count)
        piece = buffer[: (stop - start) * width]
        fill(stream, piece)
        yield slice(start, stop), piece


def numbers(stream: Stream, count: int, kind: np.dtype[np.generic]) -> NDArray[np.generic]:
    """`count` numbers of `kind`, in this machine's byte order."""
    array = allocate(count, kind)
    fill(stream, array)
    if kind.isnative:
        return array
    return array.byteswap(inplace=True).view(kind.newbyteorder("="))


def voxels(stream: Stream, count: int, kind: np.dtype[np.generic], channels: int = 1) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """`count` voxels of one number of `kind`, or of the brightness of several bytes, ready to use; and notes."""
    if channels > 1:
        return luminance(stream, count, channels), ("The image is in colour; its brightness was taken.",)
    return clean(numbers(stream, count, kind))


def luminance(stream: Stream, count: int, channels: int) -> NDArray[np.generic]:
    """Brightness of `count` voxels of 3 or 4 bytes, red, green and blue first (ITU-R BT.601, as Pillow has it)."""
    if channels not in (3, 4):
        raise UnsupportedError(f"voxels of {channels} numbers each; only one number, RGB or RGBA can be read")
    out = allocate(count, np.uint8)
    weights = np.array([19595, 38470, 7471], np.uint32)
    for where, piece in pieces(stream, count, channels):
        out[where] = (piece.reshape(-1, channels)[:, :3].astype(np.uint32) @ weights + 0x8000) >> 16
    return out


def clean(array: NDArray[np.generic]) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """Put the smallest number in place of those that are none, in place, and say so.

    No model can count with NaN and infinity, and as padding they mean "nothing here".
    """
    if array.dtype.kind != "f":
        return array, ()
    starts = range(0, array.size, STEP)
    holes = sum(int(np.count_nonzero(~np.isfinite(array[start : start + STEP]))) for start in starts)
    if not holes:
        return array, ()
    smallest = min(_smallest(array[start : start + STEP]) for start in starts)
    if smallest == np.inf:
        raise InputError("no voxel of the file is a finite number")
    for start in starts:
        piece = array[start : start + STEP]
        piece[~np.isfinite(piece)] = smallest
    return array, (f"{holes} voxels were not finite numbers; they were set to the smallest value, {smallest:g}.",)


def _smallest(piece: NDArray[np.generic]) -> float:
    """The smallest finite number, infinity where there is none."""
    return float(np.min(piece, where=np.isfinite(piece), initial=np.inf))
