"""`Histogram+GraphCut` and `GMM+GraphCut`: scribbles in, one mask out, as MONAI Label names them, on a CPU.

What was scribbled on says which intensities belong inside and outside (a histogram, or a mixture of Gaussians); a minimum
cut then finds the mask that fits these best and whose boundary is short and runs along edges. It works on the voxels as
they are, inside a box grown from the scribbles.

Options, with MONAI Label's names and its cost of separating two voxels, ``lamda * exp(-dI² / (2 sigma²)) / distance``:

- `num_bins` (64), `num_mixtures` (20): how finely intensities are told apart.
- `lamda` (1.0): how much a short, smooth boundary counts.
- `sigma` (0 = automatic): which difference between neighbours is an edge, as a part of the intensity window.

MONAI Label's own default, 0.1 of a window of 500 HU, calls a step of 50 HU no edge at all, so that on a clean scan
closing in on the scribbles is cheaper than following an organ's border. Here the window spans what was scribbled on
instead of -300..200 HU, sigma is three times the noise measured within it (noise is then no edge, and more than noise is
one), and the costs of intensities are calibrated against `lamda`, so that no sigma collapses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import PromptError, UsageError
from isocenter.core.geometry import Triple
from isocenter.core.model import ModelContext, ModelSpec, Task
from isocenter.core.prompts import Box
from isocenter.core.volume import Volume

if TYPE_CHECKING:
    from isocenter.models._graphcut.maxflow import Problem

_SMOOTHNESS = {"lamda": 1.0, "sigma": 0.0}

SPECS = (
    ModelSpec(
        id="Histogram+GraphCut",
        version="1",
        task=Task.SCRIBBLES,
        factory="isocenter.models.graphcut:HistogramGraphCut",
        description="Scribbles: intensity histograms of foreground and background, and a minimum cut",
        prompts=("scribble",),
        options={"num_bins": 64, **_SMOOTHNESS},
        citation="Y. Boykov, V. Kolmogorov, IEEE PAMI 26 (2004)",
    ),
    ModelSpec(
        id="GMM+GraphCut",
        version="1",
        task=Task.SCRIBBLES,
        factory="isocenter.models.graphcut:MixtureGraphCut",
        description="Scribbles: Gaussian mixtures of foreground and background, and a minimum cut",
        prompts=("scribble",),
        options={"num_mixtures": 20, **_SMOOTHNESS},
        citation="C. Rother, V. Kolmogorov, A. Blake, ACM TOG 23 (2004); Y. Boykov, V. Kolmogorov, IEEE PAMI 26 (2004)",
    ),
)

#: How far the box reaches beyond the scribbles, as a part of their longest side, with and without background scribbles.
_MARGIN, _MARGIN_ALONE, _MARGIN_MM = 0.2, 0.5, 10.0
#: Scribbles that are flatter than this part of their longest side count as drawn on one slice.
_FLAT = 0.25
#: How much of the background is what else lies in the box: scribbles rarely touch all that surrounds an organ.
_ELSEWHERE = 0.3
#: Part of each density that is the same everywhere, so that no intensity is impossible.
_UNIFORM = 0.05
#: The evidence of one voxel: a factor below 1, as neighbouring voxels are not independent, and its largest size.
_EVIDENCE, _CERTAIN = 0.8, 3.2
#: Cost of a boundary beside that of an intensity, at lamda = 1.
_BOUNDARY = 2.0
#: Weight of being nearer to the foreground's scribbles than to the background's.
_NEARNESS = 1.2
#: Neighbouring voxels differ by noise alone up to this many times its standard deviation; and least sigma.
_NOISES, _LEAST_SIGMA = 3.0, 0.02
#: Half the side, in voxels, of the cube that stands in for missing foreground scribbles.
_CUBE = 5
#: Samples for percentiles, noise and the box's own histogram; and largest grid for distances.
_SAMPLES, _DISTANCE_VOXELS = 500_000, 500_000


@dataclass(frozen=True)
class _Window:
    """The intensities that are told apart, `low` to `high`, and the noise as a part of them."""

    low: float
    high: float
    noise: float


class _GraphCut:
    """What both models share; they differ in how they learn a density."""

    def load(self, context: ModelContext) -> None:
        """Compile the kernels or take them from the cache."""
        from isocenter.models import _distance  # noqa: F401 - compiled when imported
        from isocenter.models._graphcut import maxflow

        self._context = context
        maxflow.warm()

    def close(self) -> None:
        """Nothing is held."""

    def _density(self, counts: NDArray[np.float64], noise: float, options: Mapping[str, Any]) -> NDArray[np.float64]:
        raise NotImplementedError

    def separate(
        self,
        volume: Volume,
        foreground: NDArray[np.bool_],
        background: NDArray[np.bool_],
        *,
        roi: Box | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> NDArray[np.uint8]:
        """The mask (z, y, x), 0 or 1, from scribbles of the volume's shape.

        All foreground scribbles are inside and all background ones outside; where both are, foreground wins. The mask
        hangs together with the foreground's scribbles. It ends at the box: `roi` where given (scribbles beyond it are not
        looked at), else the box around all scribbles grown by a fifth of its longest side, or by half of it when there is
        no background, and across the slices of scribbles that are nearly flat. Without background scribbles the outermost
        layer of the box is background, except where the box ends because the volume does. Without foreground scribbles a
        small cube at the centre of `roi` takes their place, and without `roi` too this is a `PromptError`.

        The cut is exact in boxes of up to 1.5 million voxels; larger ones are cut on a coarser grid first and then exactly
        around the coarse boundary, and lose what is thinner than two voxels.
        """
        from isocenter.models._graphcut import _build, maxflow

        chosen = dict(options or {})
        foreground, background = np.asarray(foreground, bool), np.asarray(background, bool)
        if foreground.shape != volume.shape or background.shape != volume.shape:
            raise PromptError(f"scribbles must have the volume's shape {volume.shape} (z, y, x)")
        box = _box(volume, foreground, background, roi)
        voxels = volume.voxels[box.slices]
        seeds = np.zeros(voxels.shape, np.uint8)
        seeds[background[box.slices]] = _build.BACKGROUND
        seeds[foreground[box.slices]] = _build.FOREGROUND
        if not (seeds == _build.FOREGROUND).any():
            if roi is None or foreground.any():
                raise PromptError("there is no foreground scribble, or none of it lies inside the region of interest")
            seeds[_cube(seeds.shape)] = _build.FOREGROUND
        if not (seeds == _build.BACKGROUND).any():
            seeds[_shell(box, volume.shape) & (seeds == 0)] = _build.BACKGROUND
        side = maxflow.cut_levels(self._problem(voxels, seeds, volume.spacing_zyx, chosen))
        _build.keep_connected(side, seeds)
        mask = np.zeros(volume.shape, np.uint8)
        mask[box.slices] = side
        return mask

    def _problem(self, voxels: NDArray[np.generic], seeds: NDArray[np.uint8], spacing: Triple, chosen: Mapping[str, Any]) -> Problem:
        """Costs of intensities, places and boundaries, all calibrated against each other."""
        from isocenter.models._graphcut import _build, maxflow

        window = _window(voxels, seeds == _build.FOREGROUND)
        levels = _levels(voxels, window, _build.LEVELS)
        lamda = _number(chosen, "lamda", 1.0, low=0.0)
        sigma = _number(chosen, "sigma", 0.0, low=0.0) or max(_NOISES * window.noise, _LEAST_SIGMA)

        def density(of: NDArray[np.uint16]) -> NDArray[np.float64]:
            if not of.size:
                return np.ones(_build.LEVELS)
            return self._density(np.bincount(of, minlength=_build.LEVELS).astype(np.float64), window.noise, chosen)

        inside = density(levels[seeds == _build.FOREGROUND])
        outside = (1 - _ELSEWHERE) * density(levels[seeds == _build.BACKGROUND]) + _ELSEWHERE * density(_sample(levels).ravel())
        evidence = np.log(((1 - _UNIFORM) * inside + _UNIFORM) / ((1 - _UNIFORM) * outside + _UNIFORM))
        costs = np.clip(_EVIDENCE * evidence, -_CERTAIN, _CERTAIN)
        prior, shifts = _nearness(seeds, spacing)

        step = min(s for s, n in zip(spacing, seeds.shape, strict=True) if n > 1) if max(seeds.shape) > 1 else 1.0
        difference = np.arange(_build.LEVELS) / _build.LEVELS
        edge = np.exp(-0.5 * np.square(difference / sigma))
        pairs = np.stack([np.minimum(_BOUNDARY * lamda * edge * (step / s) * maxflow.UNIT, _build.LARGEST) for s in spacing])
        return maxflow.Problem(levels, seeds, np.rint(costs * maxflow.UNIT).astype(np.int32), prior, shifts, np.rint(pairs).astype(np.int32), spacing)


class HistogramGraphCut(_GraphCut):
    """Densities from smoothed histograms."""

    def _density(self, counts: NDArray[np.float64], noise: float, options: Mapping[str, Any]) -> NDArray[np.float64]:
        from isocenter.models._graphcut import likelihood

        return likelihood.histogram(counts, int(_number(options, "num_bins", 64, low=2, high=1024)), noise)


class MixtureGraphCut(_GraphCut):
    """Densities from mixtures of Gaussians."""

    def _density(self, counts: NDArray[np.float64], noise: float, options: Mapping[str, Any]) -> NDArray[np.float64]:
        from isocenter.models._graphcut import likelihood

        return likelihood.mixture(counts, int(_number(options, "num_mixtures", 20, low=1, high=256)), noise)


def _number(options: Mapping[str, Any], name: str, default: float, *, low: float, high: float = math.inf) -> float:
    """An option as a number; viewers send what was typed, or the list that they were offered."""
    value = options.get(name)
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if value is None or value == "":
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a number") from None
    if not math.isfinite(number) or not low <= number <= high:
        raise UsageError(f"{name} must be a number of at least {low:g}" + (f" and at most {high:g}" if math.isfinite(high) else ""))
    return number


def _box(volume: Volume, foreground: NDArray[np.bool_], background: NDArray[np.bool_], roi: Box | None) -> Box:
    """Where to work; see `separate`."""
    if roi is not None:
        lo = [max(0, a) for a in roi.lo]
        hi = [min(n, b) for n, b in zip(volume.shape, roi.hi, strict=True)]
        if any(a >= b for a, b in zip(lo, hi, strict=True)):
            raise PromptError("the region of interest lies outside the volume")
        return Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))
    if not foreground.any():
        raise PromptError("there is no foreground scribble; draw one, or give a region of interest")
    drawn = foreground | background
    ends = []
    for axis in range(3):
        used = np.flatnonzero(drawn.any(axis=tuple(i for i in range(3) if i != axis)))
        ends.append((int(used[0]), int(used[-1]) + 1))
    extent = [(b - a) * s for (a, b), s in zip(ends, volume.spacing_zyx, strict=True)]
    part = _MARGIN if background.any() else _MARGIN_ALONE
    lo, hi = [], []
    for (a, b), long, s, n in zip(ends, extent, volume.spacing_zyx, volume.shape, strict=True):
        # Strokes on a single slice say nothing on how far the structure reaches across it: about as far as along it.
        margin = max(_MARGIN_MM, max(extent) * (_MARGIN_ALONE if long < _FLAT * max(extent) else part))
        # Pictures have no millimetres worth the name: at least five voxels, whatever the spacing says.
        grow = max(math.ceil(margin / s), 5)
        lo.append(max(0, a - grow))
        hi.append(min(n, b + grow))
    return Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))


def _cube(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """A small cube at the centre of a box, a quarter of it at most."""
    half = [min(_CUBE, n // 8) for n in shape]
    return tuple(slice(max(n // 2 - h, 0), n // 2 + h + 1) for n, h in zip(shape, half, strict=True))


def _shell(box: Box, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """The outermost layer of the box, but for where it touches the volume's end; all of it when it does so everywhere."""
    size = tuple(b - a for a, b in zip(box.lo, box.hi, strict=True))
    shell, ends = np.zeros(size, bool), np.zeros(size, bool)
    for axis in range(3):
        if size[axis] < 3:
            continue
        for at, touches in ((0, box.lo[axis] == 0), (-1, box.hi[axis] == shape[axis])):
            face = tuple(at if i == axis else slice(None) for i in range(3))
            (ends if touches else shell)[face] = True
    return shell if shell.any() else ends


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    """Every n-th voxel, about `_SAMPLES` of them."""
    step = max(1, round((array.size / _SAMPLES) ** (1 / 3)))
    return array[::step, ::step, ::step] if min(array.shape) >= step else array[:, :: step * step, ::step]


