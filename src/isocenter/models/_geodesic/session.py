"""One person's work on one structure: prompts in, mask out, exact undo."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import PromptError
from isocenter.core.prompts import Box, MaskPrompt, Prompt, Text, check_inside, rasterise
from isocenter.models._geodesic import propose
from isocenter.models._geodesic.prepared import Prepared
from isocenter.models._geodesic.window import HALF, Anchor, make_box, to_logit


@dataclass(frozen=True)
class _Change:
    """What one `add` overwrote: the belief in a box (compressed), and how many anchors there were before."""

    box: Box
    belief: bytes
    anchors: int


class ClickSession:
    """Mask and belief of one structure. `mask` is 1 exactly where the belief is at least one half."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        shape = prepared.volume.shape
        # np.zeros takes no memory for what is never written to.
        self._belief = np.zeros(shape, np.uint8)
        self.mask: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        self._anchors: list[Anchor] = []
        self._changes: list[_Change] = []

    @property
    def nbytes(self) -> int:
        """Memory of mask and belief, if all of it were touched, and of what undo needs."""
        return self.mask.nbytes + self._belief.nbytes + sum(len(c.belief) for c in self._changes)

    def probability(self) -> NDArray[np.float32]:
        """(z, y, x), 0..1; above one half exactly inside the mask."""
        logit = to_logit(np.arange(256, dtype=np.uint8))
        table = (1 / (1 + np.exp(-logit))).astype(np.float32)
        table[0] = 0
        probability: NDArray[np.float32] = table[self._belief]
        return probability

    def add(self, prompts: Sequence[Prompt]) -> Box | None:
        """Take prompts in, in their order; returns the box outside of which nothing changed."""
        check_inside(prompts, self.mask.shape)
        if any(isinstance(p, Text) for p in prompts):
            raise PromptError("geodesic takes points, boxes, scribbles, lassos and masks, not words")
        before = len(self._anchors)
        written: list[tuple[Box, NDArray[np.uint8]]] = []
        for prompt in prompts:
            if isinstance(prompt, MaskPrompt):
                edit: propose.Edit | None = _whole(prompt, self._belief)
            elif isinstance(prompt, Box):
                edit = propose.from_box(self._prepared, self._belief, self._anchors, prompt)
            else:
                voxels = rasterise(prompt, self.mask.shape)
                edit = propose.from_voxels(self._prepared, self._belief, self._anchors, voxels, prompt.positive)
            if edit is not None:
                index = edit.box.slices
                written.append((edit.box, self._belief[index].copy()))
                self._belief[index] = edit.belief
                self._anchors.extend(edit.anchors)
        written += self._hold()
        return self._record(written, before)

    def undo(self) -> Box | None:
        """Take the last `add` back, exactly."""
        if not self._changes:
            return None
        change = self._changes.pop()
        del self._anchors[change.anchors :]
        index = change.box.slices
        block = self._belief[index]
        block[...] = np.frombuffer(zlib.decompress(change.belief), np.uint8).reshape(block.shape)
        return self._renew(change.box)

    def _hold(self) -> list[tuple[Box, NDArray[np.uint8]]]:
        """Make every prompted voxel what its prompt says (the later prompt wins); returns what was overwritten."""
        written = []
        for anchor in self._anchors:
            if anchor.box is not None:
                block = self._belief[anchor.box.slices]
                if block.max() >= HALF:
                    written.append((anchor.box, block.copy()))
                    block[...] = 0
            if not anchor.hold:
                continue
            z, y, x = anchor.voxels.T
            old = self._belief[z, y, x]
            wrong = (old >= HALF) != anchor.positive
            if not wrong.any():
                continue
            lo, hi = anchor.voxels[wrong].min(axis=0), anchor.voxels[wrong].max(axis=0) + 1
            box = make_box(lo, hi)
            written.append((box, self._belief[box.slices].copy()))
            self._belief[z[wrong], y[wrong], x[wrong]] = 255 if anchor.positive else 0
        return written

    def _record(self, written: list[tuple[Box, NDArray[np.uint8]]], anchors: int) -> Box | None:
        """Remember the state before the writes as one change, bring the mask up to date, return the changed box."""
        if not written:
            if len(self._anchors) == anchors:
                return None
            box = make_box(self._anchors[-1].voxels.min(axis=0), self._anchors[-1].voxels.max(axis=0) + 1)
            written = [(box, self._belief[box.slices].copy())]
        lo = np.min([b.lo for b, _ in written], axis=0)
        hi = np.max([b.hi for b, _ in written], axis=0)
        box = make_box(lo, hi)
        old = self._belief[box.slices].copy()
        for part, block in reversed(written):
            inner = tuple(slice(a - c, b - c) for a, b, c in zip(part.lo, part.hi, box.lo, strict=True))
            old[inner] = block
        self._changes.append(_Change(box, zlib.compress(old.tobytes(), 1), anchors))
        return self._renew(box)

    def _renew(self, box: Box) -> Box | None:
        """Bring the mask up to date with the belief in a box; returns the smallest box around what changed."""
        new = (self._belief[box.slices] >= HALF).view(np.uint8)
        part = self.mask[box.slices]
        moved = new != part
        lo, hi = list(box.lo), list(box.hi)
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            where = np.flatnonzero(moved.any(axis=others))
            if len(where) == 0:
                return None
            lo[axis], hi[axis] = box.lo[axis] + int(where[0]), box.lo[axis] + int(where[-1]) + 1
        part[...] = new
        return Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))


def _whole(prompt: MaskPrompt, belief: NDArray[np.uint8]) -> propose.Edit:
    """A mask to start from replaces the answer; a negative one is cut out of it."""
    inside = np.asarray(prompt.mask) != 0
    value = np.where(inside, np.uint8(200), np.uint8(0)) if prompt.positive else np.where(inside, np.uint8(0), belief)
    z, y, x = belief.shape
    return propose.Edit(Box((0, 0, 0), (z, y, x)), value.astype(np.uint8), [])
