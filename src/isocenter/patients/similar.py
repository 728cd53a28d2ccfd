"""Lesions and patients that are alike: their vectors are kept with every change of a case, and searched.

Collections are named by what made the vectors, so that vectors of two kinds never meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isocenter.analysis import appearance
from isocenter.analysis.similar import Seen, case_vector, graph_vectors, unit
from isocenter.core.errors import ConflictError, NotFoundError
from isocenter.patients.cases import Known
from isocenter.store.database import Database
from isocenter.store.vectors import Vectors, open_vectors

#: The vectors that are always there.
RADIOMICS = f"{appearance.NAME}-{appearance.VERSION}"
#: How lesions are ranked: with their neighbours in the graph, or by their own vectors.
_LESIONS = {"graph": "lesion-graph", "vector": "lesions"}
_CASES = "cases"


@dataclass(frozen=True)
class Alike:
    """A lesion or patient found. similarity: cosine, 1 for the same."""

    patient_id: str
    similarity: float
    facts: Mapping[str, Any]


class Similar:
    """The vectors of one database."""

    def __init__(self, database: Database, index: str = "exact") -> None:
        self.vectors: Vectors = open_vectors(database, index)

    def index(self, known: Known) -> None:
        """Keep the vectors of a patient's lesions as they are now; those of before are forgotten."""
        self.forget(known.patient.id, kinds=(RADIOMICS, *_embedders(known)))
        for kind in (RADIOMICS, *_embedders(known)):
            seen = _seen(known, kind)
            if not seen:
                continue
            graph = graph_vectors(seen)
            for lesion in seen:
                _, visit, name = lesion.key.split(":")
                facts = {"timepoint_id": visit, "lesion_id": name, "track": lesion.track, "volume_mm3": lesion.volume_mm3}
                self.vectors.add(f"lesions:{kind}", lesion.key, np.asarray(lesion.vector), facts)
                self.vectors.add(f"lesion-graph:{kind}", lesion.key, graph[lesion.key], facts)
            facts = {"lesions": len({s.track for s in seen}), "visits": len({s.visit for s in seen})}
            self.vectors.add(f"{_CASES}:{kind}", f"{known.patient.id}:", case_vector(seen), facts)

    def forget(self, patient_id: str, kinds: tuple[str, ...] = (RADIOMICS,)) -> None:
        """Drop a patient's vectors."""
        for kind in kinds:
            for name in (*_LESIONS.values(), _CASES):
                self.vectors.delete(f"{name}:{kind}", beginning=f"{patient_id}:")

    def lesions(
        self, known: Known, timepoint_id: str, lesion_id: str, *, k: int = 10, rank: str = "graph", kind: str = RADIOMICS, same_patient: bool = False
    ) -> list[Alike]:
        """The lesions most like one, of other patients unless `same_patient`. Raises `NotFoundError` for one without such a vector."""
        seen = _seen(known, kind)
        key = f"{known.patient.id}:{timepoint_id}:{lesion_id}"
        one = next((s for s in seen if s.key == key), None)
        if one is None:
            raise NotFoundError(f"there is no such lesion at this visit, or it has no {kind} vector")
        vector = graph_vectors(seen)[key] if rank == "graph" else unit(np.asarray(one.vector, np.float64))
        own = len(seen)
        hits = self.vectors.search(f"{_LESIONS[rank]}:{kind}", vector, k + (1 if same_patient else own))
        found = [Alike(h.key.split(":")[0], h.similarity, h.facts) for h in hits if h.key != key]
        return [f for f in found if same_patient or f.patient_id != known.patient.id][:k]

    def cases(self, known: Known, *, k: int = 10, kind: str = RADIOMICS) -> list[Alike]:
        """The patients most like one. Raises `ConflictError` for one without lesions."""
        seen = _seen(known, kind)
        if not seen:
            raise ConflictError("this patient has no lesion to compare")
        hits = self.vectors.search(f"{_CASES}:{kind}", case_vector(seen), k + 1)
        own = f"{known.patient.id}:"
        return [Alike(h.key.rstrip(":"), h.similarity, h.facts) for h in hits if h.key != own][:k]


def _embedders(known: Known) -> tuple[str, ...]:
    """Which networks described the lesions of any visit."""
    return tuple(sorted({name for row in known.rows for name in row.measured.get("embeddings") or {}}))


def _seen(known: Known, kind: str) -> list[Seen]:
    """The case's lesions with a vector of a kind."""
    vectors: dict[tuple[str, str], Sequence[float]] = {}
    for row, visit in zip(known.rows, known.case.visits, strict=True):
        described = (row.measured.get("embeddings") or {}).get(kind, {})
        for lesion in visit.found or ():
            vector = lesion.appearance if kind == RADIOMICS else described.get(lesion.id)
            if vector and any(vector):
                vectors[(row.timepoint_id, lesion.id)] = vector
    days = {v.timepoint.timepoint_id: v.timepoint.day for v in known.case.visits}
    return [
        Seen(f"{known.patient.id}:{k.timepoint_id}:{k.lesion_id}", k.timepoint_id, days[k.timepoint_id], k.track, vectors[here], k.volume_mm3)
        for k in known.case.lesions
        if (here := (k.timepoint_id, k.lesion_id)) in vectors
    ]
