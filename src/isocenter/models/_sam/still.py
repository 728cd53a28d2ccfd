"""Networks that know single pictures (SAM, MedSAM, the still parts of SAM 2 and SAM 3) on a scan: answers on slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isocenter.core.errors import ModelError
from isocenter.core.model import ModelContext
from isocenter.models._sam import frame, network, windows
from isocenter.models._sam.ahead import pixels
from isocenter.models._sam.features import Prepared
from isocenter.models._sam.folder import batch, sam_bytes
from isocenter.models._sam.frame import Recipe
from isocenter.models._sam.network import Network, finite
from isocenter.models._sam.session import Hints, Plane, Said, SliceSession, Takes
from isocenter.models._sam.slices import Answer, Ask, Box2, Point2, follow, from_prior
from isocenter.models._sam.windows import Window

#: How often MedSAM's box is drawn again around what it found for a click.
_REDRAWN = 2


@dataclass(frozen=True)
class Still:
    """A loaded SAM. medsam: boxes alone; window: fixed, or None; click_mm: side of the box around a click; batch: slices at once."""

    network: Network
    recipe: Recipe
    medsam: bool
    window: Window | None
    click_mm: float
    batch: int

    def begin(self, prepared: Prepared) -> SliceSession:
        """A session on a volume."""

        def answer(said: Said) -> dict[int, Plane]:
            window = windows.choose(prepared.volume, said.prompts, self.window)
            return follow(Looking(self, prepared, window), said, prepared.volume.shape[0])

        return SliceSession(prepared, Takes(self.network.id, negative=not self.medsam), answer)

    def encode(self, pixels: Sequence[Any], network: Network) -> list[tuple[Any, ...]]:
        """The features of pictures (3, size, size), in host memory. network: this one, or the one that took its place."""
        with network.running() as module:
            seen = module.get_image_embeddings(torch.stack(list(pixels)).to(network.device))
            # SAM has one map of a slice, SAM 2 and SAM 3 have several, from fine to coarse.
            maps = [finite(m).cpu() for m in (seen if isinstance(seen, list | tuple) else [seen])]
        return [tuple(m[i : i + 1].clone() for m in maps) for i in range(len(pixels))]

    def close(self) -> None:
        """Give the memory back."""
        self.network.close()


def load_sam(context: ModelContext) -> Still:
    """SAM or MedSAM from the context's folder. Raises `ModelError`."""
    from transformers import SamConfig, SamModel

    options = context.spec.options if context.spec else {}
    medsam = bool(options.get("medsam", False))
    config = network.configured(SamConfig, context.weights)
    side = int(config.vision_config.image_size)
    said = frame.said_by(context.weights)
    if medsam and "minmax" not in said:
        # The published folder names SAM's pictures, not those that MedSAM was trained with.
        said = {**frame.MEDSAM, "size": {"height": side, "width": side}}
    recipe = frame.recipe(said, side, stretch=False)
    loaded = network.build(SamModel, config, context.weights, context)
    slices = batch(sam_bytes(config.vision_config.to_dict()), context.precision)
    return Still(loaded, recipe, medsam, window_of(options.get("window")), float(options.get("click_mm", 40.0)), slices)


def window_of(value: Any) -> Window | None:
    """The window that an installation fixed, if any. Raises `ModelError` for one that is none."""
    if value is None:
        return None
    try:
        lo, hi = (float(v) for v in value)
    except (TypeError, ValueError):
        lo = hi = 0.0
    if not lo < hi:
        raise ModelError("the model's option 'window' must be two numbers, black and white, the first one smaller")
    return Window(lo, hi)


class Looking:
    """A network that looks at one volume through one window."""

    def __init__(self, still: Still, prepared: Prepared, window: Window) -> None:
        self.boxes_only = still.medsam
        self._still = still
        self._network = network.current(still.network)
        self._prepared = prepared
        self._window = window
        self._frame = still.recipe.frame(prepared.plane, prepared.spacing)

    def grey(self, z: int) -> NDArray[np.uint8]:
        """Slice z as the network sees it."""
        return windows.to_grey(self._prepared.volume.voxels[z], self._window)

    def look_ahead(self, slices: Sequence[int]) -> None:
        """Encode slices that will all be asked about, several at once."""
        if len(slices) > 1:
            self._features(slices)

    def first(self, z: int, hints: Hints) -> Answer:
        """The answer to what a person said: points and the box as they are, an earlier mask as its box and deepest point."""
        points = tuple((float(y), float(x), positive) for y, x, positive in hints.points)
        box: Box2 | None = None
        if hints.box is not None:
            (y0, x0), (y1, x1) = hints.box
            box = (float(y0), float(x0)), (float(y1), float(x1))
        if hints.mask is not None and box is None:
            prior = from_prior(hints.mask, boxes_only=self.boxes_only)
            box = prior.box
            points = points or prior.points
        if not self.boxes_only:
            return self.ask(z, Ask(points, box))
        if box is not None:
            return self.ask(z, Ask(box=box))
        answer = self.ask(z, Ask(box=self._around(points)))
        for _ in range(_REDRAWN):
            if not answer.mask.any():
                break
            answer = self.ask(z, from_prior(answer.mask, boxes_only=True))
        return answer

    def ask(self, z: int, ask: Ask) -> Answer:
        """The answer to one question on slice z. Raises `ModelError` for an answer that is none."""
        (features,) = self._features([z])
        device = self._network.device
        maps = [f.to(device) for f in features]
        inputs: dict[str, Any] = {"image_embeddings": maps if len(maps) > 1 else maps[0]}
        if ask.points:
            inputs["input_points"] = torch.tensor([[[self._frame.point(y, x) for y, x, _ in ask.points]]], dtype=torch.float32, device=device)
            inputs["input_labels"] = torch.tensor([[[int(p) for *_, p in ask.points]]], dtype=torch.int64, device=device)
        if ask.box is not None:
            inputs["input_boxes"] = torch.tensor([[self._frame.box(*ask.box)]], dtype=torch.float32, device=device)
        # A single click may mean a part or the whole: SAM then gives three answers, and says which it believes in.
        several = ask.box is None and len(ask.points) == 1
        with self._network.running() as module:
            out = module(**inputs, multimask_output=several)
            masks, expected = finite(out.pred_masks[0, 0].float()), finite(out.iou_scores[0, 0].float())
            best = int(expected.argmax())
            chosen, half = masks[best : best + 1], 0.0
            if self._still.recipe.minmax:
                chosen, half = chosen.sigmoid(), 0.5
            plane: NDArray[np.bool_] = (self._frame.restore(chosen)[0] > half).cpu().numpy()
        return Answer(plane, None if self.boxes_only else float(expected[best]))

    def _around(self, points: tuple[Point2, ...]) -> Box2:
        """MedSAM's box around clicks."""
        half = [self._still.click_mm / 2 / mm for mm in self._prepared.spacing]
        rows, columns = self._prepared.plane
        ys, xs = [y + 0.5 for y, _, _ in points], [x + 0.5 for _, x, _ in points]
        lo = max(0.0, min(ys) - half[0]), max(0.0, min(xs) - half[1])
        return lo, (min(float(rows), max(ys) + half[0]), min(float(columns), max(xs) + half[1]))

    def _features(self, slices: Sequence[int]) -> list[tuple[Any, ...]]:
        def encode(part: list[int]) -> list[tuple[Any, ...]]:
            return self._still.encode([pixels(self._prepared, z, self._window, self._still.recipe) for z in part], self._network)

        return self._prepared.features(slices, self._window, encode, self._still.batch, self._network.fingerprint)
