"""The liver: the thickest homogeneous organ on the right, under the ribs, grown from its deepest point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isocenter.models._tissue import shapes
from isocenter.models._tissue.grid import Field, Mask

if TYPE_CHECKING:
    from isocenter.models._tissue.scene import Scene

#: Anything less deep than this (mm from its deepest point to its surface) is no liver, or a scrap of one.
LEAST_DEPTH = 20.0
#: HU of its smoothed tissue at the least; a fattier one is not told from what lies around.
LEAST_HU = 15.0
#: HU within which its smoothed voxels lie, at the least; more in a noisy scan.
SPREAD_HU = 18.0
#: Parts that hang on the liver by less than twice this (mm) are taken off: heart, stomach, muscle, kidney.
NECK_MM = 8.0
#: The organ's own value is followed from place to place over this distance, in this many rounds.
DRIFT_MM, ROUNDS = 15.0, 2
#: As `NECK_MM`, in front of the column, where cava and aorta run for the whole length of the trunk.
VESSEL_MM = 14.0


@dataclass(frozen=True, eq=False)
class Organ:
    """An organ found: its mask, the middle of its values in HU, and how sure it is (0..1)."""

    mask: Mask
    hu: float
    presence: float


def soft_tissue(scene: Scene) -> tuple[Mask, Field]:
    """Soft tissue, and its values smoothed by 3 mm among themselves, so that fat and lung do not bleed in."""
    soft = scene.body & (scene.hu > -10) & (scene.hu < 250) & ~scene.bone & ~scene.lungs & ~scene.aerated
    weight = shapes.smooth(soft, 3.0, scene.spacing)
    values = shapes.smooth(np.where(soft, scene.hu, 0), 3.0, scene.spacing) / np.maximum(weight, 1e-3)
    return soft, np.asarray(values, np.float32)


def liver(scene: Scene) -> Organ:
    """The liver with its vessels and lesions; an empty mask where none is in the scan."""
    missing = Organ(np.zeros(scene.hu.shape, bool), 0.0, 0.02)
    if scene.spine is None or (scene.plane != 0 and not scene.flat):
        return missing
    soft, values = scene.soft
    zone = soft & (values > LEAST_HU)
    seed, reach = _deepest(scene, zone, _place(scene, scene.spine[0]))
    if reach < LEAST_DEPTH:
        return missing
    ball = zone & _ball(scene, seed, 0.6 * reach)
    middle = float(np.median(values[ball]))
    spread = max(SPREAD_HU, 2 * 1.4826 * float(np.median(np.abs(values[ball] - middle))))
    core, local = ball, np.full(values.shape, middle, np.float32)
    for _ in range(ROUNDS):
        core = _grown(scene, local, spread, ball)
        if not core.any():
            return missing
        local = _drift(scene, values, core)
    whole = shapes.dilate(core, NECK_MM + 2, scene.spacing) & soft & (values > local - 1.6 * spread)
    whole = shapes.closed(whole, 6.0, scene.spacing) & scene.body & (scene.hu > -50) & ~scene.bone
    presence = _presence(scene, whole, reach)
    return Organ(whole, middle, presence) if presence > 0.1 else missing


def _place(scene: Scene, spine_y: float) -> Mask:
    """Where its deepest point may lie: right of the column, in front of the back, under the diaphragm."""
    place = (scene.working.axis(1) < spine_y + 30)[:, None] & (scene.working.axis(2) < scene.midline - 10)[None, :]
    return place[None] & scene.trunk[:, None, None] & ~_over_lung(scene)


def _deepest(scene: Scene, zone: Mask, place: Mask) -> tuple[tuple[int, int, int], float]:
    """The voxel of `place` that lies deepest in `zone`, and how deep in mm; on every second voxel, that is near enough."""
    step, thin = _every_second(zone)
    spacing = (scene.spacing[0] * step[0], scene.spacing[1] * step[1], scene.spacing[2] * step[2])
    deep = shapes.depth(zone[thin], spacing, 60.0) * place[thin]
    z, y, x = (int(i) for i in np.unravel_index(int(np.argmax(deep)), deep.shape))
    return (z * step[0], y * step[1], x * step[2]), float(deep[z, y, x])


def _every_second(array: Mask) -> tuple[tuple[int, int, int], tuple[slice, slice, slice]]:
    """Steps and slices to every second voxel along each axis that has more than one."""
    z, y, x = (min(2, n) for n in array.shape)
    return (z, y, x), (slice(None, None, z), slice(None, None, y), slice(None, None, x))


def _over_lung(scene: Scene) -> Mask:
    """Places with lung beneath them: in the chest or the shoulder, not under the diaphragm."""
    return np.logical_or.accumulate(scene.lungs, axis=0)


def _grown(scene: Scene, local: Field, spread: float, ball: Mask) -> Mask:
    """What hangs together broadly with the ball, of values within `spread` of the `local` ones."""
    soft, values = scene.soft
    alike = soft & (np.abs(values - local) < spread)
    alike |= _enclosed(scene, soft, alike)
    alike &= ~_above_the_dome(scene, alike)
    labels, sizes = shapes.components(shapes.depth(alike, scene.spacing, VESSEL_MM + 0.1) > _necks(scene))
    votes = np.bincount(labels[ball], minlength=len(sizes))
    votes[0] = 0
    return labels == int(np.argmax(votes)) if votes.any() else np.zeros_like(soft)


def _drift(scene: Scene, values: Field, core: Mask) -> Field:
    """The organ's value in each place: arms beside the trunk darken what lies between them by tens of HU."""
    step, thin = _every_second(core)
    spacing = (scene.spacing[0] * step[0], scene.spacing[1] * step[1], scene.spacing[2] * step[2])
    weight = shapes.smooth(core[thin], DRIFT_MM, spacing)
    mean = shapes.smooth(np.where(core, values, 0)[thin], DRIFT_MM, spacing)
    local = np.where(weight > 1e-4, mean / np.maximum(weight, 1e-4), values[core].mean()).astype(np.float32)
    for axis, n in enumerate(core.shape):
        local = np.take(np.repeat(local, step[axis], axis), range(n), axis)
    return local


