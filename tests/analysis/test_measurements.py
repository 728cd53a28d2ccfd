"""Measurements of masks: right numbers, right places, and None with a reason where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from isocenter.analysis.label_figures import label_figures
from isocenter.analysis.measurements import describe_image, measure
from isocenter.core.provenance import Provenance
from isocenter.core.segmentation import Label, Segmentation
from isocenter.core.volume import Scale, Source, Volume


def segmented(voxels: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> tuple[Segmentation, Volume]:
    volume = Volume(voxels, (0.5, 1.0, 2.0), (10.0, 20.0, 30.0), ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), modality="CT", unit="HU")
    mask = np.zeros(voxels.shape, np.uint8)
    mask[1:3, 2:4, 5:9] = 1
    labels = (Label(1, "block"), Label(2, "nothing"))
    return Segmentation(mask, volume.grid, labels, Provenance("m", "1", volume.key), {"block": 0.9, "nothing": 0.123456}), volume


def test_block() -> None:
    rng = np.random.default_rng(0)
    voxels = rng.integers(-1000, 1000, (4, 6, 10)).astype(np.int16)
    block, nothing = measure(*segmented(voxels))
    inside = voxels[1:3, 2:4, 5:9].astype(float)
    assert (block.label, block.name, block.voxels, block.unit, block.presence, block.reason) == (1, "block", 16, "HU", 0.9, None)
    assert block.volume_mm3 == pytest.approx(16.0)
    assert block.volume_ml == pytest.approx(0.016)
    assert block.mean == pytest.approx(inside.mean(), abs=1e-3)
    assert block.std == pytest.approx(inside.std(), abs=1e-3)
    assert block.box == ((5, 2, 1), (8, 3, 2))
    assert block.centroid_voxel == (6.5, 2.5, 1.5)
    assert block.centroid_lps_mm == (10 - 0.5 * 6.5, 22.5, 33.0)
    assert nothing.voxels == 0
    assert nothing.presence == 0.1235
    assert nothing.reason == "the mask is empty"
    assert {nothing.volume_mm3, nothing.volume_ml, nothing.mean, nothing.std, nothing.box, nothing.centroid_voxel} == {None}


def test_voxels_that_are_not_numbers_do_not_count() -> None:
    voxels = np.full((4, 6, 10), 7.0, np.float32)
    voxels[1, 2, 5] = np.nan
    block, _ = measure(*segmented(voxels))
    assert (block.mean, block.std, block.voxels) == (7.0, 0.0, 16)
    block, _ = measure(*segmented(np.full((4, 6, 10), np.nan, np.float32)))
    assert (block.mean, block.std) == (None, None)
    assert block.reason == "no voxel under the mask holds a number"


@pytest.mark.parametrize("scale", ["plane", "none"])
def test_no_size_where_the_file_has_no_scale(scale: Scale) -> None:
    segmentation, volume = segmented(np.full((4, 6, 10), 7, np.int16))
    unscaled = replace(volume, source=Source("dicom", scale=scale))
    block, _ = measure(segmentation, unscaled)
    assert (block.voxels, block.mean, block.volume_mm3, block.volume_ml) == (16, 7.0, None, None)
    assert block.reason is not None
    assert "no volume" in block.reason
    assert (block.centroid_lps_mm is None) == (scale == "none")
    assert (describe_image(unscaled)["spacing_mm"] is None) == (scale == "none")
    figures = label_figures(segmentation, unscaled)
    assert (figures[0].diameters is None) == (scale == "none")
    assert [f.reported().found for f in figures] == [True, False], "without a volume, but not absent"
