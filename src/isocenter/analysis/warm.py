"""The kernels of a case compiled before somebody waits for them: some ten seconds of a core, once for each installation."""

from __future__ import annotations


def warm() -> None:
    """Run every kernel on a handful of visits, with the kinds of arrays that they are called with."""
    import isocenter.analysis._resample  # noqa: F401 - compiled when imported
    from isocenter.analysis.growth.fit import effects, fit_growth
    from isocenter.analysis.growth.forecast import forecast, learn
    from isocenter.analysis.growth.series import Series
    from isocenter.analysis.growth.therapy import Therapy

    days = [0.0, 30, 60, 90, 120]
    series = [Series.of(days, [100 + k, 120, 130, 125, 118 - k]) for k in range(5)]
    growth = fit_growth(series[0], [Therapy("chemotherapy", 40.0, 80.0, 1.0, 0.0, 0.0)])
    effects(growth)
    growth.predict([130.0, 150])
    forecast(series[0], [150.0])
    learn(series, "warming up")
