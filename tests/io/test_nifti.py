"""Reading NIfTI: as nibabel and SimpleITK do, where they are right, and never more than the header allows."""

from __future__ import annotations

import gzip
import io
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError, InputError, LimitError, UnsupportedError
from isocenter.core.settings import Limits
from isocenter.core.volume import Volume, content_key
from isocenter.io import nifti
from isocenter.io.nifti_header import V1

LIMITS = Limits()
REAL = (
    *(f"niivue/nifti_space/{name}.nii.gz" for name in ("ASL", "IRP", "LAS", "LPS", "PIR", "PSR", "RAS", "SAL")),
    "totalsegmentator/example_ct.nii.gz",
    "totalsegmentator/example_ct_sm.nii.gz",
    "totalsegmentator/example_mr_sm.nii.gz",
    "totalsegmentator/example_seg.nii.gz",
    "brainchop_mit/t1_crop.nii.gz",
    "dicom_refs_dcm2niix/dcm_qa_decubitus_In_HFP_2_t1_fl2d_sag_2.nii.gz",
)
KINDS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def read(data: bytes, limits: Limits = LIMITS) -> Volume:
    return nifti.read(io.BytesIO(data), len(data), limits=limits)


def patched(data: bytes, **values: Any) -> bytes:
    """A little-endian NIfTI-1 file with other header fields."""
    header = np.frombuffer(data[:348], V1)[0].copy()
    for name, value in values.items():
        header[name] = value
    return bytes(header.tobytes() + data[348:])


def plain(shape: tuple[int, ...] = (4, 3, 2), kind: str = "i2") -> bytes:
    """An uncompressed file of 0, 1, 2, ...; shape is (x, y, z)."""
    array = np.arange(np.prod(shape), dtype=kind).reshape(shape, order="F")
    return bytes(nib.Nifti1Image(array, np.diag([2.0, 3.0, 4.0, 1.0]), dtype=array.dtype).to_bytes())


@pytest.mark.parametrize("name", REAL)
def test_real_scans_equal_nibabel_and_simpleitk(data: Path, name: str) -> None:
    import SimpleITK

    path = data / name
    volume = read(path.read_bytes())
    peer = nib.load(path)
    # nibabel scales to float64; the values here are those, rounded once.
    np.testing.assert_array_equal(np.asarray(peer.dataobj).T.reshape(volume.shape).astype(volume.array.dtype), volume.array)
    np.testing.assert_allclose(volume.grid.affine_ras, peer.affine, atol=1e-5)
    image = SimpleITK.ReadImage(path)
    np.testing.assert_allclose(SimpleITK.GetArrayFromImage(image), volume.array.astype(np.float64), rtol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), volume.origin, atol=1e-3)
    np.testing.assert_allclose(image.GetSpacing(), volume.spacing, atol=1e-5)
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), volume.direction, atol=1e-4)


