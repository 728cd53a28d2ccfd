"""Lesion change between two visits against an expert's mask, on `open_ms`: `python -m benchmarks.changes`.

One patient, FLAIR, 203 days apart, different grids. Scans are registered by `register`; the brain's mask is the data's own.
Thresholding the difference image is given the threshold that suits this mask best, which nobody knows beforehand.

There is no second patient. So that settings are not scored on what chose them, every region of the expert's is left out once: the
space is cut into what lies nearest to each, settings are chosen on all cells but one and scored on that one, for both methods.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.accuracy import DATA
from isocenter.analysis.tracking.change import changes
from isocenter.analysis.tracking.register import Freedom, register
from isocenter.core.settings import Limits
from isocenter.core.volume import Volume
from isocenter.followup.changes import compare
from isocenter.io import door

Mask = NDArray[np.bool_]
FOLDER = DATA / "open_ms" / "longitudinal"


def scan(path: str) -> Volume:
    """One of the patient's files."""
    return door.read_path(FOLDER / path, limits=Limits(), modality="MR")


def to_common(path: Path) -> NDArray[np.float64]:
    """The data's own 4 x 4 from the common space to a raw scan, LPS mm (ITK's transform about a centre)."""
    lines = path.read_text().splitlines()
    values, centre = (np.array([float(v) for v in lines[k].split()[1:]]) for k in (3, 4))
    matrix = np.eye(4)
    matrix[:3, :3] = values[:9].reshape(3, 3)
    matrix[:3, 3] = values[9:] + centre - matrix[:3, :3] @ centre
    return matrix


def on(mask: NDArray[np.generic], source: Volume, target: Volume, matrix: NDArray[np.float64]) -> Mask:
    """A mask on another grid, nearest voxel. matrix: LPS mm of the target to those of the source."""
    to = np.linalg.inv(source.grid.affine_lps) @ matrix @ target.grid.affine_lps
    return np.asarray(
        ndimage.affine_transform(mask.astype(np.float32), to[:3, :3][::-1, ::-1], to[:3, 3][::-1], output_shape=target.shape, order=0) > 0.5
    )


def row(name: str, found: Mask, truth: Mask) -> str:
    """One line of the table."""
    labels, count = ndimage.label(truth, np.ones((3, 3, 3)))
    regions, many = ndimage.label(found, np.ones((3, 3, 3)))
    hit = sum(bool(truth[regions == k].any()) for k in range(1, many + 1)) if many < 400 else len(set(np.unique(regions[truth])) - {0})
    both = int((found & truth).sum())
    seen = len(set(np.unique(labels[found])) - {0})
    figures = (2 * both / (found.sum() + truth.sum()), both / truth.sum(), both / max(int(found.sum()), 1))
    return f"| {name} | {' | '.join(f'{f:.3f}' for f in figures)} | {seen} of {count} | {many - hit} |"


