"""The six growth laws, as growth of the logarithm of the volume: du/dt = g(u), u = ln(V / mm³).

Benzekry et al., PLoS Comput Biol 10:e1003800, 2014, compares them on real tumours; equation numbers are its.
Parameters are fitted in the scale given here: rates and capacities by their logarithm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """One parameter. low, high: bounds in the natural unit. logarithmic: it is positive and fitted as its logarithm."""

    name: str
    unit: str
    low: float
    high: float
    logarithmic: bool = True

    @property
    def bounds(self) -> tuple[float, float]:
        """Bounds in the scale that is fitted."""
        return (math.log(self.low), math.log(self.high)) if self.logarithmic else (self.low, self.high)

    def natural(self, value: float) -> float:
        """From the fitted scale to the unit."""
        return math.exp(value) if self.logarithmic else value


@dataclass(frozen=True)
class Curve:
    """A growth law. code: its number in the kernels."""

    name: str
    code: int
    formula: str
    parameters: tuple[Parameter, ...]


#: A tumour doubles in half a day at the very fastest; the slowest that is told from none doubles in two centuries.
_RATE = ("1/day", 1e-5, 1.5)
#: From a cubic millimetre to ten litres.
_CAPACITY = ("mm3", 1.0, 1e7)

CURVES: tuple[Curve, ...] = (
    Curve("exponential", 0, "dV/dt = r V", (Parameter("r", "1/day", -0.5, 1.5, logarithmic=False),)),
    Curve("logistic", 1, "dV/dt = r V (1 - V/K)", (Parameter("r", *_RATE), Parameter("K", *_CAPACITY))),
    Curve("gompertz", 2, "dV/dt = r V ln(K/V)", (Parameter("r", *_RATE), Parameter("K", *_CAPACITY))),
    Curve("von_bertalanffy", 3, "dV/dt = a V^(2/3) - b V", (Parameter("a", "mm/day", 1e-5, 50.0), Parameter("b", *_RATE))),
    Curve("exponential_linear", 4, "dV/dt = min(r V, c)", (Parameter("r", *_RATE), Parameter("c", "mm3/day", 1e-3, 1e6))),
    Curve(
        "power_law",
        5,
        "dV/dt = a V^g",
        (Parameter("a", "mm3^(1-g)/day", 1e-6, 1e3), Parameter("g", "", 0.0, 1.0, logarithmic=False)),
    ),
)

BY_NAME = {curve.name: curve for curve in CURVES}
