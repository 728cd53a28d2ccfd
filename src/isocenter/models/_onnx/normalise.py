"""Intensities as a network was trained on them: nnU-Net's schemes, and percentiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isocenter.models._onnx.config import Plan, Scheme

if TYPE_CHECKING:
    from isocenter.models._onnx.threads import Threads


def normalise(array: NDArray[np.generic], plan: Plan, threads: Threads) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """(input, notes): `array` (z, y, x) as the network's float32, and what had to be guessed. Values that are no number are the least.

    All schemes are one clipping and one linear map: (clip(v, low, high) - shift) / scale, here found from the plan or the scan.
    """
    low, high, shift, scale, notes = _map(array, plan)
    result = np.empty(array.shape, np.float32)
    factor = np.float32(1 / scale)
    # Ends of the clipping where the scheme has none, so that infinities and NaN have a value, too.
    low, high = max(low, -3e38), min(high, 3e38)

    def part(index: int) -> None:
        out = result[index]
        np.clip(np.nan_to_num(array[index].astype(np.float32), nan=low, posinf=high, neginf=low), low, high, out=out)
        if plan.masked and plan.scheme is Scheme.Z_SCORE:
            inside = array[index] != 0
            np.multiply(out - np.float32(shift), factor, out=out)
            out[~inside] = 0
        else:
            np.subtract(out, np.float32(shift), out=out)
            np.multiply(out, factor, out=out)

    threads.each(part, range(len(result)))
    return result, notes


def _map(array: NDArray[np.generic], plan: Plan) -> tuple[float, float, float, float, tuple[str, ...]]:
    """(low, high, shift, scale, notes)."""
    known = plan.properties
    if plan.scheme is Scheme.NONE:
        return -np.inf, np.inf, 0.0, 1.0, ()
    if plan.scheme is Scheme.RGB:
        return 0.0, 255.0, 0.0, 255.0, ()
    if plan.scheme is Scheme.UNIT:
        low, high = _finite_ends(array)
        return low, high, low, max(high - low, 1e-8), ()
    if plan.scheme is Scheme.QUANTILE:
        low, high = quantiles(array, (known.get("lower", 2.0) / 100, known.get("upper", 98.0) / 100))
        return low, high, low, max(high - low, 1e-8), ()
    if plan.scheme is Scheme.Z_SCORE:
        mean, std = _moments(array, -np.inf, np.inf, masked=plan.masked)
        return *_finite_ends(array), mean, max(std, 1e-8), ()
    notes: tuple[str, ...] = ()
    low, high = known.get("percentile_00_5", np.nan), known.get("percentile_99_5", np.nan)
    if not low < high:
        low, high = quantiles(array, (0.005, 0.995))
        notes = ("the model's configuration names no intensity range: the scan's own percentiles were taken",)
    if "mean" in known and known.get("std", 0) > 0:
        return low, high, known["mean"], known["std"], notes
    mean, std = _moments(array, low, high)
    return low, high, mean, max(std, 1e-8), (*notes, "the model's configuration names no mean and deviation: the scan's own were taken")


def _finite_ends(array: NDArray[np.generic]) -> tuple[float, float]:
    if array.dtype.kind != "f":
        return float(array.min()), float(array.max())
    finite = array[np.isfinite(array)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _moments(array: NDArray[np.generic], low: float, high: float, *, masked: bool = False) -> tuple[float, float]:
    """Mean and standard deviation of the clipped values; slice by slice, in float64. masked: of those that are not 0."""
    count, total, squares = 0, 0.0, 0.0
    for plane in array:
        values = plane.astype(np.float64)
        chosen = np.isfinite(values) & (values != 0) if masked else np.isfinite(values)
        values = values[chosen].clip(low, high)
        count, total, squares = count + values.size, total + float(values.sum()), squares + float(np.square(values).sum())
    if not count:
        return 0.0, 1.0
    mean = total / count
    return mean, float(np.sqrt(max(squares / count - mean * mean, 0.0)))


def quantiles(array: NDArray[np.generic], parts: tuple[float, ...]) -> tuple[float, ...]:
    """Quantiles with linear interpolation, as numpy's; of small integers by counting, which is many times quicker."""
    if array.dtype.itemsize <= 2 and array.dtype.kind in "iu":
        least = int(array.min())
        counts = np.zeros(int(array.max()) - least + 1, np.int64)
        for plane in array:
            counts += np.bincount(plane.astype(np.int32).ravel() - least, minlength=counts.size)
        ends = np.cumsum(counts)
        found = []
        for part in parts:
            place = part * (int(ends[-1]) - 1)
            lower, upper = (int(np.searchsorted(ends, k, side="right")) for k in (int(place), min(int(place) + 1, int(ends[-1]) - 1)))
            found.append(least + lower + (upper - lower) * (place - int(place)))
        return tuple(found)
    values = array.astype(np.float32).ravel()
    values = values[np.isfinite(values)]
    return tuple(float(v) for v in np.quantile(values, parts)) if values.size else (0.0,) * len(parts)
