"""DICOM images to a volume: order, grouping, geometry and what is said about it, on files made here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from isocenter.core.errors import GeometryError, InputError, UnsupportedError
from isocenter.core.volume import Volume
from isocenter.io import door
from tests.io.dicom_files import LIMITS, data_of, enhanced, image, read_bytes, save, stack, voxels


def read(folder: Path, datasets: list[pydicom.Dataset], **options: Any) -> Volume:
    return door.read_path(save(folder, datasets), limits=LIMITS, **options)


def test_a_series_in_any_order_of_files(tmp_path: Path) -> None:
    array = voxels()
    volume = read(tmp_path, stack(array))
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.dtype == np.int16
    assert (volume.spacing, volume.origin) == ((0.5, 0.75, 2.0), (-10.0, -20.0, 5.0))
    assert (volume.modality, volume.unit, volume.source.format) == ("CT", "HU", "dicom")
    assert volume.source.notes == ()
    assert not volume.source.flipped
    assert (volume.source.series_uid, volume.source.series[0].images) == ("1.2.3.4", 5)


def test_instance_numbers_that_run_against_the_position(tmp_path: Path) -> None:
    array = voxels()
    datasets = stack(array, [(0, 0, -3.0 * k) for k in range(5)])
    volume = read(tmp_path, datasets)
    np.testing.assert_array_equal(volume.array, array[::-1])
    assert volume.source.flipped
    assert volume.origin == (0.0, 0.0, -12.0)
    numbers = [pydicom.dcmread(io.BytesIO(h)).InstanceNumber for h in volume.source.headers]
    assert numbers == [5, 4, 3, 2, 1]


def test_headers_are_the_files_without_their_pixels(tmp_path: Path) -> None:
    volume = read(tmp_path, stack(voxels()))
    first = pydicom.dcmread(io.BytesIO(volume.source.headers[0]))
    assert "PixelData" not in first
    assert (first.Rows, first.PatientID) == (12, "SECRET-ID")


@pytest.mark.parametrize("orientation", [(0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, -1, 0), (0.6, 0.8, 0, 0, 0, 1), (1, 0, 0, 0, 0.8, -0.6)])
def test_oblique_stacks_are_right_handed(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    array = voxels()
    datasets = stack(array, [tuple(5.0 - 1.5 * k * normal) for k in range(5)], ImageOrientationPatient=list(orientation))
    volume = read(tmp_path, datasets)
    affine = volume.grid.affine_lps
    assert np.linalg.det(affine[:3, :3]) > 0
    np.testing.assert_array_equal(volume.array, array[::-1])
    np.testing.assert_allclose(affine[:3, :3], np.column_stack([row * 0.5, column * 0.75, normal * 1.5]), atol=1e-9)
    np.testing.assert_allclose(volume.origin, 5.0 - 6.0 * normal, atol=1e-9)


# -- several series, sizes and times -----------------------------------------------------------------------------------


def test_the_largest_series_is_read_and_named(tmp_path: Path) -> None:
    datasets = stack(voxels((5, 12, 10)), series="1.9.1") + stack(voxels((3, 12, 10)), series="1.9.2")
    volume = read(tmp_path, datasets)
    assert volume.source.series_uid == "1.9.1"
    assert "1.9.1" in volume.source.notes[0]
    assert {(s.uid, s.images) for s in volume.source.series} == {("1.9.1", 5), ("1.9.2", 3)}


def test_a_series_can_be_asked_for(tmp_path: Path) -> None:
    datasets = stack(voxels((5, 12, 10)), series="1.9.1") + stack(voxels((3, 12, 10), 1), series="1.9.2")
    volume = read(tmp_path, datasets, series_uid="1.9.2")
    assert volume.shape == (3, 12, 10)
    with pytest.raises(InputError, match=r"1\.9\.1"):
        door.read_path(tmp_path, limits=LIMITS, series_uid="1.9.3")


def test_series_that_cannot_be_read_do_not_hide_the_others(tmp_path: Path) -> None:
    array = voxels()
    odd = image(voxels(dtype=np.uint8)[0], series="1.9.9", BitsAllocated=1, BitsStored=1, HighBit=0)
    broken = image(voxels()[0], series="1.9.8", ImageOrientationPatient=[0] * 6)
    volume = read(tmp_path, [*stack(array), odd, broken])
    np.testing.assert_array_equal(volume.array, array)
    assert "2 other series" in volume.source.notes[-1]
    with pytest.raises(UnsupportedError):
        door.read_path(tmp_path, limits=LIMITS, series_uid="1.9.9")


def test_an_image_that_cannot_be_read_is_not_left_out_of_its_series(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="orientation"):
        read(tmp_path, [*stack(voxels()), image(voxels()[0], ImageOrientationPatient=[0] * 6)])


def test_localizers_and_other_sizes_are_left_out_with_a_note(tmp_path: Path) -> None:
    array = voxels()
    datasets = [*stack(array), image(voxels((1, 30, 30))[0], ImageOrientationPatient=[0, 1, 0, 0, 0, -1], number=9)]
    volume = read(tmp_path, datasets)
    np.testing.assert_array_equal(volume.array, array)
    assert "1 of the 6 images" in volume.source.notes[0]


def test_duplicates_are_dropped_with_a_note(tmp_path: Path) -> None:
    array = voxels()
    copies = stack(array)
    volume = read(tmp_path, stack(array)[:3] + copies)
    np.testing.assert_array_equal(volume.array, array)
    assert "3 of the 8 images are duplicates" in volume.source.notes[0]


def test_points_in_time_give_the_first_with_a_note(tmp_path: Path) -> None:
    first, second = voxels(seed=1), voxels(seed=2)
    # The positions differ by what rounding does.
    late = stack(second, [(-10, -20, 5 + 2 * k - 3e-5) for k in range(5)], TemporalPositionIdentifier=2)
    volume = read(tmp_path, late + stack(first, TemporalPositionIdentifier=1))
    np.testing.assert_array_equal(volume.array, first)
    assert "2 images at each of 5 places" in volume.source.notes[0]


def test_several_images_at_some_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="same place"):
        read(tmp_path, stack(voxels()) + stack(voxels(seed=1))[1:3])


# -- irregular stacks --------------------------------------------------------------------------------------------------


def test_a_missing_slice_is_interpolated_and_named(tmp_path: Path) -> None:
    array = voxels((7, 12, 10))
    volume = read(tmp_path, [d for k, d in enumerate(stack(array)) if k != 3])
    kept = [0, 1, 2, 4, 5, 6]
    np.testing.assert_array_equal(volume.array[kept], array[kept])
    np.testing.assert_allclose(volume.array[3], (array[2].astype(float) + array[4]) / 2, atol=0.5)
    assert volume.spacing[2] == pytest.approx(2.0)
    assert "1 slice is missing" in volume.source.notes[0]
    assert "z = 3." in volume.source.notes[0]
    assert volume.source.headers == ()


def test_uneven_gaps_are_resampled_along_the_normal(tmp_path: Path) -> None:
    depths = np.array([0, 1.0, 2.3, 3.1, 4.4, 5.2, 6.0])
    ramp = np.broadcast_to((depths * 100).astype(np.int16)[:, None, None], (7, 6, 5))
    volume = read(tmp_path, stack(np.ascontiguousarray(ramp), [(0, 0, d) for d in depths]))
    where = volume.spacing[2] * np.arange(volume.shape[0])
    np.testing.assert_allclose(np.asarray(volume.array[:, 3, 2], float), where * 100, atol=2)
    assert where[-1] == pytest.approx(6.0)
    assert "varies from 0.80 to 1.30 mm" in volume.source.notes[0]


def test_a_large_gap_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="gap"):
        read(tmp_path, stack(voxels(), [(0, 0, d) for d in (0, 1, 2, 40, 41)]))


def test_rounded_positions_are_regular(tmp_path: Path) -> None:
    array = voxels((9, 6, 5))
    volume = read(tmp_path, stack(array, [(0, 0, round(1.25 * k, 1)) for k in range(9)]))
    np.testing.assert_array_equal(volume.array, array)
    assert volume.source.notes == ()


def test_gantry_tilt_becomes_a_right_angled_grid(tmp_path: Path) -> None:
    """A function of the patient's coordinates is found again at its place."""

    def field(points: Any) -> Any:
        return np.asarray(points @ [3.0, 7.0, 5.0])

    tilt = np.deg2rad(15)
    column = np.array([0, np.cos(tilt), -np.sin(tilt)])
    v, u = np.mgrid[0:40, 0:30]
    datasets = []
    for k in range(12):
        corner = np.array([0.0, 0.0, 2.0 * k])
        points = corner + u[..., None] * 0.5 * np.array([1.0, 0, 0]) + v[..., None] * 0.75 * column
        datasets.append(image(np.rint(field(points)).astype(np.int16), position=corner, ImageOrientationPatient=[1, 0, 0, *column], number=k))
    volume = read(tmp_path, datasets)
    assert volume.grid.is_orthogonal
    assert "gantry tilt" in volume.source.notes[0]
    z, y, x = (axis.ravel() for axis in np.meshgrid([3, 6], [15, 20, 30], [4, 20], indexing="ij"))
    points = (volume.grid.affine_lps @ np.stack([x, y, z, np.ones_like(x)]))[:3].T
    np.testing.assert_allclose(volume.array[z, y, x], field(points), atol=1.5)
    # Nothing is cut off: every corner of every slice lies inside.
    for dataset in datasets:
        for v0, u0 in ((0, 0), (39, 29)):
            point = np.array(dataset.ImagePositionPatient, float) + u0 * 0.5 * np.array([1.0, 0, 0]) + v0 * 0.75 * column
            index = (np.linalg.inv(volume.grid.affine_lps) @ [*point, 1])[:3]
            assert (index > -0.1).all()
            assert (index[::-1] < np.array(volume.shape) - 0.9).all()


