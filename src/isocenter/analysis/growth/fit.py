"""Fits of the growth laws to one lesion, what each is worth, and all of them together.

Least squares on the logarithm of the volume, weighted by each visit's measurement error, from a Latin hypercube of
starts; visits at which the lesion was not seen count as censored (`_kernels.misfit`). Laws are weighed by QAICc
(Burnham and Anderson, Model Selection and Multimodel Inference, 2002, sections 2.4-2.5 and 2.9):
c, by which the scatter exceeds the errors given, comes from the best-fitting law. Uncertainty is a random walk over the
posterior of each law that counts (Metropolis), and for treatment effects a likelihood profile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.growth.curves import CURVES, Curve
from isocenter.analysis.growth.series import Series
from isocenter.analysis.growth.therapy import Therapy, events, kinds
from isocenter.core.errors import UsageError

Floats = NDArray[np.float64]
#: Effect of a usual dose, 1/day: up to a volume that halves within half a day.
_EFFECT = (math.log(1e-5), math.log(1.5))
_VOLUME = (-7.0, 17.0)
_STARTS, _KEPT = 160, 4
_STEPS, _BURN = 3000, 600
#: A law of less Akaike weight takes no part in averages.
LEAST_WEIGHT = 0.02
#: The scatter is never taken as smaller than a third of the measurement error.
_LEAST_SCATTER = 0.1
#: chi squared of one degree of freedom at 95 %.
_CHI2_95 = 3.841


@dataclass(frozen=True)
class Prior:
    """What is known before a fit, from a population: mean and sd by parameter name, in the scale that is fitted.

    Names are those of `curves`, for treatments "effect:" and the kind. source: said in every answer.
    """

    source: str
    values: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Fit:
    """One law fitted. parameters: in natural units, V0 in mm³ at the first visit, effects in 1/day. x: as it was fitted.

    residuals: of ln V by visit; where the lesion was not seen, what the law has above the limit, else 0.

    aicc and bic are None where there are too few visits for the law (n <= parameters + 1); its weight is 0 then.
    """

    curve: Curve
    parameters: Mapping[str, float]
    x: Floats
    bounds: Floats
    misfit: float
    aicc: float | None
    bic: float | None
    weight: float
    fitted_mm3: Floats
    residuals: Floats


@dataclass(frozen=True)
class Effect:
    """What the data say of one treatment's kill rate for a usual dose. identifiable: whether they say it at all."""

    kind: str
    per_day: float
    low: float | None
    high: float | None
    identifiable: bool
    reason: str


@dataclass(frozen=True, eq=False)
class Growth:
    """All laws fitted to one series, best first. scatter: c, see above. prior: what was known before, None for nothing."""

    series: Series
    therapies: tuple[Therapy, ...]
    fits: tuple[Fit, ...]
    scatter: float
    prior: Prior | None
    notes: tuple[str, ...] = ()
    seed: int = 42
    _walks: dict[str, Floats] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        return kinds(self.therapies)

    @property
    def best(self) -> Fit:
        return self.fits[0]

    def states(self, fit: Fit) -> Floats:
        """Draws from the posterior of one law (n, parameters), made once."""
        if fit.curve.name not in self._walks:
            self._walks[fit.curve.name] = _walk(self, fit)
        return self._walks[fit.curve.name]

    def predict(
        self,
        days: Sequence[float] | Floats,
        therapies: Sequence[Therapy] | None = None,
        *,
        draws: int = 400,
        level: float = 0.8,
        moved: bool = False,
    ) -> tuple[Floats, Floats, Floats]:
        """Median and interval of the volume in mm³ at `days` (rising, none before the first visit), over all laws that count.

        therapies: what is given instead of what was; of the same kinds. level: of the interval, without measurement error. moved: see `paths`.
        """
        paths = self.paths(days, therapies, draws=draws, moved=moved)
        low, middle, high = np.exp(np.quantile(paths, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=0))
        return middle, low, high

    def paths(self, days: Sequence[float] | Floats, therapies: Sequence[Therapy] | None = None, *, draws: int = 400, moved: bool = False) -> Floats:
        """(draws, days) logarithms of volumes, drawn from all laws by their weights; the same draws for any treatment.

        moved: `therapies` are the same courses at other times. What they do before the first visit, beyond those given, then changes
        the volume at that visit; elsewhere another treatment begins with it.
        """
        from isocenter.analysis.growth._kernels import integrate, killed

        wanted = np.asarray(days, dtype=np.float64)
        if wanted.size == 0 or (np.diff(wanted) <= 0).any() or wanted[0] < self.series.days[0]:
            raise UsageError("days to predict must rise, and none may lie before the first visit")
        table = events(self.therapies if therapies is None else therapies, self.kinds)
        given, origin = events(self.therapies, self.kinds), float(self.series.days[0])
        rng = np.random.default_rng(self.seed)
        counts = rng.multinomial(draws, [f.weight for f in self.fits])
        paths = np.empty((draws, wanted.size))
        row = 0
        for fit, count in zip(self.fits, counts, strict=True):
            if not count:
                continue
            states = self.states(fit)
            for k in rng.integers(0, len(states), count):
                first, state = 1 + len(fit.curve.parameters), states[k]
                if moved:
                    state = state.copy()
                    state[0] += killed(state, first, given, origin) - killed(state, first, table, origin)
                integrate(fit.curve.code, state, first, table, origin, wanted, paths[row])
                row += 1
        return paths


