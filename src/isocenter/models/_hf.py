"""Folders of the transformers library: read without torch, and loaded whole or not at all.

Nothing is fetched from a hub, no code of a folder is run, and only safetensors are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import InputError, ModelError
from isocenter.core.model import ModelContext
from isocenter.models import _weights

#: Bytes of a number of the weights. NF4: four bits and a scale that is itself quantised, for each block of 64.
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "nf4": 0.52}


def config_of(folder: Path, kinds: Sequence[str]) -> dict[str, Any]:
    """A folder's config.json, of one of these values of `model_type`. Raises `ModelError`."""
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ModelError("its config.json is missing or cannot be read; install the model again") from None
    kind = data.get("model_type") if isinstance(data, dict) else None
    if kind not in kinds:
        raise ModelError(f"its config.json describes a model of the type '{str(kind)[:40]}', not {' or '.join(kinds)}")
    assert isinstance(data, dict)  # noqa: S101 - for the type checker
    return data


def numbers_in(paths: Sequence[Path], kept: Callable[[str], bool] = lambda name: True) -> int:
    """How many numbers safetensors files hold, by their headers, in tensors whose name is `kept`."""
    count = 0
    for path in paths:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        count += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__" and kept(name))
    return count


def resident_bytes(paths: Sequence[Path], precisions: Sequence[str], whole: Callable[[str], bool] = lambda name: False) -> Mapping[str, int]:
    """Bytes of the weights in memory, by precision. whole: names of tensors that NF4 leaves in 16 bits."""
    numbers, spared = numbers_in(paths), numbers_in(paths, whole)
    return {p: int((numbers - spared) * BYTES[p] + spared * max(BYTES[p], 2.0)) for p in precisions}


@contextmanager
def library() -> Iterator[None]:
    """Around imports and loading: what the libraries raise becomes a sentence, what they print stays out of the log."""
    try:
        import torch  # noqa: F401
        from transformers.utils import logging
    except ImportError:
        raise ModelError("torch and transformers are not installed here; install them with: pip install 'isocenter[torch]'") from None
    said = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except ImportError:
        raise ModelError("a library that this model needs is not installed here; install it with: pip install 'isocenter[torch]'") from None
    finally:
        logging.set_verbosity(said)


def torch_type(precision: str) -> Any:
    """The type of the weights in torch; NF4 computes in bfloat16."""
    import torch

    return {"float32": torch.float32, "float16": torch.float16}.get(precision, torch.bfloat16)


def load(kind: Any, context: ModelContext, **options: Any) -> Any:
    """A model of this class from `context.weights`, ready to answer. Raises `ModelError` where any weight is missing or odd.

    The library itself fills missing weights with random numbers and says so in the log alone.
    """
    import torch

    folder = context.weights
    _weights.safetensors_of(folder)
    try:
        model, told = kind.from_pretrained(
            folder, dtype=torch_type(context.precision), local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    except (ImportError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # of many kinds: what config.json says decides what the library tries
        raise ModelError("its weights do not fit its config.json, or a file is broken; install the model again") from None
    lacking = [str(key) for key in told.get("missing_keys", ())]
    if lacking or told.get("mismatched_keys"):
        raise ModelError(f"its weights do not fit its config.json ({len(lacking)} tensors are missing); install the model again")
    return model.eval().requires_grad_(False)


def coloured(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture of (rows, columns) or (rows, columns, 3) with three channels. Raises `InputError` for what is none."""
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3) or 0 in picture.shape:
        raise InputError("a picture must be 8-bit grey (rows, columns) or colour (rows, columns, 3)")
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)


def processor(kind: Any, folder: Path) -> Any:
    """A tokenizer or image processor of this folder. Raises `ModelError`."""
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except ImportError:
        raise
    except Exception:  # of many kinds, as above
        raise ModelError("its tokenizer or image processor is missing or cannot be read; install the model again") from None
