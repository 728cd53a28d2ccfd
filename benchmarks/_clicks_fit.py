"""Fit the coefficients of the `geodesic` engine (`models/_geodesic/coefficients.npz`) with the robot user.

    python -m benchmarks._clicks_fit --rounds 5 --out coefficients.npz

Every round plays ten clicks on every structure with the coefficients so far, notes what was seen and what would have
been right, and fits anew on all notes (as DAgger, Ross et al. 2011): a linear score of the nested regions that maximises
the expected Dice, and a perceptron per kind of click. The scan that the engine is judged on (example_ct_sm, and
example_ct, which is the same patient) is not used.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import minimize

from benchmarks._clicks_data import SETS, Case, Mask, brain_t1, dice, dicom_ct, next_click
from isocenter.core.volume import Volume
from isocenter.models._geodesic import propose, voxels
from isocenter.models._geodesic.prepared import Prepared
from isocenter.models._geodesic.regions import Click, Family
from isocenter.models._geodesic.window import HALF, Anchor

F = NDArray[np.float32]
KINDS = ("first", "add", "remove")
SAMPLES = 350
"""Voxels noted per click."""


@dataclass(frozen=True, eq=False)
class Note:
    """What was seen at one click: traits and right Dice of all regions; features, truth and weight of some voxels."""

    kind: str
    traits: F
    gains: F
    features: F
    inside: NDArray[np.bool_]
    weight: F


def phantom(seed: int) -> list[Case]:
    """Eight warped ellipsoids and tubes of random contrast in noise and a smooth bias field."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(24, 56)), 72, 72) if seed % 4 else (1, 160, 160)
    flat = shape[0] == 1
    sigma = tuple(0.0 if n == 1 else 1.0 for n in shape)

    def field(width: float) -> NDArray[np.float64]:
        noise = ndimage.gaussian_filter(rng.normal(size=shape), tuple(width * s for s in sigma))
        return np.asarray(noise / noise.std())

    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1).astype(np.float32)
    grid += np.stack([field(6) * rng.uniform(0.5, 3) for _ in range(3)], axis=-1)
    image, labels = np.zeros(shape), np.zeros(shape, np.uint8)
    image += rng.normal(0, rng.uniform(0, 8)) * field(3)
    for number in range(1, 9):
        centre = rng.uniform(0.15, 0.85, 3) * shape
        radii = rng.uniform(4, 15, 3) * (2 if flat else 1)
        if rng.random() < 0.3:
            radii[0] *= 6
        if flat:
            centre[0], radii[0] = 0, 1e3
        turn = np.eye(3) if flat else np.linalg.qr(rng.normal(size=(3, 3)))[0]
        inside = ((((grid - centre) @ turn) / radii) ** 2).sum(axis=-1) < 1
        labels[inside] = number
        image[inside] = rng.choice([30, 60, 90, 120, 150]) + rng.normal() * 5 + (field(2) * rng.uniform(0, 10))[inside]
    blurred = ndimage.gaussian_filter(image, tuple(rng.uniform(0.5, 1.0) * s for s in sigma))
    noisy = blurred + field(rng.uniform(0.3, 0.8)) * rng.uniform(2, 20) + field(10) * rng.uniform(0, 15)
    spacing = (1.0, 1.0, float(rng.choice([1, 1, 2.5])))
    return [Case(Volume(noisy.astype(np.float32), spacing), {str(n): labels == n for n in range(1, 9) if (labels == n).sum() > 150})]


TRAINING: dict[str, Callable[[], list[Case]]] = {
    **{name: SETS[name] for name in ("example_mr_sm", "sam_med2d", "brain1", "breast1", "brain_t1", "lung_ct")},
    "dicom_ct_2": lambda: dicom_ct(2),
    "dicom_ct_3": lambda: dicom_ct(3),
    "dicom_ct_1": lambda: dicom_ct(1),
    "brain_t1_1mm": lambda: brain_t1(1),
    **{f"phantom_{seed}": (lambda seed=seed: phantom(seed)) for seed in range(1, 6)},  # type: ignore[misc]
}

LARGE = ("dicom_ct_1", "brain_t1_1mm", "lung_ct")
"""Sets that only the choice of resolution is learnt from: played for two clicks, in the first two rounds."""


