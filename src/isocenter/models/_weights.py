"""Files with weights: whole, not a pointer, and their hash; read without the libraries that run them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from isocenter.core.errors import ModelError

_LFS = b"version https://git-lfs"
#: More than this is not hashed while models are listed: it would take seconds; its installation recorded the hash.
_HASHED_BYTES = 1 << 30
#: The longest header of a safetensors file, as its own readers have it.
_HEADER_BYTES = 100_000_000


def check(path: Path) -> None:
    """Raise `ModelError` for a file that cannot hold weights: absent, a pointer of Git LFS, or cut off."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(len(_LFS))
    except OSError:
        raise ModelError(f"'{path.name}' is missing or cannot be read; install the model again") from None
    if head.startswith(_LFS):
        raise ModelError(f"'{path.name}' is a pointer of Git LFS and not the weights themselves; fetch them with `git lfs pull`")
    whole = _whole_safetensors(path, size) if path.suffix == ".safetensors" else zipfile.is_zipfile(path)
    if not whole:
        raise ModelError(f"'{path.name}' is no file of weights, or it was cut off; install the model again")


def _whole_safetensors(path: Path, size: int) -> bool:
    """Whether the header can be read and the tensors that it names end where the file does."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_HEADER_BYTES, size - 8):
            return False
        try:
            header = json.loads(file.read(length))
            ends = [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return False
    return bool(ends) and 8 + length + max(ends) == size


def sha256(paths: Sequence[Path]) -> str | None:
    """One hash for these files: that of the only one, or of all their hashes in the order of the paths.

    None for more than a gigabyte. Computed once while the files stay as they are.
    """
    facts = [path.stat() for path in paths]
    if not paths or sum(fact.st_size for fact in facts) > _HASHED_BYTES:
        return None
    digests = [_sha256(path, fact.st_size, fact.st_mtime_ns) for path, fact in zip(paths, facts, strict=True)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safetensors_of(folder: Path) -> list[Path]:
    """The safetensors files of a transformers folder, all that its index names, checked one by one. Raises `ModelError`."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise ModelError(f"'{index.name}' cannot be read; install the model again") from None
        paths = [folder / str(name) for name in names]
        if any(path.parent != folder for path in paths):
            raise ModelError(f"'{index.name}' names files outside of its folder")
    else:
        paths = [folder / "model.safetensors"]
        if not paths[0].is_file() and any(folder.glob("*.bin")):
            raise ModelError("its weights are pickled (.bin), which is not loaded here; convert them to safetensors")
    for path in paths:
        check(path)
    return paths
