"""Integration, least squares and random walks over the growth laws, compiled: a fit takes thousands of integrations.

Arguments that come again and again: `code` of the curve; `x`, (u0, the curve's parameters, the logarithm of each
treatment's effect); `events`, one row a treatment: kind, start, end, dose, onset, decay (days, 1/day); `sd` of `u`, below 0
where `u` is the limit under which the lesion was not seen (a left-censored visit, its error being -sd).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from isocenter.models._numba import kernel

Floats = NDArray[np.float64]
#: Logarithms of volumes stay between 1e-9 mm³ and 100 m³, so that no trial of a fit overflows.
_LOW, _HIGH = -20.0, 25.0


@kernel(inline="always")
def _clip(u: float) -> float:
    return min(max(u, _LOW), _HIGH)


@kernel()
def growth(code: int, x: Floats, u: float) -> float:
    """du/dt without treatment, of the curve `code` at u = ln V."""
    u = _clip(u)
    rate = x[1]
    if code == 1:
        rate = np.exp(x[1]) * (1.0 - np.exp(_clip(u - x[2])))
    elif code == 2:
        rate = np.exp(x[1]) * (x[2] - u)
    elif code == 3:
        rate = np.exp(x[1] - u / 3.0) - np.exp(x[2])
    elif code == 4:
        rate = min(np.exp(x[1]), np.exp(_clip(x[2] - u)))
    elif code == 5:
        rate = np.exp(_clip(x[1] + (x[2] - 1.0) * u))
    return float(rate)


@kernel()
def killed(x: Floats, first: int, events: Floats, t: float) -> float:
    """What treatment has taken off u up to time t: the integral of all kill rates, in closed form.

    The rate of an event is effect * dose * (1 - exp(-s / onset)) * exp(-decay * s), s days after its start, until its end.
    """
    total = 0.0
    for j in range(events.shape[0]):
        s = min(t, events[j, 2]) - events[j, 1]
        if s <= 0:
            continue
        onset, decay = events[j, 4], events[j, 5]
        part = (1.0 - np.exp(-decay * s)) / decay if decay > 1e-12 else s
        if onset > 1e-9:
            faster = decay + 1.0 / onset
            part -= (1.0 - np.exp(-faster * s)) / faster
        total += np.exp(x[first + int(events[j, 0])]) * events[j, 3] * part
    return total


@kernel()
def integrate(code: int, x: Floats, first: int, events: Floats, origin: float, times: Floats, out: Floats) -> None:
    """U at `times` (rising, none before `origin`, where u is x[0]).

    Runge-Kutta of order four on w = u + killed(t), which is smooth where treatment begins and ends; steps are kept short
    against the curve's own time scale.
    """
    start = killed(x, first, events, origin)
    t, w = origin, x[0]
    span = max(times[-1] - origin, 1e-9)
    for k in range(times.size):
        while times[k] - t > 1e-9:
            c0 = killed(x, first, events, t) - start
            slope = growth(code, x, w - c0)
            if code == 0:
                h = times[k] - t
            else:
                stiff = abs(growth(code, x, w - c0 + 0.01) - slope) * 100.0
                h = min(times[k] - t, span / 60.0, 0.5 / max(stiff, 1e-9))
                h = max(h, min(times[k] - t, span / 5000.0))
            c1 = killed(x, first, events, t + h / 2) - start
            c2 = killed(x, first, events, t + h) - start
            k2 = growth(code, x, w + h / 2 * slope - c1)
            k3 = growth(code, x, w + h / 2 * k2 - c1)
            k4 = growth(code, x, w + h * k3 - c2)
            w += h / 6 * (slope + 2 * k2 + 2 * k3 + k4)
            t += h
        out[k] = w - (killed(x, first, events, times[k]) - start)


@kernel()
def log_below(z: float) -> float:
    """The logarithm of the normal distribution up to z; its far tail by the asymptotic series, so that nothing underflows."""
    if z > -25.0:
        return math.log(0.5 * math.erfc(-z / math.sqrt(2.0)))
    return -0.5 * z * z - math.log(-z * math.sqrt(2 * np.pi)) + math.log1p(-1.0 / (z * z) + 3.0 / z**4)


@kernel()
def misfit(code: int, x: Floats, first: int, events: Floats, times: Floats, u: Floats, sd: Floats, prior: Floats, residuals: Floats) -> float:
    """Sum of squares of residuals: of the measurements over their sd, then of the prior (mean, sd; sd 0: none).

    A censored visit counts -2 ln of the probability that nothing is seen (Tobin, Econometrica 26:24, 1958; for curves over time
    Beal, J Pharmacokinet Pharmacodyn 28:481, 2001, method M3): nothing far below the limit, the square of the excess far above.
    """
    n = times.size
    integrate(code, x, first, events, times[0], times, residuals[:n])
    total = 0.0
    for i in range(n):
        residuals[i] = (residuals[i] - u[i]) / sd[i]
        if sd[i] < 0:  # the sign is turned already: below the limit is above 0
            residuals[i] = math.sqrt(max(-2.0 * log_below(residuals[i]), 0.0))
        total += residuals[i] * residuals[i]
    for i in range(x.size):
        residuals[n + i] = (x[i] - prior[i, 0]) / prior[i, 1] if prior[i, 1] > 0 else 0.0
        total += residuals[n + i] * residuals[n + i]
    return total if np.isfinite(total) else 1e300


@kernel()
def solve(system: Floats, right: Floats) -> None:
    """`right` becomes the solution of a symmetric positive system, by Cholesky's factors in place."""
    p = right.size
    for j in range(p):
        for k in range(j):
            system[j, j] -= system[j, k] * system[j, k]
        system[j, j] = np.sqrt(max(system[j, j], 1e-300))
        for i in range(j + 1, p):
            for k in range(j):
                system[i, j] -= system[i, k] * system[j, k]
            system[i, j] /= system[j, j]
    for i in range(p):
        for k in range(i):
            right[i] -= system[i, k] * right[k]
        right[i] /= system[i, i]
    for i in range(p - 1, -1, -1):
        for k in range(i + 1, p):
            right[i] -= system[k, i] * right[k]
        right[i] /= system[i, i]


