"""`phantom`: a synthetic CT of a torso in Hounsfield units, with the exact truth of every structure in it.

The anatomy is a list of `Part`s: implicit functions of the patient's millimetres (x to the left, y to the back, z to the
head; z = 0 is the top of the right half of the diaphragm), painted one over the other. An implicit function gives the
signed distance to a surface, negative inside, exact or to first order. A voxel takes part of each value in proportion to
how far it lies inside (partial volume); the truth is where the distance at the voxel's centre is negative. Sizes follow
an average adult; values follow a portal venous phase scan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.core._torso import CODE, LESIONS, NAMES, Array, Lesion, Part, anatomy
from isocenter.core.geometry import Grid, Triple, axes_towards, reorient
from isocenter.core.volume import Volume

__all__ = ["LESIONS", "Lesion", "Phantom", "phantom", "turned"]

#: Length in mm that the default spacing spreads over the shape's x, y and z.
FIELD = (384.0, 384.0, 384.0)
#: Millimetres of the anatomy that lie in the middle of the field.
CENTRE = (0.0, 14.0, -8.0)
#: Slices that are painted at once; bounds the memory beside the result to some tens of MB.
SLAB = 16

#: Masks that join several of the names above.
UNIONS: dict[str, tuple[str, ...]] = {
    "body": tuple(n for n in NAMES if n not in ("outside", "table")),
    "lungs": ("lung_left", "lung_right"),
    "kidneys": ("kidney_left", "kidney_right"),
    "bone": ("spine", "ribs", "sternum"),
}


@dataclass(frozen=True, eq=False)
class Phantom:
    """volume: the CT. masks: name -> (z, y, x) truth on the volume's grid. lesions: those painted."""

    volume: Volume
    masks: dict[str, NDArray[np.bool_]]
    lesions: tuple[Lesion, ...] = LESIONS


def phantom(
    shape: tuple[int, int, int] = (96, 128, 128),
    spacing: Triple | None = None,
    *,
    seed: int = 0,
    noise_hu: float = 12.0,
    lesions: Sequence[Lesion] = LESIONS,
    shift_mm: Triple = (0.0, 0.0, 0.0),
    scale: float = 1.0,
    table: bool = True,
    orientation: str = "LPS",
) -> Phantom:
    """A torso CT (int16 HU) and its truth.

    shape (z, y, x) and spacing (x, y, z; mm) are those of the patient's axes; without a spacing the field covers `FIELD`.
    seed: noise and lung vessels. noise_hu: standard deviation. lesions: at most two of them have masks of their own
    (`lesion_1`, `lesion_2`); all belong to the liver's mask. shift_mm: moves the patient in the field. scale: the patient's
    size. table: paints the patient table. orientation: where the array's x, y, z point, e.g. "RAS"; the same patient in any.
    The same arguments always give the same voxels.
    """
    step = spacing or tuple(f / n for f, n in zip(FIELD, reversed(shape), strict=True))
    step = (float(step[0]), float(step[1]), float(step[2]))
    corner = [-(n - 1) / 2 * s for n, s in zip(reversed(shape), step, strict=True)]
    origin = (corner[0], corner[1], corner[2])
    axes = [((corner[i] + step[i] * np.arange(n) - shift_mm[i]) / scale + CENTRE[i]).astype(np.float32) for i, n in enumerate(reversed(shape))]
    parts = anatomy(tuple(lesions), seed, table)
    hu = np.empty(shape, np.int16)
    truth = np.empty(shape, np.uint8)
    rng = np.random.default_rng(seed)
    blur = float(np.mean(step)) / scale
    for start in range(0, shape[0], SLAB):
        rows = slice(start, start + SLAB)
        values, truth[rows] = _paint(parts, axes[0], axes[1], axes[2][rows], blur)
        values += _noise(rng, values.shape, noise_hu)
        hu[rows] = np.clip(np.rint(values), -1024, 3071)
    grid = Grid(shape, step, origin)
    hu = np.ascontiguousarray(reorient(hu, grid, orientation), dtype=np.int16)
    truth = np.ascontiguousarray(reorient(truth, grid, orientation), dtype=np.uint8)
    masks = {name: truth == code for name, code in CODE.items() if name not in ("outside", "table", "soft", "sternum")}
    masks |= {name: np.isin(truth, [CODE[n] for n in names]) for name, names in UNIONS.items()}
    masks["liver"] = masks["liver"] | masks["lesion_1"] | masks["lesion_2"]
    return Phantom(Volume.on_grid(hu, turned(grid, orientation), modality="CT", unit="HU"), masks, tuple(lesions))


def turned(grid: Grid, orientation: str) -> Grid:
    """The grid of an array of `grid` after `reorient(array, grid, orientation)`: the same patient along other axes."""
    axes, flips = axes_towards(grid, orientation)
    shape = [grid.shape[a] for a in axes]
    affine = np.eye(4)
    affine[:3, 3] = grid.origin
    for row, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        column = grid.affine_lps[:3, 2 - axis]
        affine[:3, 2 - row] = -column if flip else column
        affine[:3, 3] += column * (shape[row] - 1) if flip else 0.0
    return Grid.from_affine_lps(affine, shape)


def _paint(parts: Sequence[Part], x: Array, y: Array, z: Array, blur: float) -> tuple[Array, NDArray[np.uint8]]:
    """Values (HU) and codes of one slab; x, y, z are the axes' positions in mm, `blur` the width of partial volume."""
    values = np.full((len(z), len(y), len(x)), -1000.0, np.float32)
    codes = np.zeros(values.shape, np.uint8)
    for part in parts:
        box = []
        for axis, lo, hi in zip((z, y, x), reversed(part.lo), reversed(part.hi), strict=True):
            first, last = np.searchsorted(axis, (lo - blur, hi + blur))
            box.append(slice(int(first), int(last)))
        where = (box[0], box[1], box[2])
        if any(s.stop <= s.start for s in where):
            continue
        gx, gy, gz = x[None, None, where[2]], y[None, where[1], None], z[where[0], None, None]
        distance = part.distance(gx, gy, gz)
        share = np.clip(0.5 - distance / np.float32(blur), 0, 1)
        target = part.hu(gx, gy, gz) if callable(part.hu) else np.float32(part.hu)
        values[where] += share * (target - values[where])
        if part.code is not None:
            codes[where][np.broadcast_to(distance < 0, codes[where].shape)] = part.code
    return values, codes


def _noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Array:
    """Noise with the fine in-plane correlation of a reconstruction kernel; slice by slice, so slabs do not show."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise += 0.5 * (np.roll(noise, 1, axis=1) + np.roll(noise, 1, axis=2))
    return noise * np.float32(sigma / math.sqrt(1.5))
