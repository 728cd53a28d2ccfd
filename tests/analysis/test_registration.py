"""Scans brought onto each other: a real pair of lungs with landmarks, and a known deformation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from isocenter.analysis.tracking.deform import carry, deform
from isocenter.analysis.tracking.register import Freedom, Registration, register
from isocenter.core.errors import CancelledError
from isocenter.core.geometry import Grid
from isocenter.core.model import ModelContext
from isocenter.core.settings import Limits
from isocenter.core.volume import Volume
from isocenter.io import door
from isocenter.models.tissue import Tissue

Floats = NDArray[np.float64]
SIDE = 56


@dataclass
class Lungs:
    """Two scans of one lung, masks by `tissue`, and the 51 pairs of landmarks that lie in both of the distributed masks."""

    before: Volume
    after: Volume
    masks: tuple[NDArray[np.bool_], NDArray[np.bool_]]
    places: Floats
    there: Floats


@pytest.fixture(scope="module")
def lungs(data: Path) -> Lungs:
    folder = data / "elastix_lung"
    scans = [door.read_path(folder / f"3DCT_lung_{name}.mha", limits=Limits(), modality="CT") for name in ("baseline", "followup")]
    given = [door.read_path(folder / f"3DCT_lung_{name}_mask.mha", limits=Limits(), modality="SEG") for name in ("baseline", "followup")]
    points = [np.loadtxt(folder / f"3DCT_lung_{name}.txt", skiprows=2) for name in ("baseline_landmarks", "groundtruth_point")]

    def within(mask: Volume, places: Floats) -> NDArray[np.bool_]:
        index = np.rint((np.c_[places, np.ones(len(places))] @ np.linalg.inv(mask.grid.affine_lps).T)[:, 2::-1]).astype(int)
        inside = np.all((index >= 0) & (index < mask.shape), axis=1)
        return np.array([bool(ok and mask.array[tuple(i)] > 0) for ok, i in zip(inside, index, strict=True)])

    both = within(given[0], points[0]) & within(given[1], points[1])
    model = Tissue()
    model.load(ModelContext())
    masks = [model.find(scan, ["lungs"])[0].mask > 0 for scan in scans]
    return Lungs(scans[0], scans[1], (masks[0], masks[1]), points[0][both], points[1][both])


def error(found: Floats, truth: Floats) -> float:
    return float(np.linalg.norm(found - truth, axis=1).mean())


def test_landmarks_of_a_lung_that_breathes(lungs: Lungs) -> None:
    """Two millimetres, on a coarser grid than usual so that it is quick; no landmark had a part in it."""
    assert len(lungs.places) == 51
    assert error(lungs.places, lungs.there) == pytest.approx(35.27, abs=0.02)
    aligned = register(lungs.after, lungs.before)
    assert aligned.accepted
    assert error(aligned.carry(lungs.places), lungs.there) < 7
    regions = deform(lungs.after, lungs.before, aligned.matrix, lungs=(lungs.masks[1], lungs.masks[0]), voxels=800_000)
    assert [region.name for region in regions] == ["lungs", "body"]
    lung = regions[0]
    assert lung.holds(lungs.places).all()
    assert error(carry(lungs.places, aligned.matrix, regions), lungs.there) < 2.0
    assert lung.reason == ""
    assert lung.alike[1] > 0.9 > 0.7 > lung.alike[0]
    assert lung.return_mm[0] < 2.5
    assert lung.folded == 0
    assert 0 < lung.jacobian[0] < 1 < lung.jacobian[1]


# A known deformation


def grid(side: int = SIDE, step: float = 2.0) -> Grid:
    return Grid((side, side, side), (step, step, step), (-side * step / 2,) * 3, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


def cloud(seed: int) -> Floats:
    """Blobs in a ball."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal((SIDE,) * 3), 2.5)
    z, y, x = np.indices(noise.shape) - (SIDE - 1) / 2
    ball = gaussian_filter((np.sqrt(z**2 + y**2 + x**2) < 0.42 * SIDE).astype(float), 1)
    return np.asarray(ball * (400 + 120 * noise / noise.std()))


