"""What is alike is found, by itself and by what surrounds it in the graph."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from isocenter.analysis.similar import OWN, SCAN, TRACK, Seen, case_vector, graph_vectors, unit


def seen(key: str, visit: str, track: str, *vector: float, day: float = 0.0, volume: float | None = 1000.0) -> Seen:
    return Seen(key, visit, day, track, vector, volume)


def test_a_graph_vector_is_the_lesion_and_its_neighbours() -> None:
    lesions = [seen("a", "v1", "L1", 1, 0), seen("b", "v1", "L2", 0, 1), seen("c", "v2", "L1", 0.6, 0.8)]
    found = graph_vectors(lesions)
    own, track, scan = np.sqrt([OWN, TRACK, SCAN])
    np.testing.assert_allclose(found["a"], [own, 0, 0.6 * track, 0.8 * track, 0, scan])
    np.testing.assert_allclose(found["b"], [0, own, 0, 0, scan, 0])
    assert np.linalg.norm(found["a"]) == pytest.approx(1)


def test_company_decides_between_lesions_that_look_the_same() -> None:
    query = graph_vectors([seen("q", "v", "L1", 1, 0, 0), seen("r", "v", "L2", 0, 1, 0)])["q"]
    right = graph_vectors([seen("x", "v", "L1", 1, 0, 0), seen("y", "v", "L2", 0, 1, 0)])["x"]
    wrong = graph_vectors([seen("x", "v", "L1", 1, 0, 0), seen("y", "v", "L2", 0, 0, 1)])["x"]
    alone = graph_vectors([seen("x", "v", "L1", 1, 0, 0)])["x"]
    assert query @ unit(right) > query @ unit(alone)
    assert query @ right > query @ wrong


def test_patients_are_alike_by_looks_number_and_course() -> None:
    def patient(rate: float, count: int = 1) -> NDArray[np.float64]:
        rows = [
            seen(f"{k}{day}", f"v{day}", f"L{k}", 1, 0.1 * k, 0, day=day, volume=1000 * np.exp(rate * day))
            for k in range(count)
            for day in (0, 30, 60)
        ]
        return case_vector(rows)

    growing = patient(0.02)
    assert np.linalg.norm(growing) == pytest.approx(1)
    assert growing @ patient(0.019) > growing @ patient(-0.02)
    assert growing @ patient(0.02, 2) > growing @ patient(0.02, 8)
    one = case_vector([seen("a", "v", "L1", 1, 0, 0, volume=None)])
    assert np.isfinite(one).all()
    with pytest.raises(ValueError, match="nobody"):
        case_vector([])
