"""The mask as generation 2 of MONAI Label's wire wants it, kept in that order so that a click turns only what changed.

NIfTI-1, uint8, dimensions (3, Z, Y, X), identity affine: the byte of voxel (z, y, x) lies at z + Z * (y + Y * x) after
the 352 bytes of header.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError
from isocenter.core.geometry import Grid
from isocenter.core.prompts import Box, overlap, union
from isocenter.io import gz, nifti_header


class WireMask:
    """A mask of `shape` (z, y, x), empty at first, in the wire's axis order. Not for use by two threads at once.

    `update` patches a box, `gz` packs the file: only the blocks that changed since the last time are packed again.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape
        z, y, x = shape
        #: (x, y, z): the file's order, slowest axis first.
        self._turned = np.zeros((x, y, z), np.uint8)
        #: Where anything may be painted, as a box (z, y, x); None while the mask is empty.
        self._painted: Box | None = None
        # A block is some whole planes of x, about gz.BLOCK bytes.
        self._planes = max(1, gz.BLOCK // (y * z))
        self._blocks: list[tuple[bytes, int, int] | None] = [None] * -(-x // self._planes)

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        return self._turned.nbytes + sum(len(b[0]) for b in self._blocks if b)

    def update(self, mask: NDArray[np.generic], box: Box) -> None:
        """Take over `mask` (z, y, x; not zero is inside) within `box`; outside of it nothing changes."""
        if tuple(mask.shape) != self._shape:
            raise GeometryError(f"the mask has shape {tuple(mask.shape)}, its image {self._shape}")
        found = _bounds(mask, box)
        # What was painted before must be wiped out, too; everything else in the box is and stays empty.
        todo = union(found, overlap(self._painted, box))
        self._painted = union(self._painted, found)
        if todo is None:
            return
        z, y, x = todo.slices
        for row in range(y.start, y.stop):
            # A plane at a time stays in the processor's cache: six times faster than one transposition of it all.
            self._turned[x, row, z] = (mask[z, row, x] != 0).T
        for block in range(x.start // self._planes, (x.stop - 1) // self._planes + 1):
            self._blocks[block] = None

    def gz(self, avoid: Sequence[bytes] = ()) -> bytes:
        """The packed file. It holds none of the byte strings in `avoid`: naive clients cut multipart answers there."""
        for attempt in range(64):
            # Another level changes the packed bytes, another description the checksum at the end.
            level, dots = (2, 1, 3, 0)[attempt % 4], attempt // 4
            packed = self._pack(level, "isocenter" + "." * dots, keep=attempt == 0)
            if not any(text in packed for text in avoid):
                break
        return packed

    def _pack(self, level: int, description: str, *, keep: bool) -> bytes:
        z, y, x = self._shape
        identity = Grid((x, y, z), direction=((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)))
        head = nifti_header.build(self._turned, identity, description=description)
        pieces, checksum, length = [gz.deflate(memoryview(head), level)], isal_zlib.crc32(head), len(head)
        for index, block in enumerate(self._blocks):
            if block is None or not keep:
                data = self._turned[index * self._planes : (index + 1) * self._planes].reshape(-1).data
                block = gz.deflate(data, level), isal_zlib.crc32(data), len(data)
            if keep:
                self._blocks[index] = block
            pieces.append(block[0])
            checksum = isal_zlib.crc32_combine(checksum, block[1], block[2])
            length += block[2]
        return gz.assemble([*pieces, gz.LAST], checksum, length)


def write_wire(mask: NDArray[np.generic], avoid: Sequence[bytes] = ()) -> bytes:
    """The packed wire file of a whole mask (z, y, x)."""
    z, y, x = mask.shape
    whole = WireMask((z, y, x))
    whole.update(mask, Box((0, 0, 0), (z, y, x)))
    return whole.gz(avoid)


def _bounds(mask: NDArray[np.generic], box: Box) -> Box | None:
    """The smallest box around what is not zero inside `box`."""
    part = mask[box.slices]
    planes = np.flatnonzero(np.any(part, axis=(1, 2)))
    if not planes.size:
        return None
    flat = np.asarray(np.any(part[planes[0] : planes[-1] + 1], axis=0), dtype=np.bool_)
    rows, columns = np.flatnonzero(flat.any(axis=1)), np.flatnonzero(flat.any(axis=0))
    z, y, x = box.lo
    lo = (z + int(planes[0]), y + int(rows[0]), x + int(columns[0]))
    return Box(lo, (z + int(planes[-1]) + 1, y + int(rows[-1]) + 1, x + int(columns[-1]) + 1))
