"""NRRD and MetaImage: as SimpleITK reads them, from one file only, checked before anything is allocated."""

from __future__ import annotations

import gzip
import io
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.core.errors import GeometryError, InputError, LimitError, UnsupportedError
from isocenter.core.geometry import Grid
from isocenter.core.settings import Limits
from isocenter.core.volume import Volume
from isocenter.io import nrrd

HEAD = {"type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "4 3 2", "endian": "little", "encoding": "raw"}
PLACE = {"space directions": "(2,0,0) (0,3,0) (0,0,4)", "kinds": "domain domain domain", "space origin": "(1,2,3)"}
VOXELS = np.arange(24, dtype="<i2").reshape(2, 3, 4)
MHA = {
    "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False", "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "1 2 3", "ElementSpacing": "2 3 4", "DimSize": "4 3 2", "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}  # fmt: skip


def read(data: bytes, limits: Limits | None = None) -> Volume:
    return nrrd.read(io.BytesIO(data), len(data), limits=limits or Limits())


def made(data: bytes = VOXELS.tobytes(), /, **changes: str | None) -> bytes:
    """An NRRD file; keyword names have _ for blanks, None leaves a field out."""
    fields = {**HEAD, **PLACE, **{k.replace("_", " "): v for k, v in changes.items()}}
    lines = "".join(f"{k}: {v}\n" for k, v in fields.items() if v is not None)
    return f"NRRD0004\n# a comment\n{lines}\n".encode() + data


def mha(data: bytes = VOXELS.tobytes(), /, **changes: str | None) -> bytes:
    fields = {**MHA, **changes}
    return "".join(f"{k} = {v}\n" for k, v in fields.items() if v is not None).encode() + data


def assert_same_as_itk(path: Path) -> None:
    import SimpleITK

    volume = read(path.read_bytes())
    image = SimpleITK.ReadImage(path)
    if image.GetDimension() == 2:
        image = SimpleITK.JoinSeries(image)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), volume.array)
    np.testing.assert_allclose(image.GetOrigin(), volume.origin, atol=1e-9)
    np.testing.assert_allclose(image.GetSpacing(), volume.spacing, atol=1e-9)
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), volume.direction, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "pyradiomics/brain1_image.nrrd",
        "pyradiomics/brain1_label.nrrd",
        "pyradiomics/breast1_image.nrrd",
        "pyradiomics/breast1_label.nrrd",
        "elastix_lung/3DCT_lung_baseline.mha",
        "elastix_lung/3DCT_lung_baseline_mask.mha",
        "elastix_lung/3DCT_lung_followup.mha",
        "elastix_lung/2DMRI-T1_brain.mha",
    ],
)
def test_real_files_equal_simpleitk(data: Path, name: str) -> None:
    assert_same_as_itk(data / name)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_what_simpleitk_writes(tmp_path: Path, suffix: str, packed: bool, kind: str) -> None:
    import SimpleITK
    from scipy.spatial.transform import Rotation

    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).integers(0, 99, (3, 4, 5)).astype(kind))
    image.SetDirection(Rotation.from_euler("xyz", (0.3, -0.4, 2)).as_matrix().ravel().tolist())
    image.SetOrigin((-1.5, 2.5, 1000))
    image.SetSpacing((0.5, 0.7, 3.3))
    path = tmp_path / f"image{suffix}"
    SimpleITK.WriteImage(image, path, useCompression=packed)
    assert_same_as_itk(path)


@given(st.integers(0, 10_000), st.sampled_from(("u1", "u2", "i2", "f4")), st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_grid_comes_back_exactly(seed: int, kind: str, compress: bool) -> None:
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3] = rng.normal(size=(3, 4)) + np.eye(3, 4) * 4
    grid = Grid.from_affine_lps(affine, (2, 3, 4))
    array = rng.integers(0, 99, (2, 3, 4)).astype(kind)
    volume = read(nrrd.write(array, grid, compress=compress, keys={"note": "two\nlines"}))
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.dtype == array.dtype
    np.testing.assert_allclose(volume.grid.affine_lps, grid.affine_lps, atol=1e-12)


