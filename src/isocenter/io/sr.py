"""DICOM structured reports of a visit's lesions: Imaging Measurement Reports by template TID 1500 (PS3.16), made by highdicom.

Each lesion is two groups under one tracking identifier: its volume (TID 1411), which refers to its segment of the visit's
DICOM SEG, and its diameters (TID 1501), which refer to the calipers on the source's slices; the template for volumes has no
place for these. The response by each criterion is a TID 1501 group of its own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isocenter.core.errors import UsageError
from isocenter.core.patient import Lesion, Timepoint
from isocenter.core.segmentation import Code
from isocenter.core.volume import Volume
from isocenter.io import seg
from isocenter.io.sr_content import caliper, coded, document, figure, guarded, space
from isocenter.io.sr_response import CURRENT, RESPONSES, Assessment, response_group

#: A normal distribution's 95 % limits.
_LIMITS_SD = 1.96


@dataclass(frozen=True)
class VisitReport:
    """What is reported of one visit. order: 1 for the first. lesions: in the order of the SEG's segments 1, 2, ...

    tracked: by track, its name and UID over all visits. at_baseline: tracks that were there at first.
    made_of: UIDs are derived from this text.
    """

    timepoint: Timepoint
    order: int
    lesions: tuple[Lesion, ...]
    tracked: Mapping[str, seg.Tracked]
    at_baseline: frozenset[str]
    assessments: tuple[Assessment, ...]
    made_of: str
    version: str


def write(report: VisitReport, volume: Volume, segmentation: bytes | None, *, pseudonym: str | None = None) -> bytes:
    """A Comprehensive 3D SR file. volume: the visit's scan. segmentation: its DICOM SEG, None where there are no lesions.

    pseudonym: stands in place of all that the scan says of its patient; None copies that. Raises `UsageError` where the
    scan's slices are no DICOM files.
    """
    if reason := seg.refusal(volume):
        raise UsageError(reason)
    if bool(report.lesions) != (segmentation is not None):
        raise UsageError("a report of lesions needs their DICOM SEG")
    with guarded():
        return _build(report, volume, segmentation, pseudonym)


def _build(report: VisitReport, volume: Volume, segmentation: bytes | None, pseudonym: str | None) -> bytes:
    from pydicom import dcmread

    sources = seg.source_images(volume, pseudonym)
    segments = _spread(dcmread(io.BytesIO(segmentation))) if segmentation is not None else None
    groups = []
    for number, lesion in enumerate(report.lesions, start=1):
        groups += [_space(lesion, number, report, segments), _plane(lesion, report, volume, sources)]
    groups += [response_group(assessment, _time_point(report), report.made_of) for assessment in report.assessments]
    # The library of images describes each of them in twenty lines: those with calipers; all of them are named as evidence.
    measured = {lesion.slice_index for lesion in report.lesions if lesion.plane == 0 and lesion.slice_index is not None}
    shown = sources if len(sources) == 1 else [sources[k] for k in sorted(measured)]
    return document(groups, volume, sources, segments, shown=shown, made_of=report.made_of, version=report.version)


def _common(lesion: Lesion, report: VisitReport) -> dict[str, Any]:
    """What both groups of a lesion say: who it is, what it is, where and when."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    tracked = report.tracked[lesion.track]
    role = codes.DCM.TargetLesionAtBaseline if lesion.is_target else codes.DCM.NonTargetLesionAtBaseline
    # A lesion that came later was neither at the baseline.
    said = [(Code("112016", "DCM", "Baseline Category"), role)] if lesion.track in report.at_baseline else []
    said += [(CURRENT, coded(RESPONSES["NE"]))] if not lesion.evaluable else []
    return {
        "tracking_identifier": hd.sr.TrackingIdentifier(uid=tracked.uid, identifier=tracked.identifier),
        "finding_type": coded(Code("59441001", "SCT", "Lymph Node")) if lesion.is_node else codes.SCT.Lesion,
        "finding_sites": [hd.sr.FindingSite(coded(tracked.site))] if tracked.site else None,
        "time_point_context": _time_point(report),
        "session": report.timepoint.timepoint_id,
        "qualitative_evaluations": [hd.sr.QualitativeEvaluation(name=coded(name), value=value) for name, value in said] or None,
    }


def _spread(segments: Any) -> Any:
    """Each frame says which segment it shows. Where all show one, the file says it once, and highdicom looks for it at each frame."""
    shared = segments.SharedFunctionalGroupsSequence[0]
    if "SegmentIdentificationSequence" in shared:
        for frame in segments.PerFrameFunctionalGroupsSequence:
            frame.SegmentIdentificationSequence = shared.SegmentIdentificationSequence
    return segments


def _space(lesion: Lesion, number: int, report: VisitReport, segments: Any) -> Any:
    """TID 1411: a lesion as its segment, and what was measured in space."""
    import highdicom as hd

    segment = hd.sr.ReferencedSegment.from_segmentation(segments, segment_number=number)
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        referenced_segment=segment, measurements=list(_figures(lesion)), **_common(lesion, report)
    )


def _plane(lesion: Lesion, report: VisitReport, volume: Volume, sources: Sequence[Any]) -> Any:
    """TID 1501: a lesion's diameters as RECIST measures them, with their calipers and the 95 % limits of the longest."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    limits = None
    if lesion.sd_mm is not None:
        spread = round(_LIMITS_SD * lesion.sd_mm, 3)
        limits = hd.sr.MeasurementProperties(upper_measurement_uncertainty=spread, lower_measurement_uncertainty=spread)
        for item in limits:  # highdicom gives them no unit
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence = [coded(Code("mm", "UCUM", "mm"))]
    long, short = (caliper(ends, lesion.plane, lesion.slice_index, volume, sources) for ends in (lesion.longest_ends, lesion.short_ends))
    unit = codes.UCUM.Millimeter
    figures = [
        *figure(codes.SCT.LongAxis, lesion.longest_mm, unit, properties=limits, referenced_coordinates=long),
        *figure(codes.SCT.ShortAxis, lesion.short_axis_mm, unit, referenced_coordinates=short),
    ]
    return hd.sr.MeasurementsAndQualitativeEvaluations(measurements=figures or None, **_common(lesion, report))


def _time_point(report: VisitReport) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    days = hd.sr.LongitudinalTemporalOffsetFromEvent(float(report.timepoint.day), codes.UCUM.Day, codes.DCM.Baseline)
    return hd.sr.TimePointContext(report.timepoint.timepoint_id, time_point_order=report.order, temporal_offset_from_event=days)


def _figures(lesion: Lesion) -> Iterator[Any]:
    """What was measured in space, and intensities."""
    from pydicom.sr.codedict import codes

    yield from space(lesion.volume_mm3, lesion.mean, lesion.std, lesion.unit)
    yield from figure(coded(Code("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")), lesion.max_3d_diameter_mm, codes.UCUM.Millimeter)
    yield from figure(coded(Code("C0JK", "IBSI", "Surface Area of Mesh")), lesion.surface_mm2, coded(Code("mm2", "UCUM", "square millimeter")))
