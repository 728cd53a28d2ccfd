"""DICOM structured reports of a segmentation: what was measured of each label, by template TID 1500 (PS3.16).

A label that was found is two groups under its segment's tracking identifier: its volume and intensities (TID 1411, which refers to the
segment of the DICOM SEG), and its diameters with their calipers (TID 1501; the template for volumes has no place for these). Without a SEG both
are groups of TID 1501 that refer to the scan. A label that was looked for and not found is a group that says so.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from isocenter import __version__
from isocenter.core.errors import UsageError
from isocenter.core.geometry import Triple
from isocenter.core.segmentation import Label, Segmentation
from isocenter.core.terminology import TISSUE
from isocenter.core.volume import Volume
from isocenter.io import seg
from isocenter.io.sr_content import caliper, coded, document, figure, guarded, space
from isocenter.io.uids import derived_uid


@dataclass(frozen=True)
class Line:
    """A diameter. ends: voxel positions (x, y, z)."""

    length_mm: float
    ends: tuple[Triple, Triple]


@dataclass(frozen=True)
class LabelFigures:
    """What was measured of one label. found: whether it is there; volume_mm3 is None where it is not, or where the scan has no scale.

    unit: of the intensities ("HU" or "a.u.").

    longest, short: its diameters, both in the slice `slice_index` across the array axis `plane`.
    """

    found: bool
    volume_mm3: float | None
    mean: float | None = None
    std: float | None = None
    unit: str | None = None
    longest: Line | None = None
    short: Line | None = None
    plane: int | None = None
    slice_index: int | None = None


def write(result: Segmentation, volume: Volume, figures: Sequence[LabelFigures], segmentation: bytes | None) -> bytes:
    """A Comprehensive 3D SR file. figures: one for each of `result.labels`. segmentation: the DICOM SEG of the same result that it is to refer to.

    Patient and study are the scan's. Raises `UsageError` where its slices are no DICOM files, `UnsupportedError` where their headers lack
    what a report must refer to.
    """
    if reason := seg.refusal(volume):
        raise UsageError(reason.replace("DICOM SEG", "DICOM report").partition(";")[0])
    if len(figures) != len(result.labels):
        raise UsageError("a report needs the figures of each label")
    with guarded():
        return _build(result, volume, figures, segmentation)


def _build(result: Segmentation, volume: Volume, figures: Sequence[LabelFigures], segmentation: bytes | None) -> bytes:
    from pydicom import dcmread
    from pydicom.uid import generate_uid

    sources = seg.source_images(volume)
    segments = dcmread(io.BytesIO(segmentation)) if segmentation is not None else None
    made_of = str(segments.SOPInstanceUID if segments is not None else generate_uid())
    groups: list[Any] = []
    for number, (label, measured) in enumerate(zip(result.labels, figures, strict=True), start=1):
        common = _common(label, number, result, segments, made_of)
        groups.extend(_groups(measured, number, common, volume, sources, segments))
    calipers = {f.slice_index for f in figures if f.plane == 0 and f.slice_index is not None and f.longest is not None}
    shown = sources if len(sources) == 1 else [sources[k] for k in sorted(calipers)]
    return document(groups, volume, sources, segments, shown=shown, made_of=made_of, version=__version__)


def _common(label: Label, number: int, result: Segmentation, segments: Any, made_of: str) -> dict[str, Any]:
    """What all groups of a label say: what it is, what it is known by, and what found it."""
    import highdicom as hd

    uid, identifier = derived_uid(made_of, "label", str(number)), label.name
    if segments is not None:
        segment = segments.SegmentSequence[number - 1]
        uid, identifier = str(segment.TrackingUID), str(segment.TrackingID)
    made = result.provenance
    return {
        "tracking_identifier": hd.sr.TrackingIdentifier(uid=uid, identifier=identifier),
        "finding_type": coded(label.type or TISSUE),
        "finding_category": coded(label.category or TISSUE),
        "algorithm_id": hd.sr.AlgorithmIdentification(name=made.model, version=made.version or "0", parameters=[seg.parameters(result)]),
    }


def _groups(measured: LabelFigures, number: int, common: dict[str, Any], volume: Volume, sources: Sequence[Any], segments: Any) -> Iterator[Any]:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    if not measured.found:
        absent = hd.sr.QualitativeEvaluation(name=codes.DCM.PresenceOfProperty, value=codes.DCM.Absent)
        yield hd.sr.MeasurementsAndQualitativeEvaluations(qualitative_evaluations=[absent], **common)
        return
    inside = list(space(measured.volume_mm3, measured.mean, measured.std, measured.unit))
    if segments is None:
        seen = [hd.sr.SourceImageForMeasurementGroup(s.SOPClassUID, s.SOPInstanceUID) for s in sources]
        yield hd.sr.MeasurementsAndQualitativeEvaluations(measurements=inside, source_images=seen, **common)
    else:
        series = hd.sr.SourceSeriesForSegmentation(sources[0].SeriesInstanceUID)
        segment = hd.sr.ReferencedSegment(segments.SOPClassUID, segments.SOPInstanceUID, number, source_series=series)
        yield hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, measurements=inside, **common)
    lines: list[Any] = []
    for name, line in ((codes.SCT.LongAxis, measured.longest), (codes.SCT.ShortAxis, measured.short)):
        if line is not None:
            place = caliper(line.ends, measured.plane, measured.slice_index, volume, sources)
            lines += figure(name, line.length_mm, codes.UCUM.Millimeter, referenced_coordinates=place)
    if lines:
        yield hd.sr.MeasurementsAndQualitativeEvaluations(measurements=lines, **common)
