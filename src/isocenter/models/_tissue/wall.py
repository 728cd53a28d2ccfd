"""The flesh of the body's wall: where soft tissue is muscle and not an organ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isocenter.models._tissue import shapes
from isocenter.models._tissue.grid import Mask

if TYPE_CHECKING:
    from isocenter.models._tissue.scene import Scene

#: Thickness in mm of the wall of chest and belly inside of the fat under the skin.
WALL_MM = 18.0


def muscles(scene: Scene) -> Mask:
    """Soft tissue near the surface of the flesh, and all of it behind the front of the spine."""
    soft = scene.body & (scene.hu > -40) & (scene.hu < 170) & ~shapes.erode(scene.bone, 0.9 * scene.voxel, scene.spacing)
    fat = scene.body & (scene.hu > -200) & (scene.hu < -40)
    # Fat under the skin is fat that hangs together with the skin; a closed wall keeps the belly's fat apart.
    skin = scene.body & ~shapes.erode(scene.body, 8.0, scene.spacing)
    labels, _ = shapes.components(fat & ~shapes.dilate(soft, 0.5 * scene.voxel, scene.spacing))
    under_skin = shapes.touching(labels, skin & fat) & fat
    flesh = shapes.closed(scene.body & ~shapes.dilate(under_skin | skin, 1.1 * scene.voxel, scene.spacing), 6.0, scene.spacing)
    deep = shapes.depth(flesh, scene.spacing, WALL_MM + 0.1) > WALL_MM
    cavity = np.zeros_like(deep)
    if scene.spine is not None:
        y = scene.working.axis(1)
        cavity = deep & (y < scene.spine[0] + 5)[None, :, None] & scene.trunk[:, None, None]
    organs = cavity | shapes.dilate(scene.aerated, scene.voxel, scene.spacing)
    return soft & flesh & ~organs & ~scene.lungs
