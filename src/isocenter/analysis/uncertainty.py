"""How sure a size is: parts of the error in mm, carried on to sums, response and volumes.

A diameter's error has three independent parts, added in squares: manual (a reader's, where one drew it), automatic (the
mask's edge, by its voxels) and scan-rescan (the same lesion scanned again: a + b * diameter). Defaults come from the lesion
pairs of DLT (Cai et al., 2021, on DeepLesion: 906 pairs, 711 different marks by readers):
- manual: a short axis is drawn at right angles to the longest diameter. By how far its ends miss that, along the longest
  diameter, has a robust sd of 0.48 mm. It is a placement error alone: where readers see the edge otherwise is in the next part.
- scan-rescan: half the pairs hardly change, so that the median difference, by size, is an upper limit of the error of two
  scans and two readings together; real change is in it, too. `calibrate` gives 0.83 mm + 5.5 %, the manual part in it.
Between same-day scans of lung lesions errors of this order are reported (Oxnard et al., J Clin Oncol 29:3114, 2011; Zhao et
al., Radiology 252:263, 2009). Give `calibrate` repeated scans of your own to replace them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isocenter.analysis.response.visit import Category, State, Target, Visit, measured
from isocenter.core.errors import UsageError
from isocenter.core.geometry import Triple

MANUAL_MM = 0.5
SCAN_MM, SCAN_SHARE = 0.8, 0.054
#: The outline of a voxel mask is off by at most half a pixel at either end, evenly: its sd is the pixel over sqrt(12).
_EVEN = 1 / math.sqrt(12)
#: The normal distribution's upper quartile.
_QUARTILE = 0.6745


@dataclass(frozen=True)
class Uncertainty:
    """Parts of a diameter's standard deviation, in mm. manual_mm is 0 where nobody drew, auto_mm where no mask was made."""

    manual_mm: float
    auto_mm: float
    scan_mm: float

    @property
    def total_mm(self) -> float:
        return math.sqrt(self.manual_mm**2 + self.auto_mm**2 + self.scan_mm**2)

    @property
    def reliability(self) -> str:
        """By its size: "high" below 2 mm, "medium" below 4, else "low"."""
        return "high" if self.total_mm < 2 else "medium" if self.total_mm < 4 else "low"


@dataclass(frozen=True)
class ScanError:
    """Scan-rescan error of a diameter d: `constant_mm` + `share` * d. source: where it comes from."""

    constant_mm: float = SCAN_MM
    share: float = SCAN_SHARE
    source: str = "an upper limit, from 906 pairs of CT lesions measured twice by readers, changes in time included"

    def at(self, diameter_mm: float) -> float:
        return self.constant_mm + self.share * diameter_mm


def of_diameter(
    diameter_mm: float, spacing: Triple, *, drawn: bool = False, model_mm: float | None = None, scan: ScanError | None = None
) -> Uncertainty:
    """The error of one diameter. spacing: of the image in mm; the two finer ones are taken as the pixel's.

    drawn: a reader set its end points. model_mm: what is known of the model's boundaries beyond the voxels (from its
    published accuracy), added to the outline's own error.
    """
    if not (math.isfinite(diameter_mm) and diameter_mm > 0 and min(spacing) > 0):
        raise UsageError("a diameter and its spacing must be above 0")
    pixel = sorted(spacing)[1]
    # Both ends move on their own.
    edge = math.sqrt(2) * pixel * _EVEN
    auto = 0.0 if drawn else math.hypot(edge, model_mm or 0.0)
    return Uncertainty(MANUAL_MM if drawn else 0.0, auto, (scan or ScanError()).at(diameter_mm))


def of_short_axis(sd_mm: float, longest_mm: float, short_mm: float, scan: ScanError | None = None) -> float:
    """Standard deviation in mm of a short axis. sd_mm: of the same lesion's longest diameter.

    The outline's part is the same for both, the scan's part that of the shorter length.
    """
    error = scan or ScanError()
    return math.sqrt(max(sd_mm**2 - error.at(longest_mm) ** 2, 0.0) + error.at(short_mm) ** 2)


