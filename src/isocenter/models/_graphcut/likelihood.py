"""How likely an intensity level is, learnt from how often each level occurs under a scribble.

Both ways work on counts per level (not on voxels), give a density over 0..1 at the levels' centres, and are
deterministic.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_STEPS = 60


def centres(levels: int) -> Array:
    """Where the levels lie in 0..1."""
    return (np.arange(levels) + 0.5) / levels


def _spread(counts: Array) -> tuple[float, float]:
    """Number of samples and their standard deviation."""
    at, total = centres(counts.size), counts.sum()
    mean = (counts * at).sum() / total
    return float(total), float(np.sqrt((counts * (at - mean) ** 2).sum() / total))


def histogram(counts: Array, bins: int, noise: float) -> Array:
    """Density from a histogram of `bins` bins, smoothed by as much as the number of samples and the noise call for.

    A scribble of 50 voxels leaves most of 64 bins empty; Silverman's rule says how far each sample speaks for its
    neighbours.
    """
    at = centres(counts.size)
    total, spread = _spread(counts)
    heights = np.histogram(at, bins, (0.0, 1.0), weights=counts)[0] * bins / total
    width = max(1.06 * spread * total**-0.2, 0.5 * noise, 0.5 / bins) * bins
    reach = int(np.ceil(4 * width))
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    smooth = np.convolve(heights, bell / bell.sum())[reach : reach + bins]
    return np.interp(at, centres(bins), smooth)


def mixture(counts: Array, components: int, noise: float) -> Array:
    """Density as a mixture of Gaussians, fitted by expectation-maximisation from quantiles.

    There are at most `components`, at least ten samples to each, and none is narrower than half the noise.
    """
    at = centres(counts.size)
    total, spread = _spread(counts)
    used = counts > 0
    x, weight = at[used], counts[used] / total
    k = int(max(1, min(components, total // 10, x.size)))
    floor = max(0.5 * noise, 1.5 / counts.size, 0.5 * spread * total**-0.2)
    mean = np.interp((np.arange(k) + 0.5) / k, np.cumsum(weight), x)
    variance = np.full(k, max(spread / k, floor) ** 2)
    share = np.full(k, 1.0 / k)
    for _ in range(_STEPS):
        parts = share * _gauss(x[:, None], mean, variance)
        belongs = weight[:, None] * parts / np.maximum(parts.sum(axis=1, keepdims=True), 1e-300)
        mass = np.maximum(belongs.sum(axis=0), 1e-12)
        moved = (belongs * x[:, None]).sum(axis=0) / mass
        variance = np.maximum((belongs * (x[:, None] - moved) ** 2).sum(axis=0) / mass, floor**2)
        share = mass / mass.sum()
        settled = bool(np.abs(moved - mean).max() < 1e-5)
        mean = moved
        if settled:
            break
    density: Array = (share * _gauss(at[:, None], mean, variance)).sum(axis=1)
    return density


def _gauss(x: Array, mean: Array, variance: Array) -> Array:
    result: Array = np.exp(-0.5 * (x - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
    return result
