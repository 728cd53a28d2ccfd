"""`radiomics`: what a lesion looks like, as a vector of shape and intensity, without weights.

Features in the sense of the Image Biomarker Standardisation Initiative (Zwanenburg et al., Radiology 295:328, 2020); each is
brought to about -1..1 by fixed scales, so that vectors of different patients can be compared.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.lesions import LesionSize, within
from isocenter.core.volume import Volume

NAME = "radiomics"
VERSION = "1"
DIMENSIONS = 24


def vector(inside: NDArray[np.bool_], box: tuple[slice, slice, slice], size: LesionSize, image: Volume | None) -> NDArray[np.float32]:
    """(24,) float32 of length one. inside: the lesion's mask within `box` of the image. Without an image only shape counts."""
    shape = _shape(inside, size, image)
    values = np.zeros(16) if image is None else _values(inside, box, image)
    whole = np.concatenate([shape, values])
    norm = float(np.linalg.norm(whole))
    return (whole / norm if norm > 0 else whole).astype(np.float32)


def _shape(inside: NDArray[np.bool_], size: LesionSize, image: Volume | None) -> NDArray[np.float64]:
    """8 figures: size, sphericity, elongation, flatness, ratio of diameters, fullness of its box, border, number of slices."""
    spacing = np.array(image.spacing_zyx if image is not None else (1.0, 1.0, 1.0))
    points = np.argwhere(inside) * spacing
    away = points - points.mean(axis=0)
    # Summed by einsum: for so few columns, cores that wait for each other cost more than the sums.
    covariance = np.einsum("ni,nj->ij", away, away) / max(len(points) - 1, 1)
    axes = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance + np.diag(spacing**2) / 12), 1e-9)) if len(points) > 3 else np.ones(3)
    return np.array(
        [
            np.tanh(np.log(size.volume_mm3 / 1000) / 4),
            size.sphericity,
            axes[1] / axes[2],
            axes[0] / axes[2],
            size.short_axis_mm / size.longest_mm,
            inside.mean(),
            float(size.touches_border),
            min(inside.any(axis=(1, 2)).sum() / 50, 1.0),
        ]
    )


def _values(inside: NDArray[np.bool_], box: tuple[slice, slice, slice], image: Volume) -> NDArray[np.float64]:
    """16 figures: a smooth histogram over the lesion (8), its moments (4), its edge against what is around it (4)."""
    around = tuple(slice(max(s.start - 3, 0), min(s.stop + 3, n)) for s, n in zip(box, image.shape, strict=True))
    crop = image.voxels[around].astype(np.float64)
    lesion = np.zeros(crop.shape, bool)
    lesion[within(box, around)] = inside
    if image.dtype.kind == "f":
        crop = np.where(np.isfinite(crop), crop, 0.0)
    if image.unit == "HU":
        scaled = np.clip((crop - 40) / 400, -2, 2)
    else:
        middle, spread = float(np.median(crop)), float(np.subtract(*np.percentile(crop, [95, 5]))) or 1.0
        scaled = np.clip((crop - middle) / spread, -2, 2)
    of = scaled[lesion]
    histogram = _histogram(of)
    mean, sd = float(of.mean()), float(of.std())
    away = of - mean
    square = away * away
    skew = float((square * away).mean() / sd**3) if sd > 1e-6 else 0.0
    kurtosis = float((square * square).mean() / sd**4 - 3) if sd > 1e-6 else 0.0
    outside = scaled[~lesion]
    steep = [np.abs(np.diff(scaled, axis=a)).mean() if scaled.shape[a] > 1 else 0.0 for a in range(3)]
    edge = [mean - float(outside.mean()) if outside.size else 0.0, *steep]
    return np.concatenate([histogram, [mean, sd, np.tanh(skew / 3), np.tanh(kurtosis / 6)], edge])


def _histogram(of: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eight soft bins from -1.5 to 1.5; of a large lesion from every n-th voxel. Each value that occurs is looked at once."""
    some, often = np.unique(of if of.size <= 200_000 else of[:: of.size // 100_000], return_counts=True)
    centres = np.linspace(-1.5, 1.5, 8)
    return np.asarray((often[:, None] * np.exp(-((some[:, None] - centres) ** 2) / (2 * 0.25**2))).sum(axis=0) / often.sum())