@kernel()
def least_squares(
    code: int,
    x: Floats,
    bounds: Floats,
    first: int,
    events: Floats,
    times: Floats,
    u: Floats,
    sd: Floats,
    prior: Floats,
) -> float:
    """Levenberg-Marquardt from `x`, which becomes the solution; steps stop at the bounds. Returns the sum of squares.

    A parameter whose bounds coincide stays where it is.
    """
    p, n = x.size, times.size
    residuals, trial_residuals = np.empty(n + p), np.empty(n + p)
    jacobian, normal, system = np.empty((n + p, p)), np.empty((p, p)), np.empty((p, p))
    gradient, move = np.empty(p), np.empty(p)
    for i in range(p):
        x[i] = min(max(x[i], bounds[i, 0]), bounds[i, 1])
    best = misfit(code, x, first, events, times, u, sd, prior, residuals)
    damping = 1e-2
    trial = x.copy()
    for _ in range(60):
        for i in range(p):
            step = 1e-5 * max(1.0, abs(x[i]))
            if x[i] + step > bounds[i, 1]:
                step = -step
            jacobian[:, i] = 0.0
            if bounds[i, 1] > bounds[i, 0]:
                trial[:] = x
                trial[i] += step
                misfit(code, trial, first, events, times, u, sd, prior, trial_residuals)
                for k in range(n + p):
                    jacobian[k, i] = (trial_residuals[k] - residuals[k]) / step
        for i in range(p):
            gradient[i] = 0.0
            for k in range(n + p):
                gradient[i] += jacobian[k, i] * residuals[k]
            for j in range(p):
                normal[i, j] = 0.0
                for k in range(n + p):
                    normal[i, j] += jacobian[k, i] * jacobian[k, j]
        improved = False
        for _ in range(8):
            for i in range(p):
                for j in range(p):
                    system[i, j] = normal[i, j]
                system[i, i] += damping * normal[i, i] + 1e-10
                move[i] = -gradient[i]
            for i in range(p):
                at_bound = (x[i] <= bounds[i, 0] and gradient[i] > 0) or (x[i] >= bounds[i, 1] and gradient[i] < 0)
                if bounds[i, 1] <= bounds[i, 0] or at_bound:
                    for j in range(p):
                        system[i, j] = system[j, i] = 0.0
                    system[i, i] = 1.0
                    move[i] = 0.0
            solve(system, move)
            for i in range(p):
                trial[i] = min(max(x[i] + move[i], bounds[i, 0]), bounds[i, 1])
            now = misfit(code, trial, first, events, times, u, sd, prior, trial_residuals)
            if now < best:
                gain = best - now
                x[:] = trial
                residuals[:] = trial_residuals
                best = now
                damping = max(damping / 5, 1e-9)
                improved = gain > 1e-9 * (1.0 + best)
                break
            damping = min(damping * 4, 1e12)
        if not improved:
            break
    return best


