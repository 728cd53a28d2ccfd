"""What makes lesions and patients alike: vectors of appearance, and of the graph that a patient's lesions make.

A lesion's graph vector is its own beside the mean of its neighbours', each kind of neighbour in its own block (the mean
aggregator of GraphSAGE, Hamilton et al., NeurIPS 2017, without learnt weights). The cosine of two such vectors is the weighted
sum of how alike the lesions are, the lesions that they were and become, and the lesions beside them; so any vector store can
rank over the graph, at the price of a plain search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: Shares of a lesion itself, of itself at other visits, and of the other lesions of the scan; `benchmarks.similar` compares.
OWN, TRACK, SCAN = 0.6, 0.15, 0.25
#: Share of what a patient's lesions look like on average; the rest is how many there are, how they differ and what becomes of them.
LOOKS = 0.6
_PER_DAYS = 30.0


@dataclass(frozen=True)
class Seen:
    """A lesion at a visit, as similarity sees it. vector: of its appearance, any length, the same for all."""

    key: str
    visit: str
    day: float
    track: str
    vector: Sequence[float]
    volume_mm3: float | None = None


def unit(vector: Floats) -> Floats:
    """A vector at length one; zeros stay zeros."""
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector


def graph_vectors(lesions: Sequence[Seen], *, own: float = OWN, track: float = TRACK, scan: float = SCAN) -> dict[str, Floats]:
    """(3 x dimensions,) for each lesion, by key. A block without neighbours holds zeros, which are like nothing."""
    units = {k.key: unit(np.asarray(k.vector, np.float64)) for k in lesions}
    found = {}
    for lesion in lesions:
        same = [units[o.key] for o in lesions if o.track == lesion.track and o.visit != lesion.visit]
        beside = [units[o.key] for o in lesions if o.visit == lesion.visit and o.key != lesion.key]
        zero = np.zeros_like(units[lesion.key])
        blocks = (units[lesion.key], unit(np.mean(same, axis=0)) if same else zero, unit(np.mean(beside, axis=0)) if beside else zero)
        found[lesion.key] = np.concatenate([math.sqrt(w) * b for w, b in zip((own, track, scan), blocks, strict=True)])
    return found


def case_vector(lesions: Sequence[Seen], *, looks: float = LOOKS) -> Floats:
    """(2 x dimensions + 6,) of a patient: the mean look of the lesions, how they differ, how many and large they are, how they change.

    Raises `ValueError` without lesions.
    """
    if not lesions:
        raise ValueError("a patient without lesions is like nobody")
    table = np.stack([unit(np.asarray(k.vector, np.float64)) for k in lesions])
    weights = np.array([math.sqrt(max(k.volume_mm3 or 0.0, 1.0)) for k in lesions])
    mean = (weights[:, None] * table).sum(axis=0) / weights.sum()
    differs = table.std(axis=0)
    visits: dict[str, list[Seen]] = {}
    for lesion in lesions:
        visits.setdefault(lesion.visit, []).append(lesion)
    counts = [len(v) for v in visits.values()]
    volumes = [sum(k.volume_mm3 or 0.0 for k in v) for v in visits.values()]
    largest = [max(k.volume_mm3 or 0.0 for k in v) for v in visits.values()]
    rates = _rates(lesions)
    facts = np.array(
        [
            math.tanh(float(np.mean(counts)) / 4),
            math.tanh(math.log(max(float(np.mean(volumes)), 1.0) / 1000) / 4),
            math.tanh(math.log(max(float(np.mean(largest)), 1.0) / 1000) / 4),
            math.tanh(float(np.mean(rates)) if rates else 0.0),
            math.tanh(float(np.std(rates)) if rates else 0.0),
            1.0 if rates else 0.0,
        ]
    )
    structure = unit(np.concatenate([differs, facts / math.sqrt(len(facts))]))
    return np.concatenate([math.sqrt(looks) * unit(mean), math.sqrt(1 - looks) * structure])


def _rates(lesions: Sequence[Seen]) -> list[float]:
    """Change of the log volume in thirty days, between neighbouring visits of each track."""
    tracks: Mapping[str, list[Seen]] = {k.track: [] for k in lesions}
    for lesion in sorted(lesions, key=lambda k: k.day):
        if lesion.volume_mm3:
            tracks[lesion.track].append(lesion)
    return [
        _PER_DAYS * math.log((b.volume_mm3 or 1.0) / (a.volume_mm3 or 1.0)) / (b.day - a.day)
        for seen in tracks.values()
        for a, b in pairwise(seen)
        if b.day > a.day
    ]
