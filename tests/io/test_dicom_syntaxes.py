"""Every transfer syntax that pydicom's decoders know, on the files that pydicom ships for its own tests; and decoders that fail."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut
from pydicom.uid import HTJ2KLossless, JPEG2000Lossless, JPEGLSLossless, RLELossless

from isocenter.core.errors import InputError, IsocenterError, LimitError
from isocenter.core.settings import Limits
from isocenter.io import door, pixels
from tests.io.dicom_files import LIMITS, data_of, image, read_bytes, save, stack, voxels

FILES = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(scope="module", autouse=True)
def decoder() -> Iterator[None]:
    """One decoder for all tests of this file, as a server has it."""
    pixels.stop()  # those of other files
    pixels.start(1, LIMITS)
    yield
    pixels.stop()


def expected(path: Path) -> Any:
    """What pydicom reads, as brightness, rescaled."""
    dataset = pydicom.dcmread(path)
    array = dataset.pixel_array.astype(float)
    if dataset.SamplesPerPixel == 3:
        array = array @ [0.299, 0.587, 0.114]
    array = array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    return array.reshape(-1, dataset.Rows, dataset.Columns)


EXACT = (
    "693_J2KI.dcm", "CT_small.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_08.dcm",
    "JPEGLSNearLossless_16.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm", "examples_overlay.dcm", "image_dfl.dcm",
)  # fmt: skip
COLOUR = (
    "ExplVR_BigEnd.dcm",
    "GDCMJ2K_TextGBR.dcm", "SC_jpeg_no_color_transform.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_rle_16bit.dcm",
    "SC_rgb_small_odd_jpeg.dcm", "SC_ybr_full_422_uncompressed.dcm", "examples_jpeg2k.dcm", "examples_ybr_color.dcm",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXACT)
def test_grey(name: str) -> None:
    volume = door.read_path(FILES / name, limits=LIMITS)
    np.testing.assert_array_equal(volume.array, expected(FILES / name))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COLOUR)
def test_colour(name: str) -> None:
    volume = door.read_path(FILES / name, limits=LIMITS)
    # Uncompressed YBR keeps its own brightness, which turning it to RGB and back rounds and clips.
    np.testing.assert_allclose(np.asarray(volume.array, float), expected(FILES / name), atol=2 if "uncompressed" in name else 0.51)


@pytest.mark.filterwarnings("ignore")
def test_palette_colour() -> None:
    dataset = pydicom.dcmread(FILES / "examples_palette.dcm")
    colour = apply_color_lut(dataset.pixel_array, dataset) >> 8
    volume = door.read_path(FILES / "examples_palette.dcm", limits=LIMITS)
    np.testing.assert_allclose(np.asarray(volume.array[0], float), colour @ [0.299, 0.587, 0.114], atol=0.51)


def test_jpeg_of_twelve_bits() -> None:
    volume = door.read_path(FILES / "JPGExtended.dcm", limits=LIMITS)
    same = door.read_path(FILES / "JPEG2000.dcm", limits=LIMITS)
    assert np.corrcoef(np.asarray(volume.array, float).ravel(), np.asarray(same.array, float).ravel())[0, 1] > 0.95


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", sorted(p for p in FILES.rglob("*") if p.is_file()), ids=lambda p: p.name)
def test_every_file_of_pydicom_is_read_or_refused(path: Path) -> None:
    with contextlib.suppress(IsocenterError):
        assert np.isfinite(door.read_path(path, limits=LIMITS).array).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_lossless_series(tmp_path: Path, syntax: str, dtype: Any) -> None:
    if syntax == JPEGLSLossless and dtype == np.int16:
        pytest.skip("JPEG-LS has no sign")
    array = voxels((5, 48, 40), dtype=dtype)
    datasets = stack(array, RescaleIntercept=-1024)
    for dataset in datasets:
        dataset.compress(syntax, generate_instance_uid=False)
    volume = door.read_path(save(tmp_path, datasets), limits=LIMITS)
    np.testing.assert_array_equal(volume.array, array.astype(int) - 1024)
    assert pydicom.dcmread(io.BytesIO(volume.source.headers[0])).file_meta.TransferSyntaxUID == syntax


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLosslessProcess14", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_written_by_gdcm(tmp_path: Path, syntax: str, dtype: Any) -> None:
    gdcm = pytest.importorskip("gdcm")
    pixels_ = voxels((1, 48, 40), dtype=dtype)[0]
    (tmp_path / "plain").write_bytes(data_of(image(pixels_)))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(tmp_path / "plain"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "packed"))
    assert writer.Write()
    volume = door.read_path(tmp_path / "packed", limits=LIMITS)
    np.testing.assert_array_equal(volume.array[0], pixels_)


def test_broken_high_throughput_jpeg_2000_is_refused() -> None:
    dataset = image(voxels()[0])
    dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    with pytest.raises(InputError, match="decoded"):
        read_bytes(data_of(dataset))


@pytest.mark.parametrize("table", [True, False])
def test_frames_in_several_fragments(table: bool) -> None:
    array = voxels((3, 32, 32), dtype=np.uint16)
    absent: dict[str, Any] = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient"))
    frames = []
    for plane in array:
        one = image(plane)
        one.compress(JPEG2000Lossless)
        frames.append(next(pydicom.encaps.generate_frames(one.PixelData, number_of_frames=1)))
    dataset = image(array[0], NumberOfFrames=3, **absent)
    dataset.PixelData = encapsulate(frames, fragments_per_frame=2, has_bot=table)
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    np.testing.assert_array_equal(read_bytes(data_of(dataset)).array, array)


# -- decoders that fail ------------------------------------------------------------------------------------------------


def compressed() -> bytes:
    dataset = image(voxels((1, 64, 64))[0])
    dataset.compress(JPEG2000Lossless)
    return data_of(dataset)


def test_damaged_codestreams_are_refused() -> None:
    data = bytearray(compressed())
    at = data.index(b"\xff\x4f\xff\x51")
    for k in range(at + 60, len(data) - 8, 7):
        data[k] ^= 0x5A
    with contextlib.suppress(InputError):
        assert read_bytes(bytes(data)).shape == (1, 64, 64)


def workers() -> list[int]:
    return [w.process.pid for w in pixels._POOL._idle]


def test_a_decoder_that_dies_is_replaced() -> None:
    read_bytes(compressed())
    (pid,) = workers()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert read_bytes(compressed()).shape == (1, 64, 64)
    assert workers() != [pid]


def test_a_decoder_that_hangs_is_killed_and_replaced() -> None:
    read_bytes(compressed())
    (pid,) = workers()
    os.kill(pid, signal.SIGSTOP)
    start = time.perf_counter()
    with pytest.raises(LimitError, match="decode_seconds"):
        read_bytes(compressed(), limits=Limits(decode_seconds=0.3))
    assert time.perf_counter() - start < 60
    assert workers() != [pid]
    assert read_bytes(compressed()).shape == (1, 64, 64)


def test_memory_of_a_decoder_is_limited() -> None:
    pixels.stop()
    try:
        pixels.start(1, Limits(decode_memory_bytes=300 * 1024 * 1024))
        dataset = image(np.zeros((9000, 9000), np.uint16))
        dataset.compress(RLELossless)
        with pytest.raises((LimitError, InputError)):
            read_bytes(data_of(dataset))
    finally:
        pixels.stop()
        pixels.start(1, LIMITS)


def test_several_readers_share_one_decoder() -> None:
    data, found = compressed(), []
    threads = [threading.Thread(target=lambda: found.append(read_bytes(data).key)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    assert len(workers()) == 1


def test_a_program_that_reads_ends_cleanly(tmp_path: Path) -> None:
    """Without `stop`: decoders start by themselves, and go with the program."""
    (tmp_path / "scan").write_bytes(compressed())
    code = (
        "import sys; from pathlib import Path; from isocenter.core.settings import Limits; from isocenter.io import door, pixels\n"
        "print(door.read_path(Path(sys.argv[1]), limits=Limits()).shape, *(w.process.pid for w in pixels._POOL._idle))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path / "scan")], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("(1, 64, 64)")
    assert done.stderr == ""
    for pid in done.stdout.split()[3:]:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_ready_decoder_is_small() -> None:
    pixels.stop()
    pixels.start(1, LIMITS)
    (pid,) = workers()
    if not Path(f"/proc/{pid}/smaps_rollup").exists():
        pytest.skip("needs Linux")
    read_bytes(compressed())
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    assert int(next(line for line in lines if line.startswith("Pss:")).split()[1]) < 60_000


def test_nothing_is_left_after_stop() -> None:
    read_bytes(compressed())
    (pid,) = workers()
    pixels.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    pixels.start(1, LIMITS)
