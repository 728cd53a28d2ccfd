"""How a patient's scans are measured and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass

from isocenter.analysis.report import formats
from isocenter.analysis.tracking.register import Freedom


@dataclass(frozen=True)
class TrackOptions:
    """How lesions are found and what is kept. model, labels: for visits that have neither a mask nor clicks.

    registration: how visits are aligned, None for not at all. least_mm3: smaller specks are not lesions. preprocessed:
    whether scans ready for networks are written too. formats: names in `analysis.report.formats.FORMATS`. identity: whether
    outputs name the patient, as the scans' headers do. embedder: model that describes each lesion's picture by a vector; by
    default one that is installed, "none" for none. immunotherapy: judge by iRECIST, too. criteria: names in `analysis.case_response.CRITERIA`.
    """

    model: str | None = None
    labels: tuple[str, ...] = ()
    least_mm3: float = 30.0
    spacing_mm: float | None = None
    preprocessed: bool = True
    registration: Freedom | None = Freedom.AFFINE
    immunotherapy: bool = False
    criteria: tuple[str, ...] = ()
    formats: tuple[str, ...] = formats.DEFAULT
    identity: bool = False
    embedder: str | None = None
    narrator: str | None = None
