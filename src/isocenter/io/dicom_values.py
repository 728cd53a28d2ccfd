"""From stored samples to values: unused bits, sign, rescale slope and intercept (PS3.3 C.7.6.3.1 and C.11.1), colour.

Values stay int16 wherever all of them fit, else they become float32. Nothing else changes them: MONOCHROME1 is left as it
is stored, since it concerns display.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import InputError
from isocenter.core.settings import Limits
from isocenter.io.dicom_header import BIG_ENDIAN, GE_PRIVATE
from isocenter.io.dicom_image import MONOCHROME, Slice
from isocenter.io.dicom_palette import LUMA, Palette
from isocenter.io.pixels import Form

_INT16 = np.iinfo(np.int16)


class Values:
    """The volume being filled, (z, y, x): int16 until a slice comes that does not fit."""

    def __init__(self, stack: list[Slice], limits: Limits) -> None:
        self._limits = limits
        self._palettes: dict[int, Palette] = {}
        form = stack[0].form
        shape = (len(stack), form.rows, form.columns)
        real = any(s.header.pixel_tag != 0x7FE00010 or s.slope % 1 or s.intercept % 1 for s in stack)
        self.array: NDArray[np.generic] = np.empty(shape, np.float32 if real else np.int16)

    def raw(self, index: int, image: Slice) -> NDArray[np.int16] | None:
        """The place of a slice, to read stored 16-bit samples into; None where they need another. Then call `put` with it."""
        form = image.form
        plain = form.photometric in MONOCHROME and form.allocated == 16 and self.array.dtype == np.int16
        return self.array[index] if plain else None

    def put(self, index: int, samples: NDArray[np.generic], image: Slice) -> None:
        """Turn the stored samples of one slice, (y, x) or (y, x, 3), into values at `index`."""
        if samples.ndim == 3:
            samples = np.rint(np.asarray(samples, np.float32) @ LUMA).astype(np.int32)
        elif samples.dtype.kind != "f":
            samples = _significant(samples, image)
        if image.form.photometric == "PALETTE COLOR":
            samples = self._palette(image)(samples)
        if self.array.dtype == np.int16:
            if _fits(samples, image):
                self._integral(index, samples, image)
                return
            self.array = self.array.astype(np.float32)
            samples = np.array(samples)  # it may have been a view of the old array
        with np.errstate(over="ignore", invalid="ignore"):
            values = samples.astype(np.float64) * image.slope + image.intercept
            self.array[index] = values.astype(np.float32)

    def _palette(self, image: Slice) -> Palette:
        """The palette of a file, read once."""
        key = id(image.header)
        if key not in self._palettes:
            self._palettes = {key: Palette(image, self._limits)}
        return self._palettes[key]

    def _integral(self, index: int, samples: NDArray[np.generic], image: Slice) -> None:
        """In the ring of 16-bit integers, where only the result has to fit."""
        place = self.array[index].view(np.uint16)
        if not np.shares_memory(place, samples):
            np.copyto(place, samples, casting="unsafe")
        if image.slope != 1:
            np.multiply(place, np.uint16(int(image.slope) & 0xFFFF), out=place)
        if image.intercept != 0:
            np.add(place, np.uint16(int(image.intercept) & 0xFFFF), out=place)


def _significant(samples: NDArray[np.generic], image: Slice) -> NDArray[np.generic]:
    """Samples without the bits that are not theirs, with their sign; in place where the array allows it."""
    form = image.form
    high = image.header.number(0x00280102, form.stored - 1)
    if not form.stored - 1 <= high < form.allocated:
        raise InputError("a DICOM image declares a high bit that does not fit its bits stored")
    left, right = form.allocated - 1 - high, form.allocated - form.stored
    if right == 0:
        return samples
    top = 1 << (form.stored - 1 if form.signed else form.stored)
    if left == right and samples.max() < top and (not form.signed or samples.min() >= -top):
        return samples
    shifted: NDArray[np.generic] = np.left_shift(samples, left, out=samples if samples.flags.writeable else None)
    np.right_shift(shifted, right, out=shifted)
    return shifted


def _fits(samples: NDArray[np.generic], image: Slice) -> bool:
    """Whether all values are 16-bit integers; looks at the samples only when their type leaves it open."""
    if samples.dtype.kind == "f" or image.slope % 1 or image.intercept % 1:
        return False
    slope, intercept = int(image.slope), int(image.intercept)
    form = image.form
    span = 1 << form.stored
    low, high = (-span // 2, span // 2 - 1) if form.signed else (0, span - 1)
    if not _within(low, high, slope, intercept):
        low, high = int(samples.min()), int(samples.max())
    return _within(low, high, slope, intercept)


def _within(low: int, high: int, slope: int, intercept: int) -> bool:
    ends = low * slope + intercept, high * slope + intercept
    return bool(_INT16.min <= min(ends) and max(ends) <= _INT16.max)


def native(data: bytes | bytearray | memoryview, image: Slice) -> NDArray[np.generic]:
    """The samples of one uncompressed frame as an array (y, x) or (y, x, 3); brightness already, where it is stored so."""
    form = image.form
    if image.header.pixel_tag != 0x7FE00010:
        return np.frombuffer(data, np.dtype(f"{image.header.encoding.order}f{form.allocated // 8}")).reshape(form.rows, form.columns)
    if form.photometric == "YBR_FULL_422":
        return np.frombuffer(data, np.uint8).reshape(-1, 4)[:, :2].reshape(form.rows, form.columns)
    samples = np.frombuffer(data, form.dtype.newbyteorder(">" if swapped(form) else "<"))
    if form.samples == 1:
        return samples.reshape(form.rows, form.columns).astype(form.dtype.newbyteorder("="))
    samples = np.moveaxis(samples.reshape(3, form.rows, form.columns), 0, -1) if form.planar == 1 else samples.reshape(form.rows, form.columns, 3)
    return samples[..., 0] if form.photometric == "YBR_FULL" else samples


def swapped(form: Form) -> bool:
    """Whether 16-bit samples of this form have their high byte first."""
    return form.syntax in (BIG_ENDIAN, GE_PRIVATE)
