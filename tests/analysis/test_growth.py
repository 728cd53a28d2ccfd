"""Growth laws, their fits, forecasts of real tumours and scenarios that do what their names say."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from isocenter.analysis.growth._kernels import integrate, killed
from isocenter.analysis.growth.curves import BY_NAME, CURVES
from isocenter.analysis.growth.fit import Growth, Prior, effects, fit_growth
from isocenter.analysis.growth.forecast import BROAD, Population, forecast, learn
from isocenter.analysis.growth.scenarios import DEFAULTS, plan, simulate, split
from isocenter.analysis.growth.series import Series
from isocenter.analysis.growth.therapy import Therapy, events, kinds
from isocenter.core.errors import UsageError

Floats = NDArray[np.float64]
#: Parameters, in the scale that is fitted, of tumours that look like tumours.
TRUE = {
    "exponential": [math.log(500), 0.012],
    "logistic": [math.log(500), math.log(0.03), math.log(20000)],
    "gompertz": [math.log(500), math.log(0.012), math.log(40000)],
    "von_bertalanffy": [math.log(500), math.log(0.6), math.log(0.012)],
    "exponential_linear": [math.log(500), math.log(0.03), math.log(100)],
    "power_law": [math.log(500), math.log(0.25), 0.7],
}


def curve_at(name: str, days: Floats, therapies: tuple[Therapy, ...] = (), effect: float = 0.03) -> Floats:
    known = kinds(therapies)
    x = np.array([*TRUE[name], *([math.log(effect)] * len(known))])
    out = np.empty(days.size)
    integrate(BY_NAME[name].code, x, len(TRUE[name]), events(therapies, known), 0.0, days, out)
    return out


@pytest.mark.parametrize("name", list(TRUE))
@pytest.mark.parametrize("treated", [False, True])
def test_curves_solve_their_equations(name: str, treated: bool) -> None:
    """Against scipy's own solver of dV/dt, written down a second time."""
    from scipy.integrate import solve_ivp

    therapies = (Therapy("a", 30, 90, dose=0.8, onset_days=5, decay_per_day=0.01), Therapy("b", 60, 120)) if treated else ()
    p = [math.exp(v) for v in TRUE[name][1:]]
    if name == "exponential":
        p = TRUE[name][1:]
    if name == "power_law":
        p[1] = TRUE[name][2]
    laws: dict[str, Callable[[float], float]] = {
        "exponential": lambda v: p[0] * v,
        "logistic": lambda v: p[0] * v * (1 - v / p[1]),
        "gompertz": lambda v: p[0] * v * math.log(p[1] / v),
        "von_bertalanffy": lambda v: p[0] * v ** (2 / 3) - p[1] * v,
        "exponential_linear": lambda v: min(p[0] * v, p[1]),
        "power_law": lambda v: p[0] * v ** p[1],
    }

    law = laws[name]

    def slope(t: float, v: Floats, stop: float) -> list[float]:
        return [law(v[0]) - kill(min(t, stop - 1e-9)) * v[0]]

    def kill(t: float) -> float:
        total = 0.0
        for c in therapies:
            if c.start <= t < c.end:
                s = t - c.start
                total += 0.03 * c.dose * (1 - math.exp(-s / c.onset_days) if c.onset_days else 1) * math.exp(-c.decay_per_day * s)
        return total

    days = np.array([0.0, 20, 30, 60, 90, 120, 150, 200])
    value, expected = 500.0, [500.0]
    for start, stop in pairwise(days):
        solved = solve_ivp(slope, (start, stop), [value], args=(stop,), rtol=1e-9, atol=1e-9)
        value = float(solved.y[0, -1])
        expected.append(value)
    assert np.exp(curve_at(name, days, therapies)) == pytest.approx(expected, rel=2e-4)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.floats(-50, 50), st.floats(1, 100), st.floats(0, 3), st.floats(0, 20), st.floats(0, 0.2), st.floats(0, 200))
def test_what_is_killed_is_the_integral_of_the_rate(start: float, length: float, dose: float, onset: float, decay: float, t: float) -> None:
    course = Therapy("x", start, start + length, dose, onset, decay)
    steps = np.linspace(course.start, max(min(t, course.end), course.start), 4001) - course.start
    rate = 0.02 * dose * ((1 - np.exp(-steps / onset)) if onset > 1e-9 else 1.0) * np.exp(-decay * steps)
    assert killed(np.array([math.log(0.02)]), 0, events([course], ["x"]), t) == pytest.approx(float(np.trapezoid(rate, steps)), abs=2e-4)