def _altered(volume: Volume, rng: np.random.Generator) -> Volume:
    """Another look at the same scan: a gamma curve, sometimes inverted, and some more noise."""
    values = volume.array.astype(np.float32)
    low, high = np.percentile(values, (0.5, 99.5))
    unit = np.clip((values - low) / (high - low), 0, 1)
    unit = unit ** float(np.exp(rng.normal(0, 0.35)))
    if rng.random() < 0.3:
        unit = 1 - unit
    unit += rng.normal(size=unit.shape) * rng.choice([0.0, 0.003, 0.01])
    return Volume((unit * 1000).astype(np.float32), volume.spacing)


def _sampled(click: Click, target: Mask) -> Mask:
    """The target in the working voxels of a click's window."""
    window = click.window
    stride = window.prepared.levels[window.level].stride
    index = [np.minimum((np.arange(n) + o) * s + s // 2, t - 1) for n, o, s, t in zip(window.shape, window.lo, stride, target.shape, strict=True)]
    return target[np.ix_(*index)]


def _gains(click: Click, found: list[Family], target: Mask) -> tuple[F, F]:
    """Traits of all regions, and the Dice that each would give."""
    truth, mask = _sampled(click, target), click.window.mask
    size = max(float(target.sum() / np.prod(click.window.prepared.levels[click.window.level].stride)), 1.0)
    held, right = float(mask.sum()), float((mask & truth).sum())
    sign = 1 if click.positive else -1
    gains = []
    for family in found:
        count = len(family.traits)
        volume = np.cumsum(np.bincount(family.level.ravel(), minlength=256)[:count])
        overlap = np.cumsum(np.bincount(family.level[truth], minlength=256)[:count])
        gains.append(2 * (right + sign * overlap) / (held + sign * volume + size))
    return np.vstack([f.traits for f in found]).astype(np.float32), np.concatenate(gains).astype(np.float32)


def _first_views(prepared: Prepared, point: NDArray[np.intp], target: Mask) -> Note:
    """All regions at all resolutions, for the choice between them."""
    seen = propose.views(prepared, np.zeros(target.shape, np.uint8), [], point)
    traits, gains = zip(*(_gains(click, found, target) for click, found in seen), strict=True)
    nothing = np.zeros(0, np.float32)
    return Note("views", np.vstack(traits), np.concatenate(gains), nothing, nothing > 0, nothing)


def _note(made: voxels.Study, target: Mask, rng: np.random.Generator) -> Note:
    """Truth for everything that the engine saw at one click."""
    window, click = made.click.window, made.click
    traits, gains = _gains(click, made.found, target)
    truth = _sampled(click, target)
    size = max(float(target.sum() / np.prod(window.prepared.levels[window.level].stride)), 1.0)
    inside, held_live, share = truth[made.live], window.mask[made.live], made.share[made.live]
    hard = inside | (share > 0.05) if click.first else (inside != held_live) | ((share > 0.02) & (share < 0.98))
    odds = np.where(hard, 1.0, 0.2)
    odds /= odds.sum()
    pick = rng.choice(len(odds), min(SAMPLES * (2 if click.first else 1), len(odds)), p=odds)
    weight = np.minimum(1 / (odds[pick] * len(pick)) / size, 0.2)
    return Note(click.kind, traits, gains, made.features[pick], inside[pick], weight.astype(np.float32))


def play(volume: Volume, target: Mask, tables: dict[str, voxels.Table], seed: int, clicks: int = 10) -> tuple[list[float], list[Note]]:
    """Ten clicks on one structure; one in five is not the deepest point but anywhere in the error."""
    rng = np.random.default_rng(seed)
    prepared = Prepared(_altered(volume, rng))
    belief, anchors, notes, curve = np.zeros(volume.shape, np.uint8), list[Anchor](), list[Note](), list[float]()
    border = bool(rng.random() < 0.3)
    for _ in range(clicks):
        asked = next_click((belief >= HALF).astype(np.uint8), target, volume.spacing_zyx, border)
        if asked is None:
            curve.append(curve[-1])
            continue
        zyx, positive = asked
        if rng.random() < 0.2:
            wrong = np.argwhere((target != (belief >= HALF)) & (target == positive))
            z, y, x = (int(v) for v in wrong[rng.integers(len(wrong))])
            zyx = z, y, x
        point = np.array([zyx])
        if not anchors:
            notes.append(_first_views(prepared, point, target))
        made = propose.examine(prepared, belief, anchors, point, positive, tables)
        if made is not None:
            notes.append(_note(made, target, rng))
            edit = propose.write(made, belief, point, tables[made.click.kind])
            belief[edit.box.slices] = edit.belief
            anchors += edit.anchors
        for anchor in anchors:
            z, y, x = anchor.voxels[0]
            if (belief[z, y, x] >= HALF) != anchor.positive:
                belief[z, y, x] = 255 if anchor.positive else 0
        curve.append(dice(belief >= HALF, target))
    return curve, notes


def fit_regions(notes: list[Note], penalty: float = 1e-3) -> tuple[F, F, F]:
    """Mean, scale and weights of the linear score whose softmax has the largest expected Dice."""
    traits = np.vstack([n.traits for n in notes]).astype(np.float64)
    mean, scale = traits.mean(axis=0), traits.std(axis=0) + 1e-3
    traits = (traits - mean) / scale
    gains = np.concatenate([n.gains for n in notes])
    counts = np.array([len(n.gains) for n in notes])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores = traits @ weights
        share = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), counts))
        share /= np.repeat(np.add.reduceat(share, starts), counts)
        expected = np.add.reduceat(share * gains, starts)
        slope = traits.T @ (share * (gains - np.repeat(expected, counts))) / len(notes)
        return float(penalty * weights @ weights - expected.mean()), 2 * penalty * weights - slope

    found = minimize(loss, np.zeros(traits.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return mean.astype(np.float32), scale.astype(np.float32), found.x.astype(np.float32)


def fit_voxels(notes: list[Note], epochs: int, hidden: tuple[int, int] = (32, 16), decay: float = 1e-4) -> tuple[F, ...]:
    """Perceptron by Adam on the weighted cross-entropy: mean, scale, w1, b1, w2, b2, w3 (with its bias)."""
    rng = np.random.default_rng(0)
    features = np.vstack([n.features for n in notes])
    truth = np.concatenate([n.inside for n in notes]).astype(np.float32)
    weight = np.concatenate([n.weight for n in notes])
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-3
    features = np.clip((features - mean) / scale, -4, 4)
    sizes = (features.shape[1], *hidden, 1)
    layers: list[Any] = []
    for a, b in itertools.pairwise(sizes):
        layers += [rng.normal(0, np.sqrt(2 / a), (a, b)).astype(np.float32), np.zeros(b, np.float32)]
    first = [np.zeros_like(p) for p in layers]
    second = [np.zeros_like(p) for p in layers]
    batch, step = 4096, 0
    total = epochs * (len(truth) // batch + 1)
    for _ in range(epochs):
        order = rng.permutation(len(truth))
        for start in range(0, len(truth), batch):
            pick = order[start : start + batch]
            x, w = features[pick], weight[pick] / weight[pick].sum()
            h1 = np.maximum(x @ layers[0] + layers[1], 0)
            h2 = np.maximum(h1 @ layers[2] + layers[3], 0)
            out = (h2 @ layers[4] + layers[5])[:, 0]
            d3 = (w * (1 / (1 + np.exp(-out)) - truth[pick]))[:, None].astype(np.float32)
            d2 = (d3 @ layers[4].T) * (h2 > 0)
            d1 = (d2 @ layers[2].T) * (h1 > 0)
            slopes = [x.T @ d1, d1.sum(axis=0), h1.T @ d2, d2.sum(axis=0), h2.T @ d3, d3.sum(axis=0)]
            step += 1
            rate = 1.5e-3 * (1 + np.cos(np.pi * min(step / total, 1))) + 2e-5
            for k, slope in enumerate(slopes):
                slope = slope + decay * layers[k] * (layers[k].ndim > 1)
                first[k] = 0.9 * first[k] + 0.1 * slope
                second[k] = 0.999 * second[k] + 0.001 * slope**2
                layers[k] = layers[k] - rate * (first[k] / (1 - 0.9**step)) / (np.sqrt(second[k] / (1 - 0.999**step)) + 1e-8)
    w3 = np.append(layers[4][:, 0], layers[5])
    return tuple(np.ascontiguousarray(a, np.float32) for a in (mean, scale, *layers[:4], w3))


def refit(notes: list[Note], data: dict[str, Any], epochs: int, regions: bool) -> dict[str, Any]:
    """New coefficients from all notes; `regions`: of the regions' score too, else of the perceptrons only."""
    data = dict(data)
    for kind in KINDS:
        mine = [n for n in notes if n.kind == kind]
        if regions:
            scored = [n for n in notes if n.kind == "views"] if kind == "first" else mine
            data[f"{kind}_region_mean"], data[f"{kind}_region_scale"], data[f"{kind}_region_weights"] = fit_regions(scored[-4000:])
        parts = fit_voxels(mine, epochs)
        data |= {f"{kind}_{name}": part for name, part in zip(("mean", "scale", "w1", "b1", "w2", "b2", "w3"), parts, strict=True)}
        data[f"{kind}_threshold"] = np.float32(0.5)
    return data


def _start() -> dict[str, Any]:
    """Region scores to begin with: small regions are preferred, corrections about as large as there is room."""
    data: dict[str, Any] = {}
    for kind, count in (("first", 22), ("add", 31), ("remove", 31)):
        weights = np.zeros(count, np.float32)
        if kind != "first":
            weights[18], weights[19] = -1, -1
        data |= {
            f"{kind}_region_mean": np.zeros(count, np.float32),
            f"{kind}_region_scale": np.ones(count, np.float32),
            f"{kind}_region_weights": weights,
        }
    return data


def _targets(cases: list[Case], seed: int) -> Iterator[tuple[Volume, Mask]]:
    """All structures, and some pairs of them as one: what people mean is not always in one piece."""
    rng = np.random.default_rng(seed)
    for case in cases:
        masks = list(case.targets.values())
        pairs = [masks[i] | masks[i + 1] for i in range(len(masks) - 1) if rng.random() < 0.15]
        yield from ((case.volume, mask) for mask in masks + pairs)


def _job(arguments: tuple[str, dict[str, Any], int]) -> tuple[list[tuple[str, list[float]]], list[Note]]:
    name, data, seed = arguments
    curves, notes = [], []
    for number, (volume, target) in enumerate(_targets((TRAINING | SETS)[name](), seed)):
        curve, seen = play(volume, target, voxels.unpack(data), 1000 * seed + number, 2 if name in LARGE else 10)
        if name not in LARGE:
            curves.append((name, curve))
        notes += seen
    return curves, notes


def report(curves: list[tuple[str, list[float]]]) -> None:
    """Mean Dice after 1, 3, 5 and 10 clicks, and the percentage of clicks that lowered it by more than 0.02."""
    for name in [*dict.fromkeys(n for n, _ in curves), "all"]:
        table = np.array([c for n, c in curves if name in (n, "all")])
        harm = 100 * float((np.diff(table, axis=1) < -0.02).mean())
        print(f"  {name:15s} {len(table):3d}  " + " ".join(f"{table[:, k].mean():.3f}" for k in (0, 2, 4, 9)) + f"  harm {harm:.1f} %", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first-round", type=int, default=0, help="with --resume: 0 and 1 fit the regions' score anew")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--sets", default=",".join(TRAINING))
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    started = time.time()
    data = dict(np.load(options.resume)) if options.resume else _start()
    notes: list[Note] = []
    with Pool(options.processes) as pool:
        for number in range(options.first_round, options.first_round + options.rounds):
            names = [name for name in options.sets.split(",") if number < 2 or name not in LARGE]
            parts = pool.map(_job, [(name, data, number) for name in names], chunksize=1)
            report([c for curves, _ in parts for c in curves])
            # Notes hold the vote of the regions' score at that time: those from before it was fitted are of no more use.
            notes = [n for n in notes if n.kind == "views"] if number == 2 else notes[-9000:]
            notes += [n for _, seen in parts for n in seen]
            data = refit(notes, data, options.epochs, regions=number < 2)
            np.savez(options.out, **data)
            print(f"round {number}: {len(notes)} clicks, {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