# -- single images and multi-frame -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("absent", "scale"),
    [
        ((), "full"),
        (("SliceThickness",), "plane"),
        (("ImagePositionPatient", "ImageOrientationPatient"), "full"),
        (("ImagePositionPatient", "ImageOrientationPatient", "SliceThickness"), "plane"),
        (("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"), "none"),
    ],
)
def test_a_single_picture_says_which_of_its_sizes_are_known(tmp_path: Path, absent: tuple[str, ...], scale: str) -> None:
    missing: dict[str, Any] = dict.fromkeys(absent)
    assert read(tmp_path, [image(voxels()[0], **missing)]).source.scale == scale


def test_a_picture_without_a_place(tmp_path: Path) -> None:
    absent: dict[str, Any] = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    volume = read(tmp_path, [image(voxels()[0], ImagerPixelSpacing=[0.2, 0.1], Modality="CR", **absent)])
    assert volume.spacing[:2] == (0.1, 0.2)
    assert "detector" in volume.source.notes[0]
    assert volume.unit == "a.u."


def test_a_picture_without_any_size(tmp_path: Path) -> None:
    absent: dict[str, Any] = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    volume = read(tmp_path, [image(voxels()[0], Modality="OT", **absent)])
    assert volume.spacing[:2] == (1.0, 1.0)
    assert "measurements mean nothing" in volume.source.notes[0]