@kernel()
def screen(
    code: int, starts: Floats, bounds: Floats, first: int, events: Floats, times: Floats, u: Floats, sd: Floats, prior: Floats, keep: int
) -> tuple[Floats, Floats]:
    """Try all starts, go on from the `keep` best: solutions and their sums of squares."""
    m, p = starts.shape
    values = np.empty(m)
    residuals = np.empty(times.size + p)
    for k in range(m):
        values[k] = misfit(code, starts[k], first, events, times, u, sd, prior, residuals)
    order = np.argsort(values)[:keep]
    solutions = np.empty((order.size, p))
    sums = np.empty(order.size)
    for k in range(order.size):
        solutions[k] = starts[order[k]]
        sums[k] = least_squares(code, solutions[k], bounds, first, events, times, u, sd, prior)
    return solutions, sums


@kernel()
def walk(
    code: int,
    x: Floats,
    bounds: Floats,
    first: int,
    events: Floats,
    times: Floats,
    u: Floats,
    sd: Floats,
    prior: Floats,
    scale: float,
    shape: Floats,
    normals: Floats,
    uniforms: Floats,
) -> tuple[Floats, float]:
    """Metropolis' random walk from `x` over the posterior exp(-misfit / (2 scale)): all states, and the share of moves taken.

    shape: (p, p), the steps are shape @ normals[k]. Bounds are a flat prior's ends.
    """
    p = x.size
    states = np.empty((normals.shape[0], p))
    residuals = np.empty(times.size + p)
    here = misfit(code, x, first, events, times, u, sd, prior, residuals)
    trial = x.copy()
    taken = 0
    for k in range(normals.shape[0]):
        inside = True
        for i in range(p):
            trial[i] = x[i]
            for j in range(p):
                trial[i] += shape[i, j] * normals[k, j]
            inside = inside and bounds[i, 0] <= trial[i] <= bounds[i, 1]
        if inside:
            there = misfit(code, trial, first, events, times, u, sd, prior, residuals)
            if np.log(uniforms[k]) < (here - there) / (2 * scale):
                x[:] = trial
                here = there
                taken += 1
        states[k] = x
    return states, taken / normals.shape[0]


@kernel()
def below(mean: float, variance: float, limit: float) -> tuple[float, float, float]:
    """A normal number of which only is known that it lies below a limit: its mean, its variance, and ln of how likely that was."""
    root = math.sqrt(variance)
    z = (limit - mean) / root
    likely = log_below(z)
    hazard = math.exp(-0.5 * z * z - 0.5 * math.log(2 * np.pi) - likely)
    return mean - root * hazard, variance * min(max(1.0 - hazard * (hazard + z), 1e-9), 1.0), likely


