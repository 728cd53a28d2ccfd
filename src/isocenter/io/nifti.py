"""NIfTI-1 and NIfTI-2, `.nii` and `.nii.gz`, in and out.

An array is (z, y, x) of the file's own (i, j, k) = (x, y, z): nothing is turned round, so a click's x, y, z are the
file's i, j, k. RAS, NIfTI's frame, is left in `nifti_header`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError, InputError, LimitError, MemoryLimitError
from isocenter.core.geometry import Grid
from isocenter.core.settings import Limits
from isocenter.core.volume import Source, Volume
from isocenter.io import gz
from isocenter.io import nifti_header as headers
from isocenter.io.nifti_header import Header
from isocenter.io.wire_mask import WireMask as WireMask
from isocenter.io.wire_mask import write_wire as write_wire

#: Bytes handled at once: small enough for the processor's cache and for nobody's memory to notice.
STEP = 2 << 20
_SHORT = "the file is cut short: it holds fewer voxels than its header declares"


class _Plain:
    """A file that is not packed, behind the same methods as `gz.Inflater`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readinto(self, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer) and (count := self._file.readinto(buffer[done:])):  # type: ignore[attr-defined]
            done += count
        return done

    def read(self, count: int) -> bytes:
        return self._file.read(count)

    def skip(self, count: int) -> None:
        self._file.seek(count, 1)

    def check(self) -> None:
        """There is no checksum."""


_Stream = _Plain | gz.Inflater


