"""Structured reports of a segmentation: read back by highdicom, on real series of several kinds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest

from isocenter.analysis.label_figures import LabelMeasured, label_figures
from isocenter.core.errors import UsageError
from isocenter.core.phantom import phantom
from isocenter.core.segmentation import Segmentation
from isocenter.core.settings import Limits
from isocenter.core.terminology import label
from isocenter.core.volume import Volume
from isocenter.io import door, seg, sr_labels
from tests.io.test_seg import MADE_BY, REAL, blobs


def segmented(volume: Volume) -> tuple[Segmentation, list[LabelMeasured]]:
    """Two labels that are there, and one that is not."""
    labels = (label("liver", 1), label("spleen", 7), label("pancreas", 9))
    result = Segmentation(blobs(volume.shape), volume.grid, labels, MADE_BY)
    return result, label_figures(result, volume)


def written(volume: Volume, *, with_segmentation: bool) -> tuple[Any, Any, list[LabelMeasured]]:
    """The report's content, the SEG, and the figures that it is to hold."""
    result, measured = segmented(volume)
    data = seg.write(result, volume) if with_segmentation else None
    report = sr_labels.write(result, volume, [m.reported() for m in measured], data)
    dataset = highdicom.sr.Comprehensive3DSR.from_dataset(pydicom.dcmread(io.BytesIO(report)))
    return dataset, pydicom.dcmread(io.BytesIO(data)) if data else None, measured


def values(groups: list[Any]) -> dict[str, float]:
    return {m.name.meaning: m.value for group in groups for m in group.get_measurements()}


@pytest.mark.parametrize("name", REAL)
def test_figures_and_references_on_real_series(data: Path, name: str) -> None:
    volume = door.read_path(data / name, limits=Limits())
    dataset, segmentation, measured = written(volume, with_segmentation=True)
    (study,) = dataset.CurrentRequestedProcedureEvidenceSequence
    named = [item.ReferencedSOPInstanceUID for group in study.ReferencedSeriesSequence for item in group.ReferencedSOPSequence]
    sources = {str(header.SOPInstanceUID) for header in seg.source_images(volume)}
    assert sorted(named) == sorted({*sources, segmentation.SOPInstanceUID})
    assert dataset.StudyInstanceUID == segmentation.StudyInstanceUID
    assert dataset.content.get_volumetric_roi_measurement_groups(referenced_sop_instance_uid=segmentation.SOPInstanceUID)
    for number, expected in enumerate(measured[:2]):
        segment = segmentation.SegmentSequence[number]
        groups = dataset.content.get_volumetric_roi_measurement_groups(tracking_uid=segment.TrackingUID)
        assert len(groups) == 1
        assert groups[0].finding_type.meaning == segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning
        assert values(groups)["Volume"] == pytest.approx(expected.figures.volume_mm3, abs=1e-3)
        across = dataset.content.get_image_measurement_groups(tracking_uid=segment.TrackingUID)
        assert expected.diameters is not None
        assert values(across)["Long axis"] == pytest.approx(expected.diameters.longest.length_mm, abs=1e-3)
        assert values(across)["Short axis"] == pytest.approx(expected.diameters.short.length_mm, abs=1e-3)
        for line in across[0].get_measurements():
            (place,) = [item for item in line[0].ContentSequence if item.ValueType in ("SCOORD", "SCOORD3D")]
            if place.ValueType == "SCOORD":
                assert place.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID in sources
    # What was looked for and not found is said, and has no figures.
    (absent,) = dataset.content.get_image_measurement_groups(tracking_uid=segmentation.SegmentSequence[2].TrackingUID)
    assert not absent.get_measurements()
    assert ("121052", "121054") in {(said.name.value, said.value.value) for said in absent.get_qualitative_evaluations()}


def test_without_a_segmentation_it_refers_to_the_scan_alone(data: Path) -> None:
    volume = door.read_path(data / "dcmqi/segmentations/ct-3slice", limits=Limits())
    dataset, _, measured = written(volume, with_segmentation=False)
    assert not dataset.content.get_volumetric_roi_measurement_groups()
    groups = dataset.content.get_image_measurement_groups(finding_type=highdicom.sr.CodedConcept("10200004", "SCT", "Liver"))
    assert values(groups)["Volume"] == pytest.approx(measured[0].figures.volume_mm3, abs=1e-3)
    sources = {str(header.SOPInstanceUID) for header in seg.source_images(volume)}
    seen = {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in groups[0][0].ContentSequence if item.ValueType == "IMAGE"}
    assert seen == sources


def test_a_scan_that_was_no_dicom_is_refused() -> None:
    volume = phantom((12, 24, 24)).volume
    result = Segmentation(np.ones(volume.shape, np.uint8), volume.grid, (label("liver", 1),), MADE_BY)
    with pytest.raises(UsageError, match="a DICOM report needs a scan that came as DICOM"):
        sr_labels.write(result, volume, [m.reported() for m in label_figures(result, volume)], None)