def _percentiles(values: NDArray[np.generic], *percent: float) -> tuple[float, ...]:
    """Percentiles of the finite values; all 0 when there is none."""
    numbers = values.astype(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    return tuple(float(p) for p in np.percentile(numbers, percent)) if numbers.size else (0.0,) * len(percent)


def _window(voxels: NDArray[np.generic], inside: NDArray[np.bool_]) -> _Window:
    """The range of the foreground's intensities and as much again on either side, within what the box holds."""
    low, high = _percentiles(_sample(voxels), 0.5, 99.5)
    span = max(high - low, 1e-6)
    first, last = _percentiles(voxels[inside], 1, 99)
    noise = _noise(voxels, max(low, first - 0.1 * span), min(high, last + 0.1 * span))
    wide = max(last - first, 4 * noise, 0.05 * span)
    low, high = max(low, first - wide), min(high, last + wide)
    if high <= low:  # the scribbles lie on the rarest intensities of the box, or it holds only one
        low, high = min(first - wide, low), max(last + wide, high)
    return _Window(low, high, noise / (high - low))


def _noise(voxels: NDArray[np.generic], low: float, high: float) -> float:
    """Standard deviation of the noise among intensities between `low` and `high`.

    From the median deviation of a voxel from the mean of its two neighbours in the same column or row: edges and
    textures are too few to move a median.
    """
    planes = voxels[:: max(1, voxels.size // (4 * _SAMPLES))].astype(np.float32)
    found = []
    for lines in (planes, planes.swapaxes(1, 2)):
        a, b, c = lines[:, :-2], lines[:, 1:-1], lines[:, 2:]
        alike = (np.minimum(np.minimum(a, b), c) > low) & (np.maximum(np.maximum(a, b), c) < high)
        if alike.any():
            found.append(1.4826 * float(np.median(np.abs(b - 0.5 * (a + c))[alike])) / math.sqrt(1.5))
    return sum(found) / len(found) if found else 0.0


def _levels(voxels: NDArray[np.generic], window: _Window, levels: int) -> NDArray[np.uint16]:
    """Intensities within the window as whole numbers; slice by slice, to need no second copy in float."""
    result = np.empty(voxels.shape, np.uint16)
    for out, plane in zip(result, voxels, strict=True):
        scaled = (plane.astype(np.float32) - window.low) * (levels / (window.high - window.low))
        out[...] = np.clip(np.nan_to_num(scaled, copy=False), 0, levels - 1)
    return result


def _nearness(seeds: NDArray[np.uint8], spacing: Triple) -> tuple[NDArray[np.int32], tuple[int, int, int]]:
    """Evidence from place: the log ratio of the distances to both kinds of scribbles, on a grid coarser by 2**shifts.

    Intensities alone run into every neighbour that looks alike, as far as the box goes.
    """
    from isocenter.models._distance import distance
    from isocenter.models._graphcut import _build, maxflow

    shifts = [0, 0, 0]
    shape, size = list(seeds.shape), list(spacing)
    while math.prod(shape) > _DISTANCE_VOXELS:
        axis = min((i for i in range(3) if shape[i] > 1), key=lambda i: (size[i], -i))
        shifts[axis] += 1
        shape[axis] = -(-shape[axis] // 2)
        size[axis] *= 2
    distances = []
    for kind in (_build.FOREGROUND, _build.BACKGROUND):
        away = np.ones(shape, bool)
        where = np.nonzero(seeds == kind)
        away[tuple(w >> s for w, s in zip(where, shifts, strict=True))] = False
        distances.append(distance(away, (size[0], size[1], size[2])) if not away.all() else np.full(shape, 1e3 * max(spacing), np.float32))
    blur = 2 * min(spacing)  # distances below two voxels say nothing
    prior = _NEARNESS * np.log((distances[1] + blur) / (distances[0] + blur))
    return np.rint(prior * maxflow.UNIT).astype(np.int32), (shifts[0], shifts[1], shifts[2])
