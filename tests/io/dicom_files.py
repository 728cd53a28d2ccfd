"""DICOM files for tests, made with pydicom: small, valid, and changed by the tests that need them wrong."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from isocenter.core.settings import Limits
from isocenter.core.volume import Volume
from isocenter.io import door
from isocenter.io.upload import Upload

LIMITS = Limits()
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def image(
    pixels: NDArray[Any],
    *,
    position: Any = (-10.0, -20.0, 5.0),
    number: int = 1,
    series: str = "1.2.3.4",
    syntax: str = ExplicitVRLittleEndian,
    **changes: Any,
) -> Dataset:
    """A CT (MR, where `Modality` says so) of one slice, 0.5 mm between columns and 0.75 mm between rows; `changes` by keyword,
    None deletes."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = MRImageStorage if changes.get("Modality") == "MR" else CTImageStorage
    data.SOPInstanceUID = generate_uid()
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Modality, data.PatientName, data.PatientID = "CT", "Secret^Name", "SECRET-ID"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3", series, "1.2.5"
    data.InstanceNumber, data.SliceThickness = number, 2.0
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * pixels.dtype.itemsize
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelSpacing = [0.75, 0.5]
    data.ImagePositionPatient, data.ImageOrientationPatient = list(position), list(AXIAL)
    data.RescaleSlope, data.RescaleIntercept = 1, 0
    data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for key, value in changes.items():
        if value is None:
            delattr(data, key)
        else:
            setattr(data, key, value)
    return data


def stack(voxels: NDArray[Any], positions: Any = None, **changes: Any) -> list[Dataset]:
    """One image for each plane of `voxels` (z, y, x), 2 mm apart unless positions are given."""
    places = positions if positions is not None else [(-10.0, -20.0, 5.0 + 2.0 * k) for k in range(len(voxels))]
    return [image(plane, position=p, number=k + 1, **changes) for k, (plane, p) in enumerate(zip(voxels, places, strict=True))]


def data_of(dataset: Dataset) -> bytes:
    """The file's bytes."""
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def save(folder: Path, datasets: list[Dataset]) -> Path:
    """A folder of files with names that say nothing about their order."""
    for k, dataset in enumerate(datasets):
        (folder / f"IM{(k * 7919) % 10007:05d}").write_bytes(data_of(dataset))
    return folder


def read_bytes(data: bytes, name: str = "", **options: Any) -> Volume:
    """The volume in an upload of these bytes."""
    with Upload.of(data, name) as upload:
        return door.read_upload(upload, limits=options.pop("limits", LIMITS), **options)


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A ZIP archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def voxels(shape: tuple[int, int, int] = (5, 12, 10), seed: int = 0, dtype: Any = np.int16) -> NDArray[Any]:
    """Reproducible noise."""
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(max(info.min, -1000), min(info.max, 3000), shape, dtype=dtype)


def enhanced(planes: NDArray[Any], positions: Any, slopes: Any = None) -> Dataset:
    """An enhanced MR whose frames lie at `positions`, in the order given."""
    data = image(
        planes[0],
        Modality="MR",
        PixelSpacing=None,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        SliceThickness=None,
        RescaleSlope=None,
        RescaleIntercept=None,
    )
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    data.NumberOfFrames, data.PixelData = len(planes), planes.tobytes()
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.75, 0.5], 2.0
    orientation.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k, position in enumerate(positions):
        frame, place, transformation = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = list(position)
        frame.PlanePositionSequence = Sequence([place])
        transformation.RescaleSlope, transformation.RescaleIntercept = (slopes[k] if slopes else 1), 0
        frame.PixelValueTransformationSequence = Sequence([transformation])
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return data


def element(tag: int, kind: bytes, value: bytes, length: int | None = None) -> bytes:
    """One explicit little endian data element, with a false length when one is given."""
    count = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind
    long = kind in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    return head + (struct.pack("<HL", 0, count) if long else struct.pack("<H", count)) + value


def preamble(syntax: str) -> bytes:
    """Everything before the dataset."""
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = element(0x00020010, b"UI", uid)
    return bytes(128) + b"DICM" + element(0x00020000, b"UL", struct.pack("<L", len(meta))) + meta


def bare(rows: int, columns: int, frames: int = 1, bits: int = 16) -> bytes:
    """The elements of an image that a reader looks at, without its pixels, explicit little endian."""
    number = str(frames).encode().rjust(len(str(frames)) + len(str(frames)) % 2)
    return b"".join(
        [
            element(0x00080016, b"UI", CTImageStorage.encode() + b"\0" * (len(CTImageStorage) % 2)),
            element(0x00080060, b"CS", b"CT"),
            element(0x0020000E, b"UI", b"1.2.3\0"),
            element(0x00280002, b"US", struct.pack("<H", 1)),
            element(0x00280004, b"CS", b"MONOCHROME2 "),
            element(0x00280008, b"IS", number),
            element(0x00280010, b"US", struct.pack("<H", rows)),
            element(0x00280011, b"US", struct.pack("<H", columns)),
            element(0x00280100, b"US", struct.pack("<H", bits)),
            element(0x00280101, b"US", struct.pack("<H", bits)),
            element(0x00280102, b"US", struct.pack("<H", bits - 1)),
            element(0x00280103, b"US", struct.pack("<H", 0)),
        ]
    )
