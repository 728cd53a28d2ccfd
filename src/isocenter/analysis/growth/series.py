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
#: The ball of 5 mm, which RECIST 1.1 (section 4.3.2) takes for a lesion too small to measure: what is looked for and not seen is smaller.
LIMIT_MM3 = math.pi / 6 * 5.0**3
#: Relative error of a volume at that limit.
LIMIT_SD = 0.5


@dataclass(frozen=True, eq=False)
class Series:
    """Visits by day. u: ln(V / mm³). sd: its standard deviation.

    absent: where the lesion was looked for and not seen. It has no logarithm, and is not 0 either; what is known is that it was below
    the limit of detection, which `u` is there (the ball of 5 mm, or the smallest volume of the series where that is less). Of the
    visits before it was first seen only the last is kept. left_out: day and reason of every visit that says nothing.
    """

    days: NDArray[np.float64]
    u: NDArray[np.float64]
    sd: NDArray[np.float64]
    absent: NDArray[np.bool_]
    left_out: tuple[tuple[float, str], ...] = ()

    @property
    def signed_sd(self) -> NDArray[np.float64]:
        """`sd` as the kernels take it: below 0 where the lesion was not seen."""
        return np.where(self.absent, -self.sd, self.sd)

    def without(self, which: NDArray[np.bool_], reason: str) -> Series:
        """The series without some of its visits."""
        gone = tuple((float(day), reason) for day in self.days[which])
        kept = ~which
        return Series(self.days[kept], self.u[kept], self.sd[kept], self.absent[kept], tuple(sorted((*self.left_out, *gone))))

    @classmethod
    def of(cls, days: Sequence[float], volumes_mm3: Sequence[float | None], sd: Sequence[float | None] | None = None) -> Series:
        """From visits in any order. A volume of 0: looked for and not seen; None: nothing known. sd: relative errors of the volumes.

        Raises `UsageError` for two visits on one day, values that are no numbers, or fewer than two volumes above 0.
        """
        errors = list(sd) if sd is not None else [None] * len(days)
        if not len(days) == len(volumes_mm3) == len(errors):
            raise UsageError("give a volume (or null) and an error (or null) for every day")
        limit = min((v for v in volumes_mm3 if v is not None and v > 0), default=LIMIT_MM3)
        limit = min(limit, LIMIT_MM3)
        kept: list[tuple[float, float, float, bool]] = []
        left: list[tuple[float, str]] = []
        for day, volume, error in sorted(zip(days, volumes_mm3, errors, strict=True), key=lambda row: row[0]):
            if not math.isfinite(day) or (volume is not None and (not math.isfinite(volume) or volume < 0)):
                raise UsageError("days and volumes must be numbers, volumes not below 0")
            if error is not None and not 0 < error < 10:
                raise UsageError("a volume's relative error lies between 0 and 10")
            if volume is None:
                left.append((day, "not measured"))
            elif volume == 0:
                if kept and all(row[3] for row in kept):
                    left.append((kept.pop()[0], "long before it was first seen"))
                kept.append((day, math.log(limit), error or LIMIT_SD, True))
            else:
                kept.append((day, math.log(volume), error or DEFAULT_SD, False))
        table = np.array(kept, dtype=np.float64).reshape(-1, 4)
        if len(table) > 1 and (np.diff(table[:, 0]) <= 0).any():
            raise UsageError("two visits on one day: give one volume a day")
        seen = len(table) - int(table[:, 3].sum())
        if seen < 2:
            raise UsageError(f"growth needs volumes above 0 at two visits or more, not {seen}")
        return cls(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy(), table[:, 3] > 0, tuple(left))