@pytest.mark.parametrize("name", list(TRUE))
def test_parameters_are_recovered(name: str) -> None:
    days = np.arange(0, 260, 20.0)
    rng = np.random.default_rng(1)
    noisy = np.exp(curve_at(name, days) + rng.normal(0, 0.01, days.size))
    growth = fit_growth(Series.of(list(days), list(noisy), [0.01] * days.size))
    fit = next(f for f in growth.fits if f.curve.name == name)
    assert fit.weight > 0.05, "the true law is among those that count"
    for parameter, true in zip(fit.curve.parameters, TRUE[name][1:], strict=True):
        states = growth.states(fit)[:, 1 + fit.curve.parameters.index(parameter)]
        low, high = np.quantile(states, [0.005, 0.995])
        assert low - 0.02 <= true <= high + 0.02, parameter.name
    assert sum(f.weight for f in growth.fits) == pytest.approx(1)
    assert growth.best.curve.name == max(growth.fits, key=lambda f: f.weight).curve.name


def test_a_shrinking_lesion_is_fitted_too() -> None:
    days = np.arange(0, 200, 25.0)
    growth = fit_growth(Series.of(list(days), list(8000 * np.exp(-0.01 * days))))
    exponential = next(f for f in growth.fits if f.curve.name == "exponential")
    assert exponential.parameters["r"] == pytest.approx(-0.01, abs=1e-4)
    median, low, high = growth.predict([200.0, 250.0])
    assert median[1] < median[0] < 8000
    assert (low < median).all()
    assert (median < high).all()


def treated() -> Growth:
    days = np.array([0.0, 30, 60, 90, 120, 150, 180, 210, 240, 300])
    course = (Therapy("chemo", 100, 220),)
    rng = np.random.default_rng(3)
    u = curve_at("gompertz", days, course)
    return fit_growth(Series.of(list(days), list(np.exp(u + rng.normal(0, 0.04, days.size))), [0.04] * days.size), course)


def test_a_treatments_effect_is_found_where_it_can_be() -> None:
    effect = effects(treated())[0]
    assert effect.identifiable
    assert effect.low is not None
    assert effect.high is not None
    assert effect.low < 0.03 < effect.high
    assert effect.high < 2 * effect.low


def test_and_said_not_to_be_where_it_cannot() -> None:
    days = np.arange(0, 200, 30.0)
    untouched = np.exp(curve_at("exponential", days))
    all_along = fit_growth(Series.of(list(days), list(untouched)), [Therapy("chemo", -10, 500)])
    assert not effects(all_along)[0].identifiable, "treated all the time: slower growth and treatment look the same"
    later = fit_growth(Series.of(list(days), list(untouched)), [Therapy("chemo", 300)])
    found = effects(later)[0]
    assert not found.identifiable
    assert "not given" in found.reason


def test_every_scenario_does_what_its_name_says() -> None:
    growth = treated()
    days = np.arange(100, 330, 10.0)
    curves = {name: simulate(growth, name, days).median_mm3 for name in (*DEFAULTS, "dose_escalation_3x_2w", "combination_therapy_0.5")}
    given_, at = curves["as_given"], {day: i for i, day in enumerate(days)}
    during = at[210]
    assert curves["natural_history"][during] > 2 * given_[during]
    assert curves["earlier_treatment_2w"][at[140]] < given_[at[140]]
    assert curves["later_treatment_2w"][at[140]] > given_[at[140]]
    assert curves["treatment_holiday_4-8w"][during] > given_[during]
    assert curves["treatment_holiday_4-8w"][at[120]] == pytest.approx(given_[at[120]], rel=1e-6), "before the holiday nothing changes"
    assert curves["resistance_onset_8w"][at[210]] > given_[at[210]]
    assert curves["resistance_onset_8w"][at[150]] == pytest.approx(given_[at[150]], rel=1e-6)
    assert curves["dose_escalation"][during] < given_[during]
    assert curves["dose_escalation_3x_2w"][during] < curves["dose_escalation"][during]
    assert curves["combination_therapy"][during] < curves["combination_therapy_0.5"][during] < given_[during]
    ongoing = simulate(fit_growth(growth.series, [Therapy("chemo", 100, 400)]), "regimen_switch_effect_0", [310.0, 380.0]).median_mm3
    assert (ongoing > simulate(fit_growth(growth.series, [Therapy("chemo", 100, 400)]), "as_given", [310.0, 380.0]).median_mm3).all()


