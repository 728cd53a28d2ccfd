"""Lesions that are not seen at some visits: before they appear, in between, at the end; what growth and forecast say of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.stats import norm, truncnorm

from isocenter.analysis.case_growth import TrackGrowth, grow
from isocenter.analysis.growth._kernels import below, filter_rates, log_below, misfit
from isocenter.analysis.growth.fit import fit_growth
from isocenter.analysis.growth.forecast import forecast
from isocenter.analysis.growth.series import LIMIT_MM3, LIMIT_SD, Series
from isocenter.analysis.growth.therapy import Therapy
from isocenter.analysis.tracking.graph import Event, Happening, LesionGraph
from isocenter.core.errors import UsageError
from isocenter.core.patient import Lesion, TherapyEvent

DAYS = [0.0, 30, 60, 90, 120]
NONE: NDArray[np.float64] = np.zeros((0, 6))


def lesion(volume: float | None, day: float, track: str = "L1") -> Lesion:
    size = {"longest_mm": 20.0, "short_axis_mm": 15.0, "max_3d_diameter_mm": 20.0, "surface_mm2": 900.0, "who_product_mm2": 300.0}
    place = {"centroid_lps_mm": (0.0, 0.0, 0.0), "mean": 40.0, "std": 5.0, "unit": "HU", "touches_border": False}
    return Lesion(track, f"v{day:g}", track, volume, **size, **place, sd_mm=0.6, reliability="high")  # type: ignore[arg-type]


def told(volumes: list[float | None], days: list[float] | None = None, therapies: tuple[TherapyEvent, ...] = ()) -> TrackGrowth:
    """Growth of one lesion. A volume of 0: the visit has a scan, and the lesion is not on it."""
    on = days or DAYS[: len(volumes)]
    visits = [(day, [] if v == 0 else [lesion(v, day)]) for day, v in zip(on, volumes, strict=True)]
    return grow(visits, ["L1"], therapies, scenarios=("as_given",))[1]


@pytest.mark.parametrize(
    "volumes",
    [[5000, 0, 0, 5000, 5100], [5000, 0, 5000, 0, 5100], [5000, 0, 5000], [400, 0, 400], [5000, 4800, 0, 0, 0], [0, 500, 0, 600, 650]],
    ids=["gone in the middle", "gone twice", "three visits", "small", "gone at once", "appears and is gone once"],
)
@pytest.mark.parametrize("treated", [False, True])
def test_an_absence_that_nothing_explains_leaves_no_number(volumes: list[float | None], treated: bool) -> None:
    """Treatment from long before the first visit to long after the last explains no vanishing and no return."""
    found = told(volumes, therapies=(TherapyEvent("t", "chemotherapy", -400, 900),) if treated else ())
    assert found.growth is None
    assert found.forecast is None
    assert not found.scenarios
    assert "not seen on day" in found.reasons[0]
    assert "if it was missed, correct the mask or say that it was not evaluable" in found.reasons[0]


def test_what_was_missed_of_one_lesion_is_not_known_of_all_together() -> None:
    """L2 is gone for two visits and back at its old size. Said to be not evaluable there, it leaves the whole unknown at those visits alone."""
    sizes: list[tuple[float, float | None]] = [(3000, 2000), (3050, 0), (3100, 0), (3150, 2050), (3200, 2060)]
    visits = [(day, [lesion(a, day), *([lesion(b, day, "L2")] if b else [])]) for day, (a, b) in zip(DAYS, sizes, strict=True)]
    total, first, second = grow(visits, ["L1", "L2"], ())
    assert first.forecast is not None
    assert second.growth is None
    assert total.growth is None
    assert total.reasons == (f"L2: {second.reasons[0]}",)
    blank = [(day, [lesion(a, day), lesion(b or None, day, "L2")]) for day, (a, b) in zip(DAYS, sizes, strict=True)]
    total, _, second = grow(blank, ["L1", "L2"], ())
    assert second.forecast is not None
    assert total.forecast is not None
    assert list(total.volumes_mm3) == [5000, None, None, 5200, 5260]


def test_gone_at_the_end_is_fitted_and_not_forecast() -> None:
    found = told([5000, 1500, 400, 0, 0])
    assert found.growth is not None
    assert found.growth.best.parameters["r"] == pytest.approx(math.log(400 / 5000) / 60, rel=0.1)
    assert found.growth.best.fitted_mm3[-1] < LIMIT_MM3
    assert found.forecast is None
    assert found.reasons == ("gone at the last visit: nothing to forecast",)
    with pytest.raises(UsageError, match="gone at the last visit"):
        forecast(found.growth.series, [150.0])


def test_the_absence_itself_is_an_observation() -> None:
    """Two volumes that hardly fall, then nothing on treatment: without the empty visits no effect could be told."""
    course = (TherapyEvent("t", "chemotherapy", 32, None),)
    found = told([5000, 4800, 0, 0, 0], therapies=course)
    assert found.growth is not None
    assert found.growth.best.parameters["effect:chemotherapy"] > math.log(4800 / LIMIT_MM3) / 28 * 0.9
    assert "no upper limit" in found.reasons[0]


def test_treatment_explains_that_it_was_gone_and_came_back() -> None:
    """True course: 0.012 a day, 0.11 a day killed from day 5 to 55; seen again after treatment."""
    days = [0.0, 30, 60, 90, 120, 150, 180, 210, 240, 270]
    kill = np.clip(np.array(days) - 5, 0, 50) * 0.11
    true = np.log(2000) + 0.012 * np.array(days) - kill
    volumes = [float(v) if v > LIMIT_MM3 else 0.0 for v in np.exp(true)]
    assert volumes.count(0) == 4
    found = told([*volumes], days, (TherapyEvent("t", "chemotherapy", 5, 55),))
    assert found.growth is not None
    assert found.growth.best.parameters["effect:chemotherapy"] == pytest.approx(0.11, rel=0.15)
    assert found.forecast is not None
    ahead = np.exp(true[-1] + 0.012 * (found.forecast.days - days[-1]))
    assert (found.forecast.low_mm3 < ahead).all()
    assert (ahead < found.forecast.high_mm3).all()


def test_one_that_appears_later_is_fitted_from_the_last_empty_visit() -> None:
    found = told([0, 0, 120, 200, 350])
    assert found.growth is not None
    assert list(found.growth.series.days) == [30, 60, 90, 120]
    assert any("day 0 was left out" in note for note in found.growth.notes)
    assert found.forecast is not None
    assert found.forecast.median_mm3[-1] > 400


def test_one_that_appears_at_full_size_is_told_from_then_on() -> None:
    found = told([0, 0, 5000, 5050, 5100])
    assert found.growth is not None
    assert list(found.growth.series.days) == [60, 90, 120]
    assert any("grown too fast" in note for note in found.growth.notes)
    assert found.forecast is not None
    assert found.forecast.median_mm3[-1] == pytest.approx(5150, rel=0.05)


def test_near_the_limit_an_empty_visit_is_no_wonder() -> None:
    found = told([90, 0, 95])
    assert found.growth is not None
    assert found.growth.best.fitted_mm3 == pytest.approx([90, 90, 90], rel=0.15)


def test_a_volume_that_is_not_known_is_no_absence_and_no_part_of_a_sum() -> None:
    days = [0.0, 30, 60, 90]
    visits = [(day, [lesion(3000, day), lesion(None if day == 60 else 2000, day, "L2")]) for day in days]
    told = {found.track: found for found in grow(visits, ["L1", "L2"], ())}
    assert list(told["total"].volumes_mm3) == [5000, 5000, None, 5000]
    assert list(told["L1"].volumes_mm3) == [3000, 3000, 3000, 3000]
    assert list(told["L2"].volumes_mm3) == [2000, 2000, None, 2000]
    growth = told["L2"].growth
    assert growth is not None
    assert not growth.series.absent.any()


def test_a_lesion_that_grew_into_another_is_not_gone_and_both_are_one() -> None:
    """L2 grows into L1 at the third visit: L1 counts both throughout, L2 is not known from then on."""
    names = [f"v{day:g}" for day in DAYS]
    tracks = {"L1": dict.fromkeys(names, "L1"), "L2": {"v0": "L2", "v30": "L2"}}
    here: dict[str, tuple[str, ...]] = {name: ("L1", "L2") if name in tracks["L2"] else ("L1",) for name in names}
    graph = LesionGraph(tuple(names), here, {}, (Happening("v60", Event.MERGED, ("L1",), ("L1", "L2")),), tracks)
    volumes: list[list[float]] = [[2000, 1500], [2100, 1600], [3900], [4100], [4300]]
    visits = [(day, [lesion(v, day, t) for v, t in zip(row, ("L1", "L2"), strict=False)]) for day, row in zip(DAYS, volumes, strict=True)]
    _, whole, part = grow(visits, ["L1", "L2"], (), graph=graph)
    assert list(whole.volumes_mm3) == [3500, 3700, 3900, 4100, 4300]
    assert "counts L2" in whole.reasons[0]
    assert list(part.volumes_mm3) == [1500, 1600, None, None, None]
    assert "gone" not in " ".join(part.reasons)
    early = grow(visits[:2], ["L1", "L2"], (), graph=graph)[1]
    assert list(early.volumes_mm3) == [2000, 2100], "at the second visit nobody knew that they would merge"


def test_a_part_that_split_off_was_there_before_and_its_parent_did_not_shrink() -> None:
    names = [f"v{day:g}" for day in DAYS]
    tracks = {"L1": dict.fromkeys(names, "L1"), "L2": dict.fromkeys(names[2:], "L2")}
    here: dict[str, tuple[str, ...]] = {name: ("L1", "L2") if name in tracks["L2"] else ("L1",) for name in names}
    graph = LesionGraph(tuple(names), here, {}, (Happening("v60", Event.SPLIT, ("L1", "L2"), ("L1",)),), tracks)
    volumes: list[list[float]] = [[5000], [4800], [2600, 2000], [2500, 1900], [2400, 1800]]
    visits = [(day, [lesion(v, day, t) for v, t in zip(row, ("L1", "L2"), strict=False)]) for day, row in zip(DAYS, volumes, strict=True)]
    _, parent, part = grow(visits, ["L1", "L2"], (), graph=graph)
    assert list(parent.volumes_mm3) == [5000, 4800, 4600, 4400, 4200]
    assert list(part.volumes_mm3) == [None, None, 2000, 1900, 1800]
    assert part.growth is not None
    assert not part.growth.series.absent.any()


def test_errors_of_lesions_add_in_squares_in_the_total() -> None:
    visits = [(day, [lesion(3000, day), lesion(3000, day, "L2")]) for day in DAYS]
    total, one, _ = grow(visits, ["L1", "L2"], ())
    assert total.growth is not None
    assert one.growth is not None
    assert total.growth.series.sd == pytest.approx(one.growth.series.sd / math.sqrt(2))


def test_the_censored_likelihood_is_the_normal_distributions() -> None:
    for z in (-300.0, -40.0, -25.01, -24.99, -8.0, -1.0, 0.0, 1.5, 7.0):
        assert log_below(z) == pytest.approx(float(norm.logcdf(z)), rel=1e-6, abs=1e-15)
    residuals = np.empty(4)
    cost = misfit(0, np.array([5.0, 0.0]), 2, NONE, np.array([0.0, 10.0]), np.array([5.5, 4.0]), np.array([0.5, -0.25]), np.zeros((2, 2)), residuals)
    assert cost == pytest.approx(1.0 - 2 * float(norm.logcdf((4.0 - 5.0) / 0.25)))
    for mean, variance, limit in ((3.0, 0.7, 2.0), (1.0, 2.0, 4.0), (9.0, 0.5, 4.0), (40.0, 0.5, 4.0)):
        known = truncnorm(-np.inf, (limit - mean) / math.sqrt(variance), loc=mean, scale=math.sqrt(variance))
        moved, left, likely = below(mean, variance, limit)
        assert moved == pytest.approx(known.mean(), rel=1e-6)
        assert likely == pytest.approx(float(norm.logcdf((limit - mean) / math.sqrt(variance))), rel=1e-6)
        if mean < 20:  # scipy's own variance loses its digits in the far tail
            assert left == pytest.approx(known.var(), rel=1e-4)


def test_the_filters_first_empty_visit_is_the_posterior_by_quadrature() -> None:
    """Nothing seen on day 0, u = 6 on day 40: the rate's mean against the integral over the prior."""
    mean, spread, sd, limit, error, gap = 0.001, 0.02, 0.2, 4.2, 0.5, 40.0
    out = np.empty((1, 2))
    filter_rates(
        np.array([mean, spread, 0.0, 0.0, 0.0]),
        np.array([0.0, gap]),
        np.array([limit, 6.0]),
        np.array([-error, sd]),
        np.zeros(0),
        0,
        NONE,
        np.array([140.0]),
        out,
    )

    def weight(rate: float) -> float:
        return float(norm.pdf(rate, mean, spread) * norm.cdf((limit - (6.0 - gap * rate)) / math.hypot(sd, error)))

    whole = quad(weight, -0.2, 0.3)[0]
    rate = quad(lambda r: r * weight(r), -0.2, 0.3)[0] / whole
    shift = sd**2 / (sd**2 + error**2 + gap**2 * spread**2)  # by which the level itself moves with the same surprise
    level = 6.0 + shift / (gap * spread**2 / (sd**2 + error**2 + gap**2 * spread**2)) * (mean - rate)
    assert out[0, 0] == pytest.approx(level + 100 * rate, rel=1e-6)


def test_limits_of_what_can_be_seen() -> None:
    series = Series.of([0, 30, 60, 90], [100, None, 0, 120])
    assert list(series.days) == [0, 60, 90]
    assert list(series.absent) == [False, True, False]
    assert series.u[1] == pytest.approx(math.log(LIMIT_MM3))
    assert series.sd[1] == LIMIT_SD
    assert Series.of([0, 30, 60], [100, 0, 20]).u[1] == pytest.approx(math.log(20)), "smaller ones of this series were seen"
    with pytest.raises(UsageError, match="not 1"):
        Series.of([0, 30], [100, 0])


def test_what_is_not_seen_says_nothing_of_the_scatter() -> None:
    days, volumes = [0.0, 30, 60, 90], [4000.0, 1900, 1050, 480]
    plain = fit_growth(Series.of(days, volumes))
    empty = fit_growth(Series.of([*days, 300, 330, 360], [*volumes, 0, 0, 0]), [Therapy("x", 1000)])
    assert empty.scatter == pytest.approx(plain.scatter, rel=0.2)
