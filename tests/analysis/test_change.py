"""Change between two scans: a known one under noise and uneven brightness, and a real patient's against an expert's mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter

from isocenter.analysis.tracking.change import changes
from isocenter.analysis.tracking.register import Freedom, register
from isocenter.core.errors import UsageError
from isocenter.core.geometry import Grid
from isocenter.core.settings import Limits
from isocenter.core.volume import Volume
from isocenter.io import door

SHAPE = (24, 64, 64)
GRID = Grid(SHAPE, (1.0, 1.0, 3.0), (0.0, 0.0, 0.0), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


def ball(z: float, y: float, x: float, radius: float) -> NDArray[np.bool_]:
    k, j, i = np.indices(SHAPE)
    return np.asarray(((k - z) * 3) ** 2 + (j - y) ** 2 + (i - x) ** 2 <= radius**2)


def head(lesions: list[NDArray[np.bool_]], seed: int) -> NDArray[np.float32]:
    """Tissue of 200 with dark ventricles, lesions of 320, and noise."""
    image = np.full(SHAPE, 200.0)
    image[ball(12, 32, 32, 9)] = 60
    for lesion in lesions:
        image[lesion] = 320
    return np.asarray(gaussian_filter(image, (0.2, 0.7, 0.7)) + np.random.default_rng(seed).normal(0, 8, SHAPE), dtype=np.float32)


def volume(array: NDArray[np.float32], key: str) -> Volume:
    return Volume.on_grid(array, GRID, key=key, modality="MR")


INSIDE = ball(12, 32, 32, 28)
STAYS, COMES, GOES = ball(12, 48, 32, 6), ball(10, 20, 20, 6), ball(14, 20, 46, 6)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_what_came_and_what_went_under_uneven_brightness() -> None:
    slope = np.exp(np.linspace(-0.15, 0.15, SHAPE[2]))
    later = volume((head([STAYS, COMES], 1) * 1.4 * slope).astype(np.float32), "1")
    earlier = volume(head([STAYS, GOES], 2), "2")
    found = changes(later, earlier, np.eye(4), INSIDE)
    assert dice(found.risen, COMES) > 0.75
    assert dice(found.fallen, GOES) > 0.75
    assert not (found.both & STAYS).any()
    assert not np.isfinite(found.difference[~INSIDE]).any()
    assert found.difference[COMES].mean() > 80


def test_nothing_changed_and_a_small_shift_is_nothing() -> None:
    later = volume(head([STAYS], 1), "1")
    shift = np.eye(4)
    shift[:2, 3] = 0.7, -0.5
    assert not changes(later, volume(head([STAYS], 2), "2"), np.eye(4), INSIDE).both.any()
    assert not changes(later, volume(head([STAYS], 2), "2"), shift, INSIDE).both.any()


def test_dark_changes_are_asked_for() -> None:
    dark = head([], 1)
    dark[COMES] = 60
    later, earlier = volume(dark, "1"), volume(head([], 2), "2")
    assert not changes(later, earlier, np.eye(4), INSIDE).both.any()
    assert dice(changes(later, earlier, np.eye(4), INSIDE, bright=False).fallen, COMES) > 0.7


def test_what_cannot_be_compared() -> None:
    scan = volume(head([], 1), "1")
    with pytest.raises(UsageError, match="grid"):
        changes(scan, scan, np.eye(4), INSIDE[1:])
    away = np.eye(4)
    away[0, 3] = 500
    with pytest.raises(UsageError, match="too little"):
        changes(scan, scan, away, INSIDE)


def test_a_real_patient_against_an_expert(data: Path) -> None:
    """The mask of change that an expert drew is found better than by any threshold of the difference image."""
    folder = data / "open_ms" / "longitudinal"

    def scan(path: str) -> Volume:
        return door.read_path(folder / path, limits=Limits(), modality="MR")

    earlier, later = (scan(f"raw/patient01/study{k}_FLAIR.nii.gz") for k in (1, 2))
    expert, brain = scan("raw/patient01/gt.nii.gz"), scan("coregistered/patient01/brainmask.nii.gz")
    lines = (folder / "raw/patient01/study2_FLAIR_to_common_space.txt").read_text().splitlines()
    values, centre = (np.array([float(v) for v in lines[k].split()[1:]]) for k in (3, 4))
    common = np.eye(4)
    common[:3, :3] = values[:9].reshape(3, 3)
    common[:3, 3] = values[9:] + centre - common[:3, :3] @ centre

    def on(mask: NDArray[np.generic], source: Volume, target: Volume, matrix: NDArray[np.float64]) -> NDArray[np.bool_]:
        to = np.linalg.inv(source.grid.affine_lps) @ matrix @ target.grid.affine_lps
        moved = affine_transform(mask.astype(np.float32), to[:3, :3][::-1, ::-1], to[:3, 3][::-1], output_shape=target.shape, order=0)
        return np.asarray(moved > 0.5)

    truth = expert.array != 0
    region = on(brain.array != 0, brain, later, np.asarray(np.linalg.inv(common), dtype=np.float64))
    found = register(later, earlier, freedom=Freedom.RIGID)
    assert found.alike > 0.98
    change = changes(later, earlier, found.matrix, region)
    assert dice(on(change.both, later, expert, common), truth) > 0.57
    plain = np.nan_to_num(change.difference)  # already freed of uneven brightness and smoothed
    best = max(dice(on(np.abs(plain) > t, later, expert, common), truth) for t in (50, 70, 90, 110, 130))
    assert best < 0.53
