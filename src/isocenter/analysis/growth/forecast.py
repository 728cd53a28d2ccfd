"""Where a lesion goes from here: a growth rate that slows down and wanders, followed through the visits.

The state is (u, r): u = ln V, du/dt = r - kill(t), and r shrinks by `loss` a day, which is Gompertz's law (Norton, Cancer Res
48:7067, 1988), but is pushed about by white noise of size `wander`; visits see u with an error. A Kalman filter (Kalman,
J Basic Eng 82:35, 1960) gives mean and variance of every later day in closed form. What a single lesion with few visits
cannot tell, first rate and slowing, comes from a `Population`: from other subjects of the same kind where there are any
(`learn`), else from `BROAD`, which is wide and said to be so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.growth.series import Series
from isocenter.analysis.growth.therapy import Therapy, events, kinds
from isocenter.core.errors import UsageError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Population:
    """How lesions of one kind grow. source: what it was learnt from, said in every forecast.

    rate_mean, rate_sd: of the rate at the first visit, 1/day. loss: by which the rate shrinks, 1/day. wander: standard
    deviation that the rate gains in one day, 1/day. extra_sd: scatter of u beyond the visits' own errors.
    """

    source: str
    rate_mean: float
    rate_sd: float
    loss: float
    wander: float
    extra_sd: float

    def __post_init__(self) -> None:
        values = (self.rate_mean, self.rate_sd, self.loss, self.wander, self.extra_sd)
        if not all(math.isfinite(v) for v in values) or min(values[1:]) < 0 or self.rate_sd == 0:
            raise UsageError("a population's figures must be numbers, its spreads above 0")


#: Nothing known: rates from halving to doubling in seven weeks within one sd, which hold for about a year.
BROAD = Population(
    "no measured population: a broad assumption (0 ± 0.014 a day, slowing by half in a year)", 0.0, 0.014, math.log(2) / 365, 0.0008, 0.05
)

#: A lesion's absence, or its return, that was less likely than this contradicts what is assumed of its growth.
UNLIKELY = 1e-3


@dataclass(frozen=True, eq=False)
class Forecast:
    """Volumes to come. median_mm3, low_mm3, high_mm3 at `days`; the interval holds the next measurement with `level`."""

    days: Floats
    median_mm3: Floats
    low_mm3: Floats
    high_mm3: Floats
    level: float
    population: Population
    notes: tuple[str, ...] = ()


def forecast(
    series: Series,
    days: Sequence[float] | Floats,
    *,
    population: Population = BROAD,
    therapies: Sequence[Therapy] = (),
    effects_per_day: dict[str, float] | None = None,
    level: float = 0.8,
) -> Forecast:
    """The volume at later `days`. effects_per_day: kill rates by kind of therapy, as `fit_growth` gives them.

    Raises `UsageError` for days that do not lie after the last visit, for a therapy without an effect, for a lesion that is gone at the
    last visit, and where its absences contradict the growth and the effects that are assumed (less likely than 1 in 1000).
    """
    from isocenter.analysis.growth._kernels import filter_rates

    ahead = np.asarray(days, dtype=np.float64)
    if ahead.size == 0 or not np.isfinite(ahead).all() or ahead.min() <= series.days[-1]:
        raise UsageError("a forecast is for days after the last visit")
    if not 0 < level < 1:
        raise UsageError("the interval's level lies between 0 and 1")
    if series.absent[-1]:
        raise UsageError("gone at the last visit: nothing to forecast")
    known = kinds(therapies)
    rates = effects_per_day or {}
    if missing := [kind for kind in known if kind not in rates]:
        raise UsageError(f"the effect of {', '.join(missing)} is not known; fit it first")
    x = np.log([max(rates[kind], 1e-12) for kind in known]) if known else np.zeros(0)
    out = np.empty((ahead.size, 2))
    _, least = filter_rates(_hyper(population), series.days, series.u, series.signed_sd, x, 0, events(therapies, known), ahead, out)
    if least < math.log(UNLIKELY):
        raise UsageError("no forecast: it was not seen at some visits, which neither usual growth nor the treatments explain")
    sd = np.sqrt(out[:, 1] + float(np.median(series.sd[~series.absent])) ** 2 + population.extra_sd**2)
    half = _normal_quantile((1 + level) / 2) * sd
    notes = (f"growth rates from {population.source}",)
    return Forecast(ahead, np.exp(out[:, 0]), np.exp(out[:, 0] - half), np.exp(out[:, 0] + half), level, population, notes)


def learn(many: Sequence[Series], source: str) -> Population:
    """A population from several untreated lesions with three visits or more, by maximum likelihood of all their visits.

    A mixed-effects estimate: rates vary from subject to subject, the other figures are shared. Raises `UsageError` for
    fewer than five series.
    """
    from scipy.optimize import minimize

    from isocenter.analysis.growth._kernels import filter_rates

    useful = [t for s in many if (t := s.without(s.absent, "not seen")).days.size >= 3]
    if len(useful) < 5:
        raise UsageError(f"a population needs five series of three visits or more, not {len(useful)}")
    slopes = np.array([(s.u[1:] - s.u[:-1]).sum() / (s.days[-1] - s.days[0]) for s in useful])
    pace = max(float(np.abs(slopes).mean()), 1e-4)
    empty, nothing, none = np.zeros((0, 6)), np.zeros(0), np.zeros((0, 2))
    bare = [np.zeros(s.days.size) for s in useful]

    def hyper(p: Floats) -> Floats:
        return np.array([p[0] * pace, *(pace * np.exp(p[1:4])), math.exp(p[4])])

    def cost(p: Floats) -> float:
        if np.abs(p).max() > 12:
            return 1e12
        total = sum(filter_rates(hyper(p), s.days, s.u, zero, nothing, 0, empty, nothing, none)[0] for s, zero in zip(useful, bare, strict=True))
        # Half a pseudo-observation keeps figures finite that the series say nothing of.
        return float(total + 0.01 * ((p - start) ** 2).sum())

    start = np.array([2.0, -0.7, -1.5, -1.5, -2.0])
    options = {"maxiter": 1500, "xatol": 1e-4, "fatol": 1e-5}
    tries = [minimize(cost, start + shift, method="Nelder-Mead", options=options) for shift in (0.0, -0.5)]
    best = min(tries, key=lambda found: float(found.fun))
    mean, spread, loss, wander, extra = (float(v) for v in hyper(best.x))
    # The likelihood above saw all scatter as one; each forecast adds its visits' own errors, which are not to count twice.
    typical = float(np.median(np.concatenate([s.sd for s in useful])))
    return Population(source, mean, spread, loss, wander, math.sqrt(max(extra**2 - typical**2, 0.0)))


def _hyper(population: Population) -> Floats:
    return np.array([population.rate_mean, population.rate_sd, population.loss, population.wander, population.extra_sd])


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)
