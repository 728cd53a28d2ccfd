"""Pictures: PNG and JPEG in, PNG out. A picture is a volume of one slice with pixels of 1 mm.

Sizes are read from the file's header and held against the limits before Pillow allocates anything. An EXIF orientation
is not applied: a mask must fit the pixels as they are stored.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import InputError, LimitError, UnsupportedError, UsageError
from isocenter.core.geometry import Grid
from isocenter.core.settings import Limits
from isocenter.core.volume import Source, Volume

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
#: Pixels that one byte of an honest PNG or JPEG can hold at the very most.
_MAX_PIXELS_A_BYTE = 8 * 1040
#: A progressive JPEG has about ten scans; each costs a pass over the whole picture, however few bytes it has.
_MAX_SCANS = 100
NO_PICTURE = "only the grey levels of a PNG or JPEG can be mapped to Hounsfield units by a window"
_BROKEN = "the picture is damaged or cut short"


#: The field of view of an ordinary body CT.
FIELD_MM = 400.0


def read(file: BinaryIO, size: int, *, limits: Limits) -> Volume:
    """The brightness of a PNG or JPEG of `size` bytes, uint8 or uint16, as a volume of one slice. `file` stands at its start."""
    start = file.read(8)
    file.seek(0)
    if start == PNG:
        image = _open_png(file)
    elif start[:3] == JPEG:
        _check_scans(file)
        image = _open_jpeg(file)
    else:
        raise UnsupportedError("not a PNG or JPEG")
    width, height = image.size
    if width * height > limits.max_voxels:
        raise LimitError(f"the picture declares {width} x {height} pixels", limit="max_voxels", value=limits.max_voxels)
    if width < 1 or height < 1 or width * height > size * _MAX_PIXELS_A_BYTE:
        raise InputError(_BROKEN)
    try:
        array, notes = _brightness(image)
    except (OSError, SyntaxError, ValueError, struct.error, EOFError, IndexError):
        raise InputError(_BROKEN) from None
    return Volume.on_grid(array[np.newaxis], Grid((1, height, width)), source=Source("picture", notes, scale="none"))


def _open_png(file: BinaryIO) -> Any:
    from PIL.PngImagePlugin import PngImageFile

    # Not Image.open: it warns of large pictures in its own way; the limits here are ours.
    return _open(PngImageFile, file)


def _open_jpeg(file: BinaryIO) -> Any:
    from PIL.JpegImagePlugin import JpegImageFile

    return _open(JpegImageFile, file)


def _open(kind: Any, file: BinaryIO) -> Any:
    try:
        return kind(file)
    except (OSError, SyntaxError, ValueError, struct.error, EOFError, IndexError, KeyError, TypeError):
        raise InputError(_BROKEN) from None


def _check_scans(file: BinaryIO) -> None:
    """Refuse a JPEG with more scans than any encoder writes: each is a pass over the whole picture."""
    scans, last = 0, b""
    while data := file.read(1 << 20):
        scans += (last + data).count(b"\xff\xda")
        last = data[-1:]
    if scans > _MAX_SCANS:
        raise InputError(f"the JPEG holds {scans} scans; no camera or scanner writes that many")
    file.seek(0)


def _brightness(image: Any) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """(y, x) array of a picture's brightness."""
    mode = image.mode
    if mode.startswith("I"):
        wide = np.asarray(image)
        return np.ascontiguousarray(np.clip(wide, 0, 65535), dtype=np.uint16), ()
    notes = () if mode in ("1", "L", "LA") else ("The picture is in colour; its brightness was taken.",)
    if mode in ("P", "PA"):
        image = image.convert("RGB")
    grey = image if image.mode == "L" else image.convert("L")
    return np.array(grey, dtype=np.uint8), notes


def to_hounsfield(volume: Volume, window: str) -> Volume:
    """A picture of a CT as Hounsfield units, by the `window` that it was made with: "width/level" in HU, such as "400/40".

    Black is level - width / 2, white level + width / 2. Raises `UsageError` for a window that is not of this form and
    `UnsupportedError` for what is no picture.

    A picture has no scale, and anatomy needs one: its longer side is taken as `FIELD_MM`.
    """
    if volume.source.format != "picture" or volume.dtype.kind != "u":
        raise UnsupportedError(NO_PICTURE)
    width, level = _window(window)
    white = 2 ** (8 * volume.dtype.itemsize) - 1
    units = np.rint(level - width / 2 + volume.array.astype(np.float64) * (width / white))
    note = f"Grey levels 0..{white} were taken as {level - width / 2:g}..{level + width / 2:g} HU (window {width:g}/{level:g})."
    scale = f"A picture has no scale; its longer side was taken as {FIELD_MM:g} mm."
    source = replace(volume.source, notes=(*volume.source.notes, note, scale))
    spacing = FIELD_MM / max(volume.shape)
    array = np.clip(units, -32768, 32767).astype(np.int16)
    return Volume(array, (spacing, spacing, 1.0), modality="CT", unit="HU", source=source)


def check_window(window: str, modality: str | None) -> None:
    """Raise `UsageError` for a window that `to_hounsfield` does not take, or that does not go with a modality."""
    if (modality or "CT").upper() != "CT":
        raise UsageError("a window in Hounsfield units goes with modality=CT")
    _window(window)


def _window(text: str) -> tuple[float, float]:
    try:
        width, level = (float(part) for part in text.split("/"))
    except ValueError:
        width = level = math.nan
    if not (math.isfinite(width) and math.isfinite(level) and 0 < width <= 65536 and abs(level) <= 32768):
        raise UsageError("the window must be width/level in Hounsfield units, such as 400/40")
    return width, level


def png(array: NDArray[np.generic]) -> bytes:
    """An 8-bit PNG of `array`: (y, x) grey or (y, x, 3) RGB, uint8."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8)).save(out, "PNG", compress_level=1)
    return out.getvalue()
