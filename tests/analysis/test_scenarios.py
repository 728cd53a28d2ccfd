"""What each scenario does to the kill of every course, exactly, and to the curve; names and numbers that make no sense."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from isocenter.analysis.growth._kernels import integrate, killed
from isocenter.analysis.growth.fit import Growth, fit_growth
from isocenter.analysis.growth.scenarios import DEFAULTS, MOST_WEEKS, RESISTANCE_HALF_DAYS, plan, simulate
from isocenter.analysis.growth.series import Series
from isocenter.analysis.growth.therapy import Therapy, events, kinds
from isocenter.core.errors import UsageError

NOW = 120.0
DAYS = [-50.0, 0, 10, 27.5, 60, 100, NOW, 130, 190, 300]
course = st.builds(
    lambda kind, start, length, dose, onset, decay: Therapy(kind, start, start + length, dose, onset, decay),
    st.sampled_from("ab"),
    st.floats(-60, 150),
    st.one_of(st.floats(1, 200), st.just(math.inf)),
    st.floats(0.1, 5),
    st.sampled_from([0.0, 7.0]),
    st.sampled_from([0.0, 0.01]),
)
courses = st.lists(course, min_size=1, max_size=4).map(tuple)
weeks = st.sampled_from([0.5, 2, 4, 8, 30])


def taken(therapies: tuple[Therapy, ...], day: float) -> float:
    """All that treatment has taken off ln V up to a day, with an effect of 0.03 a day and usual dose."""
    known = kinds(therapies)
    return float(killed(np.full(len(known), math.log(0.03)), 0, events(therapies, known), day)) if therapies else 0.0


def first(therapies: tuple[Therapy, ...]) -> float:
    return min(t.start for t in therapies)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(courses, weeks, st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_every_name_changes_the_kill_as_it_says(therapies: tuple[Therapy, ...], w: float, x: float) -> None:
    """Finished, going on, several at once, before the first visit: the same law of each name."""

    def under(name: str) -> tuple[Therapy, ...]:
        return plan(name, therapies, NOW)[0]

    late = first(therapies) + 7 * w
    for t in DAYS:
        was = taken(therapies, t)
        assert taken(under("as_given"), t) == was
        assert taken(under("natural_history"), t) == 0
        assert taken(under(f"earlier_treatment_{w}w"), t) == pytest.approx(taken(therapies, t + 7 * w), abs=1e-9)
        assert taken(under(f"later_treatment_{w}w"), t) == pytest.approx(taken(therapies, t - 7 * w), abs=1e-9)
        since = max(was - taken(therapies, NOW), 0) if t > NOW else 0.0
        assert taken(under(f"regimen_switch_effect_{x}"), t) == pytest.approx(was + (x - 1) * since, abs=1e-9)
        pause = taken(therapies, min(max(t, late), late + 28)) - taken(therapies, late)
        assert taken(under(f"treatment_holiday_{w}-{w + 4}w"), t) == pytest.approx(was - pause, abs=1e-9)
        since = max(was - taken(therapies, late), 0) if t > late else 0.0
        assert taken(under(f"dose_escalation_{x}x_{w}w"), t) == pytest.approx(was + (x - 1) * since, abs=1e-9)
        assert taken(under(f"combination_therapy_{x}"), t) == pytest.approx((1 + x) * was, abs=1e-9)
    resistant = under(f"resistance_onset_{w}w")
    for one in therapies:
        (alone,) = [plan(f"resistance_onset_{w}w", [one], NOW)[0]]
        begins = one.start + 7 * w
        for t in DAYS:
            if t <= begins:
                assert taken(alone, t) == pytest.approx(taken((one,), t), abs=1e-9)
            elif t + 0.01 < one.end:
                rate, usual = (taken(c, t + 0.01) - taken(c, t) for c in (alone, (one,)))
                assert rate == pytest.approx(usual * 2 ** (-(t - begins) / RESISTANCE_HALF_DAYS), rel=1e-3, abs=1e-9)
    assert taken(resistant, 300) == pytest.approx(sum(taken(plan(f"resistance_onset_{w}w", [t], NOW)[0], 300) for t in therapies), abs=1e-9)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(courses, st.integers(0, 5))
def test_more_kill_is_a_smaller_lesion_under_every_law(therapies: tuple[Therapy, ...], code: int) -> None:
    natural = {0: [0.01], 1: [-3.5, 10.0], 2: [-4.0, 10.0], 3: [-0.5, -4.0], 4: [-3.5, 4.6], 5: [-1.4, 0.7]}[code]
    known, days = kinds(therapies), np.array([0.0, 30, 90, 200])
    x = np.array([6.0, *natural, *([math.log(0.02)] * len(known))])
    curves = []
    for name in ("natural_history", "as_given", "combination_therapy"):
        out = np.empty(days.size)
        integrate(code, x, 1 + len(natural), events(plan(name, therapies, NOW)[0], known), 0.0, days, out)
        curves.append(out)
    for more, less in pairwise(curves):
        assert (less <= more + 1e-6).all()


def followed(*therapies: Therapy) -> Growth:
    """A lesion of 3000 mm³, 0.012 a day, 0.04 a day killed, at nine visits with little noise."""
    days: NDArray[np.float64] = np.arange(0.0, 180.0, 20.0, dtype=np.float64)
    kill = np.array([taken(therapies, d) - taken(therapies, 0.0) for d in days]) * 0.04 / 0.03
    noise = np.random.default_rng(4).normal(0, 0.02, days.size)
    volumes = np.exp(np.log(3000) + 0.012 * days - kill + noise)
    return fit_growth(Series.of(list(days), list(volumes), [0.03] * days.size), therapies)


FINISHED, ONGOING = Therapy("a", 25, 75), Therapy("a", 45)
KINDS = {"finished": (FINISHED,), "ongoing": (ONGOING,), "overlapping": (FINISHED, Therapy("b", 60, 130)), "early": (Therapy("a", -10, 60),)}
#: Names whose curve lies above (more lesion) or below what was given, at the last day of the curve or sooner.
ABOVE = ("natural_history", "later_treatment_2w", "treatment_holiday_2-4w", "resistance_onset_2w", "dose_escalation_0.5x_2w", "combination_therapy_0")
BELOW = ("earlier_treatment_2w", "dose_escalation_1.5x_2w", "combination_therapy")


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_moves_the_curve_its_way(kind: str) -> None:
    growth = followed(*KINDS[kind])
    days = np.arange(0, 261, 10.0)
    was = simulate(growth, "as_given", days).median_mm3
    for name in ABOVE[:-1]:
        found = simulate(growth, name, days)
        assert found.reason is None, name
        assert (found.median_mm3 > 1.02 * was).any(), name
        assert (found.median_mm3[:17] >= was[:17] * 0.999).all(), name
    for name in BELOW:
        found = simulate(growth, name, days)
        assert (found.median_mm3 < 0.98 * was).any(), name
        # A lesion that was treated earlier has longer to grow again, by a limited law faster since it is smaller.
        assert (found.median_mm3[:17] <= was[:17] * 1.01).all(), name
    switched = simulate(growth, "regimen_switch_effect_0", days)
    if kind == "ongoing":
        assert switched.median_mm3[-1] > 1.5 * was[-1]
    else:
        assert (switched.median_mm3 == was).all()
        assert switched.reason is not None
        assert "no course goes on" in switched.reason


def test_treatment_moved_before_the_first_visit_has_worked_by_then() -> None:
    """A course of days 5 to 26, two weeks earlier: as long as before, so that in the end the lesion is the same and never larger."""
    growth = followed(Therapy("a", 5, 26))
    days = np.arange(0, 150, 5.0)
    was = simulate(growth, "as_given", days).median_mm3
    early = simulate(growth, "earlier_treatment_2w", days).median_mm3
    assert early[0] == pytest.approx(was[0] * math.exp(-9 * growth.best.parameters["effect:a"]), rel=0.05)
    assert (early <= was * 1.001).all()


def test_without_treatment_every_name_says_so() -> None:
    growth = followed()
    for name in DEFAULTS[2:]:
        found = simulate(growth, name, [150.0, 170.0])
        assert "no treatment" in (found.reason or ""), name
        assert (found.median_mm3 == simulate(growth, "as_given", [150.0, 170.0]).median_mm3).all()


@pytest.mark.parametrize(
    "name",
    [
        "earlier_treatment_-2w",
        "later_treatment_1000000000w",
        f"later_treatment_{MOST_WEEKS + 1:g}w",
        "earlier_treatment_1e9w",
        "treatment_holiday_8-4w",
        "treatment_holiday_4-4w",
        "treatment_holiday_4-9999w",
        "resistance_onset_-1w",
        "resistance_onset_99999w",
        "dose_escalation_101x_2w",
        "dose_escalation_1.5x_1000w",
        "combination_therapy_1e3",
        "combination_therapy_101",
        "regimen_switch_effect_nan",
        "regimen_switch_effect_-1",
        "regimen_switch_effect_101",
        "later_treatment_2w ",
        "later_treatment_٢w",
        "x" * 10_000,
    ],
)
def test_absurd_numbers_are_refused(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        plan(name, (ONGOING,), NOW)
    assert len(refused.value.message) < 400
