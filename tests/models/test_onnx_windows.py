"""Windows, their weights and the sum of them, against MONAI's sliding window and against plain sums."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from isocenter.core.errors import CancelledError, ModelError
from isocenter.core.model import QUIET, ModelContext, Run
from isocenter.models._onnx import windows
from isocenter.models._onnx.engine import OrtEngine
from isocenter.models._onnx.sink import Sink
from isocenter.models._onnx.threads import Threads
from tests.models import onnx_networks as nets

THREADS = Threads(2)


class Kept(Sink):
    """A sink that keeps the scores themselves."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(shape, [(0, 0)] * 3, np.zeros(shape, np.uint8), 0.5, None, THREADS)
        self.scores = np.full((classes, *shape), np.nan, np.float32)
        self._at = 0

    def put(self, scores: NDArray[np.float32], places: Any, total: NDArray[np.float32] | None = None) -> None:
        super().put(scores, places, total)
        for place in places:
            self.scores[:, self._at] = scores[:, place]
            self._at += 1


def blended(network: Any, work: NDArray[np.float32], patch: tuple[int, int, int], axis: int, classes: int, **how: Any) -> Kept:
    shape = work.shape if axis == 0 else (work.shape[1], work.shape[0], work.shape[2])
    sink = Kept(shape, classes)
    how = {"gaussian": True, "even": False, "mirror": (), "run": QUIET, "step": 0.5, **how}
    windows.Blend(work, patch, axis, network, sink, THREADS).run(how.pop("step"), **how)
    return sink


@pytest.mark.parametrize(("shape", "overlap"), [((40, 33, 52), 0.5), ((24, 24, 24), 0.5), ((57, 24, 30), 0.25), ((31, 45, 26), 0.75)])
def test_equal_to_monai(tmp_path: Path, shape: tuple[int, int, int], overlap: float) -> None:
    torch = pytest.importorskip("torch")
    inferers = pytest.importorskip("monai.inferers")
    engine = OrtEngine(nets.unet(classes=4), ModelContext(threads=2), 1)
    work = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    patch = (24, 24, 24)
    network = lambda x: torch.from_numpy(engine.run(x.numpy()))  # noqa: E731
    theirs = inferers.sliding_window_inference(torch.from_numpy(work)[None, None], patch, 1, network, overlap=overlap, mode="gaussian")[0].numpy()
    for axis in (0, 1):
        kept = blended(engine, work, patch, axis, 4, step=1 - overlap)
        ours = kept.scores if axis == 0 else kept.scores.swapaxes(1, 2)
        assert np.abs(ours - theirs).max() <= 1e-4
        labels = kept._target if axis == 0 else kept._target.swapaxes(0, 1)
        ordered = np.sort(theirs, 0)
        clear = ordered[-1] - ordered[-2] > 1e-4
        assert clear.mean() > 0.99
        assert np.array_equal(labels[clear], theirs.argmax(0)[clear])


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.05, 1), st.booleans())
def test_windows_cover_everything_and_stay_inside(size: int, window: int, step: float, even: bool) -> None:
    size = max(size, window)
    begins = windows.starts(size, window, step, even=even)
    assert begins[0] == 0
    assert begins[-1] == size - window
    assert all(0 < b - a <= window for a, b in itertools.pairwise(begins))


def test_evenly_spread_windows_are_nnunets() -> None:
    tools = pytest.importorskip("nnunetv2.inference.sliding_window_prediction")
    for size in range(20, 90, 7):
        for step in (0.3, 0.5, 1.0):
            theirs = tools.compute_steps_for_sliding_window((size, size, 40), (20, 20, 20), step)
            assert windows.starts(size, 20, step) == list(theirs[0])
            assert windows.starts(40, 20, step) == list(theirs[2])


def test_mirroring_is_the_mean_over_all_ways() -> None:
    engine = OrtEngine(nets.unet(classes=3), ModelContext(threads=2), 1)
    work = np.random.default_rng(2).normal(size=(16, 16, 16)).astype(np.float32)
    ways = [(), (0,), (2,), (0, 2)]
    mean = np.mean([np.flip(engine.run(np.ascontiguousarray(np.flip(work, w))[None, None])[0], tuple(a + 1 for a in w)) for w in ways], 0)
    assert np.abs(blended(engine, work, (16, 16, 16), 0, 3, mirror=(0, 2)).scores - mean).max() < 1e-5


def test_cancelling_stops_within_one_window() -> None:
    calls = []

    class Counted:
        def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
            calls.append(1)
            return np.repeat(image, 2, 1)

    work = np.zeros((64, 64, 64), np.float32)
    with pytest.raises(CancelledError):
        blended(Counted(), work, (16, 16, 16), 0, 2, run=Run(cancelled=lambda: len(calls) >= 3))
    assert len(calls) == 3


def test_progress_rises_to_the_end() -> None:
    told: list[float] = []
    engine = OrtEngine(nets.pointwise(2), ModelContext(), 1)
    blended(engine, np.zeros((24, 16, 16), np.float32), (16, 16, 16), 0, 2, run=Run(progress=lambda f, _: told.append(f)))
    assert told == sorted(told)
    assert told[-1] == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(0, 0, 0, 0, 0), (0, 1, 7, 15, 3), (0, 2, 15, 15, 15)])
def test_scores_that_are_no_numbers_are_refused(bad: float, where: tuple[int, ...]) -> None:
    class Broken:
        def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
            scores = np.zeros((1, 3, *image.shape[2:]), np.float32)
            scores[where] = bad
            return scores

    with pytest.raises(ModelError, match="no numbers"):
        blended(Broken(), np.zeros((16, 16, 16), np.float32), (16, 16, 16), 0, 3)


def test_a_network_that_changes_the_size_is_refused() -> None:
    class Smaller:
        def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
            return image[:, :, 1:-1]

    with pytest.raises(ModelError, match="keep the size"):
        blended(Smaller(), np.zeros((16, 16, 16), np.float32), (16, 16, 16), 0, 1)


def test_only_a_window_of_slices_is_held() -> None:
    """A long, thin volume of many classes: the sum of scores is as deep as one window, along the axis that holds least."""
    assert windows.slab_axis((300, 512, 512), (64, 64, 64)) == 1
    assert windows.slab_axis((512, 300, 512), (64, 64, 64)) == 0
    engine = OrtEngine(nets.pointwise(5), ModelContext(), 1)
    work = np.random.default_rng(0).uniform(0, 4, (64, 16, 16)).astype(np.float32)
    sink = Kept((64, 16, 16), 5)
    blend = windows.Blend(work, (16, 16, 16), 0, engine, sink, THREADS)
    blend.run(0.5, gaussian=True, even=True, mirror=(), run=QUIET)
    assert blend._ring.shape == (5, 16, 16, 16)
    assert np.array_equal(sink._target, np.rint(work))