def bulge(index: Floats) -> Floats:
    """(n, 3) voxels of displacement: up to three where the ball is thickest."""
    middle = (SIDE - 1) / 2
    fall = np.exp(-((index - middle) ** 2).sum(axis=1) / (2 * 10.0**2))
    return np.asarray(fall[:, None] * np.array([3.0, -1.5, 2.0]))


@pytest.fixture(scope="module")
def pair() -> tuple[Volume, Volume]:
    """A scan, and the same deformed and in other units: after(i) = before(i + bulge(i))."""
    before = cloud(1)
    index = np.indices(before.shape).reshape(3, -1).T.astype(float)
    after = map_coordinates(before, (index + bulge(index)).T, order=1, mode="nearest").reshape(before.shape) * 1.7 + 30
    return tuple(Volume.on_grid(a.astype(np.float32), grid(), key=str(k), modality="MR") for k, a in enumerate((before, after)))  # type: ignore[return-value]


def truth(pair: tuple[Volume, Volume]) -> tuple[Floats, Floats]:
    """Places in the deformed scan and the same in the first, LPS mm."""
    index = np.random.default_rng(3).uniform(0.35 * SIDE, 0.65 * SIDE, (60, 3))
    affine = pair[0].grid.affine_lps
    return tuple(i[:, ::-1] @ affine[:3, :3].T + affine[:3, 3] for i in (index, index + bulge(index)))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def bent(pair: tuple[Volume, Volume]) -> Registration:
    before, after = pair
    return register(before, after, freedom=Freedom.DEFORMABLE)


def test_a_known_deformation_is_found(pair: tuple[Volume, Volume], bent: Registration) -> None:
    places, there = truth(pair)
    assert bent.accepted
    assert [r.reason for r in bent.regions] == [""]
    before, after = pair
    straight = register(before, after, freedom=Freedom.RIGID)
    assert straight.regions == ()
    assert np.linalg.det(straight.matrix[:3, :3]) == pytest.approx(1, abs=1e-6)
    assert error(bent.carry(places), there) < 1.0 < 1.5 < error(straight.carry(places), there)
    told = bent.as_dict()["regions"][0]
    assert told["used"]
    assert told["alike"] > told["alike_before"]


def test_the_same_scans_give_the_same_answer(pair: tuple[Volume, Volume], bent: Registration) -> None:
    again = register(*pair, freedom=Freedom.DEFORMABLE)
    np.testing.assert_allclose(again.regions[0].shift, bent.regions[0].shift, atol=1e-3)


def test_scans_of_other_things_are_refused_and_places_stay_by_the_matrix(pair: tuple[Volume, Volume]) -> None:
    noise = gaussian_filter(np.random.default_rng(9).standard_normal((SIDE,) * 3), 2.5)
    other = Volume.on_grid(noise.astype(np.float32), grid(), key="9", modality="MR")
    (region,) = deform(pair[0], other, np.eye(4))
    assert region.reason
    places = np.array([[0.0, 0, 0], [10, 5, -5]])
    np.testing.assert_array_equal(carry(places, np.eye(4), [region]), places)


def test_nobody_waits_for_it_any_more(pair: tuple[Volume, Volume]) -> None:
    def stop(share: float, what: str) -> None:
        if "level 2" in what:
            raise CancelledError("the work was cancelled")

    with pytest.raises(CancelledError):
        deform(*pair, np.eye(4), check=stop)


def test_too_little_lung_is_left_to_the_body(pair: tuple[Volume, Volume]) -> None:
    few = np.zeros(pair[0].shape, bool)
    few[20:30, 20:30, 20:30] = True
    assert [r.name for r in deform(*pair, np.eye(4), lungs=(few, few))] == ["body"]
