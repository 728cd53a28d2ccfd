"""Prompts as they are typed on the command line: x,y,z voxel indices of the image's own file, turned into core types."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from isocenter.core.errors import UsageError
from isocenter.core.prompts import Box, Lasso, Point, Prompt, Scribble, Text, Voxel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isocenter.core.volume import Volume

T = TypeVar("T")


@dataclass(frozen=True)
class Typed:
    """All prompts of one call, as typed."""

    texts: Sequence[str] = ()
    points: Sequence[str] = ()
    negatives: Sequence[str] = ()
    boxes: Sequence[str] = ()
    scribbles: Sequence[str] = ()
    negative_scribbles: Sequence[str] = ()
    lassos: Sequence[str] = ()
    negative_lassos: Sequence[str] = ()

    def parse(self) -> list[Prompt]:
        """As core prompts: words, then what is inside, then what is outside. Raises `UsageError` for what cannot be read."""
        made: list[Prompt] = [Text(text.strip()) for text in self.texts if text.strip()]
        made += [_box(box) for box in self.boxes]
        for positive, points, scribbles, lassos in (
            (True, self.points, self.scribbles, self.lassos),
            (False, self.negatives, self.negative_scribbles, self.negative_lassos),
        ):
            made += [Lasso(_path("lasso", text), positive) for text in lassos]
            made += [Scribble(_path("scribble", text), positive) for text in scribbles]
            made += [Point(_voxel("point", text), positive) for text in points]
        return made


def _numbers(kind: str, text: str, count: int, form: str) -> list[int]:
    """`count` whole numbers with commas between them."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(math.isfinite(n) and abs(n) < 1e9 for n in numbers):
        raise UsageError(f"a {kind} is written {form} (voxel indices), not '{text[:60]}'")
    return [math.floor(n + 0.5) for n in numbers]


def _voxel(kind: str, text: str) -> Voxel:
    x, y, z = _numbers(kind, text, 3, "x,y,z")
    return z, y, x


def _path(kind: str, text: str) -> tuple[Voxel, ...]:
    points = text.replace(";", " ").split()
    if not points:
        raise UsageError(f'a {kind} is written "x,y,z x,y,z ..." (voxel indices)')
    return tuple(_voxel(kind, point) for point in points)


def _box(text: str) -> Box:
    """Two corners, both inside, in any order."""
    x0, y0, z0, x1, y1, z1 = _numbers("box", text, 6, "x0,y0,z0,x1,y1,z1")
    return Box((min(z0, z1), min(y0, y1), min(x0, x1)), (max(z0, z1) + 1, max(y0, y1) + 1, max(x0, x1) + 1))


def initial_mask(path: Path, volume: Volume, read: Callable[[Path], Volume]) -> NDArray[np.bool_]:
    """The mask in a file, on the volume's grid. Raises `GeometryError` when it lies elsewhere."""
    from isocenter.core.geometry import onto

    drawn = read(path)
    mask: NDArray[np.bool_] = onto(drawn.array, drawn.grid, volume.grid) != 0
    return mask
