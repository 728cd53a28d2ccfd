"""All kernels of a case are compiled by `warm`, for the kinds of arrays that they are called with afterwards."""

from __future__ import annotations

import math

from isocenter.analysis.growth import _kernels
from isocenter.analysis.growth.fit import effects, fit_growth
from isocenter.analysis.growth.forecast import forecast
from isocenter.analysis.growth.scenarios import simulate
from isocenter.analysis.growth.series import Series
from isocenter.analysis.growth.therapy import Therapy
from isocenter.analysis.warm import warm


def compiled() -> dict[str, int]:
    """How many versions there are of each kernel in this process."""
    return {name: len(thing.signatures) for name, thing in vars(_kernels).items() if hasattr(thing, "signatures")}


def test_nothing_is_left_to_compile() -> None:
    warm()
    before = compiled()
    assert before["walk"] > 0
    series = Series.of([0, 40, 90, 150], [500, 700, 650, None])
    growth = fit_growth(series, [Therapy("radiotherapy", 30.0, math.inf)])
    effects(growth)
    simulate(growth, "natural_history", [150.0, 200.0])
    forecast(series, [160.0, 170.0])
    assert compiled() == before
