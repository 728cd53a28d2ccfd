"""What DICOM structured reports of measurements have in common (TID 1500, PS3.16), made by highdicom: observer, figures,
calipers, and the document around them.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from isocenter.core.errors import UnsupportedError
from isocenter.core.geometry import Triple
from isocenter.core.segmentation import Code
from isocenter.core.volume import Volume
from isocenter.io import seg
from isocenter.io.uids import derived_uid

#: Reports of procedures by modality, LOINC (CID 100).
_PROCEDURES = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
    "PT": Code("44136-0", "LN", "PET unspecified body region"),
}
#: What the library of images says of each. Those that lack some of it, such as multi-frame files, are not described but still evidence.
_DESCRIBED = ("PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID")
_ANY_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")


@contextmanager
def guarded() -> Iterator[None]:
    """Around what builds a report: one at a time, with other people's headers' warnings off. Raises `UnsupportedError`
    where the headers lack what a report must refer to.
    """
    try:
        with seg.one_at_a_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (KeyError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise UnsupportedError("the scan's DICOM headers lack what a structured report must refer to") from error


def document(
    groups: Sequence[Any], volume: Volume, sources: Sequence[Any], segments: Any, *, shown: Sequence[Any], made_of: str, version: str
) -> bytes:
    """A Comprehensive 3D SR file of measurement groups.

    sources: the scan's slices (`seg.source_images`), segments: its DICOM SEG as a dataset or None; all are named as evidence. shown: slices
    that the library of images describes, in twenty lines each. made_of: UIDs are derived from this text.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    observer = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid("isocenter", version), name="Isocenter", manufacturer_name="Isocenter", model_name=f"Isocenter {version}"
        ),
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=coded(_PROCEDURES.get(volume.modality or "", _ANY_PROCEDURE)),
        imaging_measurements=list(groups) or None,
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=[image for image in shown if all(name in image for name in _DESCRIBED)] or None,
    )
    dataset = hd.sr.Comprehensive3DSR(
        evidence=[*sources, *([segments] if segments is not None else [])],
        content=content,
        series_number=1001,
        series_instance_uid=derived_uid(made_of, "sr series"),
        sop_instance_uid=derived_uid(made_of, "sr object"),
        instance_number=1,
        manufacturer="Isocenter",
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="Measurements (research use only)",
    )
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def figure(name: Any, value: float | None, unit: Any, **rest: Any) -> Iterator[Any]:
    """A figure as TID 300 has it, or nothing where it could not be had."""
    import highdicom as hd

    if value is not None:
        yield hd.sr.Measurement(name=name, value=round(float(value), 4), unit=unit, **rest)


def space(volume_mm3: float | None, mean: float | None, std: float | None, unit: str | None) -> Iterator[Any]:
    """A structure's volume, and its intensities where they have a unit."""
    from pydicom.sr.codedict import codes

    yield from figure(codes.SCT.Volume, volume_mm3, codes.UCUM.CubicMillimeter, method=codes.DCM.SumOfSegmentedVoxelMethodForVolume)
    if unit == "HU":
        hounsfield = codes.UCUM.HounsfieldUnit
        yield from figure(codes.DCM.AttenuationCoefficient, mean, hounsfield, derivation=codes.SCT.Mean)
        yield from figure(codes.DCM.AttenuationCoefficient, std, hounsfield, derivation=coded(Code("386136009", "SCT", "Standard Deviation")))


def caliper(ends: tuple[Triple, ...] | None, plane: int | None, slice_index: int | None, volume: Volume, sources: Sequence[Any]) -> list[Any] | None:
    """A line that was measured: on its slice where slices are the plane of measurement, in the patient's space where they are not.

    ends: voxel positions (x, y, z). plane: the array axis that it is cut across, slice_index: where. Pixels are counted from the corner of
    the first one, so its middle is at (0.5, 0.5) (PS3.3 C.10.5.1.1.1); in space, positions are LPS mm.
    """
    import highdicom as hd

    if ends is None:
        return None
    if plane == 0 and slice_index is not None:
        # highdicom wants floats of the width that DICOM stores.
        points = np.array([(x + 0.5, y + 0.5) for x, y, _ in ends], dtype=np.float64)
        single = len(sources) == 1 and int(sources[0].get("NumberOfFrames") or 1) > 1
        source = sources[0 if single else slice_index]
        frames = [int(np.flatnonzero(seg.frame_order(source, volume) == slice_index)[0]) + 1] if single else None
        image = hd.sr.SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID, frames)
        return [hd.sr.CoordinatesForMeasurement(hd.sr.GraphicTypeValues.POLYLINE, points, image)]
    affine = volume.grid.affine_lps
    positions = np.array([(affine @ (*end, 1.0))[:3] for end in ends])
    return [hd.sr.CoordinatesForMeasurement3D(hd.sr.GraphicTypeValues3D.POLYLINE, positions, sources[0].FrameOfReferenceUID)]


def coded(code: Code) -> Any:
    """A code as highdicom has it."""
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning)