def relative_volume_sd(volume_mm3: float, uncertainty: Uncertainty) -> float:
    """Relative error of a volume: three times that of the diameter of the ball of this volume, at most 1."""
    if volume_mm3 <= 0:
        raise UsageError("only a volume above 0 has a relative error")
    ball_mm = math.cbrt(6 * volume_mm3 / math.pi)
    return min(3 * uncertainty.total_mm / ball_mm, 1.0)


def of_sum(parts: Sequence[Uncertainty]) -> float:
    """Standard deviation in mm of a sum of diameters whose errors are independent."""
    return math.sqrt(sum(p.total_mm**2 for p in parts))


def calibrate(first_mm: Sequence[float], second_mm: Sequence[float], source: str, *, changing: bool = False) -> ScanError:
    """Scan-rescan error from the same lesions measured in two scans with nothing changed between, in mm both.

    The sd of one measurement at d is the mean absolute difference times sqrt(pi) / 2, fitted as a line over d with both
    figures not below 0. changing: some lesions did change; of each eighth by size the median difference is taken, over
    0.6745 * sqrt(2), which gives an upper limit. Raises `UsageError` for fewer than ten pairs.
    """
    from scipy.optimize import nnls

    a, b = np.asarray(first_mm, dtype=np.float64), np.asarray(second_mm, dtype=np.float64)
    if a.shape != b.shape or a.size < 10 or not (np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)).all():
        raise UsageError("calibration needs ten pairs of diameters above 0, or more")
    spread = np.abs(a - b) * math.sqrt(math.pi) / 2
    middle = (a + b) / 2
    if changing:
        eighths = np.array_split(np.argsort(middle, kind="stable"), min(8, a.size // 5))
        spread = np.array([float(np.median(np.abs(a - b)[k])) for k in eighths]) / (_QUARTILE * math.sqrt(2))
        middle = np.array([float(middle[k].mean()) for k in eighths])
    (constant, share), _ = nnls(np.stack([np.ones_like(middle), middle], axis=1), spread)
    return ScanError(float(constant), float(share), source)


def probabilities(
    baseline: Visit,
    followups: Sequence[Visit],
    sd_mm: Mapping[str, float] | Callable[[str, float], float],
    judge: Callable[[Visit, Sequence[Visit]], Sequence[object]],
    *,
    new: Sequence[Sequence[tuple[float, float]] | None] | None = None,
    new_mm: float = 10.0,
    draws: int = 1000,
    seed: int = 42,
) -> list[dict[Category, float]]:
    """The probability of each category at each visit, measurement errors drawn again and again.

    sd_mm: of a target's diameter, by its id, or by id and size. judge: `recist.respond` or a relative, whose answers have
    `.category`. new: by visit after the baseline, sizes and errors of lesions that were not there before, which are new where one has
    `new_mm`; None where it is known whether there are any. What is absent, too small or not evaluated stays so.
    """
    rng = np.random.default_rng(seed)
    counts: list[Counter[Category]] = [Counter() for _ in followups]

    def sd(name: str, size: float) -> float:
        return sd_mm(name, size) if callable(sd_mm) else sd_mm[name]

    def drawn(visit: Visit, fresh: Sequence[tuple[float, float]] | None = None) -> Visit:
        targets: dict[str, Target] = {}
        for name, target in visit.targets.items():
            targets[name] = target
            if target.state is State.MEASURED and target.size is not None:
                # A lesion that was measured is there: its size stays above a tenth of a millimetre.
                targets[name] = measured(max(target.size + sd(name, target.size) * float(rng.standard_normal()), 0.1))
        if not fresh:
            return replace(visit, targets=targets)
        return replace(visit, targets=targets, new_lesions=any(size + error * rng.standard_normal() >= new_mm for size, error in fresh))

    appeared = new if new is not None else [None] * len(followups)
    for _ in range(draws):
        start, later = drawn(baseline), [drawn(visit, fresh) for visit, fresh in zip(followups, appeared, strict=True)]
        for count, response in zip(counts, judge(start, later), strict=True):
            count[response.category] += 1  # type: ignore[attr-defined]
    return [{category: n / draws for category, n in sorted(count.items())} for count in counts]
