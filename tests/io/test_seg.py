"""DICOM SEG: read back by highdicom, every voxel lies where the source's grid has it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from isocenter.core.errors import UnsupportedError, UsageError
from isocenter.core.geometry import Grid
from isocenter.core.provenance import Provenance
from isocenter.core.segmentation import Label, Segmentation
from isocenter.core.settings import Limits
from isocenter.core.terminology import label
from isocenter.core.volume import Source, Volume
from isocenter.io import door, seg

Kind = Literal["BINARY", "LABELMAP"]
REAL = (
    "totalsegmentator/example_ct_dicom",
    "dcmqi/segmentations/ct-3slice",
    "dcm_qa_decubitus/In",
    "niivue/enh.dcm",
    "niivue/dicom",
    "highdicom_test_files/ct_image.dcm",
)
MADE_BY = Provenance("tissue", "1.2", "0123456789abcdef", prompts=({"text": "liver"},))


def blobs(shape: tuple[int, int, int], values: tuple[int, ...] = (1, 7)) -> NDArray[np.uint8]:
    """A lopsided mask, so that no flip or swap of axes goes unseen."""
    z, y, x = shape
    mask = np.zeros(shape, np.uint8)
    mask[z // 3 : z // 3 + max(1, z // 2), y // 5 : y // 2, x // 3 : x // 2 + 3] = values[0]
    mask[z - 1, y // 2 : y // 2 + 9, 5 : x - 7] = values[-1]
    return mask


def segmented(volume: Volume, mask: NDArray[np.uint8], *labels: Label, by: Provenance = MADE_BY) -> Segmentation:
    return Segmentation(mask, volume.grid, labels or (label("liver", 1), label("spleen", 7)), by)


def read_back(data: bytes) -> Any:
    return highdicom.seg.Segmentation.from_dataset(pydicom.dcmread(io.BytesIO(data)))


def on_grid(dataset: Any, grid: Grid) -> NDArray[np.uint8]:
    """The label map of a SEG, put on `grid` by nothing but the positions that the SEG states."""
    whole = dataset.get_volume(combine_segments=True, allow_missing_positions=True)
    index = np.argwhere(whole.array > 0)
    place = (np.linalg.inv(grid.affine_lps) @ whole.affine @ np.c_[index, np.ones(len(index))].T)[:3].T
    assert np.abs(place - np.rint(place)).max() < 1e-3
    x, y, z = np.rint(place).astype(int).T
    mask = np.zeros(grid.shape, np.uint8)
    mask[z, y, x] = whole.array[tuple(index.T)]
    return mask


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_voxels_codes_and_references_on_real_series(data: Path, name: str, kind: Kind) -> None:
    volume = door.read_path(data / name, limits=Limits())
    mask = blobs(volume.shape)
    dataset = read_back(seg.write(segmented(volume, mask), volume, kind=kind))
    np.testing.assert_array_equal(on_grid(dataset, volume.grid), np.where(mask == 7, 2, mask))
    assert dataset.SegmentationType == kind
    referenced = dataset.ReferencedSeriesSequence[0]
    assert len(referenced.ReferencedInstanceSequence) == len(volume.source.headers)
    if volume.source.series_uid:
        assert referenced.SeriesInstanceUID == volume.source.series_uid
    first = dataset.SegmentSequence[-2]
    assert first.SegmentLabel == "liver"
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert first.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "91723000"
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    algorithm = first.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("tissue", "1.2")
    assert "not a medical device" in algorithm.AlgorithmParameters
    assert "RecommendedDisplayCIELabValue" in first


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("name", REAL)
def test_an_empty_mask_is_an_answer_too(data: Path, name: str, kind: Kind) -> None:
    volume = door.read_path(data / name, limits=Limits())
    dataset = read_back(seg.write(segmented(volume, np.zeros(volume.shape, np.uint8)), volume, kind=kind))
    assert not dataset.pixel_array.any()
    assert [s.SegmentLabel for s in dataset.SegmentSequence][-2:] == ["liver", "spleen"]


def test_clicks_are_called_semiautomatic_and_odd_names_are_made_to_fit(data: Path) -> None:
    volume = door.read_path(data / "dcmqi/segmentations/ct-3slice", limits=Limits())
    by = Provenance("a\\model", "", "0", prompts=tuple({"zyx": (0, i, i)} for i in range(3000)))
    odd = Label(1, "left\\right " + "x" * 80)
    dataset = read_back(seg.write(segmented(volume, blobs(volume.shape, (1,)), odd, by=by), volume))
    segment = dataset.SegmentSequence[0]
    assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert segment.SegmentLabel.startswith("left/right ")
    assert '"prompts": 3000' in segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters


def series(*, drop: tuple[str, ...] = (), slices: int = 4, flip: bool = False) -> Volume:
    """An oblique volume made from headers in memory, as the reader hands them on."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_euler("xyz", (0.4, -0.3, 0.9)).as_matrix()
    if flip:
        turn[:, 2] *= -1  # slices run against the normal of rows and columns
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.7, 0.8, 2.5)
    affine[:3, 3] = (-30, 44, 1200)
    grid = Grid.from_affine_lps(affine, (slices, 24, 30))
    headers = []
    for index in range(slices):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.MRImageStorage, f"1.2.3.{index + 1}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
        dataset.Modality, dataset.Rows, dataset.Columns = "MR", 24, 30
        dataset.PatientName, dataset.PatientID = "Müller^Jürgen", "7"
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.PixelSpacing = [0.8, 0.7]
        dataset.ImageOrientationPatient = [round(float(v), 9) for v in (*turn[:, 0], *turn[:, 1])]
        dataset.ImagePositionPatient = [round(float(v), 9) for v in affine[:3, 3] + index * affine[:3, 2]]
        dataset.add_new(0x00191001, "LO", "private")
        for name in drop:
            if name in dataset:
                delattr(dataset, name)
        out = io.BytesIO()
        dataset.save_as(out, enforce_file_format=False)
        headers.append(out.getvalue())
    array = np.zeros(grid.shape, np.int16)
    return Volume.on_grid(array, grid, modality="MR", source=Source("dicom", headers=tuple(headers), series_uid="1.2.5"))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "drop",
    [
        (),
        ("PatientName", "PatientID"),
        ("FrameOfReferenceUID",),
        ("StudyInstanceUID", "SeriesInstanceUID"),
        ("SpecificCharacterSet", "PatientName"),
        ("Modality",),
    ],
)
def test_oblique_turned_and_stripped_headers(drop: tuple[str, ...], flip: bool) -> None:
    volume = series(drop=drop, flip=flip)
    mask = blobs(volume.shape)
    dataset = read_back(seg.write(segmented(volume, mask), volume))
    np.testing.assert_array_equal(on_grid(dataset, volume.grid), np.where(mask == 7, 2, mask))
    if not drop:
        assert str(dataset.PatientName) == "Müller^Jürgen"
        assert dataset.FrameOfReferenceUID == "1.2.6"


def test_scans_without_slices_of_their_own_are_refused() -> None:
    grid = Grid((2, 3, 4))
    plain = Volume.on_grid(np.zeros((2, 3, 4)), grid)
    mask = np.zeros((2, 3, 4), np.uint8)
    with pytest.raises(UsageError, match="came as DICOM"):
        seg.write(segmented(plain, mask), plain)
    resampled = Volume.on_grid(np.zeros((2, 3, 4)), grid, source=Source("dicom"))
    with pytest.raises(UsageError, match="resampled"):
        seg.write(segmented(resampled, mask), resampled)
    volume = series()
    fewer = Volume.on_grid(volume.array[:3], Grid((3, 24, 30)), source=volume.source)
    with pytest.raises(UsageError, match="changed"):
        seg.write(segmented(fewer, np.zeros((3, 24, 30), np.uint8)), fewer)
    nameless = series(drop=("SOPInstanceUID",))
    with pytest.raises(UnsupportedError):
        seg.write(segmented(nameless, np.zeros(nameless.shape, np.uint8)), nameless)
