"""DICOM Segmentation objects (PS3.3 A.51) of a segmentation of a DICOM series, made by highdicom.

The frames lie on the source's own slices: their positions and orientation are copied from the source's headers, which
`Volume.source.headers` keeps in array order.
"""

from __future__ import annotations

import io
import json
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import UnsupportedError, UsageError
from isocenter.core.segmentation import Code, Label, Segmentation
from isocenter.core.terminology import TISSUE
from isocenter.core.volume import Volume
from isocenter.io.uids import derived_uid

#: What highdicom needs of every slice but the first, whose whole header is read.
_NEEDED = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "Rows", "Columns",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "InstanceNumber", "ImageType",
)  # fmt: skip
#: Attributes that every image must have but that may be empty (type 2); anonymisers drop them.
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
    "ReferringPhysicianName",
)  # fmt: skip
#: Longest text of AlgorithmParameters (LT) with room to spare.
_MAX_PARAMETERS = 9000
_DEFAULT_COLOUR = (128, 174, 128)
_ONE_AT_A_TIME = threading.Lock()


NO_DICOM = "a DICOM SEG needs a scan that came as DICOM; use .nii.gz or .seg.nrrd"
#: What is read beside that of a first header when its patient is not to be named: when the study was, and where frames lie.
_NAMELESS = (
    "StudyDate", "StudyTime", "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "DimensionOrganizationSequence", "DimensionIndexSequence", "PositionReferenceIndicator",
)  # fmt: skip


@dataclass(frozen=True)
class Tracked:
    """What a segment is called and known by in every scan of a patient, and where in the body it lies."""

    identifier: str
    uid: str
    site: Code | None = None


def one_at_a_time() -> threading.Lock:
    """Held while warnings are switched off, whose list belongs to the process."""
    return _ONE_AT_A_TIME


def refusal(volume: Volume) -> str | None:
    """Why a DICOM object cannot refer to a scan's slices; None where it can."""
    if volume.source.format != "dicom":
        return NO_DICOM
    if not volume.source.headers:
        return "the scan was resampled while it was read, so its slices are none that a DICOM SEG could refer to; use .nii.gz"
    return None


def write(
    result: Segmentation,
    volume: Volume,
    *,
    kind: Literal["BINARY", "LABELMAP"] = "BINARY",
    tracked: Mapping[int, Tracked] | None = None,
    pseudonym: str | None = None,
    made_of: str | None = None,
) -> bytes:
    """A DICOM SEG file of `result`, which refers to the slices that `volume` was read from.

    kind: BINARY is what every viewer reads; LABELMAP (2024) is smaller. Labels are numbered 1, 2, ... in their order, as
    DICOM wants it. tracked: by label value. pseudonym: stands in place of everything that the scan says of its patient;
    None copies that. made_of: UIDs are derived from this text, the same each time; new ones when not given. Raises `UsageError` when the
    volume's slices are not DICOM files.
    """
    if reason := refusal(volume):
        raise UsageError(reason)
    if not result.labels:
        raise UsageError("a DICOM SEG needs at least one label")
    try:
        # highdicom and pydicom warn of much in other people's headers that is not ours to repair. Python's list of
        # warnings to ignore belongs to the process, so one at a time.
        with one_at_a_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _build(result, volume, kind, tracked or {}, pseudonym, made_of)
    except (KeyError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise UnsupportedError("the scan's DICOM headers lack what a DICOM SEG must refer to; use .nii.gz or .seg.nrrd") from error


def _build(result: Segmentation, volume: Volume, kind: str, tracked: Mapping[int, Tracked], pseudonym: str | None, made_of: str | None) -> bytes:
    import highdicom as hd
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    sources = source_images(volume, pseudonym)
    planes = _numbered(result)
    geometry: dict[str, Any] = {}
    if "NumberOfFrames" in sources[0]:
        planes = planes[frame_order(sources[0], volume)]
    elif "ImagePositionPatient" in sources[0]:
        geometry["pixel_measures"] = hd.PixelMeasuresSequence(
            pixel_spacing=(volume.spacing[1], volume.spacing[0]),
            slice_thickness=float(sources[0].SliceThickness),
            spacing_between_slices=volume.spacing[2] if len(sources) > 1 else None,
        )
        if not planes.any():
            # All frames are empty, yet one must be there: the first slice stands for all.
            geometry["plane_positions"] = [hd.PlanePositionSequence("PATIENT", sources[0].ImagePositionPatient)]
            planes = planes[:1]
    dataset = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=planes,
        segmentation_type=kind,
        segment_descriptions=[_describe(number, label, result, tracked.get(label.value)) for number, label in enumerate(result.labels, start=1)],
        series_instance_uid=derived_uid(made_of, "series") if made_of else hd.UID(),
        series_number=1000,
        sop_instance_uid=derived_uid(made_of, "object") if made_of else hd.UID(),
        instance_number=1,
        manufacturer="Isocenter",
        manufacturer_model_name=_short(result.provenance.model, 64),
        software_versions=_short(result.provenance.version, 64) or "0",
        device_serial_number="0",
        content_description="Research use only; not a medical device",
        content_label="SEGMENTATION",
        series_description=_short(f"{result.provenance.model} (research use only)", 64),
        transfer_syntax_uid=RLELossless if kind == "LABELMAP" else ExplicitVRLittleEndian,
        omit_empty_frames=bool(planes.any()),
        **geometry,
    )
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def source_images(volume: Volume, pseudonym: str | None = None) -> list[Any]:
    """The slices' headers as pydicom datasets, the absent ones of the attributes that may be empty made empty.

    pseudonym: as `write` has it. Raises what reading headers raises, and `UsageError` for slices that are not the files'.
    """
    from pydicom import dcmread
    from pydicom.uid import generate_uid

    datasets: list[Any] = []
    for index, header in enumerate(volume.source.headers):
        tags = list(_NEEDED) if index else None if pseudonym is None else [*_NEEDED, *_NAMELESS]
        dataset = dcmread(io.BytesIO(header), force=True, stop_before_pixels=True, specific_tags=tags)
        if not index:
            dataset.remove_private_tags()
        datasets.append(dataset)
    first = datasets[0]
    first.decode()
    # As UTF-8 from here on: some headers name no character set, or one that does not exist.
    first.SpecificCharacterSet = "ISO_IR 192"
    if pseudonym is not None:
        first.PatientID = first.PatientName = pseudonym
    for name in _MAY_BE_EMPTY:
        if name not in first:
            setattr(first, name, "")
    for dataset in datasets:
        # Anonymisers empty these in the dataset, yet leave them in the file's meta information.
        for name in ("SOPClassUID", "SOPInstanceUID"):
            if not dataset.get(name):
                setattr(dataset, name, dataset.file_meta[f"MediaStorage{name}"].value)
        # Without these the slices still belong together: the same identity is made from the same scan each time.
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            if not dataset.get(name):
                setattr(dataset, name, generate_uid(entropy_srcs=[volume.key, name]))
        if "ImagePositionPatient" in dataset:
            for name, value in (("PixelSpacing", [volume.spacing[1], volume.spacing[0]]), ("SliceThickness", volume.spacing[2])):
                if not dataset.get(name):
                    setattr(dataset, name, value)
    first.Modality = first.get("Modality") or volume.modality or "OT"
    _check(datasets, volume)
    if "PerFrameFunctionalGroupsSequence" in first:
        _share(first)
    return datasets