@pytest.mark.parametrize(
    ("space", "signs"), [("right-anterior-superior", (-1, -1)), ("RAS", (-1, -1)), ("left-anterior-superior", (1, -1)), ("LPS", (1, 1))]
)
def test_spaces_are_brought_to_lps(space: str, signs: tuple[int, int]) -> None:
    volume = read(made(space=space))
    np.testing.assert_allclose(volume.origin, (signs[0], 2 * signs[1], 3))
    np.testing.assert_allclose(np.diag(volume.direction), (*signs, 1))
    assert volume.source.notes == ()


def test_the_other_ways_to_write_a_header() -> None:
    crlf = made(b"").replace(b"\n", b"\r\n") + VOXELS.tobytes()
    assert read(crlf).grid.same_as(read(made()).grid)
    spacings = read(made(space=None, space_directions=None, space_origin=None, spacings="2 3 nan"))
    assert list(spacings.spacing) == [2, 3, 1]
    assert "does not say" in spacings.source.notes[0]
    assert read(made(space_units='"cm" "cm" "cm"')).spacing_zyx[0] == 40
    spread = read(made(space_directions="(2, 0, 0) ( 0,3,0)(0,0,4)"))
    np.testing.assert_array_equal(spread.array, VOXELS)
    big = read(made(VOXELS.astype(">i2").tobytes(), endian="big"))
    np.testing.assert_array_equal(big.array, VOXELS)
    packed = read(made(gzip.compress(VOXELS.tobytes()), encoding="gz"))
    np.testing.assert_array_equal(packed.array, VOXELS)


@pytest.mark.parametrize(
    ("data", "scale", "spacing"),
    [
        (made(), "full", (2, 3, 4)),
        (made(space_directions=None), "none", (1, 1, 1)),
        (made(space_directions=None, spacings="nan 3 4"), "none", (1, 3, 4)),
        (made(space_directions=None, spacings="2 3 nan"), "plane", (2, 3, 1)),
        (made(space_directions=None, spacings="2 3 4"), "full", (2, 3, 4)),
        (made(sizes="4 6", dimension="2", space_directions="(2,0,0) (0,3,0)", kinds="domain domain"), "plane", (2, 3, 1)),
        (mha(), "full", (2, 3, 4)),
        (mha(ElementSpacing=None), "none", (1, 1, 1)),
        (mha().replace(b"ElementSpacing", b"ElementSize"), "full", (2, 3, 4)),
    ],
)
def test_what_a_header_does_not_say_of_its_scale(data: bytes, scale: str, spacing: tuple[float, ...]) -> None:
    volume = read(data)
    assert (volume.source.scale, volume.spacing) == (scale, spacing)
    said = " ".join(volume.source.notes)
    assert ("measurements mean nothing" in said) == (scale == "none")
    assert ("there are no volumes" in said) == (scale == "plane" and volume.shape[0] > 1)


