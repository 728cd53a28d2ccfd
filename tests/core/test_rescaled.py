"""Voxels kept as stored integers: every way of asking gives the same numbers, and nothing larger is kept."""

from __future__ import annotations

import pickle
import weakref
from dataclasses import replace

import numpy as np
import pytest

from isocenter.core.rescaled import Rescaled, every, fits
from isocenter.core.volume import Volume

STORED = np.random.default_rng(0).integers(-1000, 3000, (5, 6, 7)).astype(np.int16)
SLOPE, INTER = 0.3, -12.7
TRUTH = (STORED.astype(np.float64) * SLOPE + INTER).astype(np.float32)


def volume() -> Volume:
    return Volume(Rescaled(STORED, SLOPE, INTER), (1.0, 2.0, 3.0))


def test_parts_planes_samples_and_the_whole_are_the_same_numbers() -> None:
    made = volume()
    np.testing.assert_array_equal(made.array, TRUTH)
    np.testing.assert_array_equal(np.stack(list(made.voxels)), TRUTH)
    np.testing.assert_array_equal(made.voxels[1:3, ::2, 4], TRUTH[1:3, ::2, 4])
    np.testing.assert_array_equal(made.voxels[STORED > 0], TRUTH[STORED > 0])
    np.testing.assert_array_equal(every(made.voxels, 5), TRUTH.reshape(-1)[::5])
    assert made.dtype == made.array.dtype == np.float32
    assert made.shape == made.voxels.shape == (5, 6, 7)
    assert made.nbytes == STORED.nbytes
    assert len(made.voxels) == 5
    assert made.voxels.size == STORED.size


def test_the_whole_is_shared_while_it_is_held_and_not_longer() -> None:
    made = volume()
    other = made.with_modality("CT", "HU")
    held = made.array
    assert other.array is held
    assert not held.flags.writeable
    gone = weakref.ref(held)
    del held
    assert gone() is None
    np.testing.assert_array_equal(other.array, TRUTH)


def test_the_key_knows_the_line_and_not_the_modality() -> None:
    made = volume()
    assert made.key == volume().key == made.with_modality("MR", "a.u.").key
    assert replace(made, voxels=Rescaled(STORED, SLOPE, INTER + 1), key="").key != made.key
    assert Volume(STORED, (1.0, 2.0, 3.0)).key != made.key


def test_it_travels_to_another_process_as_it_is_stored() -> None:
    made = volume()
    whole = made.array
    packed = pickle.dumps(made)
    again = pickle.loads(packed)
    assert again.nbytes == STORED.nbytes
    np.testing.assert_array_equal(again.array, whole)


@pytest.mark.parametrize(
    ("kind", "slope", "inter", "expected"),
    [("i2", 0.5, 0, True), ("u1", 0.5, 3, True), ("u2", 1e33, 0, True), ("u2", 1e34, 0, False), ("i4", 0.5, 0, False), ("f4", 0.5, 0, False)],
)
def test_only_small_integers_that_stay_in_range(kind: str, slope: float, inter: float, expected: bool) -> None:
    assert fits(np.dtype(kind), slope, inter) is expected