def main() -> None:
    """Print the table."""
    visits = [scan(f"raw/patient01/study{k}_FLAIR.nii.gz") for k in (1, 2)]
    expert, brain = scan("raw/patient01/gt.nii.gz"), scan("coregistered/patient01/brainmask.nii.gz")
    theirs = [to_common(FOLDER / f"raw/patient01/study{k}_FLAIR_to_common_space.txt") for k in (1, 2)]
    earlier, later = visits
    began = time.process_time()
    found = register(later, earlier, freedom=Freedom.RIGID)
    aligned = time.process_time()
    # The data's common space to the later scan: its masks are taken there, and what is found is taken back.
    region = on(brain.array != 0, brain, later, np.asarray(np.linalg.inv(theirs[1]), dtype=np.float64))
    change = changes(later, earlier, found.matrix, region)
    ended = time.process_time()
    corners = np.stack(np.meshgrid((-60, 0, 60), (-45, 15, 75), (-60, -10, 40)), -1).reshape(-1, 3).astype(float)
    known = theirs[1] @ np.linalg.inv(theirs[0])
    apart = np.linalg.norm(corners @ (known - found.matrix)[:3, :3].T + (known - found.matrix)[:3, 3], axis=1).mean()
    print(f"registration: {apart:.2f} mm from the data's own over the head; {aligned - began:.1f} s, changes {ended - aligned:.1f} s of a core\n")
    truth = expert.array != 0
    back = theirs[1]
    print("| method | Dice | recall | precision | of the expert's regions | regions beside |\n|---|---|---|---|---|---|")
    print(row("changes", on(change.both, later, expert, back), truth))
    print(row("changes, bright=False", on(changes(later, earlier, found.matrix, region, bright=False).both, later, expert, back), truth))
    whole = compare(earlier, later)
    print(row("`isocenter changes` without a region", on(whole.result.mask != 0, later, expert, back), truth))
    raw = np.nan_to_num(_plain(earlier, later, found.matrix, region))
    images = (("difference image", raw), ("the same smoothed by 0.8 mm", ndimage.gaussian_filter(raw, 0.8 / np.array(later.spacing_zyx))))
    for name, image in images:
        tries = [(on(np.abs(image) > t, later, expert, back), t) for t in range(20, 180, 10)]
        best, level = max(tries, key=lambda pair: 2 * int((pair[0] & truth).sum()) / int(pair[0].sum() + truth.sum()))
        print(row(f"{name}, its best threshold ({level})", best, truth))
    usual = float(raw[region].std() * 3)
    print(row("difference image, 3 sd", on(np.abs(raw) > usual, later, expert, back), truth))
    print("\nEach region scored by settings that were chosen without it:\n")
    print("| method | Dice | recall | precision | settings chosen |\n|---|---|---|---|---|")
    cell = cells(truth)
    tried = {
        f"{seed:g}/{spread:g}/{bright:g}": counts(
            on(changes(later, earlier, found.matrix, region, seed_sd=seed, spread_sd=spread, bright_sd=bright).both, later, expert, back), truth, cell
        )
        for seed in (4, 5, 6, 8, 10, 12)
        for spread in (3, 4, 5, 6)
        for bright in (1.0, 1.5, 2.0)
        if spread <= seed
    }
    print(left_out("changes (seed/spread/bright sd)", tried))
    for name, image in images:
        print(left_out(name, {f"{t}": counts(on(np.abs(image) > t, later, expert, back), truth, cell) for t in range(20, 180, 10)}))


def cells(truth: Mask) -> NDArray[np.int64]:
    """By voxel, the number (from 0) of the region of `truth` that lies nearest."""
    labels, _ = ndimage.label(truth, np.ones((3, 3, 3)))
    nearest = ndimage.distance_transform_edt(~truth, return_distances=False, return_indices=True)
    return np.asarray(labels[tuple(nearest)] - 1, dtype=np.int64)


def counts(found: Mask, truth: Mask, cell: NDArray[np.int64]) -> NDArray[np.int64]:
    """(cells, 3): voxels of both, found, and truth in each cell."""
    return np.stack([np.bincount(cell[m], minlength=int(cell.max()) + 1) for m in (found & truth, found, truth)], axis=1)


def left_out(name: str, tried: dict[str, NDArray[np.int64]]) -> str:
    """One line: each cell by the settings that were best (Dice) on all others. tried: `counts` by settings."""
    rows = next(iter(tried.values())).shape[0]
    total = np.zeros(3, np.int64)
    chosen: Counter[str] = Counter()
    for k in range(rows):
        best = max(tried, key=lambda s: _dice(tried[s].sum(axis=0) - tried[s][k]))
        chosen[best] += 1
        total += tried[best][k]
    what = ", ".join(f"{s} ({n})" for s, n in chosen.most_common())
    return f"| {name} | {_dice(total):.3f} | {total[0] / total[2]:.3f} | {total[0] / max(total[1], 1):.3f} | {what} |"


def _dice(sums: NDArray[np.int64]) -> float:
    return float(2 * sums[0] / max(sums[1] + sums[2], 1))


def _plain(earlier: Volume, later: Volume, matrix: NDArray[np.float64], region: Mask) -> NDArray[np.float64]:
    """Later minus earlier, medians made equal; nothing else."""
    to = np.linalg.inv(earlier.grid.affine_lps) @ np.linalg.inv(matrix) @ later.grid.affine_lps
    moved = ndimage.affine_transform(earlier.array.astype(np.float64), to[:3, :3][::-1, ::-1], to[:3, 3][::-1], output_shape=later.shape, order=1)
    now = later.array.astype(np.float64)
    return np.where(region, now * (np.median(moved[region]) / np.median(now[region])) - moved, 0)


if __name__ == "__main__":
    main()
