"""Lesions and patients that are alike: their vectors are kept with every change of a case, and searched.

Collections are named by what made the vectors, so that vectors of two kinds never meet.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isocenter.analysis import appearance
from isocenter.analysis.similar import Seen, case_vector, graph_vectors, unit
from isocenter.core.errors import ConflictError, NotFoundError
from isocenter.patients.cases import Known
from isocenter.store.database import Database
from isocenter.store.vector_search import MEMORY_BYTES, Entry, Vectors
from isocenter.store.vectors import open_vectors

#: The vectors that are always there.
RADIOMICS = f"{appearance.NAME}-{appearance.VERSION}"
#: How lesions are ranked: with their neighbours in the graph, or by their own vectors.
_LESIONS = {"graph": "lesion-graph", "vector": "lesions"}
_CASES = "cases"
_OURS = tuple(f"{name}:" for name in (*_LESIONS.values(), _CASES))


@dataclass(frozen=True)
class Alike:
    """A lesion or patient found. similarity: cosine, 1 for the same."""

    patient_id: str
    similarity: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Likeness:
    """What is alike, most alike first. how: the search was made, see `vector_search`."""

    found: tuple[Alike, ...]
    how: str


class Similar:
    """The vectors of one database."""

    def __init__(self, database: Database, index: str = "exact", memory_bytes: int = MEMORY_BYTES) -> None:
        self.vectors: Vectors = open_vectors(database, index, memory_bytes)

    def index(self, known: Known) -> None:
        """Keep the vectors of a patient's lesions as they are now; those of before are forgotten."""
        patient_id, ready = known.patient.id, _entries(known)
        for collection, entries in ready.items():
            self.vectors.replace(collection, f"{patient_id}:", entries)
        self.forget(patient_id, but=ready)

    def forget(self, patient_id: str, *, but: Container[str] = ()) -> None:
        """Drop a patient's vectors, whatever made them. but: collections in which they stay."""
        for collection in self.vectors.collections():
            if collection.startswith(_OURS) and collection not in but:
                self.vectors.delete(collection, beginning=f"{patient_id}:")

    def lesions(
        self, known: Known, timepoint_id: str, lesion_id: str, *, k: int = 10, rank: str = "graph", kind: str = RADIOMICS, same_patient: bool = False
    ) -> Likeness:
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
        return Likeness(tuple(f for f in found if same_patient or f.patient_id != known.patient.id)[:k], hits.how)

    def cases(self, known: Known, *, k: int = 10, kind: str = RADIOMICS) -> Likeness:
        """The patients most like one. Raises `ConflictError` for one without lesions."""
        seen = _seen(known, kind)
        if not seen:
            raise ConflictError("this patient has no lesion to compare")
        hits = self.vectors.search(f"{_CASES}:{kind}", case_vector(seen), k + 1)
        own = f"{known.patient.id}:"
        return Likeness(tuple(Alike(h.key.rstrip(":"), h.similarity, h.facts) for h in hits if h.key != own)[:k], hits.how)


def _entries(known: Known) -> dict[str, list[Entry]]:
    """A patient's vectors by collection: of every lesion at every visit, and of the patient."""
    ready: dict[str, list[Entry]] = {}
    for kind in (RADIOMICS, *_embedders(known)):
        seen = _seen(known, kind)
        if not seen:
            continue
        graph = graph_vectors(seen)
        for lesion in seen:
            _, visit, name = lesion.key.split(":")
            facts = {"timepoint_id": visit, "lesion_id": name, "track": lesion.track, "volume_mm3": lesion.volume_mm3}
            ready.setdefault(f"{_LESIONS['vector']}:{kind}", []).append(Entry(lesion.key, np.asarray(lesion.vector), facts))
            ready.setdefault(f"{_LESIONS['graph']}:{kind}", []).append(Entry(lesion.key, graph[lesion.key], facts))
        facts = {"lesions": len({s.track for s in seen}), "visits": len({s.visit for s in seen})}
        ready[f"{_CASES}:{kind}"] = [Entry(f"{known.patient.id}:", case_vector(seen), facts)]
    return ready


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
        if k.evaluable
        if (here := (k.timepoint_id, k.lesion_id)) in vectors
    ]
