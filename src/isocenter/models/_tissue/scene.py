"""`Scene`: what is known of a CT before anything is asked of it: the patient, the air around, gas within, lungs, bones.

Everything lies on the working grid (z, y, x; LPS) and is made when it is first wanted, then kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from isocenter.models._tissue import chest, liver, shapes, wall
from isocenter.models._tissue.grid import Field, Mask, Working, reduce
from isocenter.models._tissue.liver import Organ

#: Half-way between air and soft tissue is -500 HU; the skin's border is looked for a little higher, where clothes end.
SKIN_HU = -300.0
#: Above this a voxel of the working grid is no more pure gas.
GAS_HU = -935.0
#: Air-filled at all: lung tissue of any density and gas.
AERATED_HU = -400.0
#: Shells thinner than twice this are tables, blankets and cables, never people.
TABLE_MM = 6.0


class Scene:
    """The analysis of one scan. array: (z, y, x) in HU, LPS; spacing in mm (z, y, x)."""

    def __init__(self, array: NDArray[np.generic], spacing: tuple[float, float, float], step: Callable[[str], None] = lambda _: None) -> None:
        self.step = step  # told what is done next; whoever asks next sets it anew
        step("reducing the scan")
        self.working: Working = reduce(array, spacing)

    @property
    def hu(self) -> Field:
        """Mean HU of each voxel."""
        return self.working.hu

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Edges of a voxel in mm (z, y, x)."""
        return self.working.spacing

    @property
    def voxel(self) -> float:
        """The longest edge of a voxel in mm, of the axes along which there is more than one."""
        edges = [s for s, n in zip(self.spacing, self.hu.shape, strict=True) if n > 1]
        return max(edges, default=self.spacing[2])

    @property
    def flat(self) -> bool:
        """A single picture rather than a volume."""
        return bool(min(self.hu.shape) == 1)

    @cached_property
    def plane(self) -> int:
        """The axis across which slices are taken: the patient's long axis, but for thin stacks of other slices."""
        thin = int(np.argmin(self.hu.shape))
        return thin if self.hu.shape[thin] < 8 else 0

    @cached_property
    def floor_hu(self) -> float | None:
        """Where the values were cut off so high that air is no more told from fat (a picture with a window); else None."""
        lowest = float(self.hu.min())
        return lowest if lowest > AERATED_HU and float(np.mean(self.hu <= lowest + 1)) > 0.05 else None

    @property
    def skin_hu(self) -> float:
        """What parts the patient from the air around."""
        return SKIN_HU if self.floor_hu is None else self.floor_hu + 15

    @cached_property
    def body(self) -> Mask:
        """The patient with all cavities filled."""
        self.step("finding the body")
        tissue = self.hu > self.skin_hu
        labels, sizes = shapes.components(shapes.opened(tissue, TABLE_MM, self.spacing))
        if len(sizes) < 2:
            return np.zeros_like(tissue)
        # Arms and legs are parts of their own; what is much smaller lies beside the patient.
        kept = np.flatnonzero(sizes >= 0.04 * sizes[1:].max())
        person = shapes.chosen(labels, kept)
        # Back to the skin step by step through tissue, so that a table close by, but not touching, stays out.
        for _ in range(round(TABLE_MM / self.voxel) + 1):
            person = tissue & shapes.dilate(person, self.voxel, self.spacing)
        return ~self._around(person)

    def _around(self, person: Mask) -> Mask:
        """Air outside: in each slice, what reaches the border of the picture, unless it is lung cut off there."""
        sheets = shapes.sheets(~person, self.plane)
        border = shapes.rim(person.shape, self.plane) & ~person
        open_ = shapes.touching(sheets, border)
        labels, sizes = shapes.components(open_)
        numbers = np.arange(1, len(sizes))
        middle = shapes.medians(self.hu, labels, numbers)
        # Lung is denser than free air; padding and air are at -1000 or less. Small corners say little.
        lung_like = (middle > -965) & (middle < -500) & (sizes[1:] * self.working.voxel_ml > (1 if self.flat else 10))
        around = open_ & ~shapes.chosen(labels, numbers[lung_like])
        return around | self._pockets(person, around)

    def _pockets(self, person: Mask, around: Mask) -> Mask:
        """Air that a slice encloses (between an arm and the trunk) but the next one lets out."""
        if self.plane != 0 or person.shape[0] < 3:
            return np.zeros_like(person)
        shut, sizes = shapes.components(~person & ~around & (self.hu < -700))
        open_ = np.zeros_like(person)
        open_[1:] |= around[:-1]
        open_[:-1] |= around[1:]
        contact = np.bincount(shut[open_], minlength=len(sizes))
        # A pocket opens with its whole cross-section; bowel and trachea with none of it.
        section = sizes ** (2 / 3)
        numbers = np.flatnonzero((contact > 0.5 * section) & (sizes > 0))
        return shapes.chosen(shut, numbers)

    @cached_property
    def aerated(self) -> Mask:
        """Air-filled voxels within the patient."""
        return self.body & (self.hu < AERATED_HU)

    @cached_property
    def gas(self) -> Mask:
        """Cores of free gas: bowel, stomach, trachea, large bronchi, sinuses.

        Gas has a wall of soft tissue around it; air at -1000 HU inside a lung (emphysema, full inspiration) has lung
        around it.
        """
        self.step("telling gas from lung")
        labels, sizes = shapes.components(self.aerated & (self.hu < GAS_HU))
        numbers = np.flatnonzero(sizes >= 4)
        cores = shapes.chosen(labels, numbers)
        shell = shapes.dilate(cores, 2.2 * self.voxel, self.spacing)
        ring = shell & ~shapes.dilate(cores, 1.2 * self.voxel, self.spacing) & self.body
        owner = shapes.nearest_label(np.where(cores, labels, 0).astype(np.int32), ring, self.spacing)
        total = np.bincount(owner[ring], minlength=len(sizes))
        walled = np.bincount(owner[ring & (self.hu > -500)], minlength=len(sizes))
        free = numbers[(walled[numbers] >= 0.5 * np.maximum(total[numbers], 1))]
        return shapes.chosen(labels, free)

    @cached_property
    def lungs(self) -> Mask:
        """Lung tissue with its small vessels."""
        aerated, gas, size = self.aerated, self.gas, self.voxel
        near_gas = shapes.dilate(gas, 2.3 * size, self.spacing)
        seeds = shapes.opened(aerated & ~near_gas, 4.0, self.spacing)
        labels, sizes = shapes.components(seeds)
        seeds = shapes.chosen(labels, np.flatnonzero(sizes * self.working.voxel_ml > (0.5 if self.flat else 1.0)))
        if not seeds.any():
            return seeds
        # Partial volume between the two goes to the nearer.
        reach = 8 * size
        mine = aerated & (shapes.depth(~seeds, self.spacing, reach) <= shapes.depth(~gas, self.spacing, reach))
        labels, sizes = shapes.components(mine)
        return self._accepted(labels, sizes, seeds)

    def _accepted(self, labels: shapes.Labels, sizes: NDArray[np.int64], seeds: Mask) -> Mask:
        """Those parts that are lung by size, density and place."""
        numbers = np.unique(labels[seeds])
        numbers = numbers[numbers > 0]
        millilitres = sizes[numbers] * self.working.voxel_ml
        middle = shapes.medians(self.hu, np.where(seeds, labels, 0), numbers)
        border = np.ones(labels.shape, bool)
        border[1:-1, 1:-1, 1:-1] = False
        cut = np.isin(numbers, np.unique(labels[border]))
        # A lung that is not cut by the scan's border is a large thing; one that is cut can be of any size.
        enough = millilitres > (1.5 if self.flat else np.where(cut, 8.0, 150.0))
        return shapes.chosen(labels, numbers[enough & (middle < -550)])

    @cached_property
    def bone(self) -> Mask:
        """Compact bone and the marrow that it encloses."""
        self.step("finding bones")
        hard = self.body & (self.hu > 180)
        labels, sizes = shapes.components(hard)
        # Enhanced vessels and organs reach 180 HU but have no compact bone on them.
        compact = np.bincount(labels[hard & (self.hu > 280)], minlength=len(sizes))
        hard = shapes.chosen(labels, np.flatnonzero((compact >= 2) & (compact >= 0.03 * sizes)))
        # Spongy bone is softer than compact bone, and denser than what lies around; compact bone surrounds it.
        spongy = shapes.closed(hard, 12.0, self.spacing) & (shapes.smooth(self.hu, 2.0, self.spacing) > 90) & self.body
        bone = hard | spongy
        for axis in (0, 1, 2) if not self.flat else (self.plane,):
            bone |= self._marrow(bone, axis)
        return bone | shapes.closed(bone, 4.0, self.spacing) & ((self.hu > 40) | (self.hu < 0)) & self.body

    def _marrow(self, bone: Mask, axis: int) -> Mask:
        """Holes in bone up to 25 cm² wide within planes; but not the spinal canal, which is neither bone nor fat."""
        from scipy import ndimage

        holes = shapes.sheets(~bone, axis)
        sizes = np.bincount(holes.ravel())
        sizes[np.unique(holes[shapes.rim(bone.shape, axis)])] = 0
        edges = [s for i, s in enumerate(self.spacing) if i != axis]
        area = sizes * edges[0] * edges[1] / 100
        numbers = np.flatnonzero((area > 0) & (area < 25))
        numbers = numbers[numbers > 0]
        if not len(numbers):
            return np.zeros_like(bone)
        mean = np.atleast_1d(ndimage.mean(self.hu, holes, numbers))
        return shapes.chosen(holes, numbers[(mean > 45) | ((mean < -10) & (mean > -150))])

    @cached_property
    def spine(self) -> tuple[float, float] | None:
        """Where the vertebral column runs, (y, x) in mm from the first voxel; None when none is seen.

        Ribs cross a place only in some slices, the column in all of them.
        """
        labels, sizes = shapes.components(self.body)
        if len(sizes) < 2:
            return None
        # Arms beside the trunk have a bone in every slice too; they are smaller parts, and their bones thinner.
        bone = self.bone & (labels == 1 + int(np.argmax(sizes[1:])))
        used = bone.any(axis=(1, 2))
        if not used.any():
            return None
        share = shapes.smooth(bone[used].mean(axis=0)[None], 12.0, self.spacing)[0]
        # The patient's back half, so that a sternum or the jaw does not win.
        depth = np.flatnonzero(self.body.any(axis=(0, 2)))
        share[: depth[0] + (depth[-1] - depth[0]) // 3] = 0
        # And the middle before the sides, since an arm may touch the trunk; but a scan may hold one side only.
        width = np.flatnonzero(self.body.any(axis=(0, 1)))
        off = np.abs(np.arange(share.shape[1]) - width.mean()) / max(1.0, np.ptp(width) / 2)
        y, x = np.unravel_index(int(np.argmax(share * (1 - 0.5 * np.minimum(off, 1)))), share.shape)
        if share[y, x] < 0.3:
            return None
        return float(y * self.spacing[1]), float(x * self.spacing[2])

    @cached_property
    def midline(self) -> float:
        """Place in mm along x that parts left from right: the spine's, else the middle of the body."""
        if self.spine is not None:
            return self.spine[1]
        used = np.flatnonzero(self.body.any(axis=(0, 1)))
        return float(used.mean() * self.spacing[2]) if len(used) else 0.0

    @cached_property
    def trunk(self) -> NDArray[np.bool_]:
        """Slices (z) in which the column runs: those that may hold organs rather than limbs only."""
        if self.spine is None:
            return np.zeros(self.hu.shape[0], bool)
        y, x = (round(p / s) for p, s in zip(self.spine, self.spacing[1:], strict=True))
        near = [slice(max(0, p - round(25 / s)), p + round(25 / s) + 1) for p, s in zip((y, x), self.spacing[1:], strict=True)]
        used = np.flatnonzero(self.bone[:, near[0], near[1]].any(axis=(1, 2)))
        rows = np.arange(self.hu.shape[0])
        return np.asarray((rows >= used[0]) & (rows <= used[-1])) if len(used) else np.zeros(len(rows), bool)

    @cached_property
    def _sides(self) -> tuple[Mask, Mask]:
        return chest.sides(self)

    @property
    def lung_left(self) -> Mask:
        """The patient's left lung."""
        return self._sides[0]

    @property
    def lung_right(self) -> Mask:
        """The patient's right lung."""
        return self._sides[1]

    @cached_property
    def airways(self) -> Mask:
        """Lumen of trachea and main bronchi."""
        self.step("following the airways")
        return chest.airways(self)

    @cached_property
    def flesh(self) -> Mask:
        """The body without skin and the fat under it."""
        return wall.flesh(self)

    @cached_property
    def cavity(self) -> Mask:
        """Where organs lie."""
        return wall.cavity(self)

    @cached_property
    def muscle(self) -> Mask:
        """Muscle of the body's wall and of the limbs."""
        self.step("finding muscle")
        return wall.muscles(self)

    @cached_property
    def soft(self) -> tuple[Mask, Field]:
        """Soft tissue, and its smoothed values."""
        return liver.soft_tissue(self)

    @cached_property
    def liver(self) -> Organ:
        """The liver."""
        self.step("looking for the liver")
        return liver.liver(self)
