"""Pictures: brightness as Pillow has it, stored pixels as they lie, and sizes checked before anything is decoded."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isocenter.core.errors import InputError, LimitError, UnsupportedError, UsageError
from isocenter.core.settings import Limits
from isocenter.core.volume import Volume
from isocenter.io import picture

GREY = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)


def read(data: bytes, limits: Limits | None = None) -> Volume:
    return picture.read(io.BytesIO(data), len(data), limits=limits or Limits())


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes_of_png(mode: str) -> None:
    image = Image.fromarray(np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)).convert(mode)
    volume = read(saved(image))
    expected = image.convert("RGB").convert("L") if mode == "P" else image.convert("L")
    np.testing.assert_array_equal(volume.array[0], np.asarray(expected))
    assert volume.shape == (1, 20, 30)
    assert volume.array.dtype == np.uint8
    assert list(volume.spacing) == [1, 1, 1]
    assert bool(volume.source.notes) is (mode in ("P", "RGB", "RGBA"))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_modes_of_jpeg(mode: str, progressive: bool) -> None:
    data = saved(Image.fromarray(GREY).convert(mode), "JPEG", quality=95, progressive=progressive)
    np.testing.assert_array_equal(read(data).array[0], np.asarray(Image.open(io.BytesIO(data)).convert("L")))


def test_sixteen_bits_are_kept() -> None:
    wide = (GREY.astype(np.uint16) * 257) ^ 0x0F0F
    volume = read(saved(Image.fromarray(wide)))
    np.testing.assert_array_equal(volume.array[0], wide)
    assert volume.array.dtype == np.uint16


def test_an_exif_orientation_is_not_applied_for_the_mask_must_fit_the_stored_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read(saved(Image.fromarray(GREY), "JPEG", exif=exif)).shape == (1, 20, 30)


def test_real_pictures(data: Path) -> None:
    for path in sorted((data / "sam_med2d/images").iterdir()):
        np.testing.assert_array_equal(read(path.read_bytes()).array[0], np.asarray(Image.open(path).convert("L")))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_files_cut_short_and_damaged(kind: str) -> None:
    data = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)), kind)
    for keep in (9, 20, 100, len(data) // 2, len(data) - 200):
        with pytest.raises(InputError):
            read(data[:keep])
    with pytest.raises(UnsupportedError):
        read(b"GIF89a" + data[6:])


def png_of(width: int, height: int, pixels: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return (
        picture.PNG + chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    )


def test_large_claims_are_refused_before_decoding() -> None:
    started = time.process_time()
    with pytest.raises(LimitError, match="max_voxels"):
        read(png_of(30_000, 30_000, b""))
    with pytest.raises(InputError, match="damaged"):
        read(png_of(15_000, 15_000, b""))  # within the limit, but not in 70 bytes
    jpeg = bytearray(saved(Image.fromarray(GREY), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">2H", 65_000, 65_000)
    with pytest.raises(LimitError):
        read(bytes(jpeg))
    assert time.process_time() - started < 3


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    data = saved(Image.fromarray(GREY), "JPEG", progressive=True)
    with pytest.raises(InputError, match="scans"):
        read(data[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 200 + data[-2:])


def test_pictures_larger_than_pillow_s_own_limit_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read(saved(Image.fromarray(GREY))).shape == (1, 20, 30)


def test_grey_levels_become_hounsfield_units() -> None:
    volume = picture.to_hounsfield(read(saved(Image.fromarray(GREY))), "400/40")
    np.testing.assert_array_equal(volume.array, np.rint(-160 + GREY[None] * (400 / 255)).astype(np.int16))
    assert (volume.modality, volume.unit) == ("CT", "HU")
    assert any("-160..240 HU" in note for note in volume.source.notes)
    with pytest.raises(UnsupportedError):
        picture.to_hounsfield(volume, "400/40")


@pytest.mark.parametrize("window", ["", "400", "400/40/1", "a/b", "nan/0", "0/40", "-1/40", "inf/0", "400/1e9"])
def test_windows_that_make_no_sense(window: str) -> None:
    with pytest.raises(UsageError, match="400/40"):
        picture.to_hounsfield(read(saved(Image.fromarray(GREY))), window)


def test_png_out() -> None:
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture.png(GREY)))), GREY)
    colour = np.stack([GREY] * 3, axis=-1)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture.png(colour)))), colour)
