"""A patient over time: visits, lesions, what was measured of them, what was given.

Days count from the first visit. Times of day are not kept: response and growth are matters of days.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

from isocenter.core.errors import UsageError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TRENDS = ("better", "stable", "worse")
#: What a person may say of a visit, and in which words: of the non-targets (RECIST 1.1), and what RANO asks beside the images.
ASSESSMENT = {
    "non_targets": ("CR", "NON-CR/NON-PD", "PD", "NE"),
    "flair": _TRENDS,
    "clinical": _TRENDS,
    "steroids": (*_TRENDS, "none"),
    "enhancement": ("in field", "outside field"),
}


def check_id(text: str, what: str) -> str:
    """An id that is safe in file names and addresses. Raises `UsageError` for any other."""
    if not _ID.fullmatch(text):
        raise UsageError(f"{what} must be 1 to 64 letters, digits, dots, dashes or underscores, beginning with a letter or digit")
    return text


@dataclass(frozen=True)
class Identity:
    """Who a patient is, as a scan's header says it; only read, and only written, where somebody asks for it.

    birth_date: None where the header has none. sex: "M", "F", "O" or empty, as DICOM has it.
    """

    patient_id: str
    name: str
    birth_date: date | None = None
    sex: str = ""


@dataclass(frozen=True)
class Timepoint:
    """One visit. day: after the first visit, which has 0. scan_date: None where only offsets are known."""

    timepoint_id: str
    day: float
    scan_date: date | None = None
    modality: str | None = None

    def __post_init__(self) -> None:
        check_id(self.timepoint_id, "a visit's id")
        if not math.isfinite(self.day):
            raise UsageError("a visit's day must be a number")


@dataclass(frozen=True)
class Lesion:
    """One lesion at one visit. Figures that cannot be had are None, `reasons` says why by the figure's name.

    centroid_lps_mm: in that visit's scan. longest_ends, short_ends: voxel positions (x, y, z) for drawing. sd_mm: standard
    deviation of the longest diameter. track: the name under which it is followed. method: "model", "given" or "clicks".
    evaluable: False where a reader could not assess it at this visit; it has no figures then, and no `lesion_id` where the mask has none there.
    """

    lesion_id: str
    timepoint_id: str
    track: str
    volume_mm3: float | None
    longest_mm: float | None
    short_axis_mm: float | None
    max_3d_diameter_mm: float | None
    surface_mm2: float | None
    who_product_mm2: float | None
    centroid_lps_mm: tuple[float, float, float] | None
    mean: float | None
    std: float | None
    unit: str | None
    touches_border: bool | None
    sd_mm: float | None
    reliability: str | None
    longest_ends: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    short_ends: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    plane: int | None = None
    slice_index: int | None = None
    label: int | None = None
    organ: str | None = None
    is_node: bool = False
    is_target: bool = False
    is_new: bool = False
    method: str = "model"
    confidence: float | None = None
    evaluable: bool = True
    reasons: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TherapyEvent:
    """One course of a treatment, in days as visits have them; end_day None: it goes on. dose: relative to the usual one."""

    therapy_id: str
    therapy_type: str
    start_day: float
    end_day: float | None = None
    dose: float = 1.0
    onset_days: float = 0.0
    decay_per_day: float = 0.0

    def __post_init__(self) -> None:
        check_id(self.therapy_id, "a therapy's id")
        if not self.therapy_type.strip() or len(self.therapy_type) > 100 or not self.therapy_type.isprintable():
            raise UsageError("a therapy needs a type of at most 100 printable characters")


@dataclass(frozen=True)
class Decision:
    """One correction of a reader. Lesions are (visit, lesion) as they were measured.

    action: of `analysis.decisions.ACTIONS`. other: of a link or a merger. others: what a lesion became or came from. name: of a
    renaming. target: of a role, None for what the rules say. figures: of a measurement. at: the visit at which a lesion is not
    evaluable, or that is assessed. assessment: what a reader says of a visit.
    """

    action: str
    lesion: tuple[str, str] | None = None
    other: tuple[str, str] | None = None
    name: str | None = None
    target: bool | None = None
    figures: Mapping[str, float | None] | None = None
    others: tuple[tuple[str, str], ...] = ()
    at: str | None = None
    assessment: Mapping[str, str | bool | None] | None = None


@dataclass(frozen=True)
class Patient:
    """A patient by pseudonym. metadata: what a person chose to keep; never read out of images."""

    patient_id: str
    timepoints: tuple[Timepoint, ...]
    therapies: tuple[TherapyEvent, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_id(self.patient_id, "a patient's id")
        ids = [t.timepoint_id for t in self.timepoints]
        days = [t.day for t in self.timepoints]
        if len(set(ids)) != len(ids):
            raise UsageError("two visits have one id")
        if len(set(days)) != len(days):
            raise UsageError("two visits are on one day; keep one of them, or give them different days")
        if days != sorted(days):
            raise UsageError("visits must be in the order of their days")
