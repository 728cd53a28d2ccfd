"""What a writer of reports may use: the case, its story, and the scans behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.case import Case
from isocenter.analysis.narrative.template import Narrative
from isocenter.analysis.response.visit import Response
from isocenter.core.patient import Identity, Lesion, Timepoint
from isocenter.core.volume import Volume
from isocenter.io.uids import derived_uid


@dataclass(frozen=True)
class VisitScan:
    """A visit's scan with its DICOM headers. lesions: (z, y, x); `lesion-n`, as it was measured, has the value n."""

    volume: Volume
    lesions: NDArray[np.uint16]


@dataclass(frozen=True)
class Told:
    """A case ready to be written. thumbnail: PNG of a lesion. scan: of a visit by its id, None where it has none.

    identity: the patient's name and number; only there when somebody asked for them. facts: names and versions of what
    made the case. version: Isocenter's.
    """

    case: Case
    story: Narrative
    version: str
    facts: Mapping[str, str] = field(default_factory=dict)
    thumbnail: Callable[[Lesion], bytes | None] = lambda _: None
    scan: Callable[[str], VisitScan | None] = lambda _: None
    identity: Identity | None = None

    @property
    def source(self) -> str:
        """Who told the story, in a sentence."""
        return f"Written by {self.story.model} from the measurements alone. {self.story.disclaimer}"

    def tracking_uid(self, track: str) -> str:
        """A UID of a followed lesion, the same in every format and at every visit.

        It comes from the first place where the lesion was seen, not from its name: when a reader takes a lesion out, the others may
        be called by its name, and nobody must take them for it.
        """
        seen = self.case.graph.tracks[track]
        first = next(visit for visit in self.case.graph.visits if visit in seen)
        return derived_uid(self.case.patient.patient_id, "track", first, seen[first])

    def response(self, timepoint: Timepoint) -> Response | None:
        """The response by RECIST 1.1 at a visit, None at the baseline."""
        return next((r for r in self.case.responses.get("recist_1.1", ()) if r.day == timepoint.day), None)

    def baseline_sum(self) -> float | None:
        """Sum of the targets' diameters at the first visit with a scan, mm."""
        return next((r.baseline for r in self.case.responses.get("recist_1.1", ()) if r.baseline is not None), None)
