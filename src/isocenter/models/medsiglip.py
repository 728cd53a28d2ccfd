"""MedSigLIP: pictures and words to vectors of one space, through transformers' `SiglipModel`.

For `google/medsiglip-448` (448 x 448 pictures, 64 tokens, 1,152 numbers a vector) and any SigLIP folder of the same kind:
config.json, safetensors, preprocessor_config.json and a tokenizer. Pictures are prepared by the folder's own image
processor; the model card names bilinear resizing without anti-aliasing for repeating its published scores, which is left
to the caller. The published weights were not at hand: what was tried are small random networks, compared with the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.catalog import Entry
from isocenter.core.errors import ModelError, UsageError
from isocenter.core.model import QUIET, ModelContext, ModelSpec, Run, Task
from isocenter.models import _hf, _weights

if TYPE_CHECKING:
    import torch

_CITATION = "Sellergren et al., MedGemma Technical Report, 2025"
_PRECISIONS = ("float32", "bfloat16", "float16")
#: Pictures at once where the caller does not say.
_BATCH = 8


def offer(folder: Path, entry: Entry | None = None) -> ModelSpec:
    """The spec of a SigLIP folder. Raises `ModelError` for one that cannot be used."""
    config = _hf.config_of(folder, ("siglip",))
    paths = _weights.safetensors_of(folder)
    if not (folder / "preprocessor_config.json").is_file() and not (folder / "processor_config.json").is_file():
        raise ModelError("its preprocessor_config.json is missing; install the model again")
    try:
        vision = dict(config.get("vision_config") or {})
        size, patch, width = (int(vision.get(k, d)) for k, d in (("image_size", 224), ("patch_size", 16), ("hidden_size", 768)))
    except (TypeError, ValueError):
        raise ModelError("its config.json is not as transformers writes it") from None
    scratch = _BATCH * (12 * size * size + (size // max(patch, 1)) ** 2 * width * 4 * 12)
    return ModelSpec(
        id=entry.id if entry else folder.name,
        version=(entry.revision[:12] if entry else "") or "1",
        task=Task.DESCRIBE,
        factory="isocenter.models.medsiglip:MedSigLIP",
        description=(entry.description if entry else "") or f"Pictures of {size} x {size} and words to vectors",
        dimensions=(2,),
        prompts=("text",),
        licence=(entry.licence if entry else "") or "unknown",
        citation=(entry.citation if entry else "") or _CITATION,
        weights_sha256=_weights.sha256(paths),
        weights_bytes=sum(path.stat().st_size for path in paths),
        weights=folder,
        packages=("torch", "transformers"),
        resident_bytes=_hf.resident_bytes(paths, _PRECISIONS),
        scratch_bytes=dict.fromkeys(_PRECISIONS, scratch),
        devices=("cpu", "cuda", "mps"),
    )


class MedSigLIP:
    """One encoder in memory. For one caller at a time."""

    def __init__(self) -> None:
        self._model: Any = None
        self._pictures: Any = None
        self._words: Any = None
        self._device = "cpu"

    def load(self, context: ModelContext) -> None:
        """Read processor, tokenizer and weights. Raises `ModelError`."""
        with _hf.library():
            from transformers import AutoImageProcessor, AutoTokenizer, SiglipModel

            self._device = context.device
            self._pictures = _hf.processor(AutoImageProcessor, context.weights)
            self._words = _hf.processor(AutoTokenizer, context.weights)
            self._model = _hf.load(SiglipModel, context).to(context.device)

    def close(self) -> None:
        """Give its memory back."""
        self._model = self._pictures = self._words = None

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text it reads; the rest is cut off."""
        return int(self._ready().config.text_config.max_position_embeddings)

    def describe(self, pictures: Sequence[NDArray[np.uint8]], *, run: Run = QUIET) -> NDArray[np.float32]:
        """(pictures, size) vectors of length one from uint8 pictures of (rows, columns) or (rows, columns, 3).

        Raises `InputError` for an array that is no picture.
        """
        import torch

        model = self._ready()
        coloured = [_hf.coloured(picture) for picture in pictures]
        size = run.batch or _BATCH
        parts: list[torch.Tensor] = []
        for start in range(0, len(coloured), size):
            run.check(start / len(coloured), f"picture {start + 1} of {len(coloured)}")
            values = self._pictures(images=coloured[start : start + size], return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                # Since version 5 the library answers with an object; the vectors are in `pooler_output`.
                parts.append(model.get_image_features(pixel_values=values.to(self._device, model.dtype)).pooler_output.float().cpu())
        run.check(1.0, "done")
        return self._unit(parts)

    def describe_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(texts, size) vectors of length one, in the pictures' space; a text is cut at `max_tokens`."""
        import torch

        model = self._ready()
        if not all(text.strip() for text in texts):
            raise UsageError("a text to be described is empty")
        parts: list[torch.Tensor] = []
        for start in range(0, len(texts), _BATCH):
            # SigLIP learnt with texts filled up to their full length and without a mask.
            tokens = self._words(
                list(texts[start : start + _BATCH]), padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
            )
            with torch.inference_mode():
                parts.append(model.get_text_features(input_ids=tokens["input_ids"].to(self._device)).pooler_output.float().cpu())
        return self._unit(parts)

    def _unit(self, parts: list[torch.Tensor]) -> NDArray[np.float32]:
        import torch

        if not parts:
            return np.zeros((0, int(self._model.config.vision_config.hidden_size)), np.float32)
        vectors = torch.cat(parts)
        if not bool(torch.isfinite(vectors).all()):
            raise ModelError("the network answered with values that are not finite numbers; its weights are broken, or they need another precision")
        return np.asarray(torch.nn.functional.normalize(vectors, dim=-1).numpy(), np.float32)

    def _ready(self) -> Any:
        if self._model is None:
            raise ModelError("the model is not loaded")
        return self._model
