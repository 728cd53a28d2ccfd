"""One person's work on one structure with a network that answers slice by slice.

The mask is a function of the prompts said so far, in their order; `undo` puts back what was there before, byte by byte.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import PromptError
from isocenter.core.prompts import Box, MaskPrompt, Point, Prompt, check_inside, union
from isocenter.models._sam.features import Prepared

Plane = NDArray[np.bool_]
_WORDS = {"Point": "points", "Box": "boxes", "MaskPrompt": "masks", "Scribble": "scribbles", "Lasso": "lassos", "Text": "words"}


@dataclass
class Hints:
    """What was said on one slice. points: (y, x, positive); box: (y, x) corners, half-open; mask: (rows, columns)."""

    points: list[tuple[int, int, bool]] = field(default_factory=list)
    box: tuple[tuple[int, int], tuple[int, int]] | None = None
    mask: Plane | None = None

    @property
    def positive(self) -> bool:
        """Whether anything here says where the structure is."""
        return self.box is not None or self.mask is not None or any(p for *_, p in self.points)


@dataclass(frozen=True)
class Said:
    """All prompts by slice. reach: the slices [first, last) that the structure may lie in, as deep boxes say."""

    prompts: tuple[Prompt, ...]
    slices: dict[int, Hints]
    reach: tuple[int, int]


@dataclass(frozen=True)
class Takes:
    """The prompts that a model takes. negative: points that say where the structure is not."""

    model: str
    negative: bool = True

    def check(self, prompt: Prompt) -> None:
        """Raise `PromptError` for a prompt that the model does not take."""
        kinds = "positive and negative points, boxes and masks" if self.negative else "positive points, boxes and masks"
        if not isinstance(prompt, Point | Box | MaskPrompt):
            raise PromptError(f"'{self.model}' takes {kinds}, not {_WORDS[type(prompt).__name__]}")
        if not prompt.positive and not (self.negative and isinstance(prompt, Point)):
            raise PromptError(f"'{self.model}' takes {kinds}; no negative {_WORDS[type(prompt).__name__]}")
        if isinstance(prompt, Box):
            depth, rows, columns = (b - a for a, b in zip(prompt.lo, prompt.hi, strict=True))
            if depth > 1 and min(rows, columns) == 1:
                raise PromptError(f"'{self.model}' works in the acquired slices (the array's first axis): draw the box in one of them")


@dataclass(frozen=True)
class _Change:
    """What one `add` overwrote: parts of slices (compressed), and how many prompts and which filled slices there were."""

    parts: tuple[tuple[Box, bytes], ...]
    prompts: int
    filled: frozenset[int]


class SliceSession:
    """Mask and history of one structure. answer: from everything said to the slices that hold any of the structure."""

    def __init__(self, prepared: Prepared, takes: Takes, answer: Callable[[Said], dict[int, Plane]]) -> None:
        # np.zeros takes no memory for what is never written to.
        self.mask: NDArray[np.uint8] = np.zeros(prepared.volume.shape, np.uint8)
        self._takes = takes
        self._answer = answer
        self._prompts: list[Prompt] = []
        self._filled: frozenset[int] = frozenset()
        self._changes: list[_Change] = []

    @property
    def nbytes(self) -> int:
        """Memory of the mask, if all of it were touched, and of what undo needs."""
        masks = sum(np.asarray(p.mask).nbytes for p in self._prompts if isinstance(p, MaskPrompt))
        return self.mask.nbytes + masks + sum(len(data) for change in self._changes for _, data in change.parts)

    def add(self, prompts: Sequence[Prompt]) -> Box | None:
        """Take prompts in; returns the box outside of which nothing changed. Nothing changes when it fails."""
        check_inside(prompts, self.mask.shape)
        for prompt in prompts:
            self._takes.check(prompt)
        if not prompts:
            return None
        said = [*self._prompts, *prompts]
        sorted_by_slice = by_slice(said, self.mask.shape)
        planes = self._answer(sorted_by_slice) if any(h.positive for h in sorted_by_slice.slices.values()) else {}
        filled = frozenset(z for z, plane in planes.items() if plane.any())
        parts: list[tuple[Box, bytes]] = []
        changed: Box | None = None
        for z in sorted(filled | self._filled):
            new = planes[z].view(np.uint8) if z in filled else np.zeros(self.mask.shape[1:], np.uint8)
            box = _difference(self.mask[z], new, z)
            if box is not None:
                part = self.mask[box.slices]
                parts.append((box, zlib.compress(part.tobytes(), 1)))
                part[...] = new[box.slices[1:]]
                changed = union(changed, box)
        self._changes.append(_Change(tuple(parts), len(self._prompts), self._filled))
        self._prompts, self._filled = said, filled
        return changed

    def undo(self) -> Box | None:
        """Take the last `add` back, exactly. None when there is nothing to undo, or when it had changed nothing."""
        if not self._changes:
            return None
        change = self._changes.pop()
        changed: Box | None = None
        for box, data in change.parts:
            part = self.mask[box.slices]
            part[...] = np.frombuffer(zlib.decompress(data), np.uint8).reshape(part.shape)
            changed = union(changed, box)
        del self._prompts[change.prompts :]
        self._filled = change.filled
        return changed


def by_slice(prompts: Sequence[Prompt], shape: tuple[int, int, int]) -> Said:
    """Prompts by slice. A box speaks of its middle slice and bounds how far the structure reaches; of two boxes on one slice,
    and of two masks, the later one counts.
    """
    slices: dict[int, Hints] = {}
    reach: list[tuple[int, int]] = []
    masks = [p for p in prompts if isinstance(p, MaskPrompt)]
    for prompt in prompts:
        if isinstance(prompt, Point):
            z, y, x = prompt.zyx
            slices.setdefault(z, Hints()).points.append((y, x, prompt.positive))
        elif isinstance(prompt, Box):
            middle = (prompt.lo[0] + prompt.hi[0] - 1) // 2
            slices.setdefault(middle, Hints()).box = ((prompt.lo[1], prompt.lo[2]), (prompt.hi[1], prompt.hi[2]))
            if prompt.hi[0] - prompt.lo[0] > 1:
                reach.append((prompt.lo[0], prompt.hi[0]))
        elif isinstance(prompt, MaskPrompt) and prompt is masks[-1]:
            inside = np.asarray(prompt.mask) != 0
            for index in np.flatnonzero(inside.any(axis=(1, 2))):
                slices.setdefault(int(index), Hints()).mask = inside[index]
    first = min((a for a, _ in reach), default=0)
    last = max((b for _, b in reach), default=shape[0])
    return Said(tuple(prompts), slices, (first, last))


def _difference(old: NDArray[np.uint8], new: NDArray[np.uint8], z: int) -> Box | None:
    """The smallest box, one slice thick, around where two planes differ."""
    moved = old != new
    rows, columns = np.flatnonzero(moved.any(axis=1)), np.flatnonzero(moved.any(axis=0))
    if not len(rows):
        return None
    return Box((z, int(rows[0]), int(columns[0])), (z + 1, int(rows[-1]) + 1, int(columns[-1]) + 1))
