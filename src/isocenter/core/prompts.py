"""What a person points at: prompts in voxel indices (z, y, x) of the volume that they come with.

Adapters convert once, at the door. A prompt is positive ("this belongs to it") or negative ("this does not").
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import PromptError

Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class Text:
    """Words that name a structure, such as "liver": always what is meant."""

    text: str
    positive: ClassVar[bool] = True


@dataclass(frozen=True)
class Point:
    """A click on one voxel (z, y, x)."""

    zyx: Voxel
    positive: bool = True


@dataclass(frozen=True)
class Box:
    """A half-open box: the voxels with lo <= (z, y, x) < hi."""

    lo: Voxel
    hi: Voxel
    positive: bool = True

    def __post_init__(self) -> None:
        if any(a >= b for a, b in zip(self.lo, self.hi, strict=True)):
            raise PromptError(f"the box from {self.lo} to {self.hi} (z, y, x) is empty")

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the box in an array."""
        return slice(self.lo[0], self.hi[0]), slice(self.lo[1], self.hi[1]), slice(self.lo[2], self.hi[2])


def union(a: Box | None, b: Box | None) -> Box | None:
    """The smallest box that holds both; None stands for nothing."""
    if a is None or b is None:
        return a or b
    z, y, x = (min(p, q) for p, q in zip(a.lo, b.lo, strict=True))
    z1, y1, x1 = (max(p, q) for p, q in zip(a.hi, b.hi, strict=True))
    return Box((z, y, x), (z1, y1, x1))


def overlap(a: Box | None, b: Box | None) -> Box | None:
    """The box of voxels that lie in both; None stands for nothing."""
    if a is None or b is None:
        return None
    z, y, x = (max(p, q) for p, q in zip(a.lo, b.lo, strict=True))
    z1, y1, x1 = (min(p, q) for p, q in zip(a.hi, b.hi, strict=True))
    return Box((z, y, x), (z1, y1, x1)) if z < z1 and y < y1 and x < x1 else None


@dataclass(frozen=True)
class Scribble:
    """A freehand line through voxels (z, y, x); neighbours in the path are joined by straight lines."""

    path: tuple[Voxel, ...]
    positive: bool = True

    def __post_init__(self) -> None:
        if not self.path:
            raise PromptError("a scribble needs at least one voxel")


@dataclass(frozen=True)
class Lasso:
    """A closed outline in one plane: all voxels of `path` share z, y or x."""

    path: tuple[Voxel, ...]
    positive: bool = True

    def __post_init__(self) -> None:
        if len(self.path) < 3:
            raise PromptError("a lasso needs at least three voxels")
        if not any(len({p[axis] for p in self.path}) == 1 for axis in range(3)):
            raise PromptError("all points of a lasso must lie in one plane of voxels")

    @property
    def axis(self) -> int:
        """The array axis (0 = z) that the plane is perpendicular to."""
        return next(axis for axis in range(3) if len({p[axis] for p in self.path}) == 1)


@dataclass(frozen=True, eq=False)
class MaskPrompt:
    """A mask to start from, (z, y, x), of the volume's shape; non-zero is inside."""

    mask: NDArray[np.generic]
    positive: bool = True


Prompt: TypeAlias = Text | Point | Box | Scribble | Lasso | MaskPrompt


def check_inside(prompts: Sequence[Prompt], shape: tuple[int, int, int]) -> None:
    """Raise `PromptError` for the first prompt that does not lie inside a volume of `shape` (z, y, x)."""
    for prompt in prompts:
        if isinstance(prompt, MaskPrompt):
            if tuple(prompt.mask.shape) != shape:
                raise PromptError(f"the mask has shape {tuple(prompt.mask.shape)} (z, y, x), the image {shape}")
            continue
        if isinstance(prompt, Text):
            continue
        if isinstance(prompt, Point):
            voxels: tuple[Voxel, ...] = (prompt.zyx,)
        elif isinstance(prompt, Box):
            hi = prompt.hi
            voxels = (prompt.lo, (hi[0] - 1, hi[1] - 1, hi[2] - 1))
        else:
            voxels = prompt.path
        for voxel in voxels:
            if any(not 0 <= v < n for v, n in zip(voxel, shape, strict=True)):
                z, y, x = voxel
                raise PromptError(
                    f"the prompt at x={x}, y={y}, z={z} lies outside the image, which has {shape[2]} x {shape[1]} x {shape[0]} voxels (x, y, z)"
                )


def rasterise(prompt: Prompt, shape: tuple[int, int, int]) -> NDArray[np.intp]:
    """The voxels that a prompt names, as (n, 3) indices (z, y, x) without repeats, in order of the path.

    A scribble is densified, a lasso filled in its plane (outline included). Raises `PromptError` outside the volume.
    """
    check_inside([prompt], shape)
    if isinstance(prompt, Point):
        return np.array([prompt.zyx], dtype=np.intp)
    if isinstance(prompt, Scribble):
        return _line(prompt.path)
    if isinstance(prompt, Lasso):
        return _filled(prompt)
    if isinstance(prompt, Box):
        axes = [np.arange(a, b) for a, b in zip(prompt.lo, prompt.hi, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.intp)
    if isinstance(prompt, MaskPrompt):
        return np.argwhere(prompt.mask != 0)
    raise PromptError("words name no voxels")


def _line(path: Sequence[Voxel]) -> NDArray[np.intp]:
    """All voxels on the straight lines between neighbours of `path` (one step of at most one voxel per axis at a time)."""
    points = np.asarray(path, dtype=np.float64)
    parts = [points[:1]]
    for a, b in itertools.pairwise(points):
        steps = int(np.abs(b - a).max())
        if steps:
            t = np.arange(1, steps + 1)[:, None] / steps
            parts.append(a + t * (b - a))
    voxels = np.floor(np.concatenate(parts) + 0.5).astype(np.intp)
    _, first = np.unique(voxels, axis=0, return_index=True)
    return voxels[np.sort(first)]


def _filled(lasso: Lasso) -> NDArray[np.intp]:
    """Voxels on and inside the closed outline, by the even-odd rule in the lasso's plane."""
    axis = lasso.axis
    outline = _line((*lasso.path, lasso.path[0]))
    u_axis, v_axis = (a for a in range(3) if a != axis)
    corners = np.asarray(lasso.path, dtype=np.float64)[:, [u_axis, v_axis]]
    lo, hi = corners.min(axis=0).astype(int), corners.max(axis=0).astype(int)
    u, v = np.mgrid[lo[0] : hi[0] + 1, lo[1] : hi[1] + 1]
    inside = np.zeros(u.shape, dtype=bool)
    for (u0, v0), (u1, v1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if v0 != v1:
            crossing = u0 + (v - v0) * (u1 - u0) / (v1 - v0)
            inside ^= ((v0 > v) != (v1 > v)) & (u < crossing)
    filled = np.empty((int(inside.sum()), 3), dtype=np.intp)
    filled[:, axis] = lasso.path[0][axis]
    filled[:, u_axis], filled[:, v_axis] = u[inside], v[inside]
    return np.unique(np.concatenate([outline, filled]), axis=0)
