"""A lesion's volumes over time, made ready to fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import UsageError

#: Relative error of a volume where none is given: a diameter's 5 % three times.
DEFAULT_SD = 0.15


@dataclass(frozen=True, eq=False)
class Series:
    """Visits at which the lesion has a volume above 0, by day. u: ln(V / mm³). sd: its standard deviation.

    left_out: day and reason of every other visit. A lesion that vanished has no logarithm; it is not 0 either.
    """

    days: NDArray[np.float64]
    u: NDArray[np.float64]
    sd: NDArray[np.float64]
    left_out: tuple[tuple[float, str], ...] = ()

    @classmethod
    def of(cls, days: Sequence[float], volumes_mm3: Sequence[float | None], sd: Sequence[float | None] | None = None) -> Series:
        """From visits in any order. sd: relative errors of the volumes.

        Raises `UsageError` for two visits on one day, values that are no numbers, or fewer than two volumes.
        """
        errors = list(sd) if sd is not None else [None] * len(days)
        if not len(days) == len(volumes_mm3) == len(errors):
            raise UsageError("give a volume (or null) and an error (or null) for every day")
        kept: list[tuple[float, float, float]] = []
        left: list[tuple[float, str]] = []
        for day, volume, error in sorted(zip(days, volumes_mm3, errors, strict=True), key=lambda row: row[0]):
            if not math.isfinite(day) or (volume is not None and (not math.isfinite(volume) or volume < 0)):
                raise UsageError("days and volumes must be numbers, volumes not below 0")
            if error is not None and not 0 < error < 10:
                raise UsageError("a volume's relative error lies between 0 and 10")
            if volume is None:
                left.append((day, "not measured"))
            elif volume == 0:
                left.append((day, "no volume: the lesion was not there or too small to see"))
            else:
                kept.append((day, math.log(volume), error or DEFAULT_SD))
        table = np.array(kept, dtype=np.float64).reshape(-1, 3)
        if len(table) > 1 and (np.diff(table[:, 0]) <= 0).any():
            raise UsageError("two visits on one day: give one volume a day")
        if len(table) < 2:
            raise UsageError(f"growth needs volumes above 0 at two visits or more, not {len(table)}")
        return cls(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy(), tuple(left))
