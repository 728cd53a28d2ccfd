"""What each prompt's structure is on a scene: one function per structure, each giving a `Place`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from isocenter.models._tissue import shapes
from isocenter.models._tissue.answer import Place, Ramp, nowhere
from isocenter.models._tissue.grid import Field, Mask, field
from isocenter.models._tissue.liver import Organ
from isocenter.models._tissue.scene import SKIN_HU, Scene

#: Half-way between lung and soft tissue.
LUNG = Ramp(-2000, -425, 300)
GAS = Ramp(-5000, -500, 400)
#: Lower, since a bronchus has lung on all sides of its thin wall.
LUMEN = Ramp(-5000, -600, 400)
FAT = Ramp(-190, -30, 40)
FLESH = Ramp(-29, 150, 40)
BONE = Ramp(200, 1e5, 120)


def _near(scene: Scene, mask: Mask, voxels: float = 1.0) -> Field:
    """The mask and what lies within some voxels of it."""
    return field(shapes.dilate(mask, voxels * scene.voxel + 0.01, scene.spacing))


def _sure(amount_ml: float, half_ml: float) -> float:
    """Presence from the amount found: ½ at `half_ml`, towards 1 above."""
    return round(float(amount_ml / (amount_ml + half_ml)) * 0.98 + 0.01, 3) if amount_ml > 0 else 0.02


def _amount(scene: Scene, mask: Mask) -> float:
    return float(mask.sum()) * scene.working.voxel_ml


def body(scene: Scene) -> Place:
    """The patient, cavities included, without the table."""
    mask = scene.body
    inside = shapes.erode(mask, 1.6 * scene.voxel, scene.spacing)
    return Place(_near(scene, mask), Ramp(scene.skin_hu, 1e5, 300 if scene.skin_hu == SKIN_HU else 20), field(inside), _sure(_amount(scene, mask), 1))


def _lung(scene: Scene, mask: Mask, others: Mask) -> Place:
    """`mask` is lung; `others` is aerated too, but belongs to something else."""
    millilitres = _amount(scene, mask)
    if not mask.any():
        return nowhere(mask.shape, 0.02)
    # Vessels and fissures are lung; closing must not bridge over to what is not.
    filled = shapes.closed(mask, 6.0, scene.spacing) & ~others & scene.body
    inside = shapes.erode(filled, 1.2 * scene.voxel, scene.spacing)
    where = _near(scene, mask) * ~others
    return Place(where, LUNG, field(inside), _sure(millilitres, 0.2 if scene.flat else 4))


def lungs(scene: Scene) -> Place:
    """Both lungs."""
    return _lung(scene, scene.lungs, shapes.dilate(scene.gas, 1.1 * scene.voxel, scene.spacing) & ~scene.lungs)


def _side(scene: Scene, left: bool) -> Place:
    mine, other = (scene.lung_left, scene.lung_right) if left else (scene.lung_right, scene.lung_left)
    gas = shapes.dilate(scene.gas, 1.1 * scene.voxel, scene.spacing) & ~scene.lungs
    return _lung(scene, mine, gas | other)


def lung_left(scene: Scene) -> Place:
    """The patient's left lung."""
    return _side(scene, True)


def lung_right(scene: Scene) -> Place:
    """The patient's right lung."""
    return _side(scene, False)


def airways(scene: Scene) -> Place:
    """Trachea and main bronchi: their lumen."""
    mask = scene.airways
    if not mask.any():
        return nowhere(mask.shape)
    return Place(_near(scene, mask) * ~scene.lungs, LUMEN, None, _sure(_amount(scene, mask), 2))


def air(scene: Scene) -> Place:
    """Gas inside the body: airways, stomach, bowel, sinuses; not lung tissue, not the air around."""
    mask = scene.aerated & ~scene.lungs
    return Place(_near(scene, mask) * (scene.body & ~scene.lungs), GAS, None, _sure(_amount(scene, scene.gas), 1))


def bone(scene: Scene) -> Place:
    """Compact bone and marrow."""
    mask = scene.bone
    inside = shapes.erode(mask, 0.9 * scene.voxel, scene.spacing)
    return Place(_near(scene, mask, 1.5) * scene.body, BONE, field(inside), _sure(_amount(scene, mask), 1))


def fat(scene: Scene) -> Place:
    """Adipose tissue, under the skin and within."""
    mask = scene.body & (scene.hu > -200) & (scene.hu < -20)
    where = scene.body & ~shapes.dilate(scene.aerated, 0.8 * scene.voxel, scene.spacing) & ~shapes.erode(scene.bone, 0.9 * scene.voxel, scene.spacing)
    return Place(field(where), FAT, None, _sure(_amount(scene, mask & where), 1))


def muscle(scene: Scene) -> Place:
    """Muscle of the trunk's wall, back and limbs."""
    mask = scene.muscle
    return Place(field(mask), FLESH, None, _sure(_amount(scene, mask & (scene.hu > -29) & (scene.hu < 150)), 5))


def _organ(scene: Scene, organ: Organ) -> Place:
    """A solid organ: inside of a smoothed border whatever the value, at the border where the value is soft tissue's."""
    if not organ.mask.any():
        return nowhere(organ.mask.shape, organ.presence)
    smooth = shapes.smooth(organ.mask, 0.7 * scene.voxel, scene.spacing)
    inside = shapes.erode(organ.mask, 1.6 * scene.voxel, scene.spacing)
    # Half-way to fat on the one side, to bone on the other; vessels and calcifications within count as inside.
    ramp = Ramp((organ.hu - 100) / 2, max(250.0, organ.hu + 120), 60)
    return Place(np.clip(smooth, 0, 1), ramp, field(inside), organ.presence)


def liver(scene: Scene) -> Place:
    """The liver with its vessels and lesions."""
    return _organ(scene, scene.liver)


PLACES: dict[str, Callable[[Scene], Place]] = {
    "body": body,
    "lungs": lungs,
    "lung_left": lung_left,
    "lung_right": lung_right,
    "airways": airways,
    "bone": bone,
    "fat": fat,
    "muscle": muscle,
    "air": air,
    "liver": liver,
}
