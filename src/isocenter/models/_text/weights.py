"""The tensors of a safetensors folder, one file or sharded, as float32 arrays."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import ModelError

Array = NDArray[np.float32]
#: Older checkpoints name a normalisation's two vectors so.
_OLD_NAMES = {"weight": "gamma", "bias": "beta"}


class Weights:
    """Tensors by name below the encoder's own prefix (`bert.`, `deberta.`, none). A context manager: it holds files open."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._stack = ExitStack()
        self._where: dict[str, tuple[Path, Any]] = {}
        try:
            for path in _files(folder):
                file = self._stack.enter_context(safe_open(path, framework="np"))
                self._where.update(dict.fromkeys(file.keys(), (path, file)))
        except ModelError:
            raise
        except Exception:
            self._stack.close()
            raise ModelError(f"the weights of the text model '{folder.name}' cannot be read; download them again") from None
        anchor = "embeddings.word_embeddings.weight"
        prefixes = [name.removesuffix(anchor) for name in self._where if name.endswith(anchor)]
        if not prefixes:
            self._stack.close()
            raise ModelError(f"the text model '{folder.name}' is not of the BERT or DeBERTa family: it has no '{anchor}'")
        self._prefix = min(prefixes, key=len)

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def has(self, name: str) -> bool:
        """Whether the encoder has this tensor."""
        return self._prefix + name in self._where

    def get(self, name: str) -> Array:
        """A tensor, in float32 whatever it is stored as."""
        full = self._prefix + name
        if full not in self._where:
            head, _, last = full.rpartition(".")
            full = f"{head}.{_OLD_NAMES.get(last, last)}"
        if full not in self._where:
            raise ModelError(f"the text model lacks the tensor '{name}'; download it again")
        path, file = self._where[full]
        if file.get_slice(full).get_dtype() == "BF16":
            return _bfloat16(path, full)
        return np.asarray(file.get_tensor(full), np.float32)

    def linear(self, name: str) -> tuple[Array, Array]:
        """A dense layer as (matrix (in, out), bias (out,)); zeros where it has no bias."""
        matrix = np.ascontiguousarray(self.get(f"{name}.weight").T)
        bias = self.get(f"{name}.bias") if self.has(f"{name}.bias") else np.zeros(matrix.shape[1], np.float32)
        return matrix, bias


def _bfloat16(path: Path, name: str) -> Array:
    """A bfloat16 tensor: the upper half of a float32. NumPy has no such type, so safetensors does not read it for NumPy."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        begin, end = entry["data_offsets"]
        file.seek(8 + length + begin)
        halves = np.frombuffer(file.read(end - begin), "<u2")
    return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def _files(folder: Path) -> list[Path]:
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        # A shard is a file beside its index, whatever the index says.
        return [folder / Path(str(name)).name for name in names]
    raise ModelError(
        f"the text model '{folder.name}' has no model.safetensors; docs/text.md shows how to convert one that is published as pytorch_model.bin"
    )
