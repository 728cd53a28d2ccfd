"""MedGemma 4B and 27B: words from words and pictures, through transformers' Gemma 3.

For `google/medgemma-1.5-4b-it`, `google/medgemma-4b-it` and `google/medgemma-27b-it` (pictures and words,
`Gemma3ForConditionalGeneration`) and `google/medgemma-27b-text-it` (words only, `Gemma3ForCausalLM`): the folder says which.
Every call stands alone: no history is kept and the cache of keys and values is freed before it returns. The prompt may be
2,048 tokens long, 4,096 where the caller says that it is comprehensive, pictures (256 tokens each, at most three) included.

Precisions: bfloat16, float32, float16 and NF4 with double quantisation (bitsandbytes; vision and embedding stay in 16 bits).
Gemma 3's activations can overflow float16: an answer that holds no numbers is refused and says so. A model that fits on no
single device is spread over those of `max_memory` by accelerate; NF4 takes GPUs only there, or the processor alone.

The published weights were not at hand: what was tried are small random networks of both kinds, also in NF4 on a processor,
compared with the library. The chat template is the folder's own; the published one was not seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.catalog import Entry
from isocenter.core.errors import LimitError, MemoryLimitError, ModelError, PromptError, UsageError
from isocenter.core.model import QUIET, ModelContext, ModelSpec, Run, Task
from isocenter.models import _hf, _weights

_CITATION = "Sellergren et al., MedGemma Technical Report, arXiv:2507.05201"
_PRECISIONS = ("bfloat16", "float32", "float16", "nf4")
#: Tokens of a prompt, pictures included: of a usual call and of a comprehensive one.
CONTEXT_TOKENS = 2048
COMPREHENSIVE_TOKENS = 4096
MAX_PICTURES = 3
MAX_NEW_TOKENS = 2048
#: What NF4 leaves as it is: quantising the eye costs more than it saves.
_WHOLE = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
#: MedGemma may think aloud first; what follows this token is the answer.
_THOUGHT_ENDS = "<unused95>"


def offer(folder: Path, entry: Entry | None = None) -> ModelSpec:
    """The spec of a Gemma 3 folder. Raises `ModelError` for one that cannot be used."""
    config = _hf.config_of(folder, ("gemma3", "gemma3_text"))
    paths = _weights.safetensors_of(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ModelError("its tokenizer is missing; install the model again")
    sees = config["model_type"] == "gemma3"
    try:
        scratch = _scratch_bytes(config, sees)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ModelError("its config.json is not as transformers writes it") from None
    kind = "words from words and up to three pictures" if sees else "words from words"
    return ModelSpec(
        id=entry.id if entry else folder.name,
        version=(entry.revision[:12] if entry else "") or "1",
        task=Task.NARRATE,
        factory="isocenter.models.medgemma:MedGemma",
        description=(entry.description if entry else "") or f"MedGemma: {kind}",
        dimensions=(2,),
        prompts=("text", "picture") if sees else ("text",),
        licence=(entry.licence if entry else "") or "unknown",
        citation=(entry.citation if entry else "") or _CITATION,
        weights_sha256=_weights.sha256(paths),
        weights_bytes=sum(path.stat().st_size for path in paths),
        weights=folder,
        packages=("torch", "transformers", "accelerate"),
        resident_bytes=_hf.resident_bytes(
            paths, _PRECISIONS, lambda name: "embed_tokens" in name or any(part.rpartition(".")[2] in name for part in _WHOLE)
        ),
        scratch_bytes={precision: scratch * (2 if precision == "float32" else 1) for precision in _PRECISIONS},
        devices=("cpu", "cuda", "mps"),
    )


def _scratch_bytes(config: dict[str, Any], sees: bool) -> int:
    """A guess for the longest prompt, in 16 bits: keys and values, one layer's activations, the words' scores, the pictures."""
    text = dict(config["text_config"]) if sees else config
    tokens = COMPREHENSIVE_TOKENS + MAX_NEW_TOKENS
    heads, width = int(text.get("num_key_value_heads", 4)), int(text.get("hidden_size", 2304))
    cache = 2 * int(text.get("num_hidden_layers", 26)) * heads * int(text.get("head_dim", 256)) * tokens * 2
    layer = COMPREHENSIVE_TOKENS * (width + int(text.get("intermediate_size", 9216))) * 2 * 3
    words = int(text.get("vocab_size", 262_208)) * 4 * 4
    vision = dict(config.get("vision_config") or {}) if sees else {}
    patches = (int(vision.get("image_size", 0)) // max(1, int(vision.get("patch_size", 1)))) ** 2
    return cache + layer + words + MAX_PICTURES * patches * int(vision.get("hidden_size", 0)) * 2 * 12


class MedGemma:
    """One model in memory. For one caller at a time."""

    def __init__(self) -> None:
        self._model: Any = None
        self._tokenizer: Any = None
        self._processor: Any = None
        self._special: re.Pattern[str] = re.compile("$^")

    def load(self, context: ModelContext) -> None:
        """Read tokenizer, processor and weights. Raises `ModelError`, or `MemoryLimitError` where the devices are too small."""
        with _hf.library():
            import transformers

            sees = _hf.config_of(context.weights, ("gemma3", "gemma3_text"))["model_type"] == "gemma3"
            if sees:
                self._processor = _hf.processor(transformers.Gemma3Processor, context.weights)
                self._tokenizer = self._processor.tokenizer
            else:
                self._tokenizer = _hf.processor(transformers.AutoTokenizer, context.weights)
            if not (self._tokenizer.chat_template or getattr(self._processor, "chat_template", None)):
                raise ModelError("its chat template is missing; install the model again")
            kind = transformers.Gemma3ForConditionalGeneration if sees else transformers.Gemma3ForCausalLM
            self._model = _hf.load(kind, context, **_placement(context))
        if "disk" in (getattr(self._model, "hf_device_map", None) or {}).values():
            self.close()
            raise MemoryLimitError("the model does not fit into the memory of these devices; use NF4 or a smaller model")
        added = self._tokenizer.added_tokens_decoder.values()
        names = sorted((t.content for t in added if t.special and t.content.startswith("<")), key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(name) for name in names) or "$^")

    def close(self) -> None:
        """Give its memory back."""
        self._model = self._tokenizer = self._processor = None
        _free()

    def narrate(
        self, prompt: str, pictures: Sequence[NDArray[np.uint8]] = (), *, max_tokens: int = 400, comprehensive: bool = False, run: Run = QUIET
    ) -> str:
        """The model's words, always the same for the same prompt (the likeliest token each time).

        pictures: uint8, (rows, columns) or (rows, columns, 3), in the order in which they are shown before the words.
        comprehensive: a longer prompt is let in. Progress and cancel come with every token.
        Raises `LimitError` when prompt or pictures are more than it takes, `PromptError` for pictures where it takes none.
        """
        import torch
        from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        if self._model is None:
            raise ModelError("the model is not loaded")
        if not 1 <= max_tokens <= MAX_NEW_TOKENS:
            raise UsageError(f"max_tokens must lie between 1 and {MAX_NEW_TOKENS}, not {max_tokens}")
        inputs = self._inputs(prompt, pictures).to(self._model.device)
        length = int(inputs["input_ids"].shape[1])
        name, most = ("comprehensive_tokens", COMPREHENSIVE_TOKENS) if comprehensive else ("context_tokens", CONTEXT_TOKENS)
        if length > most:
            raise LimitError(f"the prompt has {length} tokens, pictures included; shorten it", limit=name, value=most)
        run.check(0.0, f"reading {length} tokens")
        own = self._model.generation_config
        plan = GenerationConfig(
            max_new_tokens=max_tokens, do_sample=False, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id, bos_token_id=own.bos_token_id
        )
        cache = DynamicCache(config=self._model.config.get_text_config())
        said = 0

        def watch(ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            nonlocal said
            said += 1
            run.check(min(1.0, said / max_tokens), f"token {said}")
            return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

        try:
            with torch.inference_mode():
                tokens = self._model.generate(
                    **inputs,
                    generation_config=plan,
                    past_key_values=cache,
                    logits_processor=LogitsProcessorList([_finite]),
                    stopping_criteria=StoppingCriteriaList([watch]),
                )
            answer = self._tokenizer.decode(tokens[0, length:], skip_special_tokens=True)
        finally:
            del cache
            _free()
        run.check(1.0, "done")
        return str(answer).rpartition(_THOUGHT_ENDS)[2].strip()

    def _inputs(self, prompt: str, pictures: Sequence[NDArray[np.uint8]]) -> Any:
        """The prompt as one turn of a chat, in tokens, and the pictures as the network takes them."""
        if not prompt.strip():
            raise UsageError("the prompt is empty")
        if pictures and self._processor is None:
            raise PromptError("this model reads words only; choose one that takes pictures")
        if len(pictures) > MAX_PICTURES:
            raise LimitError(f"{len(pictures)} pictures are too many", limit="max_pictures", value=MAX_PICTURES)
        shown = [_hf.coloured(picture) for picture in pictures]
        # Words that are commands to the model, such as the end of a turn, are only words in a prompt.
        words = self._special.sub(lambda found: found.group().strip("<>"), prompt)
        if self._processor is None:
            talk: list[dict[str, Any]] = [{"role": "user", "content": words}]
            text = self._tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
            return self._tokenizer(text, return_tensors="pt", add_special_tokens=False)
        talk = [{"role": "user", "content": [*({"type": "image"} for _ in shown), {"type": "text", "text": words}]}]
        text = self._processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        made = self._processor(text=text, images=shown or None, return_tensors="pt", add_special_tokens=False)
        if "pixel_values" in made:
            made["pixel_values"] = made["pixel_values"].to(self._model.dtype)
        return made


def _placement(context: ModelContext) -> dict[str, Any]:
    """Where the weights go and how they are packed, as `from_pretrained` takes it."""
    options: dict[str, Any] = {"device_map": {"": context.device}}
    if context.max_memory:
        named = {int(d.partition(":")[2] or 0) if d.startswith("cuda") else d: int(n) for d, n in context.max_memory.items()}
        options = {"device_map": "auto", "max_memory": named}
    if context.precision == "nf4":
        import bitsandbytes  # noqa: F401 - its absence is the caller's to tell
        import torch
        from transformers import BitsAndBytesConfig

        able = not context.device.startswith("cuda") or torch.cuda.is_bf16_supported(including_emulation=False)
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if able else torch.float32,
            llm_int8_skip_modules=list(_WHOLE),
        )
    return options


def _finite(ids: Any, scores: Any) -> Any:
    """Refuse to choose words by numbers that are none: the library would go on silently."""
    if bool(scores.isnan().any()):
        raise ModelError("the network answered with values that are not numbers; its weights are broken, or they need another precision than float16")
    return scores


def _free() -> None:
    """Have torch return what the call took."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