def _share(dataset: Any) -> None:
    """What all frames of a stack have in common is moved to where highdicom looks for it."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for name in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        if name not in shared:
            setattr(shared, name, dataset.PerFrameFunctionalGroupsSequence[0][name].value)


def _check(datasets: Sequence[Any], volume: Volume) -> None:
    """The headers must be those of the volume's own slices: a mask on other slices would be worse than none."""
    frames = int(datasets[0].get("NumberOfFrames") or 1)
    count = frames if len(datasets) == 1 else len(datasets)
    sizes = {(int(d.Rows), int(d.Columns)) for d in datasets}
    if count != volume.shape[0] or sizes != {volume.shape[1:]}:
        raise UsageError("the scan's slices were changed while it was read, so a DICOM SEG cannot refer to them; use .nii.gz")
    if frames > 1 and "PerFrameFunctionalGroupsSequence" not in datasets[0]:
        raise UnsupportedError("the scan is a multi-frame file that does not say where its frames lie; use .nii.gz")


def _numbered(result: Segmentation) -> NDArray[np.unsignedinteger]:
    """The label map with values 1, 2, ... in the order of the labels."""
    values = [label.value for label in result.labels]
    if values == list(range(1, len(values) + 1)):
        return result.mask
    table = np.zeros(65536, np.uint8 if len(values) < 256 else np.uint16)
    table[values] = np.arange(1, len(values) + 1)
    numbered: NDArray[np.unsignedinteger] = table[result.mask]
    return numbered


def frame_order(dataset: Any, volume: Volume) -> NDArray[np.intp]:
    """Which slice of the array each frame of a multi-frame file is, from the frames' positions."""
    groups = dataset.PerFrameFunctionalGroupsSequence
    positions = np.array([group.PlanePositionSequence[0].ImagePositionPatient for group in groups], dtype=float)
    step = np.array(volume.direction)[:, 2]
    order: NDArray[np.intp] = np.rint((positions - np.array(volume.origin)) @ step / volume.spacing[2]).astype(np.intp)
    if sorted(order.tolist()) != list(range(volume.shape[0])):
        raise UnsupportedError("the frames of the scan are not one stack, so a DICOM SEG cannot refer to them; use .nii.gz")
    return order


def _describe(number: int, label: Label, result: Segmentation, tracked: Tracked | None) -> Any:
    """One segment: its codes, its colour and what made it."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    by_hand = any("text" not in prompt for prompt in result.provenance.prompts)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=_short(result.provenance.model, 64),
        family=codes.DCM.ArtificialIntelligence,
        version=_short(result.provenance.version, 64) or "0",
        source="Isocenter",
        parameters={"provenance": parameters(result)},
    )
    red, green, blue = label.colour or _DEFAULT_COLOUR
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=_short(label.name, 64),
        segmented_property_category=_code(label.category),
        segmented_property_type=_code(label.type),
        algorithm_type="SEMIAUTOMATIC" if by_hand else "AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=tracked.uid if tracked else hd.UID(),
        tracking_id=_short(tracked.identifier if tracked else f"{label.name} {result.provenance.input[:12]}", 64),
        anatomic_regions=[_code(tracked.site)] if tracked and tracked.site else None,
        display_color=hd.color.CIELabColor.from_rgb(red, green, blue),
    )


def _code(code: Code | None) -> Any:
    from pydicom.sr.coding import Code as Coded

    chosen = code or TISSUE
    return Coded(chosen.value, chosen.scheme, _short(chosen.meaning, 64))


def parameters(result: Segmentation) -> str:
    """The provenance as JSON; long lists of prompts are left to their number."""
    facts = result.provenance.as_dict()
    text = json.dumps(facts, default=str)
    if len(text) > _MAX_PARAMETERS:
        text = json.dumps({**facts, "prompts": len(result.provenance.prompts)}, default=str)
    return text[:_MAX_PARAMETERS]


def _short(text: str, length: int) -> str:
    """Text that fits a DICOM value: no backslash, which separates values, and not too long."""
    return text.replace("\\", "/")[:length]