def fit_growth(
    series: Series, therapies: Sequence[Therapy] = (), *, curves: Sequence[Curve] = CURVES, prior: Prior | None = None, seed: int = 42
) -> Growth:
    """Fit the laws to a series. Takes some hundredths of a second; draws for intervals are made when they are asked for.

    With three visits or fewer no law can be weighed: the exponential alone is fitted, and that is noted; a `prior` lets
    all of them be fitted.
    """
    from isocenter.analysis.growth._kernels import screen

    given = tuple(t for t in therapies if t.start < series.days[-1])
    known = kinds(therapies)
    table = events(given, known)
    raw: list[tuple[Curve, Floats, Floats, Floats, float]] = []
    for curve in curves:
        bounds, around = _bounds(curve, known, given), _prior(curve, known, prior)
        starts = _starts(bounds, around, series, np.random.default_rng(seed + curve.code))
        solutions, sums = screen(curve.code, starts, bounds, 1 + len(curve.parameters), table, series.days, series.u, series.signed_sd, around, _KEPT)
        k = int(np.argmin(sums))
        raw.append((curve, solutions[k], bounds, around, float(sums[k])))
    return _weigh(series, tuple(therapies), raw, prior, seed)


def _bounds(curve: Curve, known: Sequence[str], given: Sequence[Therapy]) -> Floats:
    """(p, 2). The effect of a treatment that was not given yet stays at its middle: nothing is known of it."""
    effects = [_EFFECT if any(t.kind == kind for t in given) else (math.log(0.01), math.log(0.01)) for kind in known]
    return np.array([_VOLUME, *(p.bounds for p in curve.parameters), *effects], dtype=np.float64)


def _prior(curve: Curve, known: Sequence[str], prior: Prior | None) -> Floats:
    """(p, 2): mean and sd, sd 0 where nothing is known. Effects get a wide one, so that a walk does not lose itself."""
    table = np.zeros((1 + len(curve.parameters) + len(known), 2))
    table[1 + len(curve.parameters) :] = (math.log(0.01), 2.5)
    if prior is not None:
        names = [f"{curve.name}.{p.name}" for p in curve.parameters] + [f"effect:{kind}" for kind in known]
        for row, name in enumerate(names, start=1):
            if name in prior.values:
                table[row] = prior.values[name]
    return table


def _starts(bounds: Floats, around: Floats, series: Series, rng: np.random.Generator) -> Floats:
    """A Latin hypercube over the bounds (over three sd of the prior where there is one), beginning near the first volume."""
    p = len(bounds)
    low, high = bounds[:, 0].copy(), bounds[:, 1].copy()
    some = around[:, 1] > 0
    low[some] = np.maximum(low[some], around[some, 0] - 3 * around[some, 1])
    high[some] = np.minimum(high[some], around[some, 0] + 3 * around[some, 1])
    low[0], high[0] = series.u[0] - (4 if series.absent[0] else 1), series.u[0] + 1
    grid = (np.argsort(rng.random((p, _STARTS)), axis=1).T + rng.random((_STARTS, p))) / _STARTS
    return np.ascontiguousarray(low + grid * np.maximum(high - low, 0))


