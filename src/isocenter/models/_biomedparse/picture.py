"""What BiomedParse is shown: slices in grey levels of 0..255, axial and as a radiologist sees them where that can be."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import UnsupportedError
from isocenter.core.geometry import axes_towards
from isocenter.core.volume import Volume

#: Windows of CT, (level, width) in HU, and the words that ask for each; soft tissue for the rest.
SOFT = (40.0, 400.0)
WINDOWS: tuple[tuple[str, tuple[float, float]], ...] = (
    (r"lungs?|pulmonary|airways?|trachea|bronch\w*|emphysema|covid\w*|pneumo\w*|pleural?", (-160.0, 1500.0)),
    (r"brain|cerebr\w*|cerebell\w*|intracranial|ha?emorrhage|stroke|ventricles?", (40.0, 80.0)),
    (r"bones?|skull|spine|vertebra\w*|ribs?|sternum|femur|hip|sacrum|scapula\w*|clavicula\w*|humerus|fractures?", (400.0, 1800.0)),
)
#: Slices this many times as thick as their pixels are taken as they were acquired, whichever way they lie.
THICK = 2.0
_SEPARATOR = re.compile(r"[\[<(]\s*(sep|cls|pad|mask|unk)\s*[\])>]", re.IGNORECASE)


def escaped(prompt: str) -> str:
    """The prompt without what its text encoder takes for a command: one prompt stays one prompt."""
    return " ".join(_SEPARATOR.sub(lambda found: found.group(1).lower(), prompt).split())


def window_of(prompt: str) -> tuple[float, float]:
    """The CT window (level, width) in HU for what a prompt names."""
    return next((window for words, window in WINDOWS if re.search(rf"\b({words})\b", prompt, re.IGNORECASE)), SOFT)


def scaled(volume: Volume, window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Grey levels (z, y, x): the window of a CT; without one the 0.5 to 99.5 percentiles of what is not zero; 8 bits as they are."""
    if window is None and volume.dtype == np.uint8:
        return np.asarray(volume.array, np.uint8)
    array = np.asarray(volume.array, np.float32)
    if not np.isfinite(array).all():
        raise UnsupportedError("the scan holds voxels that are not finite numbers; replace them first")
    if window is not None:
        low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
    else:
        there = array[array != 0]
        low, high = (float(v) for v in np.percentile(there, (0.5, 99.5))) if there.size else (0.0, 1.0)
    grey = (array - np.float32(low)) * np.float32(255 / max(high - low, 1e-6))
    return np.asarray(np.clip(grey, 0, 255), np.uint8)


def order(volume: Volume) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """How to turn the array for the network: axes for `numpy.transpose`, and flips of the turned axes.

    Axial slices with rows to the back and columns to the left, as DICOM shows them; for thick slices the plane in which
    they were acquired. A picture stays as it is.
    """
    if volume.shape[0] == 1:
        return (0, 1, 2), (False, False, False)
    axes, flips = axes_towards(volume.grid, "LPS")
    spacing = [volume.spacing_zyx[axis] for axis in axes]
    thick = int(np.argmax(spacing))
    if spacing[thick] >= THICK * sorted(spacing)[1] and thick != 0:
        # Sagittal: rows to the feet, columns to the back. Coronal: rows to the feet, columns to the left.
        turn = (thick, 0, 3 - thick)
        return (axes[turn[0]], axes[turn[1]], axes[turn[2]]), (flips[turn[0]], not flips[turn[1]], flips[turn[2]])
    return axes, flips


def turned(array: NDArray[np.uint8], axes: Sequence[int], flips: Sequence[bool]) -> NDArray[np.uint8]:
    """A view in the network's axes."""
    return np.transpose(array, axes)[tuple(slice(None, None, -1) if f else slice(None) for f in flips)]


def back(array: NDArray[np.uint8], axes: Sequence[int], flips: Sequence[bool]) -> NDArray[np.uint8]:
    """The way back from `turned`, contiguous."""
    straight = array[tuple(slice(None, None, -1) if f else slice(None) for f in flips)]
    return np.ascontiguousarray(np.transpose(straight, np.argsort(axes)))