def test_the_eight_orientations_put_the_same_brain_in_the_same_place(data: Path) -> None:
    volumes = {name: read((data / f"niivue/nifti_space/{name}.nii.gz").read_bytes()) for name in ("RAS", "LPS", "PIR", "SAL")}
    point = np.array([10.0, -20.0, 15.0, 1.0])
    values = []
    for volume in volumes.values():
        x, y, z = np.rint(np.linalg.inv(volume.grid.affine_lps) @ point)[:3].astype(int)
        values.append(int(volume.array[z, y, x]))
    assert max(values) - min(values) <= 0.1 * max(values)
    # The file's own letters name where its axes point to in RAS words; the grid's are those of increasing LPS indices.
    assert len({volume.grid.orientation for volume in volumes.values()}) == 4


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, NDArray[np.generic], NDArray[np.float64]]:
    """A NIfTI file, its array (x, y, z) and its affine, of any type, byte order, version and orientation."""
    shape = tuple(draw(st.integers(1, 5)) for _ in range(draw(st.integers(2, 3))))
    kind = np.dtype(draw(st.sampled_from(KINDS))).newbyteorder(draw(st.sampled_from("<>")))
    array = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 120, shape).astype(kind)
    turn = np.array(draw(st.lists(st.floats(-1, 1), min_size=9, max_size=9))).reshape(3, 3) + np.eye(3) * draw(st.sampled_from((-3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * draw(st.floats(0.1, 5))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    version = draw(st.sampled_from((nib.Nifti1Image, nib.Nifti2Image)))
    header = version.header_class(endianness=kind.byteorder if kind.byteorder in "<>" else "<")
    header.set_data_dtype(kind)
    image = version(array, None, header)
    image.header.set_data_dtype(kind)
    image.set_sform(affine, 1)
    data = bytes(image.to_bytes())
    return (gzip.compress(data, 1) if draw(st.booleans()) else data), array, image.header.get_sform()


@given(files())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_type_order_version_and_affine(made: tuple[bytes, NDArray[np.generic], NDArray[np.float64]]) -> None:
    data, array, affine = made
    volume = read(data)
    assert volume.array.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(volume.array, array.T.reshape(volume.shape))
    np.testing.assert_allclose(volume.grid.affine_ras, affine, rtol=1e-6, atol=1e-4)
    assert volume.key == content_key(volume.array, volume.grid)


@given(st.tuples(*[st.floats(-0.99, 0.99)] * 3), st.tuples(*[st.floats(0.1, 9)] * 3), st.sampled_from((-1, 1, 0)))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_quaternion_alone_places_as_in_nibabel(bcd: tuple[float, ...], spacing: tuple[float, ...], qfac: float) -> None:
    length = float(np.linalg.norm(bcd))
    quatern = np.array(bcd) / max(1.0, length)
    data = patched(plain(), sform_code=0, qform_code=1, quatern=quatern, qoffset=(5, -6, 7), pixdim=(qfac, *spacing, 0, 0, 0, 0))
    peer = nib.Nifti1Image.from_bytes(data)
    # In a half turn nibabel takes the rest of the rounding for an angle; the standard's own code does not.
    np.testing.assert_allclose(read(data).grid.affine_ras, peer.affine, atol=2e-3 * max(spacing))


def test_without_sform_and_qform_the_centre_is_zero_and_a_note_says_so() -> None:
    data = patched(plain(), sform_code=0, qform_code=0)
    volume = read(data)
    np.testing.assert_allclose(volume.grid.affine_ras, nib.Nifti1Image.from_bytes(data).affine)
    assert "left and right" in volume.source.notes[0]


def test_a_broken_sform_gives_way_to_the_qform_and_a_missing_one_to_an_error() -> None:
    empty = patched(plain(), srow=np.zeros((3, 4)), qform_code=1, quatern=(0, 0, 0), qoffset=(1, 2, 3))
    volume = read(empty)
    np.testing.assert_allclose(volume.grid.affine_ras[:3, 3], (1, 2, 3))
    assert volume.source.notes
    with pytest.raises(GeometryError):
        read(patched(plain(), srow=np.full((3, 4), np.nan), qform_code=0))


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_units_of_length(unit: int, factor: float) -> None:
    np.testing.assert_allclose(read(patched(plain(), xyzt_units=unit)).spacing, np.array([2, 3, 4]) * factor)


@pytest.mark.parametrize(
    ("kind", "slope", "inter", "expected"),
    [
        ("i2", 1, -1024, "i2"),
        ("i2", 0, 5, "i2"),  # a slope of 0 is none
        ("i2", np.nan, 5, "i2"),
        ("u2", 1, -1024, "i2"),
        ("u1", 1, -1024, "i2"),
        ("u1", 2, 0, "u1"),
        ("u1", 100, 0, "i2"),
        ("i2", 30000, 0, "i4"),
        ("i2", -2, 3, "i2"),
        ("i4", 2**30, 0, "f4"),
        ("i2", 0.5, -10, "f4"),
        ("u1", 1 / 3, 0, "f4"),
        ("f8", 2, 1, "f8"),
        ("f4", 2, 1, "f4"),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_scaling_keeps_integers_where_it_can(kind: str, slope: float, inter: float, expected: str, order: Literal["<", ">"]) -> None:
    header = nib.Nifti1Header(endianness=order)
    values = np.arange(24).reshape(4, 3, 2).astype(np.dtype(kind).newbyteorder(order))
    header.set_data_dtype(values.dtype)
    image = nib.Nifti1Image(values, np.eye(4), header)
    data = bytearray(image.to_bytes())
    fields = np.frombuffer(data, V1.newbyteorder(order), 1)
    fields["scl_slope"], fields["scl_inter"] = slope, inter
    volume = read(bytes(data))
    assert volume.array.dtype == np.dtype(expected)
    peer = np.asarray(nib.Nifti1Image.from_bytes(bytes(data)).dataobj)
    np.testing.assert_allclose(volume.array.astype(np.float64), peer.T, rtol=1e-6)


def test_what_is_no_number_becomes_the_smallest_value() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    array[0, 0, 0], array[1, 1, 1] = np.nan, np.inf
    volume = read(nib.Nifti1Image(array, np.eye(4)).to_bytes())
    assert volume.array.min() == 1
    assert np.count_nonzero(volume.array == 1) == 3
    assert volume.source.notes[0].startswith("2 voxels")
    with pytest.raises(InputError):
        read(nib.Nifti1Image(np.full((2, 2, 2), np.nan, np.float32), np.eye(4)).to_bytes())


def test_colours_become_brightness() -> None:
    from PIL import Image

    rgb = np.random.default_rng(0).integers(0, 256, (1, 5, 7, 3)).astype(np.uint8)
    head = bytearray(plain((7, 5, 1), "u1")[:352])
    np.frombuffer(head, V1, 1)["datatype"] = 128
    volume = read(bytes(head) + rgb.tobytes())
    np.testing.assert_array_equal(volume.array[0], np.asarray(Image.fromarray(rgb[0]).convert("L")))


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, "full"),  # by its sform, whatever the spacing
        ({"pixdim": 0}, "full"),
        ({"xyzt_units": 0}, "full"),  # millimetres, as everybody reads it
        ({"sform_code": 0, "qform_code": 1}, "full"),
        ({"sform_code": 0, "qform_code": 1, "pixdim": (1, 0, 2, 2, 1, 1, 1, 1)}, "none"),
        ({"sform_code": 0, "qform_code": 0, "pixdim": 0}, "none"),
        ({"sform_code": 0, "qform_code": 0, "pixdim": (1, 2, 2, 0, 1, 1, 1, 1)}, "plane"),
    ],
)
def test_what_a_header_does_not_say_of_its_scale(changes: dict[str, Any], scale: str) -> None:
    volume = read(patched(plain(), **changes))
    assert volume.source.scale == scale
    said = " ".join(volume.source.notes)
    assert ("measurements mean nothing" in said, "there are no volumes" in said) == (scale == "none", scale == "plane")


def test_axes_of_one_step_are_dropped_and_series_are_refused() -> None:
    data = patched(plain((4, 3, 2)), dim=(5, 4, 3, 2, 1, 1, 1, 1))
    assert read(data).shape == (2, 3, 4)
    assert read(patched(plain((4, 3, 1)), dim=(2, 4, 3, 0, 0, 0, 0, 0))).shape == (1, 3, 4)
    with pytest.raises(UnsupportedError, match="2 volumes"):
        read(patched(plain((4, 3, 2)), dim=(4, 4, 3, 1, 2, 1, 1, 1)))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"magic": b"ni1\0"}, UnsupportedError),
        ({"magic": b"\0\0\0\0"}, UnsupportedError),
        ({"datatype": 32}, UnsupportedError),
        ({"datatype": 1536}, UnsupportedError),
        ({"datatype": 1}, UnsupportedError),
        ({"datatype": 77}, UnsupportedError),
        ({"dim": (3, -4, 3, 2, 1, 1, 1, 1)}, InputError),
        ({"dim": (0, 4, 3, 2, 1, 1, 1, 1)}, InputError),
        ({"dim": (9, 4, 3, 2, 1, 1, 1, 1)}, InputError),
        ({"dim": (1, 24, 1, 1, 1, 1, 1, 1)}, UnsupportedError),
        ({"dim": (3, 4, 3, 3, 1, 1, 1, 1)}, InputError),
        ({"dim": (3, 32767, 32767, 32767, 1, 1, 1, 1)}, LimitError),
        ({"vox_offset": np.nan}, InputError),
        ({"vox_offset": -1}, InputError),
        ({"vox_offset": 1e30}, InputError),
        ({"scl_slope": 2, "scl_inter": np.inf}, InputError),
        ({"srow": np.full((3, 4), np.inf), "qform_code": 1, "qoffset": (np.nan, 0, 0)}, GeometryError),
        ({"sform_code": 0, "qform_code": 1, "quatern": (np.nan, 0, 0)}, GeometryError),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_headers_are_typed_errors(change: dict[str, Any], error: type[InputError], packed: bool) -> None:
    data = patched(plain(), **change)
    with pytest.raises(error):
        read(gzip.compress(data) if packed else data)


