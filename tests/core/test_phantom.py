"""The phantom: what is painted is what its truth says, in every orientation, and nothing depends on chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from isocenter.core.geometry import reorient
from isocenter.core.phantom import Lesion, Phantom, phantom

SMALL = (48, 64, 64)


@pytest.fixture(scope="module")
def torso() -> Phantom:
    return phantom(SMALL, noise_hu=0)


def inner(mask: np.ndarray, steps: int = 1) -> np.ndarray:
    """Away from partial volume: voxels whose neighbours along all axes are inside too."""
    for _ in range(steps):
        kept = mask.copy()
        for axis, by in itertools.product(range(3), (-1, 1)):
            kept &= np.roll(mask, by, axis)
        mask = kept
    return mask


@pytest.mark.parametrize(
    ("name", "lo", "hi"),
    [
        ("liver", 40, 150),
        ("spleen", 110, 125),
        ("lungs", -900, 60),
        ("fat", -110, -60),
        ("bone", 100, 700),
        ("airways", -1000, -500),
        ("aorta", 145, 155),
        ("lesion_1", 54, 56),
    ],
)
def test_values_fit_the_structures(torso: Phantom, name: str, lo: int, hi: int) -> None:
    values = torso.volume.array[torso.masks[name] if name in ("airways", "bone") else inner(torso.masks[name])]
    assert len(values)
    assert lo <= np.percentile(values, 10) <= np.percentile(values, 90) <= hi


def test_left_is_left_and_down_is_down(torso: Phantom) -> None:
    middle = {name: np.argwhere(mask).mean(axis=0) for name, mask in torso.masks.items()}
    assert middle["lung_left"][2] > middle["lung_right"][2]
    assert middle["spleen"][2] > middle["liver"][2]
    assert middle["spine"][1] > middle["heart"][1]
    assert middle["lungs"][0] > middle["kidneys"][0]


def test_sizes_are_those_of_a_person(torso: Phantom) -> None:
    ml = {name: mask.sum() * torso.volume.grid.voxel_mm3 / 1000 for name, mask in torso.masks.items()}
    for name, lo, hi in (("lungs", 2500, 6000), ("liver", 900, 1900), ("kidney_left", 90, 220), ("spleen", 70, 300), ("heart", 300, 800)):
        assert lo < ml[name] < hi, (name, ml[name])


def test_masks_nest(torso: Phantom) -> None:
    masks = torso.masks
    assert not (masks["lung_left"] & masks["lung_right"]).any()
    assert ((masks["lung_left"] | masks["lung_right"]) == masks["lungs"]).all()
    assert (masks["lesion_1"] <= masks["liver"]).all()
    assert all((mask <= masks["body"]).all() for mask in masks.values())


@pytest.mark.parametrize("orientation", ["RAS", "PIR", "ASL"])
def test_orientations_hold_the_same_patient(torso: Phantom, orientation: str) -> None:
    other = phantom(SMALL, noise_hu=0, orientation=orientation)
    assert other.volume.grid.orientation == orientation
    back = reorient(other.volume.array, other.volume.grid)
    assert (back == torso.volume.array).all()
    assert (reorient(other.masks["liver"], other.volume.grid) == torso.masks["liver"]).all()
    for found in (other, torso):  # the liver lies at the same millimetres
        z, y, x = np.argwhere(found.masks["liver"]).mean(axis=0)
        place = found.volume.grid.affine_lps @ (x, y, z, 1)
        assert place[:3] == pytest.approx((-60, -28, -50), abs=25)


def test_a_seed_fixes_the_noise() -> None:
    one, same, other = (phantom(SMALL, seed=s).volume for s in (1, 1, 2))
    assert one.key == same.key
    assert one.key != other.key


def test_the_noise_is_as_asked(torso: Phantom) -> None:
    liver = inner(torso.masks["liver"] & (torso.volume.array == 108))
    assert np.std(phantom(SMALL, noise_hu=20).volume.array[liver]) == pytest.approx(20, rel=0.1)


def test_lesions_can_be_moved_and_grown() -> None:
    at = (-80.0, -20.0, -45.0)
    small, large = (phantom((96, 96, 96), lesions=[Lesion(at, r)]) for r in (12.0, 18.0))
    ratio = large.masks["lesion_1"].sum() / small.masks["lesion_1"].sum()
    assert ratio == pytest.approx((18 / 12) ** 3, rel=0.1)
    assert not small.masks["lesion_2"].any()


def test_a_shift_moves_the_patient(torso: Phantom) -> None:
    step = torso.volume.spacing[2]
    moved = phantom(SMALL, noise_hu=0, shift_mm=(0, 0, step))
    assert (moved.masks["liver"][1:] == torso.masks["liver"][:-1]).mean() > 0.999
