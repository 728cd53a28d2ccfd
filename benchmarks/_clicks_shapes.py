"""Synthetic scenes that the coefficients of the click engine are fitted on, beside real scans; all from a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks._clicks_data import Case, Mask
from isocenter.core import phantom as torsos
from isocenter.core.volume import Volume

Array = NDArray[np.float64]
SPACINGS = ((1, 1, 1), (1, 1, 1), (0.7, 0.7, 5), (2, 1, 1.5), (0.8, 0.8, 2.5), (3, 3, 3))
ORGANS = ("kidney_left", "kidney_right", "lesion_1", "lesion_2", "lung_left", "lung_right", "aorta", "spleen", "liver", "spine", "airways", "bone")


def _shape(rng: np.random.Generator, grid: Array, extent: Array, radius: float, flat: bool) -> Mask:
    """A ball, block, ellipsoid, tube, shell or union of two balls somewhere; grid and extent in the same unit."""
    centre = rng.uniform(0.25, 0.75, 3) * extent
    offset = grid - centre
    if flat:
        offset[..., 0] = 0
    turn = np.eye(3)
    if rng.random() < 0.5:
        if flat:
            angle = rng.uniform(0, np.pi)
            turn[1:, 1:] = ((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle)))
        else:
            turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turned = offset @ turn
    kind = rng.choice(["ball", "block", "ellipsoid", "tube", "shell", "union"], p=[0.25, 0.25, 0.2, 0.12, 0.08, 0.1])
    distance = np.sqrt((offset**2).sum(axis=-1))
    if kind == "ball":
        return np.asarray(distance <= radius)
    if kind == "block":
        return np.asarray((np.abs(turned) <= radius * rng.uniform(0.5, 1.2, 3)).all(axis=-1))
    if kind == "ellipsoid":
        return np.asarray(((turned / (radius * rng.uniform(0.5, 1.6, 3))) ** 2).sum(axis=-1) <= 1)
    if kind == "tube":
        across = np.sqrt((turned[..., :2] ** 2).sum(axis=-1)) if not flat else np.abs(turned[..., 1])
        bent = across + 0.3 * radius * np.sin(turned[..., 2] / (3 * radius))
        return np.asarray((bent <= 0.5 * radius) & (np.abs(turned[..., 2]) < 4 * radius))
    if kind == "shell":
        return np.asarray((distance <= radius) & (distance >= 0.55 * radius))
    other = offset - rng.normal(size=3) * (0.6 * radius)
    return np.asarray((distance <= radius) | (np.sqrt((other[..., 1:] ** 2).sum(axis=-1) + (0 if flat else other[..., 0] ** 2)) <= 0.8 * radius))


def shapes(seed: int) -> list[Case]:
    """One to four plain shapes of either contrast: without any noise to strong noise, sharp or blurred, thin or thick slices."""
    rng = np.random.default_rng(seed)
    flat = bool(rng.random() < 0.35)
    shape = (1, int(rng.integers(80, 180)), int(rng.integers(80, 180))) if flat else tuple(int(n) for n in rng.integers((16, 36, 36), (44, 72, 72)))
    spacing = SPACINGS[0] if flat else SPACINGS[int(rng.integers(len(SPACINGS)))]
    step = np.array(spacing[::-1]) if rng.random() < 0.5 else np.ones(3)  # round in mm, or in voxels
    grid = np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, step, strict=True)], indexing="ij"), axis=-1)
    extent = np.array(shape) * step
    largest = 0.45 * float(extent[1:].min() if flat else extent.min() if rng.random() < 0.7 else extent[1:].min())
    contrast = float(rng.choice([30, 60, 100, 300]))
    plain = float(rng.choice([0, 40, 90]))
    image, labels = np.full(shape, plain), np.zeros(shape, np.uint8)
    for number in range(1, int(rng.choice([1, 1, 2, 4])) + 1):
        low = 3.5 * float(step[1:].min())
        inside = _shape(rng, grid, extent, low * (max(largest, low + 1) / low) ** rng.random(), flat)
        labels[inside] = number
        image[inside] = plain + contrast * float(rng.choice([-1, 1])) * rng.uniform(0.6, 1.4)
    sigma = tuple(0.0 if n == 1 else 1.0 / max(s / min(spacing), 1) for n, s in zip(shape, spacing[::-1], strict=True))
    if rng.random() < 0.5:
        image = ndimage.gaussian_filter(image, tuple(s * rng.uniform(0.4, 1.2) for s in sigma))
    if rng.random() < 0.25:  # texture and a bias field
        image += rng.uniform(0.02, 0.1) * contrast * _field(rng, shape, 2.5) + rng.uniform(0, 0.4) * contrast * _field(rng, shape, 25)
    noise = contrast * float(rng.choice([0, 0, 0.03, 0.08, 0.15, 0.25, 0.4]))
    if noise:
        image += noise * (rng.normal(size=shape) if rng.random() < 0.7 else _field(rng, shape, 0.6))
    kind = rng.choice(["int16", "uint8", "float32"])
    array = (
        np.clip(image, 0, 255).astype(np.uint8)
        if kind == "uint8" and image.max() < 400
        else image.astype(np.float32 if kind == "float32" else np.int16)
    )
    return [Case(Volume(array, spacing), {str(n): labels == n for n in range(1, 5) if (labels == n).sum() > 30})]


def torso(seed: int) -> list[Case]:
    """Organs of the demonstration's phantom at several resolutions, noises and sizes."""
    rng = np.random.default_rng(seed)
    n = int(rng.choice([80, 96, 128]))
    made = torsos.phantom((3 * n // 4, n, n), seed=seed + 1, noise_hu=float(rng.choice([0, 5, 12, 25])), scale=float(rng.uniform(0.85, 1.1)))
    chosen = rng.permutation(len(ORGANS))[:6]
    return [
        Case(made.volume, {ORGANS[i]: made.masks[ORGANS[i]] for i in sorted(chosen) if ORGANS[i] in made.masks and made.masks[ORGANS[i]].sum() > 50})
    ]


def _field(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> Array:
    """Smooth noise of unit size."""
    noise = ndimage.gaussian_filter(rng.normal(size=shape), tuple(0.0 if n == 1 else width for n in shape))
    return np.asarray(noise / (noise.std() + 1e-9))


def phantom(seed: int) -> list[Case]:
    """Eight warped ellipsoids and tubes of random contrast in noise and a smooth bias field."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(24, 56)), 72, 72) if seed % 4 else (1, 160, 160)
    flat = shape[0] == 1
    sigma = tuple(0.0 if n == 1 else 1.0 for n in shape)

    def field(width: float) -> Array:
        return _field(rng, shape, width)

    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1).astype(np.float32)
    grid += np.stack([field(6) * rng.uniform(0.5, 3) for _ in range(3)], axis=-1)
    image, labels = np.zeros(shape), np.zeros(shape, np.uint8)
    image += rng.normal(0, rng.uniform(0, 8)) * field(3)
    for number in range(1, 9):
        centre = rng.uniform(0.15, 0.85, 3) * shape
        radii = rng.uniform(4, 15, 3) * (2 if flat else 1)
        if rng.random() < 0.3:
            radii[0] *= 6
        if flat:
            centre[0], radii[0] = 0, 1e3
        turn = np.eye(3) if flat else np.linalg.qr(rng.normal(size=(3, 3)))[0]
        inside = ((((grid - centre) @ turn) / radii) ** 2).sum(axis=-1) < 1
        labels[inside] = number
        image[inside] = rng.choice([30, 60, 90, 120, 150]) + rng.normal() * 5 + (field(2) * rng.uniform(0, 10))[inside]
    blurred = ndimage.gaussian_filter(image, tuple(rng.uniform(0.5, 1.0) * s for s in sigma))
    noisy = blurred + field(rng.uniform(0.3, 0.8)) * rng.uniform(2, 20) + field(10) * rng.uniform(0, 15)
    spacing = (1.0, 1.0, float(rng.choice([1, 1, 2.5])))
    return [Case(Volume(noisy.astype(np.float32), spacing), {str(n): labels == n for n in range(1, 9) if (labels == n).sum() > 150})]
