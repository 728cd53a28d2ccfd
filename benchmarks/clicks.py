"""How good and how fast the click engine is, with a robot user, and what public peers make of the same clicks.

    python -m benchmarks.clicks [--sets example_ct_sm,brain1] [--peers] [--speed] [--boxes] [--save-json FILE]

The robot clicks the deepest point of the target first, then the deepest point of the largest component of the error that
is larger in all, missing or surplus; deepest is the maximum of the Euclidean distance transform in mm (the end of the
volume is no outside, as usual). A click is harmful when it lowers the Dice by more than 0.02. Times are processor time.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks._clicks_data import DATA, SETS, Case, Mask, dice, each_target, next_click
from benchmarks._clicks_peers import PEERS, feasible
from isocenter.core.model import ModelContext
from isocenter.core.prompts import Box, Point
from isocenter.core.volume import Volume
from isocenter.models.geodesic import Geodesic

Array = NDArray[np.generic]
COUNTED = (1, 3, 5, 10)


@dataclass
class Result:
    """One method on one set: mean Dice after 1, 3, 5, 10 clicks, harmful clicks in percent, milliseconds."""

    method: str
    data: str
    targets: int
    dice: list[float]
    harmful: float
    first_ms: float
    later_ms: float
    later_p95_ms: float
    curves: dict[str, list[float]] = field(default_factory=dict)

    def row(self) -> str:
        scores = " ".join(f"{d:.3f}" for d in self.dice)
        return (
            f"{self.method:34s} {self.data:14s} {self.targets:3d}  {scores}  {self.harmful:5.1f} %"
            f"  {self.first_ms:7.0f} {self.later_ms:7.0f} {self.later_p95_ms:7.0f}"
        )


HEADER = f"{'method':34s} {'data':14s}   n   " + "     ".join(f"{n:>2d}" for n in COUNTED) + "   harmful    first   later  95 % [ms]"


def summary(method: str, data: str, curves: dict[str, list[float]], first: list[float], later: list[float]) -> Result:
    """Means over all targets of a set."""
    table = np.array(list(curves.values()))
    return Result(
        method,
        data,
        len(table),
        [float(table[:, n - 1].mean()) for n in COUNTED],
        100 * float((np.diff(table, axis=1) < -0.02).mean()),
        1000 * float(np.median(first)),
        1000 * float(np.median(later)) if later else 0.0,
        1000 * float(np.percentile(later, 95)) if later else 0.0,
        curves,
    )


def play(engine: Geodesic, cases: list[Case], name: str) -> tuple[Result, dict[str, list[Point]]]:
    """Ten clicks on every target; also returns them, for the peers."""
    curves: dict[str, list[float]] = {}
    clicks: dict[str, list[Point]] = {}
    first, later = list[float](), list[float]()
    for number, (volume, label, target) in enumerate(each_target(cases)):
        curve, points = list[float](), list[Point]()
        began = time.process_time()
        session = engine.begin(engine.prepare(volume))
        preparation = time.process_time() - began
        for _ in range(COUNTED[-1]):
            asked = next_click(session.mask, target, volume.spacing_zyx)
            if asked is not None:
                points.append(Point(*asked))
                began = time.process_time()
                session.add(points[-1:])
                took = time.process_time() - began
                later.append(took) if curve else first.append(took + preparation)
            curve.append(dice(session.mask, target))
        curves[f"{number} {label}"] = curve
        clicks[f"{number} {label}"] = points
    return summary("geodesic", name, curves, first, later), clicks


def on_these(result: Result, names: list[str]) -> Result:
    """The engine's scores on some of its targets, to compare a peer with."""
    table = np.array([result.curves[name] for name in names])
    scores = [float(table[:, n - 1].mean()) for n in COUNTED]
    harmful = 100 * float((np.diff(table, axis=1) < -0.02).mean())
    return replace(result, method="geodesic, peers' targets", targets=len(names), dice=scores, harmful=harmful)


def peer(method: str, cases: list[Case], name: str, clicks: dict[str, list[Point]], names: list[str]) -> Result:
    """A peer on the clicks that the engine was given, answered after 1, 3, 5 and 10 of them."""
    curves: dict[str, list[float]] = {}
    first, later = list[float](), list[float]()
    for number, (volume, label, target) in enumerate(each_target(cases)):
        if f"{number} {label}" not in names:
            continue
        curve = list[float]()
        points = clicks[f"{number} {label}"]
        for count in range(1, COUNTED[-1] + 1):
            if count in COUNTED and count <= len(points):
                began = time.process_time()
                mask = PEERS[method](volume, points[:count])
                (later if curve else first).append(time.process_time() - began)
                curve.append(dice(mask, target))
            else:
                curve.append(curve[-1])
        curves[f"{number} {label}"] = curve
    return summary(method, name, curves, first, later)


