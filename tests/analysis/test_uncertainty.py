"""Errors of sizes: their parts, where they go, and what they make of a response."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from isocenter.analysis.response import recist
from isocenter.analysis.response.visit import ABSENT, Category, Visit, measured
from isocenter.analysis.uncertainty import (
    MANUAL_MM,
    ScanError,
    Uncertainty,
    calibrate,
    of_diameter,
    of_short_axis,
    of_sum,
    probabilities,
    relative_volume_sd,
)
from isocenter.core.errors import UsageError


def test_parts_add_in_squares() -> None:
    assert Uncertainty(1.5, 0.0, 2.0).total_mm == pytest.approx(2.5)
    assert of_sum([Uncertainty(3, 0, 0), Uncertainty(0, 4, 0)]) == pytest.approx(5)
    assert Uncertainty(0, 0.5, 1).reliability == "high"
    assert Uncertainty(1.5, 0.5, 2).reliability == "medium"
    assert Uncertainty(1.5, 0.5, 5).reliability == "low"


def test_who_made_it_decides_what_counts() -> None:
    drawn, found = (of_diameter(20, (0.7, 0.7, 5.0), drawn=d) for d in (True, False))
    assert (drawn.manual_mm, drawn.auto_mm) == (MANUAL_MM, 0.0)
    assert found.manual_mm == 0
    assert found.auto_mm == pytest.approx(0.7 * math.sqrt(2 / 12))
    assert of_diameter(20, (0.7, 0.7, 5.0), model_mm=2).auto_mm > 2
    assert of_diameter(50, (0.7, 0.7, 5.0)).scan_mm > found.scan_mm


def test_the_outlines_error_is_what_it_is_said_to_be() -> None:
    """Discs of one size, laid on a pixel grid at random places: the spread of their diameters is no larger than stated."""
    from isocenter.analysis.diameters import diameters
    from isocenter.core.geometry import Grid

    rng = np.random.default_rng(0)
    grid = Grid((1, 40, 40), (0.8, 0.8, 5.0))
    rows, columns = np.mgrid[:40, :40]
    found = []
    for _ in range(100):
        y, x = 20 + rng.random(2)
        line = diameters(((rows - y) ** 2 + (columns - x) ** 2 <= (9.3 / 0.8) ** 2)[None], grid)
        assert line is not None
        found.append(line.longest.length_mm)
    said = of_diameter(18.6, (0.8, 0.8, 5.0)).auto_mm
    assert float(np.std(found)) <= said
    assert abs(float(np.mean(found)) - 18.6) <= 0.8, "within a pixel of the truth"


def test_volumes_have_three_times_the_diameters_error() -> None:
    ball = math.pi / 6 * 20**3
    assert relative_volume_sd(ball, Uncertainty(0, 0, 1.0)) == pytest.approx(0.15)
    assert relative_volume_sd(1.0, Uncertainty(0, 0, 1.0)) == 1.0
    with pytest.raises(UsageError):
        relative_volume_sd(0, Uncertainty(0, 0, 1))


def test_a_short_axis_is_as_sure_as_a_diameter_of_its_length() -> None:
    spacing = (0.7, 0.7, 3.0)
    longest, short = of_diameter(31.0, spacing), of_diameter(12.0, spacing)
    assert of_short_axis(longest.total_mm, 31.0, 12.0) == pytest.approx(short.total_mm)


def test_calibration_finds_the_line_again() -> None:
    rng = np.random.default_rng(2)
    true = rng.uniform(10, 60, 4000)
    a, b = (true + (0.6 + 0.05 * true) * rng.standard_normal(true.size) for _ in range(2))
    found = calibrate(list(a), list(b), "simulated")
    assert found.at(15) == pytest.approx(0.6 + 0.05 * 15, rel=0.1)
    assert found.at(50) == pytest.approx(0.6 + 0.05 * 50, rel=0.1)
    with pytest.raises(UsageError):
        calibrate([10.0] * 9, [10.0] * 9, "few")


def test_a_quarter_of_the_lesions_grew_and_the_error_is_found_still() -> None:
    rng = np.random.default_rng(3)
    true = rng.uniform(10, 60, 4000)
    grown = np.where(rng.random(true.size) < 0.25, 1.25, 1.0)
    a, b = (t + (0.6 + 0.05 * true) * rng.standard_normal(true.size) for t in (true / grown, true * grown))
    found = calibrate(list(a), list(b), "simulated", changing=True)
    assert 1.0 < found.at(30) / (0.6 + 0.05 * 30) < 1.6 < calibrate(list(a), list(b), "simulated").at(30) / (0.6 + 0.05 * 30)


def test_the_defaults_are_what_real_marks_say(data: Path) -> None:
    """906 pairs of marks by readers: end points for the manual part, pairs for both scans and readings."""
    missed: dict[tuple[str, ...], float] = {}
    first: list[float] = []
    second: list[float] = []
    for pair in json.loads((data / "dlt_lesion_pairs" / "valid.json").read_text()).values():
        for side, lengths in (("source", first), ("target", second)):
            ends = np.array(pair[f"{side} recist coordinate"]).reshape(4, 2) * pair[f"{side} spacing"][:2]
            long, short = ends[1] - ends[0], ends[3] - ends[2]
            lengths.append(float(max(np.linalg.norm(long), np.linalg.norm(short))))
            missed[(pair[f"{side} recist slice"], *map(str, ends.reshape(-1)))] = float(long @ short / np.linalg.norm(long))
    assert len(missed) == 711
    assert 1.4826 * np.median(np.abs(list(missed.values()))) == pytest.approx(MANUAL_MM, abs=0.05)
    found, usual = calibrate(first, second, "DLT", changing=True), ScanError()
    for size in (12, 20, 30, 50):
        assert math.hypot(MANUAL_MM, usual.at(size)) == pytest.approx(found.at(size), rel=0.05)


def test_a_response_near_its_limit_is_a_matter_of_chance() -> None:
    def likely(size: float, sd: float) -> dict[Category, float]:
        return probabilities(Visit(0, {"a": measured(100)}), [Visit(60, {"a": measured(size)})], {"a": sd}, recist.respond)[0]

    clear, near = likely(40, 2.0), likely(70, 2.0)
    assert clear == {Category.PR: 1.0}
    assert 0.4 < near[Category.PR] < 0.6
    assert near[Category.PR] + near[Category.SD] == pytest.approx(1)
    assert likely(120, 0.001)[Category.PD] == pytest.approx(0.5, abs=0.1)
    gone = probabilities(Visit(0, {"a": measured(100)}), [Visit(60, {"a": ABSENT})], lambda name, size: ScanError().at(size), recist.respond)
    assert gone == [{Category.CR: 1.0}]
    assert likely(70, 2.0) == near, "the same every time"


@pytest.mark.parametrize("wrong", [0.0, -3.0, float("nan")])
def test_no_size_has_no_error(wrong: float) -> None:
    with pytest.raises(UsageError):
        of_diameter(wrong, (1, 1, 1))


def test_probabilities_of_a_category_are_its_frequencies() -> None:
    """Simulated patients with known sizes, measured with their errors: of visits given a category with 30 %, 30 % truly have it."""
    rng = np.random.default_rng(11)
    said: list[float] = []
    true: list[bool] = []
    label: list[float] = []
    error = ScanError()
    for _ in range(220):
        start = rng.uniform(12, 40, 3)
        sizes = [start, start * rng.uniform(0.45, 1.35), start * rng.uniform(0.45, 1.35)]
        real, seen = (
            [Visit(60.0 * k, {n: measured(float(s)) for n, s in zip("abc", row, strict=True)}) for k, row in enumerate(rows)]
            for rows in (sizes, [s + (error.constant_mm + error.share * s) * rng.standard_normal(3) for s in sizes])
        )
        found = probabilities(seen[0], seen[1:], lambda name, size: error.at(size), recist.respond, draws=60)
        for chances, truth, shown in zip(found, recist.respond(real[0], real[1:]), recist.respond(seen[0], seen[1:]), strict=True):
            assert sum(chances.values()) == pytest.approx(1)
            for category in (Category.PR, Category.SD, Category.PD):
                said.append(chances.get(category, 0.0))
                true.append(truth.category is category)
                label.append(float(shown.category is category))
    p, hit = np.array(said), np.array(true)
    for low, high in ((0.0, 0.1), (0.1, 0.35), (0.35, 0.65), (0.65, 0.9), (0.9, 1.01)):
        some = (p >= low) & (p < high)
        assert some.sum() > 60
        assert float(hit[some].mean()) == pytest.approx(float(p[some].mean()), abs=0.1), (low, high)
    # Better than the bare label (Brier, Mon Weather Rev 78:1, 1950).
    assert float(((p - hit) ** 2).mean()) < 0.8 * float(((np.array(label) - hit) ** 2).mean())
