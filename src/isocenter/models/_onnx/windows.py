"""Overlapping windows, blended: the sum of weighted scores is kept for as many slices as one window is deep, and no more."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import ModelError
from isocenter.core.model import Run
from isocenter.models._onnx import kernels
from isocenter.models._onnx.config import Shape
from isocenter.models._onnx.sink import NOT_A_NUMBER

if TYPE_CHECKING:
    from isocenter.models._onnx.threads import Threads

#: Width of the Gaussian as a part of the window, and its floor as a part of its peak.
SIGMA, FLOOR = 0.125, 1e-3


class Taker(Protocol):
    """What takes finished slices, as `Sink` does."""

    def put(self, scores: NDArray[np.float32], places: Sequence[int], total: NDArray[np.float32] | None = None) -> None: ...


class Network(Protocol):
    """What turns (1, 1, z, y, x) into scores (1, classes, z, y, x)."""

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]: ...


def starts(size: int, window: int, step: float, *, even: bool = True) -> list[int]:
    """Where windows begin along an axis of `size` >= `window` voxels, so that every voxel is in one.

    even: spread evenly, at most `step` of a window apart (nnU-Net); else each a whole step on, the last one moved back (MONAI).
    """
    room = size - window
    if even:
        count = math.ceil(room / max(window * step, 1)) + 1
        return [round(room * i / max(count - 1, 1)) for i in range(count)]
    stride = max(int(window * step), 1)
    return [min(i * stride, room) for i in range(math.ceil(room / stride) + 1)]


def weights(window: Shape, *, gaussian: bool = True) -> NDArray[np.float32]:
    """How much each voxel (z, y, x) of a window counts: most in the middle, where the network sees what is around."""
    if not gaussian:
        return np.ones(window, np.float32)
    lines = [np.exp(-0.5 * np.square((np.arange(n) - (n - 1) / 2) / (SIGMA * n))) for n in window]
    product = lines[0][:, None, None] * lines[1][:, None] * lines[2]
    floor = max(float(product.min()), FLOOR)
    weight: NDArray[np.float32] = np.maximum(product, floor).astype(np.float32)
    return weight


def flips(axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All ways to mirror along some of `axes`, none among them."""
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


def slab_axis(shape: Shape, window: Shape) -> int:
    """The axis, z or y, along which the fewest scores are held at a time."""
    held = [window[axis] * math.prod(shape) // shape[axis] for axis in (0, 1)]
    return int(held[1] < held[0])


class Blend:
    """One pass of windows over a volume.

    work: (z, y, x), not smaller than the window. axis: 0 or 1, the axis of the slabs, which is the sink's first. flat: the
    network sees slice by slice, so windows overlap within slices only and all slices of one weigh the same.
    """

    def __init__(
        self, work: NDArray[np.float32], window: Shape, axis: int, network: Network, sink: Taker, threads: Threads, *, flat: bool = False
    ) -> None:
        self._flat = flat
        self._work, self._window, self._axis = work, window, axis
        self._network, self._sink, self._threads = network, sink, threads
        self._ring, self._total = np.empty((0, 0, 0, 0), np.float32), np.empty((0, 0, 0), np.float32)
        self._begun = 0

    def run(self, step: float, *, gaussian: bool, even: bool, mirror: tuple[int, ...], run: Run) -> None:
        """Predict all windows. Raises `ModelError` for scores of another shape than asked for, or that are no numbers."""
        weight = weights((1, *self._window[1:]) if self._flat else self._window, gaussian=gaussian)
        if self._flat:
            weight = np.repeat(weight, self._window[0], 0)
        a, b = self._axis, 1 - self._axis
        along = [starts(n, w, step, even=even) for n, w in zip(self._work.shape, self._window, strict=True)]
        if self._flat:
            along[0] = starts(self._work.shape[0], self._window[0], 1.0)
        ways = flips(mirror)
        total, done, finished = math.prod(map(len, along)) * len(ways), 0, 0
        for index, a0 in enumerate(along[a]):
            for b0, x0 in itertools.product(along[b], along[2]):
                z0, y0 = (b0, a0) if a else (a0, b0)
                place = tuple(slice(s, s + w) for s, w in zip((z0, y0, x0), self._window, strict=True))
                for way in ways:
                    # No name is kept for the scores: they are gone before the next ones are computed.
                    self._add(self._predict(self._work[place], way), weight, (a0, b0, x0))
                    done += 1
                    run.check(done / total, f"window {done} of {total}")
            following = along[a][index + 1] if index + 1 < len(along[a]) else self._work.shape[a]
            self._finish(finished, following)
            finished = following

    def _predict(self, patch: NDArray[np.float32], way: tuple[int, ...]) -> NDArray[np.float32]:
        """Scores (C, z, y, x) of one window, mirrored along the axes of `way` and back."""
        image = np.ascontiguousarray(np.flip(patch, way))[None, None]
        scores = self._network.run(image)
        if scores.shape[2:] != patch.shape:
            raise ModelError(f"the network answers {patch.shape} voxels with {scores.shape[2:]}; only networks that keep the size can be used")
        return np.ascontiguousarray(np.flip(scores[0], tuple(axis + 1 for axis in way)))

    def _add(self, scores: NDArray[np.float32], weight: NDArray[np.float32], begin: tuple[int, int, int]) -> None:
        a, b = self._axis, 1 - self._axis
        if not self._ring.size:
            shape = (self._window[a], self._work.shape[b], self._work.shape[2])
            self._ring = np.zeros((len(scores), *shape), np.float32)
            self._total = np.zeros(shape, np.float32)
        length = self._ring.shape[1]
        for slice_ in range(max(self._begun, begin[0]), begin[0] + self._window[a]):
            if slice_ >= length:  # the place was used before
                self._ring[:, slice_ % length] = 0
                self._total[slice_ % length] = 0
            self._begun = slice_ + 1
        fine: list[bool] = []

        def part(ends: tuple[int, int]) -> None:
            fine.append(kernels.accumulate(scores, weight, self._ring, self._total, *begin, bool(a), *ends))

        self._threads.each(part, self._threads.parts(scores.shape[1]))
        if not all(fine):
            raise ModelError(NOT_A_NUMBER)

    def _finish(self, first: int, last: int) -> None:
        length = self._ring.shape[1]
        self._sink.put(self._ring, [slice_ % length for slice_ in range(first, last)], self._total)