@pytest.mark.parametrize("keep", [0, 1, 100, 347, 348, 351, 360, 399])
@pytest.mark.parametrize("packed", [False, True])
def test_files_cut_short(keep: int, packed: bool) -> None:
    data = plain()[:keep]
    with pytest.raises(InputError):
        read(gzip.compress(data) if packed else data)


def test_gzip_of_several_members_with_something_behind_and_damaged() -> None:
    data = plain((20, 20, 20))
    whole = read(data)
    members = gzip.compress(data[:1000]) + gzip.compress(data[1000:])
    np.testing.assert_array_equal(read(members).array, whole.array)
    np.testing.assert_array_equal(read(members + b"\r\n").array, whole.array)
    packed = bytearray(gzip.compress(data))
    packed[-6] ^= 1  # in the checksum
    with pytest.raises(InputError, match="damaged"):
        read(bytes(packed))
    with pytest.raises(InputError, match="cut short"):
        read(bytes(packed[:-20]))


def bomb(shape: tuple[int, ...], payload: int) -> bytes:
    """A gzipped NIfTI that declares `shape` of int16 and holds `payload` zero bytes."""
    header = patched(plain(), dim=(3, *shape, 1, 1, 1, 1))[:352]
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9) as file:
        file.write(header)
        for _ in range(payload >> 20):
            file.write(bytes(1 << 20))
    return out.getvalue()


