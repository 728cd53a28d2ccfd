"""One person's work on one structure: prompts in, mask out, exact undo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from isocenter.core.errors import PromptError
from isocenter.core.prompts import Box, MaskPrompt, Prompt, Text, check_inside, rasterise
from isocenter.models._geodesic import kernels, propose
from isocenter.models._geodesic.prepared import Prepared
from isocenter.models._geodesic.window import HALF, Anchor, make_box, to_logit

_Old = tuple[Box, NDArray[np.uint8] | None]
"""A box and the belief in it before it was written to; None: all zeros, and so everywhere."""


@dataclass(frozen=True)
class _Change:
    """What one `add` overwrote: the belief in a box (compressed; None: zeros), and how many anchors there were before."""

    box: Box
    belief: bytes | None
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
        self._blank = True  # nothing but zeros in the belief

    @property
    def nbytes(self) -> int:
        """Memory of mask and belief, if all of it were touched, and of what undo needs."""
        return self.mask.nbytes + self._belief.nbytes + sum(len(c.belief or b"") for c in self._changes)

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
        written: list[_Old] = []
        for prompt in prompts:
            if isinstance(prompt, MaskPrompt):
                edit: propose.Edit | None = _whole(prompt, self._belief)
            elif isinstance(prompt, Box):
                edit = propose.from_box(self._prepared, self._belief, self._anchors, prompt)
            else:
                voxels = rasterise(prompt, self.mask.shape)
                edit = propose.from_voxels(self._prepared, self._belief, self._anchors, voxels, prompt.positive)
            if edit is not None:
                written.append(self._old(edit.box))
                edit.apply(self._belief)
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
        block[...] = 0 if change.belief is None else np.frombuffer(isal_zlib.decompress(change.belief), np.uint8).reshape(block.shape)
        return self._renew(change.box)

    def _old(self, box: Box) -> _Old:
        """The belief in a box before it is written to; the first write of all has only zeros to remember."""
        old = None if self._blank else self._belief[box.slices].copy()
        self._blank = False
        return box, old

    def _hold(self) -> list[_Old]:
        """Make every prompted voxel what its prompt says (the later prompt wins); returns what was overwritten."""
        written = []
        for anchor in self._anchors:
            if anchor.box is not None:
                block = self._belief[anchor.box.slices]
                if block.max() >= HALF:
                    written.append(self._old(anchor.box))
                    block[...] = 0
            if not anchor.hold:
                continue
            z, y, x = anchor.voxels.T
            old = self._belief[z, y, x]
            wrong = (old >= HALF) != anchor.positive
            if not wrong.any():
                continue
            lo, hi = anchor.voxels[wrong].min(axis=0), anchor.voxels[wrong].max(axis=0) + 1
            written.append(self._old(make_box(lo, hi)))
            self._belief[z[wrong], y[wrong], x[wrong]] = 255 if anchor.positive else 0
        return written

    def _record(self, written: list[_Old], anchors: int) -> Box | None:
        """Remember the state before the writes as one change, bring the mask up to date, return the changed box."""
        if not written:
            if len(self._anchors) == anchors:
                return None
            blank, box = self._blank, make_box(self._anchors[-1].voxels.min(axis=0), self._anchors[-1].voxels.max(axis=0) + 1)
            written = [self._old(box)]
            self._blank = blank
        box = make_box(np.min([b.lo for b, _ in written], axis=0), np.max([b.hi for b, _ in written], axis=0))
        packed = None
        if written[0][1] is not None or len(written) > 1:
            old = self._belief[box.slices].copy()
            for part, block in reversed(written):
                inner = tuple(slice(a - c, b - c) for a, b, c in zip(part.lo, part.hi, box.lo, strict=True))
                old[inner] = 0 if block is None else block
            packed = isal_zlib.compress(old, 1)
        self._changes.append(_Change(box, packed, anchors))
        return self._renew(box)

    def _renew(self, box: Box) -> Box | None:
        """Bring the mask up to date with the belief in a box; returns the smallest box around what changed."""
        changed = kernels.renew(self._belief, self.mask, np.array(box.lo), np.array(box.hi))
        return make_box(changed[:3], changed[3:]) if (changed[:3] < changed[3:]).all() else None


def _whole(prompt: MaskPrompt, belief: NDArray[np.uint8]) -> propose.Edit:
    """A mask to start from replaces the answer; a negative one is cut out of it."""
    inside = np.asarray(prompt.mask) != 0
    value = np.where(inside, np.uint8(200), np.uint8(0)) if prompt.positive else np.where(inside, np.uint8(0), belief)
    z, y, x = belief.shape
    return propose.Edit(Box((0, 0, 0), (z, y, x)), value.astype(np.uint8), [])
