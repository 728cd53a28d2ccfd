"""Stored samples to values: rescale, bits, sign, byte order, colour; against what they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from isocenter.core.errors import InputError, UnsupportedError
from isocenter.io import door
from tests.io.dicom_files import LIMITS, data_of, image, read_bytes, save, stack, voxels


def one(pixels: Any, **changes: Any) -> Any:
    volume = read_bytes(data_of(image(pixels, **changes)))
    return volume.array[0]


def test_rescale_is_per_slice_and_keeps_integers(tmp_path: Path) -> None:
    array = voxels(dtype=np.uint16)
    datasets = stack(array)
    for k, dataset in enumerate(datasets):
        dataset.RescaleSlope, dataset.RescaleIntercept = k + 1, -1024
    volume = door.read_path(save(tmp_path, datasets), limits=LIMITS)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, array.astype(int) * np.arange(1, 6)[:, None, None] - 1024)


def test_a_fractional_slope_makes_floats(tmp_path: Path) -> None:
    array = voxels(dtype=np.uint16)
    datasets = stack(array)
    datasets[2].RescaleSlope = "0.5"
    volume = door.read_path(save(tmp_path, datasets), limits=LIMITS)
    wanted = array.astype(np.float32)
    wanted[2] *= 0.5
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, wanted)


def test_values_that_do_not_fit_make_floats(tmp_path: Path) -> None:
    array = voxels(dtype=np.uint16)
    array[3, 0, 0] = 65535
    volume = door.read_path(save(tmp_path, stack(array, RescaleIntercept=-7)), limits=LIMITS)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, array.astype(np.float32) - 7)


def test_unsigned_values_that_fit_after_the_intercept() -> None:
    pixels = np.full((4, 4), 33000, np.uint16)
    found = one(pixels, RescaleIntercept=-1024)
    assert found.dtype == np.int16
    assert (found == 31976).all()


@pytest.mark.parametrize(("signed", "stored", "high"), [(False, 12, 11), (True, 12, 11), (False, 12, 15), (True, 10, 12)])
def test_unused_bits_are_cleared(signed: bool, stored: int, high: int) -> None:
    low = -(1 << stored - 1) if signed else 0
    values = np.random.default_rng(0).integers(low, low + (1 << stored), (6, 6))
    words = (values & ((1 << stored) - 1)) << (high + 1 - stored)
    junk = np.random.default_rng(1).integers(0, 1 << 16, (6, 6)) & ~(((1 << stored) - 1) << (high + 1 - stored))
    pixels = (words | junk).astype(np.uint16)
    found = one(pixels, BitsStored=stored, HighBit=high, PixelRepresentation=int(signed))
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint32])
def test_other_widths(dtype: Any) -> None:
    pixels = voxels(dtype=dtype)[0]
    found = one(pixels)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_other_uncompressed_syntaxes(syntax: str, tmp_path: Path) -> None:
    array = voxels()
    volume = door.read_path(save(tmp_path, stack(array, syntax=syntax)), limits=LIMITS)
    np.testing.assert_array_equal(volume.array, array)
    assert len(volume.source.headers) == 5


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int32])
def test_big_endian(dtype: Any) -> None:
    pixels = voxels(dtype=dtype)[0]
    dataset = image(pixels, syntax=ExplicitVRBigEndian)
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    dataset["PixelData"].VR = "OB" if dtype == np.uint8 else "OW"
    np.testing.assert_array_equal(read_bytes(data_of(dataset)).array[0], pixels)


def test_headers_of_deflated_files_can_be_read() -> None:
    import io

    import pydicom

    volume = read_bytes(data_of(image(voxels()[0], syntax=DeflatedExplicitVRLittleEndian)))
    header = pydicom.dcmread(io.BytesIO(volume.source.headers[0]))
    assert header.Rows == 12


def test_monochrome1_is_left_as_stored() -> None:
    pixels = voxels(dtype=np.uint16)[0]
    np.testing.assert_array_equal(one(pixels, PhotometricInterpretation="MONOCHROME1", Modality="CR"), pixels)


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_becomes_brightness(planar: int) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    dataset = image(colour, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=planar, Modality="US")
    if planar:
        dataset.PixelData = np.moveaxis(colour, -1, 0).tobytes()
    volume = read_bytes(data_of(dataset))
    np.testing.assert_allclose(volume.array[0], colour @ [0.299, 0.587, 0.114], atol=0.51)
    assert "colour" in volume.source.notes[-1]


def test_ybr_is_its_first_sample() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    found = one(colour, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=0)
    np.testing.assert_array_equal(found, colour[..., 0])


def test_ybr_422() -> None:
    packed = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    dataset = image(np.zeros((6, 8), np.uint8), SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL_422", PlanarConfiguration=0)
    dataset.PixelData = packed.tobytes()
    found = read_bytes(data_of(dataset)).array[0]
    np.testing.assert_array_equal(found, packed[..., :2].reshape(6, 8))


def test_float_pixels() -> None:
    pixels = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    dataset = image(pixels, BitsStored=None, HighBit=None, PixelRepresentation=None, PixelData=None)
    dataset.FloatPixelData = pixels.tobytes()
    found = read_bytes(data_of(dataset)).array[0]
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize(("syntax", "count"), [(ExplicitVRLittleEndian, 80), (DeflatedExplicitVRLittleEndian, 24), (RLELossless, 80)])
def test_memory_stays_near_the_array(tmp_path: Path, syntax: str, count: int) -> None:
    """Not more than 2.2 times the int16 array, whatever the files are."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        pytest.skip("needs Linux")

    def field(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

    datasets = stack(np.tile(voxels((1, 512, 512), dtype=np.uint16) // 16, (count, 1, 1)), RescaleIntercept=-1024, syntax=syntax)
    if syntax == RLELossless:
        datasets = stack(np.tile(voxels((1, 512, 512), dtype=np.uint16) // 16, (count, 1, 1)), RescaleIntercept=-1024)
        for dataset in datasets:
            dataset.compress(RLELossless, generate_instance_uid=False)
    save(tmp_path, datasets)
    del datasets
    door.read_path(tmp_path, limits=LIMITS)
    clear.write_text("5")
    before = field("VmRSS")
    volume = door.read_path(tmp_path, limits=LIMITS)
    assert field("VmHWM") - before < 2.2 * volume.array.nbytes


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"RescaleSlope": 0}, InputError),
        ({"BitsAllocated": 12}, UnsupportedError),
        ({"BitsAllocated": 1, "BitsStored": 1}, UnsupportedError),
        ({"BitsStored": 20}, InputError),
        ({"HighBit": 3, "BitsStored": 12}, InputError),
        ({"Rows": 0}, InputError),
        ({"Rows": 4000}, InputError),
        ({"NumberOfFrames": 70}, InputError),
        ({"NumberOfFrames": -1}, InputError),
        ({"SamplesPerPixel": 3}, InputError),
        ({"PhotometricInterpretation": "HSV", "SamplesPerPixel": 3}, InputError),
        ({"RescaleSlope": None, "Rows": 65535, "Columns": 65535}, InputError),
    ],
)
def test_declarations_that_do_not_fit(changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        one(voxels()[0], **changes)
