"""The file of a network: found, whole and the one that it should be."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from isocenter.core.errors import ModelError

_LFS = b"version https://git-lfs"
#: The smallest file that can hold a network.
_LEAST_BYTES = 64


def find(folder: Path, raw: Mapping[str, Any]) -> Path:
    """The ONNX file of a model folder: the one that the configuration names, else the only one. Raises `ModelError`."""
    named = raw.get("network") or raw.get("onnx_path")
    if named:
        path = (folder / str(named)).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ModelError("config.json: network must name a file inside the model's own folder")
        if path.suffix.lower() != ".onnx" or not path.is_file():
            raise ModelError(f"the model folder '{folder.name}' has no file '{path.name}', which its config.json names; install the model again")
        return path
    found = sorted(p for depth in ("*", "*/*", "*/*/*") for p in folder.glob(f"{depth}.onnx") if p.is_file())
    if not found:
        raise ModelError(f"the model folder '{folder.name}' holds no .onnx file; install the model again")
    if len(found) > 1:
        raise ModelError(f"the model folder '{folder.name}' holds {len(found)} .onnx files; name one as \"network\" in config.json")
    return found[0]


def check(path: Path) -> None:
    """Raise `ModelError` for what cannot be a network: empty, truncated at once, or a pointer of Git LFS."""
    try:
        with path.open("rb") as file:
            head = file.read(_LEAST_BYTES)
    except OSError:
        raise ModelError(f"the network '{path.name}' cannot be read; check the file's permissions") from None
    if head.startswith(_LFS):
        raise ModelError(f"'{path.name}' is a pointer of Git LFS and not the weights themselves; fetch them with `git lfs pull`")
    # A network starts with the field of its format's version: field 1, a varint.
    if len(head) < _LEAST_BYTES or head[0] != 0x08:
        raise ModelError(f"'{path.name}' is not an ONNX network, or it was cut off; install the model again")


def sha256(path: Path) -> str:
    """The hash of a file, hexadecimal; computed once while it stays as it is."""
    facts = path.stat()
    return _sha256(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