def test_several_pictures_without_places_are_refused(tmp_path: Path) -> None:
    absent: dict[str, Any] = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient"))
    with pytest.raises(GeometryError, match="no position"):
        read(tmp_path, [image(p, **absent) for p in voxels()])


def test_an_enhanced_image_with_frames_in_any_order() -> None:
    array = voxels((4, 12, 10))
    order = [2, 0, 3, 1]
    dataset = enhanced(array[order], [(0, 0, 3.0 * k) for k in order], slopes=[1, 1, 1, 2])
    volume = read_bytes(data_of(dataset))
    array = array.copy()
    array[1] *= 2
    np.testing.assert_array_equal(volume.array, array)
    assert (volume.spacing, volume.modality) == ((0.5, 0.75, 3.0), "MR")
    assert len(volume.source.headers) == 1


@pytest.mark.parametrize("gap", [3.0, -3.0])
def test_nuclear_medicine_slices(gap: float) -> None:
    """PS3.3 C.8.4.15: the sign of the spacing is the direction of stacking."""
    array = voxels((4, 12, 10))
    absent: dict[str, Any] = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient"))
    dataset = image(array[0], Modality="NM", NumberOfFrames=4, SpacingBetweenSlices=gap, FrameIncrementPointer=0x00540080, **absent)
    detector = pydicom.Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [1, 2, 3], [1, 0, 0, 0, 1, 0]
    dataset.DetectorInformationSequence = pydicom.Sequence([detector])
    dataset.PixelData = array.tobytes()
    volume = read_bytes(data_of(dataset))
    np.testing.assert_array_equal(volume.array, array if gap > 0 else array[::-1])
    assert volume.origin == (1.0, 2.0, 3.0 if gap > 0 else -6.0)
    assert volume.spacing == (0.5, 0.75, 3.0)
    assert volume.source.flipped == (gap < 0)


