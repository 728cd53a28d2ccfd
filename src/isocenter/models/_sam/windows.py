"""A slice as the grey picture that a network of photographs understands: which intensities it shows, in 8 bits.

CT is windowed as MedSAM's training data were (Ma et al., Segment anything in medical images, Nature Communications
2024): soft tissue 400/40, and for a prompt on air or bone the lung's or the bone's window, since the soft tissue
window shows either as one flat colour. Other modalities are shown between the 0.5 and 99.5 percentiles of their
non-zero voxels; 8-bit pictures are shown as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from isocenter.core.prompts import Box, MaskPrompt, Point, Prompt
from isocenter.core.rescaled import every
from isocenter.core.volume import Volume

#: Below this (HU) a prompt lies on aerated lung or gas, above the other on cortical bone or metal.
_AIR_HU, _BONE_HU = -300.0, 350.0
#: Voxels that percentiles are taken of, at most.
_SAMPLES = 400_000


class Window(NamedTuple):
    """Intensities that are shown: `lo` is black, `hi` white."""

    lo: float
    hi: float


SOFT_TISSUE = Window(-160.0, 240.0)
LUNG = Window(-1350.0, 150.0)
BONE = Window(-500.0, 1300.0)


def choose(volume: Volume, prompts: Sequence[Prompt], fixed: Window | None = None) -> Window:
    """The window for what `prompts` point at; it depends on the first positive one alone. `fixed` wins."""
    if fixed is not None:
        return fixed
    if volume.modality != "CT":
        return percentiles(volume)
    return for_value(next((v for p in prompts if (v := _value(volume, p)) is not None), 0.0))


def for_value(hu: float) -> Window:
    """The CT window that shows what has this value."""
    return LUNG if hu < _AIR_HU else BONE if hu > _BONE_HU else SOFT_TISSUE


def percentiles(volume: Volume) -> Window:
    """The window of a scan whose numbers have no unit."""
    if volume.dtype == np.uint8:
        return Window(0.0, 255.0)
    values = every(volume.voxels, max(1, volume.voxels.size // _SAMPLES)).astype(np.float64)
    values = values[np.isfinite(values) & (values != 0)]
    if values.size == 0:
        return Window(0.0, 1.0)
    lo, hi = np.percentile(values, (0.5, 99.5))
    return Window(float(lo), float(hi) if hi > lo else float(lo) + 1.0)


def to_grey(plane: NDArray[np.generic], window: Window) -> NDArray[np.uint8]:
    """(rows, columns) of any number type as 8-bit grey; what is not a number is black."""
    grey = plane.astype(np.float32)
    grey -= np.float32(window.lo)
    grey *= np.float32(255.0 / (window.hi - window.lo))
    np.nan_to_num(grey, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    np.clip(grey, 0, 255, out=grey)
    return np.rint(grey).astype(np.uint8)


def _value(volume: Volume, prompt: Prompt) -> float | None:
    """The median intensity of what a positive prompt points at."""
    if isinstance(prompt, Point) and prompt.positive:
        z, y, x = prompt.zyx
        values = volume.voxels[z, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
    elif isinstance(prompt, Box) and prompt.positive:
        z, y, x = ((a + b) // 2 for a, b in zip(prompt.lo, prompt.hi, strict=True))
        half = [max(1, (b - a) // 6) for a, b in zip(prompt.lo[1:], prompt.hi[1:], strict=True)]
        values = volume.voxels[z, max(0, y - half[0]) : y + half[0] + 1, max(0, x - half[1]) : x + half[1] + 1]
    elif isinstance(prompt, MaskPrompt) and prompt.positive:
        values = volume.voxels[np.asarray(prompt.mask) != 0]
    else:
        return None
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return float(np.median(values.astype(np.float64))) if values.size else None