@pytest.mark.parametrize(
    ("shape", "payload"),
    [
        pytest.param((1200, 1100, 1100), 0, id="0.1 KiB that declare 2.9 GB"),
        pytest.param((700, 700, 700), 0, id="as large as is allowed, and nothing behind"),
        pytest.param((700, 700, 700), 256 << 20, id="0.26 MiB that hold 256 MiB and declare 686 MB"),
        pytest.param((10, 10, 10), 256 << 20, id="256 MiB of zeros behind a small image"),
    ],
)
def test_bombs_are_refused_cheaply(shape: tuple[int, ...], payload: int) -> None:
    data = bomb(shape, payload)
    started, before = time.process_time(), _resident()
    if shape == (10, 10, 10):
        assert read(data).shape == shape  # the image is honest; what follows it is not looked at
    else:
        with pytest.raises(InputError):
            read(data)
    assert time.process_time() - started < 3
    assert _resident() - before < 100e6


def test_a_gigabyte_of_zeros_is_no_nifti() -> None:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb") as file:
        for _ in range(64):
            file.write(bytes(16 << 20))
    started = time.process_time()
    with pytest.raises(InputError):
        read(out.getvalue())
    assert time.process_time() - started < 3


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("slope", "inter", "budget"), [(1, 0, 1.1), (1, -1024, 1.1), (2, -1024, 1.1), (0.5, 0, 1.1), (1 / 3, -7.25, 1.1)])
def test_memory_while_reading(slope: float, inter: float, budget: float) -> None:
    shape = (256, 256, 128)
    head = patched(plain(), dim=(3, *shape, 1, 1, 1, 1), scl_slope=slope, scl_inter=inter)[:352]
    array = np.random.default_rng(0).integers(0, 3000, shape[::-1]).astype(np.int16)
    data = gzip.compress(head + array.tobytes(), 1)
    tracemalloc.start()
    try:
        volume = read(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    fields = np.frombuffer(head, V1, 1)[0]
    truth = array.astype(np.float64) * float(fields["scl_slope"]) + float(fields["scl_inter"])
    np.testing.assert_array_equal(volume.array, truth.astype(volume.dtype))
    assert peak < budget * array.nbytes + 8e6