def test_a_cut_course_is_the_same_course() -> None:
    course = Therapy("x", 10, 90, dose=1.3, onset_days=8, decay_per_day=0.02)
    x = np.array([math.log(0.05)])
    for day in (5.0, 10.0, 20.0, 55.0, 90.0, 120.0):
        before, after = split(course, day)
        for t in (0.0, 15.0, 40.0, 89.0, 200.0):
            pieces = killed(x, 0, events([*before, *after], ["x"]), t)
            assert pieces == pytest.approx(killed(x, 0, events([course], ["x"]), t), abs=1e-12)


@pytest.mark.parametrize("name", ["", "natural", "earlier_treatment_w", "treatment_holiday_8-4w", "regimen_switch_effect_1000", "dose_escalation_x"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        plan(name, [Therapy("a", 0, 10)], 20)


def test_without_treatment_there_is_nothing_to_change() -> None:
    growth = fit_growth(Series.of([0, 30, 60, 90, 120], [100, 130, 170, 220, 280]))
    for name in (*DEFAULTS[1:], "combination_therapy_0.5"):
        assert simulate(growth, name, [150.0]).reason == "there is no treatment to change", name
    assert simulate(growth, "as_given", [150.0]).reason is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("regimen_switch_effect_0.75", "no course goes on after the last visit"),
        ("dose_escalation_2x_30w", "no course goes on after week 30 of treatment (day 310)"),
        ("treatment_holiday_30-40w", "no course is given in weeks 30 to 40"),
        ("resistance_onset_20w", "every course ended before its week 20"),
        ("earlier_treatment_0w", "moved by no day"),
        ("dose_escalation_1x_2w", "changes no dose"),
        ("combination_therapy_0", "changes no dose"),
    ],
)
def test_a_scenario_that_changes_nothing_says_why(name: str, reason: str) -> None:
    growth = treated()
    days = np.arange(100, 330, 10.0)
    found, given_ = simulate(growth, name, days), simulate(growth, "as_given", days)
    assert found.reason is not None
    assert reason in found.reason
    np.testing.assert_allclose(found.median_mm3, given_.median_mm3, rtol=1e-5)
    assert given_.reason is None


def test_scenarios_that_change_the_curve_have_no_such_reason() -> None:
    growth = treated()
    assert {n for n in DEFAULTS if simulate(growth, n, np.arange(100, 330, 10.0)).reason is not None} == {"regimen_switch_effect_0.75"}


def test_bad_input() -> None:
    for days, volumes in (
        ([0.0], [1.0]),
        ([0, 0], [1, 2]),
        ([0, 1], [1, -2]),
        ([0, 1], [1, math.nan]),
        ([0, math.inf], [1, 2]),
        ([0, 1], [0, 0]),
        ([0, 1], [1]),
    ):
        with pytest.raises(UsageError):
            Series.of(days, volumes)
    for arguments in ((5, 5), (5, 1), (math.nan, 9), (0, 9, -1), (0, 9, 1, -2), (0, 9, 1, 0, 99)):
        with pytest.raises(UsageError):
            Therapy("x", *arguments)
    series = Series.of([0, 50], [100, 120])
    with pytest.raises(UsageError):
        forecast(series, [50.0])
    with pytest.raises(UsageError):
        forecast(series, [80.0], therapies=[Therapy("new", 60)])
    with pytest.raises(UsageError):
        learn([series] * 10, "x")


def test_missing_visits_are_left_out_and_said() -> None:
    series = Series.of([0, 30, 60, 90], [100, None, None, 120])
    assert [day for day, _ in series.left_out] == [30, 60]
    growth = fit_growth(series)
    assert [f.weight for f in growth.fits if f.curve.name == "exponential"] == [1.0]
    assert any("too few" in note for note in growth.notes)


def test_a_prior_holds_what_few_visits_cannot() -> None:
    prior = Prior("ten simulated tumours", {"gompertz.r": (math.log(0.012), 0.1), "gompertz.K": (math.log(40000), 0.2)})
    growth = fit_growth(Series.of([0, 30], [500, 1700]), prior=prior)
    gompertz = next(f for f in growth.fits if f.curve.name == "gompertz")
    assert gompertz.parameters["K"] == pytest.approx(40000, rel=0.3)
    assert all(f.weight > 0 for f in growth.fits)
    assert any("ten simulated tumours" in note for note in growth.notes)


