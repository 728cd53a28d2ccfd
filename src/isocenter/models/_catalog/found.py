"""Model folders on this machine: which there are, and which family runs each of them.

An installed folder has a record (`isocenter.json`) that says so. A folder that somebody put there is known by what
lies in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isocenter.core.catalog import Entry
from isocenter.core.errors import ModelError
from isocenter.store.weights import RECORD

#: How deep below a models folder networks are looked for, e.g. `liver/3d_fullres/fold_0/checkpoint_final.onnx`.
_DEPTH = 4
#: The most that a JSON file of a model folder may hold; tokenizers are not read here.
_JSON_BYTES = 32 << 20
#: `model_type` of a transformers `config.json`, and the family that runs it.
_TYPES = {"sam": "sam", "siglip": "medsiglip", "gemma3": "medgemma", "gemma3_text": "medgemma"}
_TYPES |= dict.fromkeys(("sam2", "sam2_video"), "sam2")
_TYPES |= dict.fromkeys(("sam3", "sam3_video", "sam3_tracker", "sam3_tracker_video"), "sam3")
#: What nnInteractive's checkpoints hold beside an nnU-Net's files.
_INTERACTIVE = ("inference_session_class.json", "inference_info.json")
#: Text encoders have a discovery of their own, see `models/text.py`.
TEXT = "text"


@dataclass(frozen=True)
class Folder:
    """A model's folder. family: "" where `reason` says why it is of none. record: what its installation wrote, or {}."""

    id: str
    path: Path
    family: str
    entry: Entry | None = None
    record: dict[str, Any] | None = None
    reason: str = ""

    @property
    def sha256(self) -> str | None:
        """One hash for all its files, as recorded when it was installed."""
        value = (self.record or {}).get("sha256")
        return value if isinstance(value, str) else None


def folders(base: Path) -> list[Folder]:
    """The model folders below `base`, by name. Never fails: a folder that cannot be used says why."""
    found: list[Folder] = []
    for top in _below(base):
        inside = list(_search(top, _DEPTH))
        for folder in inside:
            relative = folder.path.relative_to(base).parts
            name = folder.entry.id if folder.entry else relative[0] if len(inside) == 1 else "-".join(relative)
            if folder.family == TEXT and folder.entry is None:
                name = name.replace("--", "/", 1)  # publisher and name, as they are written for text encoders
            found.append(Folder(name, folder.path, folder.family, folder.entry, folder.record, folder.reason))
    return found


def one(path: Path) -> Folder:
    """What lies in this folder itself."""
    try:
        return _known(path) or Folder(path.name, path, "", reason="it holds no model that is known here")
    except ModelError as error:
        return Folder(path.name, path, "", reason=error.message)


def _below(folder: Path) -> list[Path]:
    try:
        # A name that begins with a dot is an installation that did not end.
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []


def _search(path: Path, depth: int) -> Iterator[Folder]:
    """The folder itself, or what is found below it."""
    try:
        known = _known(path)
    except ModelError as error:
        known = Folder(path.name, path, "", reason=error.message)
    if known is not None:
        yield known
    elif depth > 1:
        for folder in _below(path):
            yield from _search(folder, depth - 1)


def _known(path: Path) -> Folder | None:
    """The folder as a model; None where nothing in it looks like one. Raises `ModelError` for a broken record."""
    record = read_json(path / RECORD)
    if record is not None:
        entry = Entry.read(record.get("entry") or {})
        return Folder(entry.id, path, entry.family, entry, record)
    family = _family(path)
    return Folder(path.name, path, family) if family else None


def _family(path: Path) -> str:
    """The family of a folder without a record, "" for none."""
    if (path / "plans.json").is_file() and (path / "dataset.json").is_file():
        return "nninteractive" if any((path / name).is_file() for name in _INTERACTIVE) else "nnunet"
    has_config = (path / "config.json").is_file()
    if has_config:
        kind = str((read_json(path / "config.json") or {}).get("model_type", ""))
        if kind in _TYPES:
            return _TYPES[kind]
        if any((path / name).is_file() for name in ("tokenizer.json", "vocab.txt", "merges.txt")):
            return TEXT
    onnx = any(path.glob("*.onnx"))
    if has_config and not onnx and any(path.glob("*.safetensors")):
        raise ModelError(f"its config.json is of a kind that is not known here ('{kind[:40]}')")
    return "onnx_volume" if onnx else ""


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file. Raises `ModelError` for one that cannot be read."""
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > _JSON_BYTES:
            raise ModelError(f"its {path.name} is too large to be one")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ModelError(f"its {path.name} cannot be read; is it valid JSON?") from None
    if not isinstance(data, dict):
        raise ModelError(f"its {path.name} is not a JSON object")
    return data
