"""The one way in: kinds are told from content, the modality is found or overridden, nothing but typed errors comes out."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from isocenter.core.errors import InputError, IsocenterError, MemoryLimitError, UnsupportedError, UsageError
from isocenter.core.volume import Volume
from isocenter.io import dicom, door
from tests.io.dicom_files import LIMITS, data_of, image, read_bytes, save, stack, voxels, zipped


def nifti(array: NDArray[np.generic], *, packed: bool = True) -> bytes:
    data = bytes(nib.Nifti1Image(array.T, np.diag([-2.0, -2.0, 3.0, 1.0])).to_bytes())
    return gzip.compress(data, 1) if packed else data


PHANTOM = np.random.default_rng(0).normal(40, 20, (12, 40, 40))
PHANTOM[:, :, :15] = np.random.default_rng(1).normal(-1000, 15, (12, 40, 15))
PHANTOM[:, :10, 15:] = np.random.default_rng(2).normal(-100, 15, (12, 10, 25))
PHANTOM = PHANTOM.astype(np.int16)


def test_formats_by_content_whatever_the_name() -> None:
    for packed in (True, False):
        volume = read_bytes(nifti(PHANTOM, packed=packed), "scan.dcm")
        np.testing.assert_array_equal(volume.array, PHANTOM)
        assert volume.source.format == "nifti"
    assert read_bytes(data_of(image(voxels()[0])), "x.nii.gz").source.format == "dicom"


def test_one_volume_in_an_archive() -> None:
    np.testing.assert_array_equal(read_bytes(zipped({"folder/scan.nii.gz": nifti(PHANTOM), "readme.txt": b"hi"})).array, PHANTOM)
    with pytest.raises(UnsupportedError, match="2 volumes"):
        read_bytes(zipped({"a.nii.gz": nifti(PHANTOM), "b.nii.gz": nifti(PHANTOM)}))


def test_pictures() -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30) % 251).save(file, "PNG")
    volume = read_bytes(file.getvalue())
    assert (volume.shape, volume.modality) == ((1, 20, 30), None)


def test_a_folder_is_walked_without_following_links(tmp_path: Path) -> None:
    array, outside = voxels(), tmp_path / "outside"
    inside = tmp_path / "root" / "a" / "b"
    inside.mkdir(parents=True)
    outside.mkdir()
    save(inside, stack(array))
    save(outside, stack(voxels((9, 12, 10)), series="9.9"))
    os.symlink(outside, tmp_path / "root" / "link")
    os.symlink(next(outside.iterdir()), tmp_path / "root" / "file")
    (tmp_path / "root" / "notes.txt").write_text("hello")
    volume = door.read_path(tmp_path / "root", limits=LIMITS)
    np.testing.assert_array_equal(volume.array, array)
    assert len(volume.source.series) == 1
    assert volume.source.notes == ("2 symbolic links were not followed.",)


def test_a_folder_of_links_only(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(data_of(image(voxels()[0])))
    (tmp_path / "root").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "root" / "link")
    with pytest.raises(UnsupportedError, match="1 symbolic links were not followed"):
        door.read_path(tmp_path / "root", limits=LIMITS)


def test_ct_is_inferred_and_said() -> None:
    volume = read_bytes(nifti(PHANTOM))
    assert (volume.modality, volume.unit) == ("CT", "HU")
    assert "read as CT" in volume.source.notes[-1]


@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(0).integers(0, 1000, (10, 30, 30)).astype(np.int16),
        np.random.default_rng(0).normal(0, 400, (10, 30, 30)).astype(np.int16),
        np.random.default_rng(0).uniform(-4096, 4095, (10, 30, 30)).astype(np.int16),
        np.random.default_rng(0).normal(0, 1, (10, 30, 30)).astype(np.float32),
        np.zeros((10, 30, 30), np.uint8),
        np.full((10, 30, 30), -1000, np.int16),
    ],
)
def test_ct_is_not_claimed_for_anything_else(array: NDArray[np.generic]) -> None:
    volume = read_bytes(nifti(array))
    assert (volume.modality, volume.unit) == (None, "a.u.")


def test_the_modality_can_be_overridden() -> None:
    volume = read_bytes(nifti(PHANTOM), modality="mr")
    assert (volume.modality, volume.unit) == ("MR", "a.u.")
    assert "as asked" in volume.source.notes[-1]
    volume = read_bytes(data_of(image(voxels()[0], Modality="MR")), modality="CT")
    assert (volume.modality, volume.unit) == ("CT", "HU")


@pytest.mark.parametrize(
    "data", [b"", b"x", b"hello world" * 100, b"PK\x03\x04", b"\x1f\x8b\x08" + bytes(20), bytes(5000), b"NRRD0004\n", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_image_at_all(data: bytes) -> None:
    with pytest.raises(InputError):
        read_bytes(data)


@pytest.mark.parametrize(
    "head", [bytes(128) + b"DICM", b"NRRD0005\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\x5c\x01\x00\x00", b"\x1f\x8b\x08\x00", b"PK\x03\x04"]
)
def test_right_magic_and_garbage_behind(head: bytes) -> None:
    data = head + np.random.default_rng(3).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    with pytest.raises(InputError):
        read_bytes(data)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such") as caught:
        door.read_path(tmp_path / "secret-name", limits=LIMITS)
    assert "secret-name" not in caught.value.message


@pytest.mark.parametrize(("fault", "wanted"), [(MemoryError, MemoryLimitError), (OSError("secret"), InputError), (KeyError("secret"), InputError)])
def test_faults_of_a_parser_leave_as_typed_errors(monkeypatch: pytest.MonkeyPatch, fault: BaseException, wanted: type[Exception]) -> None:
    def broken(*_: object, **__: object) -> Volume:
        raise fault

    monkeypatch.setattr(dicom, "read", broken)
    with pytest.raises(wanted) as caught:
        read_bytes(data_of(image(voxels()[0])))
    assert isinstance(caught.value, IsocenterError)
    assert "secret" not in caught.value.message
    assert caught.value.__suppress_context__


def test_a_modality_is_a_code() -> None:
    with pytest.raises(UsageError):
        read_bytes(nifti(PHANTOM), modality="<script>")