def test_treatment_lowers_a_forecast() -> None:
    series = Series.of([0, 30, 60], [500, 700, 980])
    plain = forecast(series, [90.0, 120.0])
    treated = forecast(series, [90.0, 120.0], therapies=[Therapy("chemo", 60)], effects_per_day={"chemo": 0.02})
    assert treated.median_mm3 == pytest.approx(plain.median_mm3 * np.exp(-0.02 * np.array([30, 60])), rel=1e-9)
    assert "broad" in plain.notes[0]
    assert plain.high_mm3[1] / plain.low_mm3[1] > plain.high_mm3[0] / plain.low_mm3[0]


def test_real_tumours_by_rolling_origin(data: Path) -> None:
    """Twenty mice: every prefix of four points or more forecasts the rest, with rates learnt from the other nineteen."""
    table: dict[int, list[tuple[float, float]]] = {}
    for row in (data / "tumor_growth_plumky" / "lung_vol_data.txt").read_text().splitlines()[1:]:
        mouse, day, volume = row.split()
        table.setdefault(int(mouse), []).append((float(day), float(volume)))
    mice = [np.array(sorted(rows)) for rows in table.values()]
    assert len(mice) == 20
    series = [Series.of(list(m[:, 0]), list(m[:, 1])) for m in mice]
    populations = [learn([s for k, s in enumerate(series) if k != j], "the other mice") for j in range(20)]
    last_two: list[float] = []
    errors: list[float] = []
    line: list[float] = []
    exponential: list[float] = []
    inside: list[bool] = []
    score: list[float] = []
    exponential_score: list[float] = []
    for m, population in zip(mice, populations, strict=True):
        t, u = m[:, 0], np.log(m[:, 1])
        found = forecast(Series.of(list(t[:-2]), list(m[:-2, 1])), t[-2:], population=population)
        last_two += list(np.abs(np.log(found.median_mm3) - u[-2:]))
        line += list(np.abs(np.polyval(np.polyfit(t[-5:-2], u[-5:-2], 1), t[-2:]) - u[-2:]))
        for n in range(4, t.size):
            found = forecast(Series.of(list(t[:n]), list(m[:n, 1])), t[n:], population=population)
            low, high = np.log(found.low_mm3), np.log(found.high_mm3)
            errors += list(np.abs(np.log(found.median_mm3) - u[n:]))
            inside += list((u[n:] >= low) & (u[n:] <= high))
            score += list(_interval_score(low, high, u[n:]))
            steep = float(((t[:n] - t[n - 1]) * (u[:n] - u[n - 1])).sum() / ((t[:n] - t[n - 1]) ** 2).sum())
            middle = u[n - 1] + steep * (t[n:] - t[n - 1])
            exponential += list(np.abs(middle - u[n:]))
            spread = float(np.sqrt(((u[:n] - u[n - 1] - steep * (t[:n] - t[n - 1])) ** 2).sum() / (n - 1)))
            far = spread * np.sqrt(1 + (t[n:] - t[n - 1]) ** 2 / ((t[:n] - t[n - 1]) ** 2).sum())
            exponential_score += list(_interval_score(middle - 1.2816 * far, middle + 1.2816 * far, u[n:]))
    assert np.mean(last_two) < 0.18 < np.mean(line) < 0.2
    assert np.mean(errors) < 0.3 < np.mean(exponential)
    assert np.mean(score) < np.mean(exponential_score)
    assert 0.68 <= np.mean(inside) <= 0.92


def _interval_score(low: Floats, high: Floats, seen: Floats) -> Floats:
    """Gneiting and Raftery, J Am Stat Assoc 102:359, 2007, equation 43, for 80 %."""
    return np.asarray(high - low + 10 * np.maximum(low - seen, 0) + 10 * np.maximum(seen - high, 0))


def test_figures_are_the_same_every_time() -> None:
    first, second = treated(), treated()
    assert (first.predict([310.0])[0] == second.predict([310.0])[0]).all()
    assert [f.curve.name for f in first.fits] == [f.curve.name for f in second.fits]
    assert set(BROAD.source.split()) & {"broad"}
    assert len(CURVES) == 6
    with pytest.raises(UsageError):
        Population("x", 0.1, 0.0, 0.1, 0.1, 0.1)
