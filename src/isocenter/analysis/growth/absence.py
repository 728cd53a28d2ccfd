"""Whether growth explains that a lesion was not seen: before it appeared, in between, or at the end.

A lesion that is gone for two visits and back at its old size was missed, hidden or another one; no curve through such visits means
anything. So absences, which the fit takes as censored, are tested: by how much they worsen the fit of the best law (a likelihood
ratio, chi squared of as many degrees of freedom as there are absences), and by how likely the forecast's filter finds them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isocenter.analysis.growth.fit import Growth, fit_growth
from isocenter.analysis.growth.forecast import UNLIKELY
from isocenter.analysis.growth.series import Series
from isocenter.analysis.growth.therapy import Therapy

_AGAIN = "not seen yet, and grown too fast since for one growth law with what follows"


def explained(series: Series, therapies: Sequence[Therapy]) -> tuple[Growth | None, str]:
    """(growth, "") or (None, why not). An absence before the lesion was first seen is left out, and said, where nothing explains it."""
    growth = fit_growth(series, therapies)
    if contradicted(growth) and series.absent[0]:
        series = unseen_yet(series)
        growth = fit_growth(series, therapies)
    return (None, unexplained(series)) if contradicted(growth) else (growth, "")


def unseen_yet(series: Series) -> Series:
    """The series from the visit on at which the lesion was first seen."""
    return series.without(series.absent & (np.arange(series.days.size) == 0), _AGAIN)


def contradicted(growth: Growth) -> bool:
    """Whether the visits at which the lesion was not seen worsen the best law's fit more than chance does once in a thousand."""
    from scipy.stats import chi2

    series = growth.series
    absences = int(series.absent.sum())
    if not absences:
        return False
    bare = fit_growth(series.without(series.absent, "not seen"), growth.therapies, curves=[growth.best.curve], prior=growth.prior)
    worse = growth.best.misfit - bare.best.misfit
    return bool(worse / max(bare.scatter, 1.0) > chi2.isf(UNLIKELY, absences))


def unexplained(series: Series) -> str:
    """Why there is no growth: the days on which the lesion was not seen."""
    days = ", ".join(f"{day:g}" for day in series.days[series.absent])
    back = "and back later" if not series.absent[-1] else "after visits at which it was there"
    said = "if it was missed, correct the mask or say that it was not evaluable"
    return f"not seen on day {days} {back}, which no growth law with the treatments given explains: {said}"
