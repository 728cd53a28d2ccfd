"""Lesion change between two visits against an expert's mask, on `open_ms`: `python -m benchmarks.changes`.

One patient, FLAIR, 203 days apart, different grids. Scans are registered by `register`; the brain's mask is the data's own.
Thresholding the difference image is given the threshold that suits this mask best, which nobody knows beforehand.
"""

from __future__ import annotations

import time
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
    for name, image in (
        ("difference image, its best threshold", raw),
        ("the same smoothed by 0.8 mm", ndimage.gaussian_filter(raw, 0.8 / np.array(later.spacing_zyx))),
    ):
        tries = [(on(np.abs(image) > t, later, expert, back), t) for t in range(20, 180, 10)]
        best, level = max(tries, key=lambda pair: 2 * int((pair[0] & truth).sum()) / int(pair[0].sum() + truth.sum()))
        print(row(f"{name} ({level})", best, truth))
    usual = float(raw[region].std() * 3)
    print(row("difference image, 3 sd", on(np.abs(raw) > usual, later, expert, back), truth))


def _plain(earlier: Volume, later: Volume, matrix: NDArray[np.float64], region: Mask) -> NDArray[np.float64]:
    """Later minus earlier, medians made equal; nothing else."""
    to = np.linalg.inv(earlier.grid.affine_lps) @ np.linalg.inv(matrix) @ later.grid.affine_lps
    moved = ndimage.affine_transform(earlier.array.astype(np.float64), to[:3, :3][::-1, ::-1], to[:3, 3][::-1], output_shape=later.shape, order=1)
    now = later.array.astype(np.float64)
    return np.where(region, now * (np.median(moved[region]) / np.median(now[region])) - moved, 0)


if __name__ == "__main__":
    main()
