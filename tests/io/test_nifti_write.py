"""Writing NIfTI, and the wire's mask: other readers find the same voxels in the same place, bit by bit."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.core.errors import GeometryError, UnsupportedError
from isocenter.core.geometry import Grid
from isocenter.core.prompts import Box
from isocenter.core.settings import Limits
from isocenter.core.volume import Volume
from isocenter.io import nifti
from isocenter.io.nifti import WireMask


def read(data: bytes) -> Volume:
    return nifti.read(io.BytesIO(data), len(data), limits=Limits())


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?", ">i2"])
@pytest.mark.parametrize("compress", [False, True])
def test_every_type_comes_back(kind: str, compress: bool) -> None:
    array = np.random.default_rng(1).integers(0, 2, (3, 4, 5)).astype(kind)
    data = nifti.write(array, Grid((3, 4, 5)), compress=compress)
    back = nib.Nifti1Image.from_bytes(gzip.decompress(data) if compress else data)
    np.testing.assert_array_equal(np.asarray(back.dataobj).T, array)
    assert (data[:2] == b"\x1f\x8b") is compress


def test_complex_numbers_cannot_be_written() -> None:
    with pytest.raises(UnsupportedError):
        nifti.write(np.zeros((2, 2, 2), complex), Grid((2, 2, 2)))
    with pytest.raises(GeometryError):
        nifti.write(np.zeros((2, 2, 2)), Grid((2, 2, 3)))


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_grid_comes_back_from_both_forms(seed: int, mirrored: bool) -> None:
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(rng=rng).as_matrix() * rng.uniform(0.2, 6, 3) * ((-1, 1, 1) if mirrored else 1)
    affine[:3, 3] = rng.uniform(-400, 400, 3)
    grid = Grid.from_affine_lps(affine, (3, 4, 5))
    header = nib.Nifti1Image.from_bytes(nifti.write(np.zeros((3, 4, 5), np.uint8), grid, compress=False)).header
    np.testing.assert_allclose(header.get_sform(), grid.affine_ras, atol=1e-4)
    np.testing.assert_allclose(header.get_qform(), grid.affine_ras, atol=1e-3)
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert grid.same_as(read(nifti.write(np.zeros((3, 4, 5), np.uint8), grid)).grid)


def test_simpleitk_reads_the_same_place(tmp_path: Path) -> None:
    import SimpleITK
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(0)
    for turn in (*Rotation.random(20, rng=rng).as_matrix(), *(np.eye(3)[rng.permutation(3)] for _ in range(20))):
        affine = np.eye(4)
        affine[:3, :3] = turn * rng.uniform(0.2, 6, 3) * rng.choice((-1, 1), 3)
        affine[:3, 3] = rng.uniform(-400, 400, 3)
        array = rng.integers(0, 9, (3, 4, 5)).astype(np.uint8)
        path = tmp_path / "a.nii.gz"
        path.write_bytes(nifti.write(array, Grid.from_affine_lps(affine, array.shape)))
        image = SimpleITK.ReadImage(path)
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), array)
        np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing(), affine[:3, :3], atol=1e-4)
        np.testing.assert_allclose(image.GetOrigin(), affine[:3, 3], atol=1e-4)


def test_a_shear_is_kept_and_has_no_qform() -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    grid = Grid.from_affine_ras(affine, (3, 4, 5))
    data = nifti.write(np.zeros((3, 4, 5), np.uint8), grid)
    assert read(data).grid.same_as(grid)
    assert int(nib.Nifti1Image.from_bytes(gzip.decompress(data)).header["qform_code"]) == 0


@pytest.mark.parametrize(
    "name",
    [
        "niivue/nifti_space/ASL.nii.gz",
        "niivue/nifti_space/PIR.nii.gz",
        "totalsegmentator/example_ct.nii.gz",
        "totalsegmentator/example_mr_sm.nii.gz",
        "dicom_refs_dcm2niix/dcm_qa_decubitus_In_HFP_2_t1_fl2d_sag_2.nii.gz",
    ],
)
def test_a_mask_repeats_its_scan_s_affine_bit_by_bit(data: Path, name: str) -> None:
    volume = read((data / name).read_bytes())
    mask = (volume.array > volume.array.mean()).astype(np.uint8)
    ours = nib.Nifti1Image.from_bytes(gzip.decompress(nifti.write(mask, volume.grid, header=volume.source.header)))
    theirs = nib.load(data / name)
    for field in ("qform_code", "sform_code", *(f"{n}_{c}" for n, cs in (("quatern", "bcd"), ("qoffset", "xyz"), ("srow", "xyz")) for c in cs)):
        np.testing.assert_array_equal(ours.header[field], theirs.header[field])
    np.testing.assert_array_equal(ours.header["pixdim"][:4], theirs.header["pixdim"][:4])
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    np.testing.assert_array_equal(np.asarray(ours.dataobj).T, mask)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
def test_other_byte_orders_and_versions_are_repeated_too(order: str, version: type) -> None:
    header = version.header_class(endianness=order)  # type: ignore[attr-defined]
    affine = np.array([[0, -1.1, 0, 3], [2.2, 0, 0, 4], [0, 0, 3.3, 5], [0, 0, 0, 1.0]])
    image = version(np.zeros((5, 4, 3), np.int16), affine, header)
    image.set_sform(affine, 4)
    image.set_qform(affine, 2)
    volume = read(image.to_bytes())
    back = version.from_bytes(gzip.decompress(nifti.write(volume.array, volume.grid, header=volume.source.header)))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(back.get_sform(), image.get_sform())
    np.testing.assert_array_equal(back.get_qform(), image.get_qform())
    assert (int(back.header["sform_code"]), int(back.header["qform_code"])) == (4, 2)


def test_a_header_of_another_grid_is_not_repeated() -> None:
    other = read(nifti.write(np.zeros((3, 4, 5)), Grid((3, 4, 5), origin=(100, 0, 0)))).source.header
    grid = Grid((3, 4, 5), spacing=(2, 2, 2))
    assert read(nifti.write(np.zeros((3, 4, 5)), grid, header=other)).grid.same_as(grid)


def test_long_axes_become_nifti_2() -> None:
    array = np.zeros((1, 2, 40_000), np.uint8)
    assert read(nifti.write(array, Grid((1, 2, 40_000)))).shape == (1, 2, 40_000)


def test_the_same_input_gives_the_same_bytes_and_the_model_s_name() -> None:
    array = np.random.default_rng(0).integers(0, 9, (40, 300, 300)).astype(np.int16)
    first = nifti.write(array, Grid(array.shape), description="isocenter tissue 1.0")
    assert first == nifti.write(array, Grid(array.shape), description="isocenter tissue 1.0")
    assert nib.Nifti1Image.from_bytes(gzip.decompress(first)).header["descrip"].item() == b"isocenter tissue 1.0"


# -- the wire's mask -------------------------------------------------------------------------------------------------------


def unpacked(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """As the real client reads: one member, header of 348, one byte a voxel from 352 on, first dimension Z."""
    inflater = zlib.decompressobj(31)
    body = inflater.decompress(data)
    assert inflater.eof
    assert not inflater.unused_data
    assert int.from_bytes(body[:4], "little") == 348
    assert body[344:348] == b"n+1\0"
    assert tuple(np.frombuffer(body[40:48], "<i2")) == (3, *shape)
    return np.frombuffer(body[352:], np.uint8).reshape(shape, order="F")


def test_the_wire_mask_has_z_first_and_an_identity_affine() -> None:
    mask = (np.random.default_rng(0).random((5, 6, 7)) > 0.5).astype(np.uint8)
    data = nifti.write_wire(mask)
    np.testing.assert_array_equal(unpacked(data, (5, 6, 7)), mask)
    image = nib.Nifti1Image.from_bytes(gzip.decompress(data))
    np.testing.assert_array_equal(image.affine, np.eye(4))
    assert image.get_data_dtype() == np.uint8
    assert image.dataobj.offset == 352


boxes = st.tuples(*[st.tuples(st.integers(0, 30), st.integers(1, 30))] * 3)


@given(st.lists(st.tuples(boxes, st.sampled_from((0, 1, 5)), st.booleans()), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_patching_boxes_equals_writing_the_whole(steps: list[tuple[tuple[tuple[int, int], ...], int, bool]]) -> None:
    shape = (20, 24, 33)
    kept, mask = WireMask(shape), np.zeros(shape, np.uint8)
    for spans, value, pack in steps:
        lo = [min(a, n - 1) for (a, _), n in zip(spans, shape, strict=True)]
        hi = [min(a + b, n) for a, (_, b), n in zip(lo, spans, shape, strict=True)]
        box = Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))
        mask[box.slices] = value
        mask[lo[0], lo[1], lo[2]] = 1
        kept.update(mask, box)
        if pack:
            kept.gz()
    np.testing.assert_array_equal(unpacked(kept.gz(), shape), mask != 0)
    assert kept.gz() == nifti.write_wire(mask)


def test_large_masks_are_cut_into_blocks_that_fit_together() -> None:
    mask = (np.random.default_rng(0).random((60, 200, 300)) > 0.9).astype(np.uint8)
    np.testing.assert_array_equal(unpacked(nifti.write_wire(mask), (60, 200, 300)), mask)


def test_forbidden_bytes_are_avoided() -> None:
    mask = (np.random.default_rng(0).random((30, 40, 50)) > 0.5).astype(np.uint8)
    usual = nifti.write_wire(mask)
    for avoid in (usual[400:404], usual[-8:-4]):  # inside the voxels, and the checksum
        data = nifti.write_wire(mask, avoid=(avoid,))
        assert avoid not in data
        np.testing.assert_array_equal(unpacked(data, (30, 40, 50)), mask)
