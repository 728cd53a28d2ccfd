"""Networks of slices, (N, 1, y, x) to scores (N, classes, y, x): run as volumetric ones whose patch is one slice deep.

What comes as the slices of a volume goes into the network as its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import ModelError
from isocenter.models._onnx.engine import Engine, Image
from isocenter.models._onnx.sink import Sink


class SliceEngine:
    """An engine of slices as one of volumes. For one caller at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._one = engine.image[0] == 1  # exported for one slice at a time
        self.name = engine.name
        self.image = (1, engine.image[1], None, *engine.image[2:])
        self.scores = (1, engine.scores[1], None, *engine.scores[2:])

    def run(self, image: Image) -> Image:
        """See `Engine.run`."""
        slices = image[0, 0][:, None]
        found = np.concatenate([self._run(one[None]) for one in slices]) if self._one and len(slices) > 1 else self._run(slices)
        return np.ascontiguousarray(np.moveaxis(found, 0, 1))[None]

    def _run(self, slices: Image) -> Image:
        found = self._engine.run(slices)
        if found.ndim != 4 or len(found) != len(slices):
            raise ModelError(f"the network answers {len(slices)} slices with an array of shape {found.shape}; it must keep them apart")
        # What an engine answers is valid until its next call.
        return found.copy() if self._one else found

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.close()


class SinkRow:
    """Sinks of stacks that go through a network together: the slices of the first come first."""

    def __init__(self, sinks: Sequence[tuple[Sink, int]]) -> None:
        """sinks: each with how many slices it takes."""
        self._places = [sink for sink, count in sinks for _ in range(count)]
        self._next = 0

    def put(self, scores: NDArray[np.float32], places: Sequence[int], total: NDArray[np.float32] | None = None) -> None:
        """See `Sink.put`."""
        begin = 0
        while begin < len(places):
            sink = self._places[self._next]
            end = begin + 1
            while end < len(places) and self._places[self._next + end - begin] is sink:
                end += 1
            sink.put(scores, places[begin:end], total)
            self._next += end - begin
            begin = end


def depth(count: int, most: int) -> int:
    """How many of `count` slices go at once, at most `most`, so that all goes are nearly alike."""
    return -(-count // -(-count // max(1, most)))