def _weigh(
    series: Series, therapies: tuple[Therapy, ...], raw: list[tuple[Curve, Floats, Floats, Floats, float]], prior: Prior | None, seed: int
) -> Growth:
    n, seen = series.days.size, series.days.size - int(series.absent.sum())
    free = {curve.name: int((bounds[:, 1] > bounds[:, 0]).sum()) for curve, _, bounds, _, _ in raw}
    # What was not seen costs a fitting law nothing, so that it says nothing of the scatter either.
    spare = [misfit / (seen - free[curve.name]) for curve, _, _, _, misfit in raw if seen > free[curve.name]]
    scatter = max(min(spare, default=1.0), _LEAST_SCATTER)
    notes: list[str] = [f"day {day:g} was left out: {reason}" for day, reason in series.left_out]
    criteria: dict[str, tuple[float, float] | None] = {}
    for curve, _, _, _, misfit in raw:
        k = free[curve.name]
        criteria[curve.name] = None
        if n - k - 1 > 0:
            criteria[curve.name] = (misfit / scatter + 2 * k + 2 * k * (k + 1) / (n - k - 1), misfit / scatter + k * math.log(n))
    able = {name: c[0] for name, c in criteria.items() if c is not None}
    weights = dict.fromkeys(free, 0.0)
    if able:
        least = min(able.values())
        shares = {name: math.exp(-(value - least) / 2) for name, value in able.items()}
        total = sum(shares.values())
        shares = {name: share / total if share / total >= LEAST_WEIGHT else 0.0 for name, share in shares.items()}
        weights |= {name: share / sum(shares.values()) for name, share in shares.items()}
    elif prior is not None:
        weights = dict.fromkeys(free, 1 / len(free))
        notes.append(f"{n} visits cannot tell the laws apart; all count alike, held by what is known from {prior.source}")
    else:
        weights[raw[0][0].name] = 1.0
        notes.append(f"{n} visits are too few to weigh growth laws: the {raw[0][0].name} alone is used")
    fits = [_fit(series, therapies, row, criteria[row[0].name], weights[row[0].name]) for row in raw]
    fits.sort(key=lambda f: (-f.weight, f.misfit))
    return Growth(series, therapies, tuple(fits), scatter, prior, tuple(notes), seed)


def _fit(
    series: Series,
    therapies: tuple[Therapy, ...],
    raw: tuple[Curve, Floats, Floats, Floats, float],
    criterion: tuple[float, float] | None,
    weight: float,
) -> Fit:
    from isocenter.analysis.growth._kernels import integrate

    curve, x, bounds, _, misfit = raw
    known = kinds(therapies)
    path = np.empty(series.days.size)
    integrate(curve.code, x, 1 + len(curve.parameters), events(therapies, known), series.days[0], series.days, path)
    parameters = {"V0": math.exp(x[0])}
    parameters |= {p.name: p.natural(float(v)) for p, v in zip(curve.parameters, x[1:], strict=False)}
    parameters |= {f"effect:{kind}": math.exp(v) for kind, v in zip(known, x[1 + len(curve.parameters) :], strict=True)}
    aicc, bic = criterion if criterion is not None else (None, None)
    residuals = np.where(series.absent, np.minimum(series.u - path, 0.0), series.u - path)
    return Fit(curve, parameters, x, bounds, misfit, aicc, bic, weight, np.exp(path), residuals)