def read(file: BinaryIO, size: int, *, limits: Limits) -> Volume:
    """The volume in a NIfTI file of `size` bytes; `file` is seekable and stands at its start.

    The header is checked before anything is allocated, and never more is inflated than it declares. Integers stay
    integers where the scaling allows; everything else becomes float32. Raises `InputError` and its kinds.
    """
    packed = file.read(2) == gz.MAGIC
    file.seek(0)
    stream: _Stream = gz.Inflater(file) if packed else _Plain(file)
    raw = stream.read(headers.V1.itemsize)
    if raw[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c"):
        raw += stream.read(headers.V2.itemsize - len(raw))
    header = headers.parse(raw)
    _check_size(header, size, packed, limits)
    stream.skip(header.offset - len(raw))
    try:
        flat, notes = _voxels(stream, header)
    except MemoryError:
        raise MemoryLimitError(f"there is no memory for {header.voxels} voxels") from None
    stream.check()
    source = Source("nifti", header.notes + notes, header.raw)
    return Volume.on_grid(flat.reshape(header.shape), header.grid, source=source)


def _check_size(header: Header, size: int, packed: bool, limits: Limits) -> None:
    """Hold what the header declares against the limits and against the bytes that are there."""
    if header.voxels > limits.max_voxels:
        raise LimitError(f"the header declares {header.voxels} voxels", limit="max_voxels", value=limits.max_voxels)
    if header.offset > limits.max_header_bytes:
        raise LimitError(f"the header declares {header.offset} bytes before the voxels", limit="max_header_bytes", value=limits.max_header_bytes)
    if header.offset + header.nbytes > (size * gz.MAX_RATIO if packed else size):
        raise InputError(_SHORT)


def _voxels(stream: _Stream, header: Header) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """The voxels in file order; notes."""
    if header.channels:
        return _luminance(stream, header), ("The image is in colour; its brightness was taken.",)
    integral = header.kind.kind in "iu" and header.slope.is_integer() and header.inter.is_integer() and abs(header.slope) < 2**31
    if header.is_scaled and not integral:
        return _scaled(stream, header), ()
    array = np.empty(header.voxels, header.kind)
    _fill(stream, array.view(np.uint8).data)
    if not header.kind.isnative:
        array = array.byteswap(inplace=True).view(header.kind.newbyteorder("="))
    if header.is_scaled:
        return _rescale_integers(array, int(header.slope), int(header.inter)), ()
    return _clean(array)


def _fill(stream: _Stream, target: memoryview) -> None:
    """Read into `target`, to its end."""
    if stream.readinto(target) < len(target):
        raise InputError(_SHORT)


def _pieces(stream: _Stream, count: int, width: int) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """`count` voxels of `width` bytes, a piece at a time: which they are, and their bytes (the buffer is used again)."""
    step = STEP // width
    buffer = np.empty(min(step, count) * width, np.uint8)
    for start in range(0, count, step):
        stop = min(start + step, count)
        piece = buffer[: (stop - start) * width]
        _fill(stream, piece.data)
        yield slice(start, stop), piece


def _luminance(stream: _Stream, header: Header) -> NDArray[np.uint8]:
    """Brightness of colour voxels (ITU-R BT.601, as Pillow has it)."""
    out = np.empty(header.voxels, np.uint8)
    for where, piece in _pieces(stream, header.voxels, header.channels):
        rgb = piece.reshape(-1, header.channels)[:, :3].astype(np.uint32)
        out[where] = (rgb @ np.array([19595, 38470, 7471], np.uint32) + 0x8000) >> 16
    return out


def _scaled(stream: _Stream, header: Header) -> NDArray[np.generic]:
    """Voxels times slope plus inter as floating point numbers, without a whole copy in between."""
    double = header.kind.kind == "f" and header.kind.itemsize == 8
    out: NDArray[np.floating] = np.empty(header.voxels, np.float64 if double else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for where, piece in _pieces(stream, header.voxels, header.kind.itemsize):
            out[where] = piece.view(header.kind).astype(np.float64) * header.slope + header.inter
    return _clean(out)[0]


def _rescale_integers(array: NDArray[np.generic], slope: int, inter: int) -> NDArray[np.generic]:
    """`array * slope + inter` in the smallest integer type that holds it and is not narrower; in place where possible."""
    ends = sorted(int(end) * slope + inter for end in (array.min(), array.max()))
    width = array.dtype.itemsize
    same = [array.dtype, np.dtype(f"{'u' if array.dtype.kind == 'i' else 'i'}{width}")]
    kinds = same + [np.dtype(name) for name in ("i2", "i4") if np.dtype(name).itemsize > width]
    kind = next((k for k in kinds if np.iinfo(k).min <= ends[0] and ends[1] <= np.iinfo(k).max), None)
    if kind is None:
        return _piecewise(array, np.dtype(np.float32), float(slope), float(inter))
    if kind.itemsize > width:
        return _piecewise(array, kind, slope, inter)
    # Integers of one width wrap round alike, whatever their sign: computed modulo 2**bits, then read as `kind`.
    bits: NDArray[np.unsignedinteger] = array.view(f"u{width}")
    modulus = 1 << (8 * width)
    bits *= bits.dtype.type(slope % modulus)
    bits += bits.dtype.type(inter % modulus)
    rescaled: NDArray[np.generic] = bits.view(kind)
    return rescaled


def _piecewise(array: NDArray[np.generic], kind: np.dtype[np.generic], slope: float, inter: float) -> NDArray[np.generic]:
    out = np.empty(array.size, kind)
    for start in range(0, array.size, STEP):
        piece = array[start : start + STEP]
        out[start : start + STEP] = piece.astype(np.float64) * slope + inter
    return out


def _clean(array: NDArray[np.generic]) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """Put the smallest number in place of those that are none: no model can count with them, and paddings mean "nothing"."""
    if array.dtype.kind != "f":
        return array, ()
    holes, smallest = 0, np.inf
    for start in range(0, array.size, STEP):
        piece = array[start : start + STEP]
        finite = np.isfinite(piece)
        holes += piece.size - int(np.count_nonzero(finite))
        smallest = min(smallest, float(np.min(piece, where=finite, initial=np.inf)))
    if not holes:
        return array, ()
    if not np.isfinite(smallest):
        raise InputError("no voxel of the file is a finite number")
    for start in range(0, array.size, STEP):
        piece = array[start : start + STEP]
        piece[~np.isfinite(piece)] = smallest
    return array, (f"{holes} voxels were not finite numbers; they were set to the smallest value, {smallest:g}.",)


def write(
    array: NDArray[np.generic], grid: Grid, *, header: bytes | None = None, compress: bool = True, level: int | None = None, description: str = ""
) -> bytes:
    """A NIfTI file of `array` (z, y, x) on `grid`; gzip unless `compress` is off. Equal input gives equal bytes.

    header: that of the NIfTI file which the grid came from: its sform, qform and spacing are repeated bit by bit. level:
    ISA-L's, 0..3. description: at most 79 characters for the header's `descrip`, no patient data.
    """
    if tuple(array.shape) != grid.shape:
        raise GeometryError(f"the array has shape {tuple(array.shape)}, its grid {grid.shape}")
    if header is not None and not headers.parse(header).grid.same_as(grid):
        header = None  # the header belongs to another grid: never write a mask into the wrong place
    array = np.ascontiguousarray(array, dtype=np.uint8 if array.dtype == bool else array.dtype.newbyteorder("<"))
    head = headers.build(array, grid, like=header, description=description)
    voxels = array.reshape(-1).view(np.uint8).data
    if not compress:
        return b"".join((head, voxels))
    return gz.compress(head, voxels, level=2 if level is None else level)
