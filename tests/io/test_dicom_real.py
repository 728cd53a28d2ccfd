"""Real series: equal to dcm2niix, to SimpleITK where that is right, and honest where the grid is not regular."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from isocenter.core.geometry import Grid, reorient
from isocenter.core.volume import Volume
from isocenter.io import door
from tests.io.dicom_files import LIMITS

REGULAR = ("totalsegmentator/example_ct_dicom", "niivue/dicom", "dcmqi/segmentations/ct-3slice")
SERIES = ("dcm_qa_decubitus/In/HFP", "niivue/enh.dcm", "highdicom_test_files/ct_image.dcm", *REGULAR)


def turned(array: NDArray[Any], grid: Grid) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The array in LPS order of the axes and the affine (LPS) that belongs to it."""
    straight = reorient(array, grid, "LPS")
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)[..., ::-1]
    picked = np.stack([reorient(np.ascontiguousarray(index[..., k]), grid, "LPS") for k in range(3)], axis=-1).astype(float)
    places = picked[(slice(0, 2),) * 3] if min(straight.shape) > 1 else picked
    affine = np.eye(4)
    affine[:3, 3] = grid.affine_lps[:3, :3] @ picked[0, 0, 0] + grid.affine_lps[:3, 3]
    for axis in range(3):
        step = [0, 0, 0]
        step[2 - axis] = 1
        if places.shape[2 - axis] > 1:
            affine[:3, axis] = grid.affine_lps[:3, :3] @ (picked[tuple(step)] - picked[0, 0, 0])
        else:
            affine[:3, axis] = 0
    return straight, affine


def dcm2niix(source: Path, folder: Path) -> tuple[NDArray[Any], Grid]:
    program = shutil.which("dcm2niix") or str(Path(sys.executable).with_name("dcm2niix"))
    if not Path(program).exists():
        pytest.skip("needs dcm2niix")
    option = ["-s", "y"] if source.is_file() else []
    subprocess.run([program, "-z", "n", "-b", "n", *option, "-o", str(folder), str(source)], check=True, stdout=subprocess.DEVNULL)
    (path,) = folder.glob("*.nii")
    return nifti(path)


def nifti(path: Path) -> tuple[NDArray[Any], Grid]:
    found = nib.load(path)
    array = np.asanyarray(found.dataobj)
    array = array.reshape((*array.shape, 1, 1)[:3]).T
    return array, Grid.from_affine_ras(found.affine, array.shape)


def same(volume: Volume, array: NDArray[Any], grid: Grid) -> None:
    ours, affine = turned(volume.array, volume.grid)
    theirs, wanted = turned(array, grid)
    np.testing.assert_allclose(affine, wanted, atol=1e-3)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", SERIES)
def test_equal_to_dcm2niix(data: Path, tmp_path: Path, name: str) -> None:
    volume = door.read_path(data / name, limits=LIMITS)
    same(volume, *dcm2niix(data / name, tmp_path))


def test_head_first_prone_equals_the_published_conversion(data: Path) -> None:
    volume = door.read_path(data / "dcm_qa_decubitus", limits=LIMITS)
    (reference,) = (data / "dicom_refs_dcm2niix").glob("*decubitus*.nii.gz")
    same(volume, *nifti(reference))


@pytest.mark.parametrize(
    "name", ["dcm_qa_decubitus/In/HFP/2_t1_fl2d_sag", "totalsegmentator/example_ct_dicom", "niivue/dicom", "dcmqi/segmentations/ct-3slice"]
)
def test_equal_to_simpleitk(data: Path, name: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(data / name)))
    image = reader.Execute()
    volume = door.read_path(data / name, limits=LIMITS)
    same(
        volume,
        sitk.GetArrayFromImage(image),
        Grid(volume.shape, image.GetSpacing(), image.GetOrigin(), tuple(np.reshape(image.GetDirection(), (3, 3)).tolist())),
    )


def test_gantry_tilt_and_uneven_gaps_are_resampled(data: Path) -> None:
    """Against an interpolation of the slices where they really lie, at points inside of the head."""
    import pydicom
    from scipy.ndimage import map_coordinates

    volume = door.read_path(data / "dcm_qa_ct", limits=LIMITS)
    notes = " ".join(volume.source.notes)
    assert "gantry tilt" in notes
    assert "1.08 to 7.00 mm" in notes
    assert volume.source.headers == ()
    assert volume.grid.is_orthogonal
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sets = sorted((pydicom.dcmread(p) for p in (data / "dcm_qa_ct" / "In").rglob("*.dcm")), key=lambda d: float(d.ImagePositionPatient[2]))
    for dataset in sets[::5]:
        cosines = np.array(dataset.ImageOrientationPatient, float)
        rng = np.random.default_rng(0)
        v, u = rng.integers(60, 450, (2, 500))
        points = np.array(dataset.ImagePositionPatient, float) + 0.4882812 * (np.outer(u, cosines[:3]) + np.outer(v, cosines[3:]))
        index = np.linalg.inv(volume.grid.affine_lps) @ np.column_stack([points, np.ones(len(points))]).T
        found = map_coordinates(volume.array.astype(np.float32), index[2::-1], order=1)
        wanted = dataset.pixel_array[v, u].astype(np.float32)
        # The planes of the grid lie between the slices: tissue agrees, edges are blurred.
        assert np.median(np.abs(found - wanted)) < 40
        assert np.corrcoef(found, wanted)[0, 1] > 0.9


def test_segmentations_are_refused_clearly(data: Path) -> None:
    from isocenter.core.errors import UnsupportedError

    for name in ("dcmqi/segmentations/liver.dcm", "highdicom_test_files/seg_image_ct_binary.dcm"):
        with pytest.raises(UnsupportedError, match="segmentation"):
            door.read_path(data / name, limits=LIMITS)
