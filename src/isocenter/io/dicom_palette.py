"""Palette colour (PS3.3 C.7.9 and C.7.6.3.1.5): samples that are places in three tables, turned to brightness."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import InputError, UnsupportedError
from isocenter.core.settings import Limits
from isocenter.io.dicom_elements import Walker
from isocenter.io.dicom_image import Slice

#: Descriptors and data of red, green and blue, and the segmented form of the data, which is not read.
_DESCRIPTORS = (0x00281101, 0x00281102, 0x00281103)
_TABLES = (0x00281201, 0x00281202, 0x00281203)
_SEGMENTED = 0x00281221
#: Parts of red, green and blue in brightness (ITU-R BT.601), as DICOM's own YBR has it (PS3.3 C.7.6.3.1.2).
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Palette:
    """The tables of one image. Calling it with samples gives their brightness, 0 to 255."""

    def __init__(self, image: Slice, limits: Limits) -> None:
        header = image.header
        data = image.part.read(0, header.end)
        walker = Walker(data, header.encoding, limits)
        found = {
            tag: data[begin : walker.next]
            for tag, begin, _ in walker.elements(header.start, header.end)
            if tag in (*_DESCRIPTORS, *_TABLES, _SEGMENTED)
        }  # fmt: skip
        if _SEGMENTED in found:
            raise UnsupportedError("DICOM images with segmented palettes are not read")
        if any(tag not in found for tag in (*_DESCRIPTORS, *_TABLES)) or len(found[_DESCRIPTORS[0]]) != 6:
            raise InputError("a DICOM image in palette colour lacks its palette")
        order = header.encoding.order
        entries, self._first, bits = struct.unpack(order + ("HhH" if image.form.signed else "HHH"), found[_DESCRIPTORS[0]])
        entries = entries or 65536
        colours = [_table(found[tag], entries, bits, order) for tag in _TABLES]
        self._brightness = np.rint(np.stack(colours, axis=-1) @ LUMA).astype(np.uint8)

    def __call__(self, samples: NDArray[np.generic]) -> NDArray[np.generic]:
        """Samples before the first place of the table take its first entry, those behind the last its last."""
        places = np.clip(np.asarray(samples, np.int64) - self._first, 0, len(self._brightness) - 1)
        values: NDArray[np.generic] = self._brightness[places]
        return values


def _table(data: bytes, entries: int, bits: int, order: str) -> NDArray[np.float32]:
    """One table as numbers from 0 to 255; tables of 8 bits are written two a word or, by some, one a word."""
    if bits == 8 and len(data) in (entries, entries + entries % 2):
        return np.frombuffer(data, np.uint8, entries).astype(np.float32)
    if bits not in (8, 16) or len(data) != 2 * entries:
        raise InputError("the palette of a DICOM image does not fit its description")
    words = np.frombuffer(data, order + "u2")
    return words.astype(np.float32) if bits == 8 else (words >> 8).astype(np.float32)
