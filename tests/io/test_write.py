"""One door out: every format holds the volume's grid and the segmentation's voxels."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from isocenter.core.errors import InputError, UsageError
from isocenter.core.geometry import Grid
from isocenter.core.provenance import Provenance
from isocenter.core.segmentation import Segmentation
from isocenter.core.settings import Limits
from isocenter.core.terminology import label
from isocenter.core.volume import Source, Volume
from isocenter.io import nifti, npz, nrrd, write

GRID = Grid.from_affine_lps(np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 6], [0, 0, -3, 7], [0, 0, 0, 1]]), (4, 5, 6))
VOLUME = Volume.on_grid(np.arange(120, dtype=np.int16).reshape(4, 5, 6), GRID)
MASK = np.zeros((4, 5, 6), np.uint8)
MASK[1:3, 2:4, 1:5] = 1
MASK[3, 0, 0] = 4
RESULT = Segmentation(MASK, GRID, (label("liver", 1), label("spleen", 4), label("aorta", 9)), Provenance("tissue", "1.0", VOLUME.key))


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.nii.gz", ".nii.gz"), ("A.NII", ".nii"), ("x.seg.nrrd", ".seg.nrrd"), ("b.nrrd", ".nrrd"), ("c.npz", ".npz"), ("d.PNG", ".png"),
     ("e.dcm", ".dcm"), ("nifti", ".nii.gz"), ("dicom_seg", ".dcm"), (".nii.gz", ".nii.gz"), ("nrrd", ".nrrd")],
)  # fmt: skip
def test_formats_by_name(name: str, suffix: str) -> None:
    assert write.suffix_of(name) == suffix


@pytest.mark.parametrize("name", ["a.txt", "nii.gz.exe", "", "mask", "a.gz"])
def test_unknown_formats_are_named(name: str) -> None:
    with pytest.raises(UsageError, match=r"\.seg\.nrrd"):
        write.suffix_of(name)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".seg.nrrd"])
def test_masks_come_back_on_the_grid(suffix: str) -> None:
    data = write.encode(RESULT, suffix, VOLUME)
    reader = nifti if "nii" in suffix else nrrd
    back = reader.read(io.BytesIO(data), len(data), limits=Limits())
    np.testing.assert_array_equal(back.array, MASK)
    assert back.grid.same_as(GRID)
    assert data == write.encode(RESULT, suffix, VOLUME)


def test_nifti_names_the_model_and_repeats_the_source_s_header() -> None:
    data = nifti.write(VOLUME.array, GRID)
    source = nifti.read(io.BytesIO(data), len(data), limits=Limits())
    header = nib.Nifti1Image.from_bytes(write.encode(RESULT, ".nii", source)).header
    assert header["descrip"].item() == b"isocenter tissue 1.0"
    np.testing.assert_array_equal(header.get_sform(), nib.Nifti1Image.from_bytes(gzip.decompress(data)).header.get_sform())


def test_slicer_s_keys(tmp_path: Path) -> None:
    import SimpleITK

    path = tmp_path / "a.seg.nrrd"
    path.write_bytes(write.encode(RESULT, ".seg.nrrd", VOLUME))
    image = SimpleITK.ReadImage(path)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), MASK)
    keys = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert keys["Segment0_Name"] == "liver"
    assert keys["Segment0_LabelValue"] == "1"
    assert keys["Segment0_Extent"] == "1 4 2 3 1 2"
    assert keys["Segment1_Extent"] == "0 0 0 0 3 3"
    assert keys["Segment2_Extent"] == "0 -1 0 -1 0 -1"
    assert keys["Segment0_Layer"] == "0"
    assert "SCT^10200004^Liver" in keys["Segment0_Tags"]
    assert [round(float(v) * 255) for v in keys["Segment0_Color"].split()] == [221, 130, 101]
    assert json.loads(keys["isocenter_provenance"])["model"] == "tissue"


def test_npz_is_numpy_s(tmp_path: Path) -> None:
    data = write.encode(RESULT, ".npz", VOLUME)
    with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
        np.testing.assert_array_equal(loaded["seg"], MASK)
        assert json.loads(loaded["provenance"].tobytes())["version"] == "1.0"
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    np.testing.assert_array_equal(npz.read(path, "seg"), MASK)
    assert npz.read(path, "prob") is None
    path.write_bytes(data[:60] + b"x" * 20 + data[80:])
    with pytest.raises(InputError):
        npz.read(path, "seg")
    np.savez(path, seg=MASK)
    np.testing.assert_array_equal(npz.read(path, "seg"), MASK)
    path.write_bytes(b"")
    with pytest.raises(InputError):
        npz.read(path, "seg")


@pytest.mark.parametrize(
    "array", [np.zeros((0, 3)), np.float32(3.5) * np.ones(()), np.asfortranarray(np.arange(12.0).reshape(3, 4)), np.zeros(3_000_000, bool)]
)
def test_npz_of_any_array(array: np.ndarray) -> None:
    with np.load(io.BytesIO(npz.write({"a": array, "b": array})), allow_pickle=False) as loaded:
        np.testing.assert_array_equal(loaded["a"], array)
        np.testing.assert_array_equal(loaded["b"], array)


def test_png_of_one_slice() -> None:
    grid = Grid((1, 5, 6))
    volume = Volume.on_grid(np.zeros((1, 5, 6), np.uint8), grid, source=Source("picture"))
    one = Segmentation(MASK[1:2], grid, (label("region"),), RESULT.provenance)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(write.encode(one, ".png", volume)))), MASK[1] * 255)
    several = Segmentation(MASK[3:], grid, RESULT.labels, RESULT.provenance)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(write.encode(several, ".png", volume)))), MASK[3])
    with pytest.raises(UsageError, match="one slice"):
        write.encode(RESULT, ".png", VOLUME)


def test_a_mask_is_never_written_with_another_volume() -> None:
    other = Volume.on_grid(VOLUME.array, Grid((4, 5, 6)))
    with pytest.raises(UsageError, match="another volume"):
        write.encode(RESULT, ".nii.gz", other)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_scans_come_back(suffix: str) -> None:
    data = write.encode_image(VOLUME, suffix)
    back = (nifti if "nii" in suffix else nrrd).read(io.BytesIO(data), len(data), limits=Limits())
    np.testing.assert_array_equal(back.array, VOLUME.array)
    assert back.grid.same_as(GRID)


def test_scans_in_other_formats() -> None:
    with np.load(io.BytesIO(write.encode_image(VOLUME, ".npz")), allow_pickle=False) as loaded:
        np.testing.assert_array_equal(loaded["image"], VOLUME.array)
        np.testing.assert_allclose(loaded["affine"], GRID.affine_ras)
    with pytest.raises(UsageError):
        write.encode_image(VOLUME, ".seg.nrrd")
