"""The flesh of the body's wall and limbs: where soft tissue is muscle and not an organ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isocenter.models._tissue import shapes
from isocenter.models._tissue.grid import Mask

if TYPE_CHECKING:
    from isocenter.models._tissue.scene import Scene

#: Thickness in mm of the belly's wall inside of the fat under the skin.
WALL_MM = 15.0
#: Gaps in the wall up to twice this wide (mm) do not let the fat under the skin run into the belly; the flesh's own are
#: closed up to twice `CLOSE_MM`.
GAP_MM, CLOSE_MM = 9.0, 12.0
#: Half the width in mm of the vertebral column with its processes; bones nearer to the midline bound no cavity.
COLUMN_MM = 45.0
#: Ribs bound the cavity also between them: they are stretched by this along the patient's axis (mm, either way).
RIB_GAP_MM = 12.0


def muscles(scene: Scene) -> Mask:
    """Soft tissue of the body outside of the cavities of chest, belly and pelvis, and the psoas within."""
    soft = scene.body & (scene.hu > -40) & (scene.hu < 170) & ~shapes.erode(scene.bone, 0.9 * scene.voxel, scene.spacing)
    wet = scene.lungs | shapes.dilate(scene.gas, 2 * scene.voxel, scene.spacing) | scene.liver.mask
    return soft & scene.flesh & (~scene.cavity | _psoas(scene)) & ~wet


def flesh(scene: Scene) -> Mask:
    """The body without skin and without the fat under it: fat that hangs together with the skin within a slice.

    Within a slice, because the belly's fat reaches that under the skin somewhere (groin, navel) in every volume.
    """
    soft = scene.body & (scene.hu > -40) & (scene.hu < 170)
    fat = scene.body & (scene.hu > -200) & (scene.hu < -40)
    skin = scene.body & ~shapes.erode(scene.body, 8.0, scene.spacing)
    wide = shapes.opened(fat, GAP_MM, scene.spacing) & ~shapes.dilate(soft, 0.5 * scene.voxel, scene.spacing)
    under_skin = shapes.touching(shapes.sheets(wide | (fat & skin), scene.plane), skin & fat)
    return shapes.closed(scene.body & ~shapes.dilate(under_skin | skin, 1.1 * scene.voxel, scene.spacing), CLOSE_MM, scene.spacing)


def cavity(scene: Scene) -> Mask:
    """Where organs lie: inside of ribs and pelvis, inside of the belly's wall, in front of the back."""
    if scene.spine is None or scene.plane != 0:
        return np.zeros(scene.hu.shape, bool)
    y, x = scene.working.axis(1), scene.working.axis(2)
    middle = int(np.argmin(np.abs(x - scene.midline)))
    cage = _stretched(scene, scene.bone & (np.abs(x - scene.midline) > COLUMN_MM)[None, None, :])
    # Seen from the midline, what lies behind a rib or the pelvis is wall; the same seen from the front.
    behind: Mask = np.zeros(scene.hu.shape, bool)
    behind[:, :, middle:] = np.logical_or.accumulate(cage[:, :, middle:], axis=2)
    behind[:, :, :middle] = np.logical_or.accumulate(cage[:, :, :middle][:, :, ::-1], axis=2)[:, :, ::-1]
    front = int(np.argmin(np.abs(y - scene.spine[0] + 40)))
    behind[:, front:] |= np.logical_or.accumulate(cage[:, front:], axis=1)
    # Where no rib says how far the cavity reaches back (loins, column), the column does.
    ribbed = np.any(cage[:, front:], axis=1)
    back = (y > scene.spine[0] + 20)[None, :, None] & ~np.expand_dims(ribbed, 1)
    deep = shapes.depth(scene.flesh, scene.spacing, WALL_MM + 0.1) > WALL_MM
    organs: Mask = deep & scene.trunk[:, None, None] & ~behind & ~back
    return organs


def _stretched(scene: Scene, bone: Mask) -> Mask:
    from scipy import ndimage

    reach = 2 * round(RIB_GAP_MM / scene.spacing[0]) + 1
    return np.asarray(ndimage.maximum_filter1d(bone.view(np.uint8), reach, axis=0), bool)


def _psoas(scene: Scene) -> Mask:
    """Beside the lumbar column; the same place higher up holds lung, aorta and crura."""
    place = np.zeros(scene.hu.shape, bool)
    if scene.spine is None or scene.flat:
        return place
    y, x = scene.working.axis(1), scene.working.axis(2)
    used = np.flatnonzero(scene.lungs.any(axis=(1, 2)))
    top = int(used[0]) if len(used) else 0
    beside = ((y > scene.spine[0] - 15) & (y < scene.spine[0] + 30))[:, None] & (np.abs(x - scene.midline) < 50)[None, :]
    place[:top] = beside
    return place
