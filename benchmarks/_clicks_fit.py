"""Fit the coefficients of the `geodesic` engine (`models/_geodesic/coefficients.npz`) with the robot user.

    python -m benchmarks._clicks_fit [--start coefficients.npz] --out new.npz

1. A linear score of nested regions is fitted so that its softmax has the largest expected Dice: for first prompts on all
   resolutions around them, then for corrections on what the robot meets with those first answers.
2. In every further round the robot plays ten clicks on every structure with the coefficients so far; a perceptron per
   kind of click is fitted anew on all that was seen and what would have been right (as DAgger, Ross et al. 2011).
3. The round that was best on structures held out from fitting is kept.

`--start` begins with the play of step 2, by the coefficients of a file. The scan that the engine is judged on
(example_ct_sm, and example_ct, which is the same patient) is not used. All is seeded: the same data and libraries give
the same file. Perceptrons are fitted with torch. docs/clicks.md says how the shipped file came to be.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks._clicks_data import SETS, Case, Mask, brain_t1, dice, dicom_ct, next_click
from benchmarks._clicks_shapes import phantom, shapes, torso
from isocenter.core.volume import Volume
from isocenter.models._geodesic import propose, voxels
from isocenter.models._geodesic.prepared import Prepared
from isocenter.models._geodesic.regions import FITTED, TRAITS, Click, Family
from isocenter.models._geodesic.window import HALF, Anchor

F = NDArray[np.float32]
KINDS = ("first", "add", "remove")
SAMPLES = 900
"""Voxels noted per click."""
SYNTHETIC = 0.35
"""Weight of all synthetic structures together."""
BATCH = 4096
DROPPED = 0.15
"""Part of the hidden units that is left out at random while a perceptron is fitted."""
HELD = 5
"""One structure in so many is held out from fitting, to choose the round by."""


RECENT = 3
"""Rounds that a perceptron is fitted on, at most: what older coefficients met is met no more."""


@dataclass(frozen=True, eq=False)
class Note:
    """What was seen at one click: traits and right Dice of all regions; features, truth and weight of some voxels."""

    kind: str
    synthetic: bool
    traits: F
    gains: F
    features: F
    inside: NDArray[np.bool_]
    weight: F


REAL: dict[str, Callable[[], list[Case]]] = {
    **{name: SETS[name] for name in ("example_mr_sm", "sam_med2d", "brain1", "breast1", "brain_t1")},
    "dicom_ct_2": lambda: dicom_ct(2),
    "dicom_ct_3": lambda: dicom_ct(3),
    "dicom_ct_4": lambda: dicom_ct(4),
    "brain_t1_3mm": lambda: brain_t1(3),
}
LARGE: dict[str, Callable[[], list[Case]]] = {"dicom_ct_1": lambda: dicom_ct(1), "brain_t1_1mm": lambda: brain_t1(1), "lung_ct": SETS["lung_ct"]}
"""Scans that only the score of first regions is learnt from."""
MADE: dict[str, Callable[[int], list[Case]]] = {"shapes": shapes, "torso": torso, "phantom": phantom}


def _altered(volume: Volume, target: Mask, rng: np.random.Generator) -> tuple[Volume, Mask]:
    """Another look at the same structure: another voxel size, a gamma curve, sometimes inverted, and some more noise."""
    values = volume.array.astype(np.float32)
    if rng.random() < 0.4:
        factor = float(np.exp(rng.uniform(-0.35, 0.25)))
        factors = tuple(1.0 if n == 1 else factor for n in values.shape)
        smaller = ndimage.zoom(target.astype(np.float32), factors, order=1) >= 0.5
        if smaller.sum() > 100:
            values, target = ndimage.zoom(values, factors, order=1), smaller
            volume = Volume(values, volume.spacing)
    if rng.random() < 0.3:
        return volume, target
    low, high = np.percentile(values, (0.5, 99.5))
    if high <= low:
        return volume, target
    unit = np.clip((values - low) / (high - low), 0, 1)
    unit = unit ** float(np.exp(rng.normal(0, 0.35)))
    if rng.random() < 0.3:
        unit = 1 - unit
    unit += rng.normal(size=unit.shape) * rng.choice([0.0, 0.003, 0.01])
    return Volume((unit * 1000).astype(np.float32), volume.spacing), target


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


def _first_views(prepared: Prepared, point: NDArray[np.intp], target: Mask, synthetic: bool) -> Note:
    """All regions at all resolutions, for the choice between them."""
    seen = propose.views(prepared, np.zeros(target.shape, np.uint8), [], point)
    traits, gains = zip(*(_gains(click, found, target) for click, found in seen), strict=True)
    nothing = np.zeros(0, np.float32)
    return Note("views", synthetic, np.vstack(traits), np.concatenate(gains), nothing, nothing > 0, nothing)


def _note(made: voxels.Study, target: Mask, rng: np.random.Generator, synthetic: bool) -> Note:
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
    return Note(click.kind, synthetic, traits, gains, made.features[pick], inside[pick], weight.astype(np.float32))


def _clicked(
    belief: NDArray[np.uint8], target: Mask, volume: Volume, border: bool, rng: np.random.Generator | None
) -> tuple[NDArray[np.intp], bool] | None:
    """The robot's next click; with `rng` one in five is not the deepest point but anywhere in the error."""
    asked = next_click((belief >= HALF).view(np.uint8), target, volume.spacing_zyx, border)
    if asked is None:
        return None
    point, positive = np.array([asked[0]]), asked[1]
    if rng is not None and rng.random() < 0.2:
        wrong = np.argwhere((target != (belief >= HALF)) & (target == positive))
        point = wrong[rng.integers(len(wrong))][None]
    return point, positive