def _necks(scene: Scene) -> Field:
    """How deep (mm) a voxel must lie to hold two parts together: more where the great vessels run."""
    y, x = scene.working.axis(1), scene.working.axis(2)
    front = scene.spine[0] - 35 if scene.spine else 0.0
    vessels = (np.abs(y - front) < 40)[:, None] & (np.abs(x - scene.midline) < 35)[None, :]
    return np.where(vessels, VESSEL_MM, NECK_MM).astype(np.float32)[None]


def _above_the_dome(scene: Scene, alike: Mask) -> Mask:
    """What lies higher than the dome of the right diaphragm: the heart, which nothing else parts from the liver.

    The dome is where the right lung ends downwards on `alike`, sideways of the heart.
    """
    x = scene.working.axis(2) - scene.midline
    lung = scene.lung_right & (x < -40)[None, None, :]
    high = np.zeros_like(alike)
    if not lung.any():
        return high
    bottom = np.argmax(lung, axis=0)
    gap = max(1, round(9 / scene.spacing[0]))
    below = np.take_along_axis(alike, np.maximum(bottom - gap, 0)[None], axis=0)[0]
    rests = lung.any(axis=0) & (bottom > gap) & below
    if rests.any():
        top = round(float(np.percentile(bottom[rests], 98)) + 6 / scene.spacing[0])
        high[top:] = True
    return high


def _ball(scene: Scene, centre: tuple[int, int, int], radius: float) -> Mask:
    """Voxels within `radius` mm of one."""
    squares = [((scene.working.axis(i) - scene.working.axis(i)[c]) / radius) ** 2 for i, c in enumerate(centre)]
    return np.asarray(squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :] < 1)


def _enclosed(scene: Scene, soft: Mask, alike: Mask) -> Mask:
    """Vessels and lesions: soft tissue of other values that is shut in by `alike`, up to 30 ml each."""
    labels, sizes = shapes.components(~alike)
    return soft & shapes.chosen(labels, np.flatnonzero(sizes * scene.working.voxel_ml < 30))


def _presence(scene: Scene, mask: Mask, reach: float) -> float:
    """How much this is like a liver: large, deep, and lower than the right lung; one slice alone is never sure."""
    deep = min(1.0, reach / (1.5 * LEAST_DEPTH))
    if scene.flat:
        area_cm2 = float(mask.sum()) * scene.spacing[1] * scene.spacing[2] / 100
        return round(0.6 * min(1.0, area_cm2 / 60) * deep, 3)
    height = [float(np.average(np.arange(len(m)), weights=m.sum(axis=(1, 2)))) if m.any() else None for m in (mask, scene.lung_right)]
    if height[0] is None or (height[1] is not None and height[0] > height[1]):
        return 0.02
    return round(0.98 * min(1.0, float(mask.sum()) * scene.working.voxel_ml / 300) * deep, 3)
