"""`tissue` on the real scans: what `docs/accuracy.md` promises, and what must not be found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from isocenter.core.geometry import Grid, reorient
from isocenter.core.model import Finding, ModelContext
from isocenter.core.volume import Volume
from isocenter.models.tissue import Tissue

#: Word, TotalSegmentator's numbers (version 2) of what it means, least Dice.
CASES = [("lungs", range(10, 15), 0.95), ("left lung", range(10, 12), 0.94), ("right lung", range(12, 15), 0.95), ("liver", (5,), 0.9)]


@pytest.fixture(scope="module")
def model() -> Tissue:
    tissue = Tissue()
    tissue.load(ModelContext())
    return tissue


def load(path: Path) -> Volume:
    """A file, or a folder with one DICOM series, read by SimpleITK: these tests are of the model alone."""
    import SimpleITK as sitk

    if path.is_dir():
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
        image = reader.Execute()
    else:
        image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayFromImage(image)
    return Volume.on_grid(array, Grid.from_affine_lps(affine, array.shape), modality="CT", unit="HU")


def dice(found: Finding, scan: Volume, truth: NDArray[np.generic], grid: Grid) -> float:
    """Overlap after both were brought to the patient's axes."""
    a, b = reorient(found.mask, scan.grid) != 0, reorient(truth, grid) != 0
    return 2 * int(np.count_nonzero(a & b)) / max(1, int(np.count_nonzero(a)) + int(np.count_nonzero(b)))


@pytest.mark.parametrize(("word", "labels", "least"), CASES)
def test_a_belly_with_the_bases_of_the_lungs(data: Path, model: Tissue, word: str, labels: Sequence[int], least: float) -> None:
    scan, truth = (load(data / "totalsegmentator" / name) for name in ("example_ct.nii.gz", "example_seg_fast_force_split.nii.gz"))
    (found,) = model.find(scan, [word])
    assert dice(found, scan, np.isin(truth.array, labels), truth.grid) >= least
    assert found.presence > 0.85


def test_a_contrast_scan_without_lungs(data: Path, model: Tissue) -> None:
    scan = load(data / "totalsegmentator" / "example_ct_dicom")
    truth = load(data / "totalsegmentator" / "example_seg_dicom.nii.gz")
    lungs, left, liver = model.find(scan, ["lungs", "left lung", "liver"])
    for found in (lungs, left):
        assert not found.mask.any()
        assert found.presence < 0.1
    assert dice(liver, scan, truth.array == 5, truth.grid) >= 0.9
    assert liver.presence > 0.9


@pytest.mark.parametrize("visit", ["baseline", "followup"])
def test_one_lung_cut_by_the_border(data: Path, model: Tissue, visit: str) -> None:
    scan, truth = (load(data / "elastix_lung" / f"3DCT_lung_{visit}{end}.mha") for end in ("", "_mask"))
    lungs, left, right = model.find(scan, ["lungs", "left lung", "right lung"])
    assert dice(lungs, scan, truth.array != 0, truth.grid) >= 0.97
    assert (right.mask == lungs.mask).all()
    assert not left.mask.any()


def test_a_pelvis_holds_neither_lung_nor_liver(data: Path, model: Tissue) -> None:
    scan = load(data / "totalsegmentator" / "example_ct.nii.gz")
    pelvis = Volume(np.ascontiguousarray(reorient(scan.array, scan.grid)[:30]), (3.0, 3.0, 3.0), modality="CT")
    for found in model.find(pelvis, ["lungs", "liver", "airways"]):
        assert not found.mask.any(), found.prompt
        assert found.presence < 0.1


def test_a_single_picture(data: Path, model: Tissue) -> None:
    scan = load(data / "highdicom_test_files" / "ct_image.dcm")
    assert scan.shape[0] == 1
    left, right, bone, fat = model.find(scan, ["left lung", "right lung", "bone", "fat"])
    middle = [float(np.argwhere(f.mask)[:, 2].mean()) for f in (left, right)]
    assert middle[0] > 90 > 40 > middle[1]  # the patient's left is on the right of the picture
    assert 1500 < np.count_nonzero(bone.mask) < 3500
    assert np.count_nonzero(fat.mask) > 1000
