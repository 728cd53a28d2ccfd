"""One person's work on one structure, with the library's session in voxel indices (z, y, x), the order it was trained in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isocenter.core.errors import IsocenterError, ModelError, PromptError, UnsupportedError
from isocenter.core.prompts import Box, Lasso, MaskPrompt, Point, Prompt, Scribble, rasterise, union
from isocenter.core.volume import Volume
from isocenter.models._nninteractive.loaded import Loaded, current


class Prepared:
    """The scan as the network takes it: scaled to mean 0 and deviation 1 of what is not zero. Shared by all work on it."""

    def __init__(self, loaded: Loaded, volume: Volume) -> None:
        array = np.asarray(volume.array, np.float32)
        if not np.isfinite(array).all():
            raise UnsupportedError("the scan holds voxels that are not finite numbers; replace them first")
        if not array.any() or array.min() == array.max():
            raise UnsupportedError("the scan holds the same value everywhere; there is nothing to find in it")
        self.key = loaded.key
        self.shape = volume.shape
        session = loaded.session(1)
        session.set_image(array[None])
        session._finish_preprocessing_and_initialize_interactions()
        self.image: torch.Tensor = session.preprocessed_image
        session._reset_session()
        session.executor.shutdown()
        if not bool(torch.isfinite(self.image).all()):
            raise UnsupportedError("the scan holds the same value everywhere but for zeros; there is nothing to find in it")

    @property
    def nbytes(self) -> int:
        """Memory that it holds beside the volume."""
        return int(self.image.numel()) * 4


class Work:
    """Prompts in, mask out, and back again prompt by prompt."""

    def __init__(self, prepared: Prepared) -> None:
        self._key = prepared.key
        self._voxels = int(np.prod(prepared.shape))
        loaded = current(self._key)
        self._session = session = loaded.session(self._voxels)
        session.preprocessed_image = prepared.image
        session.original_image_shape = (1, *prepared.shape)
        session._initialize_interactions(prepared.image)
        self._mask: NDArray[np.uint8] = np.zeros(prepared.shape, np.uint8)
        session.set_target_buffer(self._mask)
        session.network = None
        #: For each `add` its box and, in order, what the library noted for taking each step back.
        self._done: list[tuple[Box | None, list[dict[str, Any]]]] = []

    @property
    def mask(self) -> NDArray[np.uint8]:
        """(z, y, x), 0 or 1, updated in place."""
        return self._mask

    @property
    def nbytes(self) -> int:
        """Memory that it holds: mask, prompts, and what undoing needs."""
        kept = self._session.interactions
        prompts = kept.numel() * kept.element_size() if isinstance(kept, torch.Tensor) else int(kept.cbytes)
        records = (record[3] for _, logs in self._done for log in logs for record in log["records"])
        return int(self._mask.nbytes + prompts + sum(int(getattr(record, "cbytes", 0)) for record in records))

    def add(self, prompts: Sequence[Prompt]) -> Box | None:
        """Take prompts in, one prediction each; returns the box outside of which nothing changed, None when nothing did.

        Raises `PromptError` for words and masks to leave out, which nnInteractive does not know; then nothing is changed.
        """
        for prompt in prompts:
            _check(prompt)
        session, loaded = self._session, current(self._key)
        session.network, session.device = loaded.artifacts["network"], loaded.device
        logs: list[dict[str, Any]] = []
        changed: Box | None = None
        # The library draws places to refine from numpy's global generator: the same prompts shall give the same mask.
        drawn = np.random.get_state()
        try:
            for prompt in prompts:
                np.random.seed(0)
                changed = union(changed, self._one(prompt))
                if session._undo_log is not None:
                    logs.append(session._undo_log)
        except BaseException as error:
            self._back(logs)
            if isinstance(error, IsocenterError | torch.OutOfMemoryError | MemoryError) or not isinstance(error, Exception):
                raise
            raise ModelError("the network has no answer to this prompt; undo it or try another") from None
        finally:
            # The library's record of its last step is in `logs`; the network is the model's to hold.
            session._undo_log = session.network = None
            np.random.set_state(drawn)
        if logs:
            self._done.append((changed, logs))
        return changed

    def undo(self) -> Box | None:
        """Take the last `add` back, exactly. None when there is nothing to undo."""
        if not self._done:
            return None
        changed, logs = self._done.pop()
        self._back(logs)
        return changed

    def _back(self, logs: list[dict[str, Any]]) -> None:
        for log in reversed(logs):
            self._session._undo_log = log
            self._session.undo()

    def _one(self, prompt: Prompt) -> Box | None:
        """One prompt to the library; the box of the mask that it wrote."""
        session = self._session
        if isinstance(prompt, Point):
            return _box(session.add_point_interaction(prompt.zyx, prompt.positive))
        if isinstance(prompt, Box):
            return _box(session.add_bbox_interaction(self._extents(prompt), prompt.positive))
        if isinstance(prompt, MaskPrompt):
            session.add_initial_seg_interaction(np.ascontiguousarray(prompt.mask != 0, dtype=np.uint8), run_prediction=False)
            z, y, x = self._mask.shape
            return Box((0, 0, 0), (z, y, x))
        painted, corner = painted_in(prompt, self._mask.shape, session.preferred_scribble_thickness)  # type: ignore[arg-type]
        where = [[a, a + n] for a, n in zip(corner, painted.shape, strict=True)]
        add = session.add_lasso_interaction if isinstance(prompt, Lasso) else session.add_scribble_interaction
        return _box(add(painted, prompt.positive, interaction_bbox=where))

    def _extents(self, box: Box) -> list[list[int]]:
        """The box as the checkpoint takes it: the published ones know boxes in one plane, so a solid one is asked in its middle plane."""
        extents = [[a, b] for a, b in zip(box.lo, box.hi, strict=True)]
        sizes = [b - a for a, b in extents]
        if min(sizes) > 1 and not self._session.supported_interactions.get("bbox3d"):
            axis = int(np.argmin(sizes))
            middle = (extents[axis][0] + extents[axis][1]) // 2
            extents[axis] = [middle, middle + 1]
        return extents


def _check(prompt: Prompt) -> None:
    if isinstance(prompt, MaskPrompt) and not prompt.positive:
        raise PromptError("nnInteractive starts from a mask but cannot leave one out; give negative points, scribbles or lassos")
    if not isinstance(prompt, Point | Box | Scribble | Lasso | MaskPrompt):
        raise PromptError("nnInteractive takes points, boxes, scribbles, lassos and masks, not words")


def _box(found: list[list[int]] | None) -> Box | None:
    if found is None or any(a >= b for a, b in found):
        return None
    (z, z1), (y, y1), (x, x1) = ((int(a), int(b)) for a, b in found)
    return Box((z, y, x), (z1, y1, x1))


def painted_in(prompt: Scribble | Lasso, shape: tuple[int, int, int], thickness: Sequence[int]) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
    """What a scribble or lasso paints, as a small array (z, y, x) and its corner in the scan.

    A scribble is drawn as thick as the checkpoint likes it (voxels along z, y, x), within its plane if it lies in one.
    """
    voxels = rasterise(prompt, shape)
    if isinstance(prompt, Scribble):
        flat = [len(np.unique(voxels[:, axis])) == 1 for axis in range(3)]
        sizes = [1 if flat[axis] and sum(flat) == 1 else max(1, int(thickness[axis])) for axis in range(3)]
        steps = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) // 2 for n in sizes], indexing="ij"), -1).reshape(-1, 3)
        voxels = (voxels[:, None] + steps[None]).reshape(-1, 3)
        voxels = voxels[((voxels >= 0) & (voxels < np.array(shape))).all(axis=1)]
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    painted = np.zeros(tuple(high - low), np.uint8)
    painted[tuple((voxels - low).T)] = 1
    return painted, (int(low[0]), int(low[1]), int(low[2]))
