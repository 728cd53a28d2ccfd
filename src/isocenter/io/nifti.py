"""NIfTI-1 and NIfTI-2, `.nii` and `.nii.gz`, in and out.

An array is (z, y, x) of the file's own (i, j, k) = (x, y, z): nothing is turned round, so a click's x, y, z are the
file's i, j, k. RAS, NIfTI's frame, is left in `nifti_header`.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError, LimitError
from isocenter.core.geometry import Grid
from isocenter.core.rescaled import Rescaled, Voxels, fits
from isocenter.core.settings import Limits
from isocenter.core.volume import Source, Volume
from isocenter.io import gz, raw
from isocenter.io import nifti_header as headers
from isocenter.io.nifti_header import Header
from isocenter.io.wire_mask import WireMask as WireMask
from isocenter.io.wire_mask import write_wire as write_wire


def read(file: BinaryIO, size: int, *, limits: Limits) -> Volume:
    """The volume in a NIfTI file of `size` bytes; `file` is seekable and stands at its start.

    The header is checked before anything is allocated, and never more is inflated than it declares. Integers stay
    integers where the scaling allows; small ones with a fractional scaling stay as they are stored (`Rescaled`); everything
    else becomes float32. Raises `InputError` and its kinds.
    """
    packed = file.read(2) == gz.MAGIC
    file.seek(0)
    stream: raw.Stream = gz.Inflater(file) if packed else raw.Plain(file)
    start = stream.read(headers.V1.itemsize)
    if headers.is_long(start):
        start += stream.read(headers.V2.itemsize - len(start))
    header = headers.parse(start)
    if header.offset > limits.max_header_bytes:
        raise LimitError(f"the header declares {header.offset} bytes before the voxels", limit="max_header_bytes", value=limits.max_header_bytes)
    raw.check_declared(header.voxels, header.offset + header.nbytes, size * gz.MAX_RATIO if packed else size, limits)
    stream.skip(header.offset - len(start))
    voxels, notes = _voxels(stream, header)
    stream.check()
    source = Source("nifti", header.notes + notes, header.raw, scale=header.scale)
    return Volume.on_grid(voxels, header.grid, source=source)


def _voxels(stream: raw.Stream, header: Header) -> tuple[Voxels, tuple[str, ...]]:
    """The voxels (z, y, x), as small as they can be kept; notes."""
    if header.is_scaled and not header.channels and not _stays_integer(header) and fits(header.kind, header.slope, header.inter):
        return Rescaled(raw.numbers(stream, header.voxels, header.kind).reshape(header.shape), header.slope, header.inter), ()
    flat, notes = _flat(stream, header)
    return flat.reshape(header.shape), notes


def _stays_integer(header: Header) -> bool:
    return header.kind.kind in "iu" and header.slope.is_integer() and header.inter.is_integer()


def _flat(stream: raw.Stream, header: Header) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """The voxels in file order; notes."""
    if header.channels or not header.is_scaled:
        return raw.voxels(stream, header.voxels, header.kind, header.channels or 1)
    if _stays_integer(header):
        return raw.clean(_rescale_integers(raw.numbers(stream, header.voxels, header.kind), int(header.slope), int(header.inter)))
    return raw.clean(_scaled(stream, header))


def _scaled(stream: raw.Stream, header: Header) -> NDArray[np.generic]:
    """Voxels times slope plus inter as floating point numbers, without a whole copy in between."""
    double = header.kind.kind == "f" and header.kind.itemsize == 8
    out = raw.allocate(header.voxels, np.float64 if double else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for where, piece in raw.pieces(stream, header.voxels, header.kind.itemsize):
            out[where] = piece.view(header.kind).astype(np.float64) * header.slope + header.inter
    return out


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
    out = raw.allocate(array.size, kind)
    for start in range(0, array.size, raw.STEP):
        piece = array[start : start + raw.STEP]
        with np.errstate(over="ignore"):
            out[start : start + raw.STEP] = piece.astype(np.float64) * slope + inter
    return out


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
    # Noise hardly packs, so a scan gets the quickest level (3 % larger); a mask packs best at 2 and costs nothing either way.
    return gz.compress(head, voxels, level=level if level is not None else 2 if array.dtype.itemsize == 1 else 1)
