"""A text model's folder as it was published: what it says of its tokens, its pooling and its prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import ModelError
from isocenter.models._text import bert, deberta

#: A tokenizer without a limit says so with a number far beyond any real one.
_UNLIMITED = 1_000_000
_POOLING = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "mean_sqrt_len_tokens": "mean_sqrt_len"}
_POOLING |= {"weightedmean_tokens": "weightedmean", "lasttoken": "lasttoken"}


@dataclass(frozen=True)
class Dense:
    """A layer behind the pooling, as some sentence-transformers folders have it."""

    matrix: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    activation: str

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(texts, in) to (texts, out)."""
        y = x @ self.matrix.T
        if self.bias is not None:
            y = y + self.bias
        return np.tanh(y) if self.activation == "Tanh" else y


@dataclass(frozen=True)
class Recipe:
    """How texts become vectors.

    max_tokens: longest text for embeddings; model_tokens: the longest that the tokenizer's own configuration allows
    (what BERTScore cuts at). pooling: ways of pooling, joined in this order. prompts: texts put in front, by name.
    """

    config: Mapping[str, Any]
    max_tokens: int
    model_tokens: int
    pooling: tuple[str, ...] = ("mean",)
    normalize: bool = False
    lower: bool = False
    dense: tuple[Dense, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    include_prompt: bool = True

    @property
    def layers(self) -> int:
        """Layers of the encoder."""
        return bert.depth(self.config)


def read(folder: Path) -> Recipe:
    """The recipe of a sentence-transformers or transformers folder. Raises `ModelError` for what is not understood."""
    config = _json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in bert.FAMILY | deberta.FAMILY:
        raise ModelError(f"the text model '{folder.name}' is of type '{str(kind)[:40]}'; encoders of the BERT and DeBERTa families are served")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(f"the text model '{folder.name}' has positions of type '{config['position_embedding_type']}', which are not supported")
    positions = int(config["max_position_embeddings"]) - bert.first_position(config)
    stated = int(min(_json(folder / "tokenizer_config.json", optional=True).get("model_max_length", positions), _UNLIMITED))
    model_tokens = min(stated, positions)
    sentence = _json(folder / "sentence_bert_config.json", optional=True)
    longest = sentence.get("max_seq_length") or model_tokens
    modules = _modules(folder)
    prompts = _json(folder / "config_sentence_transformers.json", optional=True)
    return Recipe(
        config,
        min(int(longest), positions),
        model_tokens,
        lower=bool(sentence.get("do_lower_case", False)),
        prompts={k: str(v) for k, v in (prompts.get("prompts") or {}).items()},
        default_prompt=str((prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"), "")),
        **modules,
    )


def _modules(folder: Path) -> dict[str, Any]:
    """What stands behind the encoder in `modules.json`; without that file, mean pooling, as sentence-transformers does."""
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    found: dict[str, Any] = {"dense": ()}
    for module in json.loads(path.read_text()):
        # The path is the folder's own, but stays inside of it all the same.
        place, kind = folder / Path(module["path"]).name, module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            settings = _json(place / "config.json")
            found["pooling"] = _pooling(settings)
            if not found["pooling"]:
                raise ModelError(f"the text model '{folder.name}' does not say how it pools")
            found["include_prompt"] = bool(settings.get("include_prompt", True))
        elif kind == "Normalize":
            found["normalize"] = True
        elif kind == "Dense":
            found["dense"] = (*found["dense"], _dense(place))
        elif kind not in ("Transformer", "Dropout"):
            raise ModelError(f"the text model '{folder.name}' has a module '{kind[:40]}', which is not supported")
    return found


def _pooling(settings: Mapping[str, Any]) -> tuple[str, ...]:
    mode = settings.get("pooling_mode")
    if mode is not None:
        return (mode,) if isinstance(mode, str) else tuple(mode)
    return tuple(way for key, way in _POOLING.items() if settings.get(f"pooling_mode_{key}"))


def _dense(place: Path) -> Dense:
    from safetensors.numpy import load_file

    settings = _json(place / "config.json")
    activation = str(settings.get("activation_function", "")).rsplit(".", 1)[-1]
    if activation not in ("Tanh", "Identity"):
        raise ModelError(f"a dense layer with the activation '{activation[:40]}' is not supported")
    if not (place / "model.safetensors").is_file():
        raise ModelError("a dense layer has no model.safetensors; docs/text.md shows how to convert it")
    tensors = load_file(place / "model.safetensors")
    bias = tensors.get("linear.bias")
    return Dense(np.asarray(tensors["linear.weight"], np.float32), None if bias is None else np.asarray(bias, np.float32), activation)


def _json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"the text model's {path.name} is missing or cannot be read") from None
    if not isinstance(data, dict):
        raise ModelError(f"the text model's {path.name} is not what it should be")
    return data


def pool(states: NDArray[np.float32], mask: NDArray[np.int64], ways: tuple[str, ...]) -> NDArray[np.float32]:
    """One vector a text, (texts, size x ways), from hidden states (texts, tokens, size); as sentence-transformers pools."""
    weight = mask.astype(np.float32)
    found = []
    for way in ways:
        if way == "cls":
            found.append(states[np.arange(len(mask)), mask.argmax(axis=1)])
        elif way == "max":
            found.append(np.where(mask[:, :, None] != 0, states, -np.inf).max(axis=1))
        elif way == "lasttoken":
            last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
            found.append(states[np.arange(len(mask)), last])
        elif way in ("mean", "mean_sqrt_len", "weightedmean"):
            each = weight * np.arange(1, mask.shape[1] + 1, dtype=np.float32) if way == "weightedmean" else weight
            total = np.maximum(each.sum(axis=1, keepdims=True), 1e-9)
            summed = np.matmul(each[:, None, :], states)[:, 0]
            found.append(summed / (np.sqrt(total) if way == "mean_sqrt_len" else total))
        else:
            raise ModelError(f"pooling by '{way[:40]}' is not supported")
    return np.concatenate(found, axis=1).astype(np.float32) if len(found) > 1 else np.asarray(found[0], np.float32)