def play(
    volume: Volume, target: Mask, tables: dict[str, voxels.Table], seed: int, clicks: int, synthetic: bool, held: bool
) -> tuple[list[float], list[Note]]:
    """The robot's work on one structure: the Dice after each click, and notes unless the structure is held out."""
    rng = np.random.default_rng(seed)
    if not held:
        volume, target = _altered(volume, target, rng)
    prepared = Prepared(volume)
    belief, anchors, notes, curve = np.zeros(volume.shape, np.uint8), list[Anchor](), list[Note](), list[float]()
    border = bool(rng.random() < 0.3) and not held
    for _ in range(clicks):
        asked = _clicked(belief, target, volume, border, None if held else rng)
        if asked is not None:
            point, positive = asked
            made = propose.examine(prepared, belief, anchors, point, positive, tables)
            if made is not None:
                if not held:
                    notes.append(_note(made, target, rng, synthetic))
                edit = propose.write(made, belief.shape, point, voxels.decide(made, tables[made.click.kind]))
                edit.apply(belief)
                anchors += edit.anchors
            for anchor in anchors:
                z, y, x = anchor.voxels[0]
                if (belief[z, y, x] >= HALF) != anchor.positive:
                    belief[z, y, x] = 255 if anchor.positive else 0
        curve.append(dice(belief >= HALF, target))
    return curve, notes


def look(volume: Volume, target: Mask, seed: int, synthetic: bool) -> Note:
    """What a first click on a structure sees at all resolutions."""
    rng = np.random.default_rng(seed)
    volume, target = _altered(volume, target, rng)
    asked = _clicked(np.zeros(volume.shape, np.uint8), target, volume, bool(rng.random() < 0.3), rng)
    assert asked is not None
    return _first_views(Prepared(volume), asked[0], target, synthetic)


def _shares(notes: list[Note]) -> NDArray[np.float64]:
    """Weight of each note, so that synthetic ones have their part and no more."""
    made = np.array([n.synthetic for n in notes])
    part = np.clip(made.mean(), 1e-6, 1 - 1e-6)
    return np.asarray(np.where(made, SYNTHETIC / part, (1 - SYNTHETIC) / (1 - part)), np.float64)