@kernel()
def filter_rates(
    hyper: Floats, days: Floats, u: Floats, sd: Floats, x: Floats, first: int, events: Floats, ahead: Floats, out: Floats
) -> tuple[float, float]:
    """A Kalman filter over (u, rate), see `forecast`; `out` (n, 2) becomes mean and variance of u at `ahead`.

    hyper: mean and sd of the first rate, its loss per day, the sd that it gains per square root of a day, extra sd of a
    measurement. A censored visit moves the state by mean and variance of what it leaves of the prediction (the Tobit Kalman filter,
    Allik et al., IEEE Trans Control Syst Technol 24:365, 2016); one before the first measured visit does so from that visit
    backwards. Returns the negative logarithm of the likelihood of the visits, and ln of how likely the least likely of these is:
    the censored ones, and those that follow them.
    """
    mean, spread, loss, wander, extra = hyper
    begin = 1 if sd[0] < 0 else 0
    a, r = u[begin], mean
    paa, par, prr = sd[begin] ** 2 + extra**2, 0.0, spread**2
    t, loss_of, least = days[begin], 0.0, 0.0
    q = wander**2
    if begin:
        dt = t - days[0]
        g = (np.exp(loss * dt) - 1.0) / loss if loss > 1e-9 else dt
        total = paa + g * g * prr + q * dt**3 / 3 + sd[0] ** 2 + extra**2
        guess = a - g * r + (killed(x, first, events, t) - killed(x, first, events, days[0]))
        moved, left, likely = below(guess, total, u[0])
        gain_a, gain_r = paa / total, -g * prr / total
        a, r = a + gain_a * (moved - guess), r + gain_r * (moved - guess)
        shrink = total - left
        paa, par, prr = paa - gain_a**2 * shrink, par - gain_a * gain_r * shrink, prr - gain_r**2 * shrink
        loss_of, least = loss_of - likely, min(least, likely)
    keep_a, keep_r, keep_aa, keep_ar, keep_rr = a, r, paa, par, prr
    for k in range(begin + 1, days.size + ahead.size):
        to = days[k] if k < days.size else ahead[k - days.size]
        if k > days.size:
            t = days[-1]
            a, r, paa, par, prr = keep_a, keep_r, keep_aa, keep_ar, keep_rr
        dt = to - t
        e = np.exp(-loss * dt)
        g = (1.0 - e) / loss if loss > 1e-9 else dt
        if k == days.size:
            keep_a, keep_r, keep_aa, keep_ar, keep_rr = a, r, paa, par, prr
        a = a + g * r - (killed(x, first, events, to) - killed(x, first, events, t))
        r = e * r
        paa = paa + 2 * g * par + g * g * prr + q * dt**3 / 3
        par = e * (par + g * prr) + q * dt**2 / 2
        prr = e * e * prr + q * dt
        t = to
        if k >= days.size:
            out[k - days.size, 0] = a
            out[k - days.size, 1] = paa
            continue
        total = paa + sd[k] ** 2 + extra**2
        surprise, shrink = u[k] - a, total
        if sd[k] < 0:
            moved, left, likely = below(a, total, u[k])
            surprise, shrink = moved - a, total - left
            loss_of, least = loss_of - likely, min(least, likely)
        else:
            loss_of += 0.5 * (surprise * surprise / total + np.log(2 * np.pi * total))
            if sd[k - 1] < 0:
                least = min(least, math.log(2.0) + log_below(-abs(surprise) / math.sqrt(total)))
        gain_a, gain_r = paa / total, par / total
        a, r = a + gain_a * surprise, r + gain_r * surprise
        paa, par, prr = paa - gain_a * gain_a * shrink, par - gain_a * gain_r * shrink, prr - gain_r * gain_r * shrink
    return loss_of, least