def test_frames_in_time_do_not_lie_on_each_other() -> None:
    array = voxels((4, 12, 10))
    dataset = image(array[0], Modality="XA", NumberOfFrames=4, FrameIncrementPointer=0x00181063, FrameTime=30)
    dataset.PixelData = array.tobytes()
    volume = read_bytes(data_of(dataset))
    np.testing.assert_array_equal(volume.array, array)
    assert "stacked in their order" in volume.source.notes[-1]


def test_an_enhanced_image_in_time_gives_the_first(tmp_path: Path) -> None:
    array = voxels((6, 12, 10))
    dataset = enhanced(array, [(0, 0, 3.0 * (k // 2)) for k in range(6)])
    for k, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        content = pydicom.Dataset()
        content.TemporalPositionIndex = 2 - k % 2
        frame.FrameContentSequence = pydicom.Sequence([content])
    volume = read_bytes(data_of(dataset))
    np.testing.assert_array_equal(volume.array, array[1::2])
    assert "2 images at each of 3 places" in volume.source.notes[0]


def test_plain_frames_without_places(tmp_path: Path) -> None:
    array = voxels((4, 12, 10), dtype=np.uint8)
    absent: dict[str, Any] = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient"))
    dataset = image(array[0], Modality="US", NumberOfFrames=4, **absent)
    dataset.PixelData = array.tobytes()
    volume = read(tmp_path, [dataset])
    np.testing.assert_array_equal(volume.array, array)
    assert "stacked in their order" in volume.source.notes[-1]


def test_mosaics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="mosaic"):
        read(tmp_path, [image(voxels()[0], ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])])


# -- geometry that cannot be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"PixelSpacing": [0, 0]},
        {"PixelSpacing": [0.5, -0.5]},
        {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"PixelSpacing": None},
    ],
)
def test_impossible_geometry_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(GeometryError):
        read(tmp_path, stack(voxels(), **changes))


@pytest.mark.parametrize("wrong", [b"nan\\0\\0 ", b"inf\\0\\0 ", b"1\\2", b"1e400\\1\\2"])
def test_positions_that_are_no_positions(wrong: bytes) -> None:
    dataset = image(voxels()[0], position=(11.5, 22.5, 33.5))
    data = data_of(dataset)
    at = data.index(b"11.5\\22.5\\33.5")
    data = data[:at] + wrong.ljust(14) + data[at + 14 :]
    with pytest.raises(GeometryError, match="position"):
        read_bytes(data)


def test_words_in_place_of_codes_are_not_shown(tmp_path: Path) -> None:
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        dataset = image(voxels()[0])
        dataset.add_new("Modality", "LO", "Secret^Name")
        dataset.add_new("SeriesInstanceUID", "LO", "Secret Name")
        volume = read(tmp_path, [dataset])
    finally:
        pydicom.config.settings.writing_validation_mode = pydicom.config.RAISE
    assert volume.modality is None
    assert "ecret" not in repr(volume.source)


@pytest.mark.parametrize(
    ("changes", "unit"), [({}, "HU"), ({"RescaleType": "HU"}, "HU"), ({"RescaleType": "US"}, "a.u."), ({"RescaleIntercept": None}, "a.u.")]
)
def test_hounsfield_units_are_not_claimed_without_reason(tmp_path: Path, changes: dict[str, Any], unit: str) -> None:
    volume = read(tmp_path, stack(voxels(), **changes))
    assert (volume.modality, volume.unit) == ("CT", unit)
    assert bool(volume.source.notes) == (unit == "a.u.")


def test_no_patient_data_in_notes_and_errors(tmp_path: Path) -> None:
    volume = read(tmp_path, stack(voxels()) + stack(voxels())[:1])
    assert "secret" not in repr(volume.source).lower()