def synthetic(shape: tuple[int, int, int], spacing: float) -> Case:
    """A noisy body with a large and a small organ and blurred borders, of the size that speed is stated for."""
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]

    def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Mask:
        parts = (((g - c * n) / (r * n)) ** 2 for g, c, r, n in zip((z, y, x), centre, radii, shape, strict=True))
        inside: Mask = sum(parts) < 1  # type: ignore[assignment]
        return inside

    values = np.full(shape, -1000, np.int16)
    values[ellipsoid((0.5, 0.5, 0.5), (2, 0.4, 0.46))] = -80
    values[ellipsoid((0.5, 0.5, 0.5), (2, 0.36, 0.42))] = 40
    targets = {"large": ellipsoid((0.55, 0.45, 0.33), (0.3, 0.2, 0.18)), "small": ellipsoid((0.4, 0.62, 0.65), (0.15, 0.07, 0.06))}
    # Two parts of different intensity: the first click cannot find all of it, later ones have work to do.
    targets["large"] |= (second := ellipsoid((0.45, 0.4, 0.52), (0.15, 0.1, 0.12)))
    values[targets["large"]] = 80
    values[second] = 60
    values[targets["small"]] = 90
    for plane in values:
        plane += rng.normal(0, 20, shape[1:]).astype(np.int16)
    return Case(Volume(values, (spacing, spacing, spacing)), targets)


def boxes(engine: Geodesic, cases: list[Case], name: str) -> str:
    """A line on answers to boxes alone: mean Dice of the target with what a box around it gives.

    tight: the smallest box; loose: a tenth wider on each side (a voxel at least); slice: the tight one of the slice that holds
    most of the target. Beside each what the filled box itself would be worth.
    """
    prepared = {id(case.volume): engine.prepare(case.volume) for case in cases}
    found: dict[str, list[tuple[float, float]]] = {}
    for volume, _, target in each_target(cases):
        voxels = np.argwhere(target)
        largest = voxels[voxels[:, 0] == np.bincount(voxels[:, 0]).argmax()]
        lo, hi = voxels.min(axis=0), voxels.max(axis=0) + 1
        spare = np.maximum(np.round(0.1 * (hi - lo)), 1).astype(int) * (np.array(target.shape) > 1)
        drawn = {"tight": (lo, hi), "loose": (np.maximum(lo - spare, 0), np.minimum(hi + spare, target.shape))}
        if target.shape[0] > 1:
            drawn["slice"] = (largest.min(axis=0), largest.max(axis=0) + 1)
        for kind, (first, last) in drawn.items():
            a, b = first.tolist(), last.tolist()
            box = Box((a[0], a[1], a[2]), (b[0], b[1], b[2]))
            session = engine.begin(prepared[id(volume)])
            session.add([box])
            filled = np.zeros(target.shape, np.uint8)
            filled[box.slices] = 1
            found.setdefault(kind, []).append((dice(session.mask, target), dice(filled, target)))
    means = {kind: np.mean(values, axis=0) for kind, values in found.items()}
    return f"{name}: boxes " + ", ".join(f"{kind} {answer:.3f} (filled {filled:.3f})" for kind, (answer, filled) in means.items())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="example_ct_sm,example_ct,example_mr_sm,sam_med2d,brain1,breast1", help=f"of {', '.join(SETS)}")
    parser.add_argument("--peers", action="store_true", help="also what public peers make of the same clicks (slow)")
    parser.add_argument("--peer-voxels", type=int, default=120_000, help="the peers get the targets with at most so many voxels in a box around")
    parser.add_argument("--speed", action="store_true", help="also volumes of 256 x 256 x 128 and 512 x 512 x 300 voxels")
    parser.add_argument("--boxes", action="store_true", help="also what boxes around the targets give by themselves")
    parser.add_argument("--save-json", type=Path)
    options = parser.parse_args()
    engine = Geodesic()
    began = time.perf_counter()
    engine.load(ModelContext())
    print(f"kernels ready after {time.perf_counter() - began:.1f} s\n{HEADER}")
    results = []
    if DATA.is_dir():
        for name in options.sets.split(","):
            cases = SETS[name]()
            result, clicks = play(engine, cases, name)
            results.append(result)
            print(result.row(), flush=True)
            if options.boxes:
                print(boxes(engine, cases, name), flush=True)
            if options.peers:
                names = feasible(cases, options.peer_voxels)
                results.append(on_these(result, names))
                print(results[-1].row(), flush=True)
                for method in PEERS:
                    results.append(peer(method, cases, name, clicks, names))
                    print(results[-1].row(), flush=True)
    else:
        print("no real scans: ISOCENTER_TEST_DATA is absent")
    if options.speed:
        for name, shape, spacing in (("256x256x128", (128, 256, 256), 1.5), ("512x512x300", (300, 512, 512), 0.8)):
            result, _ = play(engine, [synthetic(shape, spacing)], name)
            results.append(result)
            print(result.row(), flush=True)
    if options.save_json:
        options.save_json.write_text(json.dumps([asdict(r) for r in results], indent=1))


if __name__ == "__main__":
    main()