def test_axes_that_are_not_space() -> None:
    one = read(made(sizes="1 4 3 2", dimension="4", space_directions="none (2,0,0) (0,3,0) (0,0,4)", kinds="list domain domain domain"))
    np.testing.assert_array_equal(one.array, VOXELS)
    flat = read(made(sizes="4 6", dimension="2", space_directions="(2,0,0) (0,3,0)", kinds="domain domain"))
    assert flat.shape == (1, 6, 4)
    colour = made(bytes(range(72)), type="uchar", sizes="3 4 3 2", dimension="4", space_directions="none (2,0,0) (0,3,0) (0,0,4)",
                  kinds="RGB-color domain domain domain")  # fmt: skip
    assert read(colour).array.dtype == np.uint8
    with pytest.raises(UnsupportedError, match="3 volumes"):
        read(made(VOXELS.tobytes() * 3, sizes="3 4 3 2", dimension="4", space_directions="none (2,0,0) (0,3,0) (0,0,4)", kinds=None))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"data_file": "/etc/passwd"}, UnsupportedError),
        ({"datafile": "LIST"}, UnsupportedError),
        ({"encoding": "bzip2"}, UnsupportedError),
        ({"encoding": None}, UnsupportedError),
        ({"type": "block"}, UnsupportedError),
        ({"byte_skip": "-1"}, UnsupportedError),
        ({"endian": None}, InputError),
        ({"sizes": "4 3"}, InputError),
        ({"sizes": "4 3 -2"}, InputError),
        ({"sizes": "4 3 inf"}, InputError),
        ({"sizes": "4 3 0"}, InputError),
        ({"sizes": "4 3 3"}, InputError),
        ({"sizes": "99999 99999 99999"}, LimitError),
        ({"dimension": "9"}, InputError),
        ({"space_directions": "(0,0,0) (0,3,0) (0,0,4)"}, GeometryError),
        ({"space_directions": "(x,0,0) (0,3,0) (0,0,4)"}, InputError),
        ({"space_directions": "(nan,0,0) (0,3,0) (0,0,4)"}, GeometryError),
        ({"space_origin": "(inf,0,0)"}, GeometryError),
        ({"space_units": '"mm" "cm" "mm"'}, GeometryError),
    ],
)
def test_bad_nrrd_headers_are_typed_errors(changes: dict[str, str], error: type[InputError]) -> None:
    with pytest.raises(error):
        read(made(VOXELS.tobytes(), **changes))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"ElementDataFile": "scan.raw"}, UnsupportedError),
        ({"ElementDataFile": "LIST"}, UnsupportedError),
        ({"ElementDataFile": None}, InputError),
        ({"BinaryData": "False"}, UnsupportedError),
        ({"HeaderSize": "-1", "ElementDataFile": "LOCAL"}, InputError),
        ({"ElementType": "MET_STRING"}, UnsupportedError),
        ({"ElementNumberOfChannels": "2"}, InputError),
        ({"NDims": "1"}, UnsupportedError),
        ({"NDims": "x"}, InputError),
        ({"DimSize": "4 3"}, InputError),
        ({"DimSize": "4 3 0"}, UnsupportedError),
        ({"DimSize": "4 3 3"}, InputError),
        ({"DimSize": "1e300 1 1"}, UnsupportedError),
        ({"DimSize": "99999 99999 99999"}, LimitError),
        ({"ElementSpacing": "0 1 1"}, GeometryError),
        ({"ElementSpacing": "nan 1 1"}, InputError),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, GeometryError),
        ({"CompressedData": "True"}, InputError),
    ],
)
def test_bad_metaimage_headers_are_typed_errors(changes: dict[str, str | None], error: type[InputError]) -> None:
    np.testing.assert_array_equal(read(mha()).array, VOXELS)
    order = {k: v for k, v in {**MHA, **changes}.items() if k != "ElementDataFile"} | {"ElementDataFile": {**MHA, **changes}["ElementDataFile"]}
    data = "".join(f"{k} = {v}\n" for k, v in order.items() if v is not None).encode() + VOXELS.tobytes()
    with pytest.raises(error):
        read(data)


def test_bombs_are_refused_cheaply() -> None:
    zeros = zlib.compress(bytes(1 << 26), 9)
    started = time.process_time()
    for data in (
        made(gzip.compress(b""), sizes="700 700 700", encoding="gzip"),
        mha(zlib.compress(b""), DimSize="700 700 700", CompressedData="True"),
        mha(zeros, DimSize="700 700 700", CompressedData="True"),
        b"NRRD0004\n" + b"a: b\n" * 2_000_000,
        b"ObjectType = Image\n" * 1_000_000,
    ):
        with pytest.raises(InputError):
            read(data)
    assert time.process_time() - started < 3
    small = read(mha(zeros, CompressedData="True"))
    assert small.shape == (2, 3, 4)
