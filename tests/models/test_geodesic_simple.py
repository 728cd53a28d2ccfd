"""What anybody would expect of a click engine: plain shapes with clear edges are found at once, with noise and without.

These are not benchmarks. An engine that answers well on average over organs but leaves half of a bright block behind, or
takes a whole plane for a disc, is broken in its user's eyes.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from isocenter.core.model import ModelContext
from isocenter.core.phantom import Phantom, phantom
from isocenter.core.prompts import Point
from isocenter.core.volume import Volume
from isocenter.models.geodesic import Geodesic


@pytest.fixture(scope="module")
def engine() -> Geodesic:
    model = Geodesic()
    model.load(ModelContext())
    return model


@pytest.fixture(scope="module")
def torso() -> Phantom:
    return phantom((112, 160, 160))


def dice(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    return float(2 * np.sum((a != 0) & (b != 0)) / (np.sum(a != 0) + np.sum(b != 0)))


def one_click(engine: Geodesic, volume: Volume, truth: NDArray[np.bool_]) -> float:
    """Dice after a click at the deepest point."""
    z, y, x = np.unravel_index(int(np.argmax(distance_transform_edt(truth, sampling=volume.spacing_zyx))), truth.shape)
    interaction = engine.begin(engine.prepare(volume))
    interaction.add([Point((int(z), int(y), int(x)))])
    return dice(interaction.mask, truth)


@pytest.mark.parametrize("noise", [0.0, 3.0, 10.0])
@pytest.mark.parametrize("radius", [4, 10, 25])
def test_a_disc_in_a_picture(engine: Geodesic, noise: float, radius: int) -> None:
    y, x = np.mgrid[:96, :128]
    truth = ((y - 48) ** 2 + (x - 64) ** 2 <= radius**2)[None]
    picture = 90 + 60 * truth + np.random.default_rng(0).normal(0, 1, truth.shape) * noise
    assert one_click(engine, Volume(np.clip(picture, 0, 255).astype(np.uint8)), truth) > 0.85


@pytest.mark.parametrize("noise", [0.0, 5.0, 20.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (2.0, 1.0, 1.5)])
def test_a_bright_block_in_a_volume(engine: Geodesic, noise: float, spacing: tuple[float, float, float]) -> None:
    truth = np.zeros((20, 40, 48), bool)
    truth[6:12, 12:24, 16:30] = True
    array = 100 * truth + np.random.default_rng(1).normal(0, 1, truth.shape) * noise
    assert one_click(engine, Volume(array.astype(np.int16), spacing), truth) > 0.85


@pytest.mark.parametrize("contrast", [-60, 60])
def test_a_small_ball(engine: Geodesic, contrast: int) -> None:
    z, y, x = np.mgrid[:40, :40, :40]
    truth = (z - 20) ** 2 + (y - 18) ** 2 + (x - 22) ** 2 <= 5**2
    array = 40 + contrast * truth + np.random.default_rng(2).normal(0, 10, truth.shape)
    assert one_click(engine, Volume(array.astype(np.int16), modality="CT", unit="HU"), truth) > 0.85


@pytest.mark.parametrize("organ", ["kidney_left", "kidney_right", "lesion_1", "lung_left"])
def test_an_organ_that_stands_out(engine: Geodesic, torso: Phantom, organ: str) -> None:
    assert one_click(engine, torso.volume, torso.masks[organ]) > 0.7


def clicks_on(engine: Geodesic, volume: Volume, truth: NDArray[np.bool_], count: int) -> float:
    """Dice after clicks in the middle of the largest error."""
    from benchmarks._clicks_data import next_click

    interaction = engine.begin(engine.prepare(volume))
    for _ in range(count):
        asked = next_click(interaction.mask, truth, volume.spacing_zyx)
        assert asked is not None
        interaction.add([Point(*asked)])
    return dice(interaction.mask, truth)


def test_the_aorta_in_ten_clicks(engine: Geodesic, torso: Phantom) -> None:
    assert clicks_on(engine, torso.volume, torso.masks["aorta"], 10) > 0.7
