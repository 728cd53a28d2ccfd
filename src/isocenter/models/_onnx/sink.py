"""The way back: slices of class scores on the network's grid in, labels on the scan's own voxels out, slice by slice.

Never more than a few slices of scores are held. Where both grids are one, a voxel's label is its best class; else scores are
interpolated linearly and the best is chosen on the scan's voxels, which keeps outlines smooth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import ModelError
from isocenter.models._onnx import kernels
from isocenter.models._onnx.config import Shape
from isocenter.models._onnx.resample import linear

if TYPE_CHECKING:
    from isocenter.models._onnx.threads import Threads

NOT_A_NUMBER = "the network answered with values that are no numbers; its weights are damaged, or the scan is not of the kind that it was trained on"


class Sink:
    """Takes slices along the first axis of `shape`, in order, and fills `target`.

    shape: the network's grid (A, B, X), whose margin `pad` (begin, end for each axis) is left out. target: a view of the
    mask in the same axes. thick: the axis along which slices are not interpolated.
    """

    def __init__(
        self, shape: Shape, pad: Sequence[tuple[int, int]], target: NDArray[Any], threshold: float, thick: int | None, threads: Threads
    ) -> None:
        self._target, self._threads, self._threshold = target, threads, threshold
        self._inner = tuple(n - before - after for n, (before, after) in zip(shape, pad, strict=True))
        self._same = self._inner == target.shape
        lines = [linear(n, out, nearest=axis == thick) for axis, (n, out) in enumerate(zip(self._inner, target.shape, strict=True))]
        # Indices on the padded grid, so that no slice needs to be cut.
        self._lines = [(low + np.int32(before), high + np.int32(before), part) for (low, high, part), (before, _) in zip(lines, pad, strict=True)]
        self._margin = [before for before, _ in pad]
        self._next, self._done = 0, 0
        self._last: tuple[NDArray[np.float32], int, NDArray[np.uint16]] | None = None

    def put(self, scores: NDArray[np.float32], places: Sequence[int], total: NDArray[np.float32] | None = None) -> None:
        """The next slices: `scores` (C, n, B, X) at `places` along the second axis; sums that are divided by `total` (n, B, X).

        Sums are divided in place. Raises `ModelError` when a score is not a finite number.
        """
        if not places:
            return
        labels = [np.empty(scores.shape[2:], np.uint16) for _ in places]
        fine = [True] * len(places)
        nothing = np.empty((0, 0), np.float32)

        def choose(i: int) -> None:
            weights = nothing if total is None else total[places[i]]
            fine[i] = kernels.choose(scores, places[i], weights, total is not None, self._threshold, labels[i])

        self._threads.each(choose, range(len(places)))
        if not all(fine):
            raise ModelError(NOT_A_NUMBER)
        known = {self._next + i: (scores, place, plane) for i, (place, plane) in enumerate(zip(places, labels, strict=True))}
        if self._last is not None:
            known[self._next - 1] = self._last
        self._next += len(places)
        if self._same:
            self._copy(known)
            return
        self._between(known)
        # A copy: whoever made the scores writes over them next.
        self._last = np.ascontiguousarray(scores[:, places[-1] : places[-1] + 1].copy()), 0, labels[-1]

    def _copy(self, known: dict[int, tuple[NDArray[np.float32], int, NDArray[np.uint16]]]) -> None:
        a, b, x = self._margin
        for slice_, (_, _, plane) in known.items():
            if 0 <= slice_ - a < len(self._target):
                self._target[slice_ - a] = plane[b : b + self._target.shape[1], x : x + self._target.shape[2]]

    def _between(self, known: dict[int, tuple[NDArray[np.float32], int, NDArray[np.uint16]]]) -> None:
        low, high, part = self._lines[0]
        # The first slice of the network's margin may not be known any more: outlines begin inside it.
        stop = int(np.searchsorted(high, self._next, side="left"))

        def work(out: int) -> None:
            near, far = known[int(low[out])], known[int(high[out])]
            plane = np.empty(self._target.shape[1:], np.uint16)
            kernels.blend(*near, *far, part[out], *self._lines[1], *self._lines[2], self._threshold, plane)
            self._target[out] = plane

        self._threads.each(work, range(self._done, stop))
        self._done = stop
