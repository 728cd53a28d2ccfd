"""All figures of each label of a segmentation: size, place, intensities, diameters, and whether the image cuts it off."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from isocenter.analysis.diameters import Diameters, diameters
from isocenter.analysis.measurements import Measurement, measure
from isocenter.core.segmentation import Segmentation
from isocenter.core.volume import Volume
from isocenter.io.sr_labels import LabelFigures, Line


@dataclass(frozen=True)
class LabelMeasured:
    """One label. diameters, touches_border: None where it was not found; without a scale there are no diameters."""

    figures: Measurement
    diameters: Diameters | None
    touches_border: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, lengths in mm."""
        found = self.diameters
        return self.figures.as_dict() | {
            "longest_mm": None if found is None else round(found.longest.length_mm, 3),
            "short_axis_mm": None if found is None else round(found.short.length_mm, 3),
            "touches_border": self.touches_border,
            "mean_hu": self.figures.mean if self.figures.unit == "HU" else None,
        }

    def reported(self) -> LabelFigures:
        """As a structured report takes it."""
        own, found = self.figures, self.diameters
        space = LabelFigures(own.voxels > 0, own.volume_mm3, own.mean, own.std, own.unit)
        if found is None:
            return space
        longest, short = (Line(caliper.length_mm, caliper.ends) for caliper in (found.longest, found.short))
        return replace(space, longest=longest, short=short, plane=found.plane, slice_index=found.slice_index)


def label_figures(result: Segmentation, volume: Volume) -> list[LabelMeasured]:
    """All labels of a segmentation, in their order, on the volume that it was made from."""
    return [_of(figures, result, scaled=volume.source.scale != "none") for figures in measure(result, volume)]


def _of(figures: Measurement, result: Segmentation, *, scaled: bool) -> LabelMeasured:
    if figures.box is None:
        return LabelMeasured(figures, None, None)
    (x0, y0, z0), (x1, y1, z1) = figures.box
    crop = result.mask[z0 : z1 + 1, y0 : y1 + 1, x0 : x1 + 1] == figures.label
    z, y, x = result.grid.shape
    touches = min(x0, y0, z0) == 0 or x1 == x - 1 or y1 == y - 1 or z1 == z - 1
    return LabelMeasured(figures, diameters(crop, result.grid, first=(z0, y0, x0)) if scaled else None, touches)
