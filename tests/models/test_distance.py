"""The distance transform against edt's and SciPy's, and that it leaves the interpreter to others."""

from __future__ import annotations

import math
import threading
import time

import edt
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from isocenter.models._distance import distance

SIDES = st.floats(0.1, 8).map(lambda s: round(s, 3))
MASKS = arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=20), elements=st.booleans(), fill=st.booleans())


@given(MASKS, st.tuples(SIDES, SIDES, SIDES))
def test_equals_scipy(mask: np.ndarray, spacing: tuple[float, float, float]) -> None:
    ours = distance(mask, spacing)
    if mask.all():
        assert np.isinf(ours).all()  # nothing to be far from
    else:
        np.testing.assert_allclose(ours, ndimage.distance_transform_edt(mask, sampling=spacing), rtol=1e-5)


@given(MASKS, st.tuples(SIDES, SIDES, SIDES), st.floats(0.1, 30))
def test_both_sides_and_a_cap(mask: np.ndarray, spacing: tuple[float, float, float], cap: float) -> None:
    ours = distance(mask, spacing, cap, both=True)
    peer = np.maximum(distance(mask, spacing), distance(~mask, spacing))
    np.testing.assert_allclose(ours, np.minimum(peer, np.float32(cap)), rtol=1e-5)


def test_equals_edt_on_smooth_shapes_of_any_layout() -> None:
    random = np.random.default_rng(4)
    for blur, spacing in ((1.0, (1.0, 1.0, 1.0)), (3.0, (5.0, 0.7, 0.7)), (6.0, (0.8, 0.8, 2.5))):
        mask = ndimage.gaussian_filter(random.normal(size=(40, 70, 55)), blur) > 0
        for view in (mask, mask.transpose(2, 0, 1), mask[::-1, ::2, 1:]):
            peer = edt.edt(np.ascontiguousarray(view), anisotropy=spacing, black_border=False)
            np.testing.assert_allclose(distance(view, spacing), peer, rtol=1e-5)


def test_nothing_and_everything() -> None:
    assert not distance(np.zeros((3, 4, 5), bool), (1, 1, 1)).any()
    assert (distance(np.ones((3, 4, 5), bool), (1, 1, 1), 7.0) == 7).all()
    assert distance(np.zeros((0, 4, 5), bool), (1, 1, 1)).shape == (0, 4, 5)
    assert math.isinf(distance(np.ones((1, 1, 1), np.uint8), (1, 1, 1))[0, 0, 0])


def test_others_may_run_meanwhile() -> None:
    # A thread that counts gets on while the transform runs: were the interpreter held, it would stand still until the end.
    mask = np.ones((160, 160, 160), bool)
    mask[80, 80, 80] = False
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = counted[0]
        distance(mask, (1.0, 1.0, 1.0))
        during = counted[0] - before
    finally:
        stop.set()
        thread.join()
    assert during > 20
