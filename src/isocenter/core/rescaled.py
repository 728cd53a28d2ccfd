"""Voxels that are kept as the integers they were stored as, with the line that maps them to what they mean."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Rescaled:
    """`stored * slope + inter` as float32, computed where it is looked at: half the memory of float32 for 16-bit scans.

    Indexed and iterated like a (z, y, x) array, it gives new float32 arrays; `whole` gives all of it. The arithmetic is in
    float64, so every way of asking gives the same numbers. stored: integers, C-contiguous, native byte order.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, stored: NDArray[np.generic], slope: float, inter: float) -> None:
        self.stored = stored.view()
        self.stored.flags.writeable = False
        self.slope, self.inter = slope, inter
        self._whole: weakref.ref[NDArray[np.float32]] | None = None

    def __getstate__(self) -> tuple[NDArray[np.generic], float, float]:
        return self.stored, self.slope, self.inter

    def __setstate__(self, state: tuple[NDArray[np.generic], float, float]) -> None:
        self.__init__(*state)  # type: ignore[misc] # the weak reference stays behind

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels (z, y, x)."""
        return self.stored.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.stored.ndim

    @property
    def size(self) -> int:
        """Number of voxels."""
        return self.stored.size

    @property
    def nbytes(self) -> int:
        """Memory that is held."""
        return self.stored.nbytes

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        return self._real(np.asarray(self.stored[index]))

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self._real(plane) for plane in self.stored)

    def every(self, step: int) -> NDArray[np.float32]:
        """Each `step`-th voxel in the order of memory."""
        return self._real(self.stored.reshape(-1)[::step])

    def whole(self) -> NDArray[np.float32]:
        """All voxels, read-only. One array serves all who ask while one of them still holds it; nothing else keeps it."""
        known = self._whole() if self._whole is not None else None
        if known is None:
            known = np.empty(self.shape, np.float32)
            for out, plane in zip(known, self.stored, strict=True):
                out[...] = self._real(plane)
            known.flags.writeable = False
            self._whole = weakref.ref(known)
        return known

    def _real(self, part: NDArray[np.generic]) -> NDArray[np.float32]:
        return (part.astype(np.float64) * self.slope + self.inter).astype(np.float32)


Voxels = NDArray[np.generic] | Rescaled


def fits(kind: np.dtype[np.generic], slope: float, inter: float) -> bool:
    """Whether integers of `kind` are smaller than what they mean, and none of them leaves float32's range."""
    if kind.kind not in "iu" or kind.itemsize > 2:
        return False
    bounds: Any = np.iinfo(kind.str)
    ends = (int(bounds.min), int(bounds.max))
    return all(abs(end * slope + inter) <= float(np.finfo(np.float32).max) for end in ends)


def every(voxels: Voxels, step: int) -> NDArray[np.generic]:
    """Each `step`-th voxel in the order of memory."""
    if isinstance(voxels, Rescaled):
        return voxels.every(step)
    part: NDArray[np.generic] = voxels.reshape(-1)[::step]
    return part
