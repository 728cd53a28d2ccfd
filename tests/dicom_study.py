"""The demo's second patient as a clinic has it: every visit a DICOM series, lesions in masks, and a name that must not leak."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from isocenter.core.phantom import LESIONS, Lesion, phantom
from isocenter.core.volume import Volume
from isocenter.demo.patient import TREATED, true_scale
from isocenter.io import nifti
from isocenter.io.uids import derived_uid

FIRST = date(2025, 3, 4)
NAME, NUMBER, BORN, ACCESSION = "Liddell^Alice", "MRN-4711-X", "18520504", "ACC99881"


def slices(volume: Volume, when: date, seed: int) -> list[Dataset]:
    """A CT series of a volume, feet first; its headers say who the patient is in many places."""
    series = derived_uid("series", str(seed))
    files = []
    x, y, z = (np.array([row[k] for row in volume.direction]) for k in range(3))
    for k, plane in enumerate(np.rint(volume.array).astype(np.int16)):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, derived_uid("slice", str(seed), str(k))
        data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
        data.file_meta.SourceApplicationEntityTitle = "LIDDELL"
        data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex, data.PatientAge = NAME, NUMBER, BORN, "F", "172Y"
        data.AccessionNumber, data.ReferringPhysicianName, data.InstitutionName = ACCESSION, "Dodgson^Charles", "Christ Church"
        data.StudyDescription, data.SeriesDescription = "CT Thorax for A. Liddell", "Liddell ABDOMEN axial 5.0 mm"
        data.StudyID, data.PatientComments, data.OperatorsName = "77", "Lives in Wonderland", "Hare^March"
        data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = when.strftime("%Y%m%d")
        data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = "101112.5"
        data.AcquisitionDateTime = when.strftime("%Y%m%d") + "101112.500000+0100"
        request = Dataset()
        request.RequestedProcedureID, request.ScheduledProcedureStepDescription = "R1", "See Alice"
        data.RequestAttributesSequence = [request]
        source = Dataset()
        source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = CTImageStorage, derived_uid("slice", str(seed), "0")
        data.SourceImageSequence = [source]
        block = data.private_block(0x0009, "WONDERLAND", create=True)
        block.add_new(0x01, "LO", NAME)
        data.Modality, data.Manufacturer, data.ImageType = "CT", "Looking Glass", ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.StudyInstanceUID, data.SeriesInstanceUID = derived_uid("study", str(seed)), series
        data.FrameOfReferenceUID, data.InstanceNumber = derived_uid("frame", str(seed)), k + 1
        data.PositionReferenceIndicator, data.KVP, data.SeriesNumber, data.AcquisitionNumber = "", "120", 1, 1
        data.Rows, data.Columns = plane.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.PixelSpacing = [volume.spacing[1], volume.spacing[0]]
        data.SliceThickness = volume.spacing[2]
        data.ImagePositionPatient = [round(float(v), 6) for v in np.array(volume.origin) + k * volume.spacing[2] * z]
        data.ImageOrientationPatient = [float(v) for v in (*x, *y)]
        data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 1, 0, "HU"
        data.PixelData = plane.tobytes()
        files.append(data)
    return files


def write_dicom_study(folder: Path, days: tuple[float, ...] = (0.0, 42.0, 126.0), shape: tuple[int, int, int] = (48, 72, 72)) -> Path:
    """A folder with a study.json, one DICOM folder a visit, and masks of the true lesions."""
    folder.mkdir(parents=True, exist_ok=True)
    visits = []
    for k, day in enumerate(days):
        scale = true_scale(day)
        lesions = tuple(Lesion(one.centre, one.radius * scale, one.hu) for one in LESIONS)
        made = phantom(shape, lesions=lesions, seed=k)
        place = folder / f"visit-{k + 1}"
        place.mkdir()
        for n, data in enumerate(slices(made.volume, FIRST + timedelta(days=day), k)):
            data.save_as(place / f"{n:03d}.dcm", enforce_file_format=True)
        label = (made.masks["lesion_1"] + 2 * made.masks["lesion_2"].astype(np.uint8)).astype(np.uint8)
        (folder / f"mask-{k + 1}.nii.gz").write_bytes(nifti.write(label, made.volume.grid, header=None, compress=True, description="truth"))
        visits.append(
            {"id": f"visit-{k + 1}", "date": (FIRST + timedelta(days=day)).isoformat(), "image": place.name, "mask": f"mask-{k + 1}.nii.gz"}
        )
    therapy = {"id": "course-1", "type": "chemotherapy", "start": TREATED[0], "end": TREATED[1]}
    told = {"patient_id": "alice", "visits": visits, "therapies": [therapy], "labels": {"1": {"organ": "liver"}, "2": {"organ": "liver"}}}
    (folder / "study.json").write_text(json.dumps(told))
    return folder
