"""`Segmentation`: a label map on its volume's own grid, with the names and the origin of its labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError, InputError
from isocenter.core.geometry import Grid
from isocenter.core.provenance import Provenance


@dataclass(frozen=True)
class Code:
    """A coded concept as DICOM has it: value, scheme designator ("SCT" for SNOMED CT) and meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Label:
    """One class of a label map.

    value: 1..65535. name: lower case, as the model says it ("kidney_left"). category and type: the SNOMED CT codes of
    segmented property category and type. colour: sRGB, 0..255.
    """

    value: int
    name: str
    category: Code | None = None
    type: Code | None = None
    colour: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.value <= 65535:
            raise InputError(f"a label's value must lie in 1..65535, not {self.value}")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A mask that fits its input voxel by voxel.

    mask: (z, y, x), uint8 or uint16, 0 is background; of `grid`'s shape. labels: one for each value that can occur.
    scores: by label name, 0..1: how sure the model is that the structure is there at all. probability: optional
    (z, y, x) float32, of the single label.
    """

    mask: NDArray[np.unsignedinteger]
    grid: Grid
    labels: tuple[Label, ...]
    provenance: Provenance
    scores: Mapping[str, float] = field(default_factory=dict)
    probability: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if tuple(self.mask.shape) != self.grid.shape:
            raise GeometryError(f"the mask has shape {tuple(self.mask.shape)}, its image {self.grid.shape}")
        if self.mask.dtype not in (np.uint8, np.uint16):
            raise InputError(f"a label map must be uint8 or uint16, not {self.mask.dtype}")
        if len({label.value for label in self.labels}) != len(self.labels):
            raise InputError("two labels have the same value")
        if self.probability is not None and tuple(self.probability.shape) != self.grid.shape:
            raise GeometryError(f"the probabilities have shape {tuple(self.probability.shape)}, the image {self.grid.shape}")

    def voxels(self, label: Label) -> int:
        """Number of voxels of one label."""
        return int(np.count_nonzero(self.mask == label.value))

    def volume_mm3(self, label: Label) -> float:
        """Volume of one label in mm³."""
        return self.voxels(label) * self.grid.voxel_mm3