def _walk(growth: Growth, fit: Fit) -> Floats:
    """Draws from the posterior: steps of the shape that the least squares suggest."""
    from isocenter.analysis.growth._kernels import walk

    series, known = growth.series, growth.kinds
    table = events([t for t in growth.therapies if t.start < series.days[-1]], known)
    around = _prior(fit.curve, known, growth.prior)
    first = 1 + len(fit.curve.parameters)
    p = fit.x.size
    hessian = _normal(fit, table, series, around) / growth.scatter
    # Bounds are a flat prior: a direction that the data leave open is as wide as they are.
    width = np.maximum(fit.bounds[:, 1] - fit.bounds[:, 0], 1e-12)
    covariance = np.linalg.inv(hessian + np.diag(12 / width**2))
    shape: Floats = np.asarray(np.linalg.cholesky(covariance + 1e-12 * np.eye(p)), dtype=np.float64) * (2.4 / math.sqrt(p))
    rng = np.random.default_rng(growth.seed + 1000 + fit.curve.code)
    frozen = fit.bounds[:, 1] <= fit.bounds[:, 0]
    shape[frozen] = 0.0
    x = fit.x.copy()
    states = np.empty((0, p))
    for _ in range(4):
        states, taken = walk(
            fit.curve.code,
            x,
            fit.bounds,
            first,
            table,
            series.days,
            series.u,
            series.signed_sd,
            around,
            growth.scatter,
            shape,
            rng.standard_normal((_STEPS, p)),
            rng.random(_STEPS),
        )
        if 0.12 <= taken <= 0.6:
            break
        shape *= 0.4 if taken < 0.12 else 2.0
    return np.ascontiguousarray(states[_BURN::8])


def _normal(fit: Fit, table: Floats, series: Series, around: Floats) -> Floats:
    """J^T J of the residuals at the solution."""
    from isocenter.analysis.growth._kernels import misfit

    p, first = fit.x.size, 1 + len(fit.curve.parameters)
    jacobian = np.empty((series.days.size + p, p))
    low, high = np.empty(series.days.size + p), np.empty(series.days.size + p)
    for i in range(p):
        step = 1e-4 * max(1.0, abs(fit.x[i]))
        for sign, out in ((-1, low), (1, high)):
            x = fit.x.copy()
            x[i] += sign * step
            misfit(fit.curve.code, x, first, table, series.days, series.u, series.signed_sd, around, out)
        jacobian[:, i] = (high - low) / (2 * step)
    return jacobian.T @ jacobian


def effects(growth: Growth) -> list[Effect]:
    """What the data say of every treatment, by the profile likelihood of the best law (95 %)."""
    found = []
    for j, kind in enumerate(growth.kinds):
        fit = growth.best
        row = 1 + len(fit.curve.parameters) + j
        value = math.exp(fit.x[row])
        if fit.bounds[row, 1] <= fit.bounds[row, 0]:
            found.append(Effect(kind, value, None, None, identifiable=False, reason="it was not given before the last visit; its effect is assumed"))
            continue
        low, high = (_profile(growth, fit, row, side) for side in (-1, 1))
        if low is None:
            found.append(Effect(kind, value, None, high, identifiable=False, reason="the visits fit as well without any effect"))
        elif high is None:
            found.append(Effect(kind, value, low, None, identifiable=False, reason="the visits set no upper limit to its effect"))
        else:
            found.append(Effect(kind, value, low, high, identifiable=True, reason=""))
    return found


def _profile(growth: Growth, fit: Fit, row: int, side: int) -> float | None:
    """Where the misfit, all else fitted anew, rises by chi squared's 95 %; None when it does not up to the bound."""
    from isocenter.analysis.growth._kernels import least_squares

    series = growth.series
    table = events([t for t in growth.therapies if t.start < series.days[-1]], growth.kinds)
    around = _prior(fit.curve, growth.kinds, growth.prior)
    around[row] = 0.0  # the data's own word on it

    x = fit.x.copy()  # each value begins where the one before ended

    def at(value: float) -> float:
        bounds = fit.bounds.copy()
        bounds[row] = x[row] = value
        return float(least_squares(fit.curve.code, x, bounds, 1 + len(fit.curve.parameters), table, series.days, series.u, series.signed_sd, around))

    limit = at(fit.x[row]) + _CHI2_95 * growth.scatter
    inner, outer = float(fit.x[row]), float(fit.bounds[row, 0 if side < 0 else 1])
    if at(outer) < limit:
        return None
    for _ in range(15):  # to a thousandth of its logarithm
        middle = (inner + outer) / 2
        inner, outer = (inner, middle) if at(middle) > limit else (middle, outer)
    return math.exp((inner + outer) / 2)