def fit_regions(notes: list[Note], penalty: float = 1e-4) -> tuple[F, F, F]:
    """Mean, scale and weights of the linear score whose softmax has the largest expected Dice."""
    traits = np.vstack([n.traits for n in notes]).astype(np.float64)
    mean, scale = traits.mean(axis=0), traits.std(axis=0) + 1e-3
    traits = np.clip((traits - mean) / scale, -FITTED, FITTED)
    shares = _shares(notes) / len(notes)
    gains = np.concatenate([n.gains for n in notes])
    counts = np.array([len(n.gains) for n in notes])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores = traits @ weights
        share = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), counts))
        share /= np.repeat(np.add.reduceat(share, starts), counts)
        expected = np.add.reduceat(share * gains, starts)
        slope = traits.T @ (share * (gains - np.repeat(expected, counts)) * np.repeat(shares, counts))
        return float(penalty * weights @ weights - shares @ expected), 2 * penalty * weights - slope

    found = minimize(loss, np.zeros(traits.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return mean.astype(np.float32), scale.astype(np.float32), found.x.astype(np.float32)


def fit_voxels(notes: list[Note], epochs: int, hidden: tuple[int, int] = (48, 24)) -> tuple[F, ...]:
    """Perceptron with the least weighted cross-entropy, with dropout: mean, scale, w1, b1, w2, b2, w3 (with its bias)."""
    import torch

    torch.set_num_threads(1)
    shuffled = torch.Generator().manual_seed(0)
    features = np.vstack([n.features for n in notes])
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-3
    features = np.clip((features - mean) / scale, -4, 4).astype(np.float32)
    shares = _shares(notes).astype(np.float32)
    x = torch.from_numpy(features)
    truth = torch.from_numpy(np.concatenate([n.inside for n in notes]).astype(np.float32))
    weight = torch.from_numpy(np.concatenate([n.weight * share for n, share in zip(notes, shares, strict=True)]))
    sizes = (features.shape[1], *hidden)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = [(torch.nn.Linear(a, b), torch.nn.ReLU(), torch.nn.Dropout(DROPPED)) for a, b in itertools.pairwise(sizes)]
        net = torch.nn.Sequential(*itertools.chain(*parts), torch.nn.Linear(hidden[-1], 1))
        steps = epochs * -(-len(truth) // BATCH)
        adam = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
        rate = torch.optim.lr_scheduler.OneCycleLR(adam, 4e-3, total_steps=steps + 1, pct_start=0.1)
        for _ in range(epochs):
            for pick in torch.randperm(len(truth), generator=shuffled).split(BATCH):
                wrong = torch.nn.functional.binary_cross_entropy_with_logits(net(x[pick])[:, 0], truth[pick], reduction="none")
                adam.zero_grad()
                ((weight[pick] * wrong).sum() / weight[pick].sum()).backward()
                adam.step()
                rate.step()
    w1, b1, w2, b2, w3, b3 = (p.detach().numpy() for p in net.parameters())
    return tuple(np.ascontiguousarray(a, np.float32) for a in (mean, scale, w1.T, b1, w2.T, b2, np.append(w3[0], b3)))


def refit(notes: list[Note], data: dict[str, Any], epochs: int) -> dict[str, Any]:
    """New perceptrons from all notes."""
    data = dict(data)
    for kind in KINDS:
        parts = fit_voxels([n for n in notes if n.kind == kind], epochs)
        data |= {f"{kind}_{name}": part for name, part in zip(("mean", "scale", "w1", "b1", "w2", "b2", "w3"), parts, strict=True)}
    return data


def _scored(kind: str, parts: tuple[F, F, F]) -> dict[str, F]:
    return {f"{kind}_region_{name}": part for name, part in zip(("mean", "scale", "weights"), parts, strict=True)}


def _start() -> dict[str, Any]:
    """Scores of corrections to begin with: regions about as large as there is room."""
    data: dict[str, Any] = {}
    for kind, count in TRAITS.items():
        weights = np.zeros(count, np.float32)
        if kind != "first":
            weights[20], weights[21] = -1, -1
        data |= _scored(kind, (np.zeros(count, np.float32), np.ones(count, np.float32), weights))
    return data


@cache
def _real(name: str) -> list[Case]:
    return (REAL | LARGE)[name]()


def _targets(name: str, seed: int) -> Iterator[tuple[Volume, Mask, bool]]:
    """All structures of a set, and whether they are held out; and some pairs of them as one: people do not always mean one piece."""
    rng = np.random.default_rng(seed)
    kind, _, number = name.partition(":")
    # Held-out synthetic scenes are the same in every round.
    held_scene = bool(number) and int(number) % HELD == 0
    cases = MADE[kind](int(number) if held_scene else int(number) + 1000 * (seed + 1)) if number else _real(kind)
    count = 0
    for case in cases:
        masks = list(case.targets.values())
        for mask in masks:
            count += 1
            yield case.volume, mask, held_scene if number else count % HELD == 0 and kind not in LARGE
        if not held_scene:
            kept = [m for i, m in enumerate(masks) if number or (count - len(masks) + i + 1) % HELD]
            yield from ((case.volume, a | b, False) for a, b in itertools.pairwise(kept) if rng.random() < 0.15)


Job = tuple[str, int, int, dict[str, Any]]


def _job(job: Job) -> tuple[list[tuple[str, bool, list[float]]], list[Note]]:
    """A set in one round: looked at (clicks = 0) or played."""
    name, seed, clicks, data = job
    curves, notes = [], []
    made = name.partition(":")[0] in MADE
    for number, (volume, target, held) in enumerate(_targets(name, seed)):
        if clicks == 0:
            if not held:
                notes.append(look(volume, target, 1000 * seed + number, made))
            continue
        curve, seen = play(volume, target, voxels.unpack(data), 1000 * seed + number, clicks, made, held)
        curves.append((name.partition(":")[0], held, curve))
        notes += seen
    return curves, notes


def report(curves: list[tuple[str, bool, list[float]]]) -> float:
    """Mean Dice after 1, 3, 5 and 10 clicks and harmful clicks, by set; returns the mean of the held-out real and synthetic ones."""
    scores = []
    for name in [*dict.fromkeys(n for n, _, _ in curves), "seen", "held real", "held made"]:
        among = {"seen": (False, *REAL, *MADE), "held real": (True, *REAL), "held made": (True, *MADE)}.get(name, (False, name))
        table = np.array([c for n, held, c in curves if held == among[0] and n in among[1:]])
        if len(table) and table.shape[1] > 1:
            counted = table[:, [k - 1 for k in (1, 3, 5, 10) if k <= table.shape[1]]].mean(axis=0)
            harm = 100 * float((np.diff(table, axis=1) < -0.02).mean())
            print(f"  {name:15s} {len(table):3d}  " + " ".join(f"{d:.3f}" for d in counted) + f"  harm {harm:.1f} %", flush=True)
            if name.startswith("held"):
                scores.append(float(counted.mean()) - harm / 200)
    return (1 - SYNTHETIC) * scores[0] + SYNTHETIC * scores[1]


def fit_scores(run: Callable[[list[str], int, int, dict[str, Any]], tuple[list[Any], list[Note]]], made: list[str]) -> dict[str, Any]:
    """The linear scores of regions, for first prompts and then for corrections."""
    data = _start()
    seen = [note for seed, names in ((0, [*REAL, *LARGE, *made]), (1, [*REAL, *made])) for note in run(names, seed, 0, data)[1]]
    data |= _scored("first", fit_regions(seen))
    for seed in (2, 3):
        met = run([*REAL, *made[::2]], seed, 4, data)[1]
        for kind in KINDS[1:]:
            data |= _scored(kind, fit_regions([n for n in met if n.kind == kind]))
    return data


def fit(
    run: Callable[[list[str], int, int, dict[str, Any]], tuple[list[Any], list[Note]]],
    scenes: int,
    rounds: int,
    epochs: int,
    start: dict[str, Any] | None,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """All steps; `run` plays sets with a seed, a number of clicks and coefficients; `keep` is given what is best so far."""
    made = [f"{kind}:{n}" for kind, count in (("shapes", scenes), ("torso", scenes // 12), ("phantom", scenes // 12)) for n in range(count)]
    data = fit_scores(run, made) if start is None else start
    notes: list[list[Note]] = []
    best = -1.0
    for number in range(4, 4 + rounds + 1):
        curves, fresh = run([*REAL, *made], number, 10, data)
        value = report(curves)
        print(f"  held out: {value:.4f}", flush=True)
        if value > best:
            best = value
            keep(data)
        if number < 4 + rounds:
            notes.append(fresh)
            data = refit([n for part in notes[-RECENT:] for n in part], data, epochs)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="of playing with the perceptrons and fitting them")
    parser.add_argument("--scenes", type=int, default=60, help="synthetic ones in each round")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1, help="changes the time only")
    parser.add_argument("--start", type=Path, help="begin with these coefficients, keep their scores of regions, fit the perceptrons anew")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    started = time.time()
    start = None
    if options.start:
        with np.load(options.start, allow_pickle=False) as earlier:
            start = dict(earlier)
    with threadpool_limits(1), Pool(options.processes) as pool:

        def run(names: list[str], seed: int, clicks: int, data: dict[str, Any]) -> tuple[list[Any], list[Note]]:
            parts = pool.map(_job, [(name, seed, clicks, data) for name in names], chunksize=1)
            notes = [n for _, seen in parts for n in seen]
            print(f"pass {seed}: {len(notes)} notes, {time.time() - started:.0f} s", flush=True)
            return [c for curves, _ in parts for c in curves], notes

        fit(run, options.scenes, options.rounds, options.epochs, start, lambda data: np.savez(options.out, **data))
    print(f"done, {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
