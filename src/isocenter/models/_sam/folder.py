"""An installed folder of the family, looked at without torch: its configuration, its weights, and what they will take."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from isocenter.core.catalog import Entry
from isocenter.core.errors import ModelError
from isocenter.models import _weights

_JSON_BYTES = 32 << 20


@dataclass(frozen=True)
class Installed:
    """A usable folder. config: its `config.json`; shapes: of every tensor, by name; bytes, sha256: of the weight files."""

    folder: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    bytes: int
    sha256: str | None

    def resident(self, prefix: str = "") -> dict[str, int]:
        """Bytes of the loaded network by precision. Weights stay in float32: in half precision only the sums are made."""
        total = sum(4 * prod(shape) for name, shape in self.shapes.items() if name.startswith(prefix))
        return dict.fromkeys(("float32", "bfloat16", "float16"), total)


def look(folder: Path, types: Collection[str], originals: str = "") -> Installed:
    """The folder, if a model of one of the `types` lies in it whole. Raises `ModelError` with what is wrong.

    originals: what to say of a folder that holds only a checkpoint as it was first published.
    """
    if not folder.is_dir():
        raise ModelError("the model's folder is not there")
    if not (folder / "config.json").is_file():
        if any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
            raise ModelError(f"the folder holds a checkpoint as it was first published, not its transformers layout; {originals}")
        raise ModelError("the folder has no config.json; download the model again")
    config = read_json(folder / "config.json")
    if config.get("model_type") not in types:
        raise ModelError(f"the model is of type '{str(config.get('model_type'))[:40]}'; {' or '.join(sorted(types))} is served here")
    paths = _weights.safetensors_of(folder)
    shapes = {name: shape for path in paths for name, shape in _shapes(path).items()}
    return Installed(folder, config, shapes, sum(path.stat().st_size for path in paths), _weights.sha256(paths))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `ModelError`."""
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise ValueError
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ModelError(f"the model's {path.name} is missing or cannot be read; download the model again") from None
    if not isinstance(data, dict):
        raise ModelError(f"the model's {path.name} is not what it should be; download the model again")
    return data


def named(folder: Path, entry: Entry | None) -> str:
    """The model's id."""
    return entry.id if entry else folder.name


def shared(found: Installed, entry: Entry | None, image_bytes: int) -> dict[str, Any]:
    """The fields of a `ModelSpec` that all of the family's models fill alike. image_bytes: what seeing one slice takes in float32."""
    return {
        "citation": entry.citation if entry else "",
        "weights_sha256": found.sha256,
        "weights_bytes": found.bytes,
        "weights": found.folder,
        "packages": ("torch", "transformers"),
        "scratch_bytes": scratch(image_bytes),
        "devices": ("cpu", "cuda", "mps"),
        "together": True,
    }


def batch(image_bytes: int, precision: str) -> int:
    """Slices that are encoded at once where all are known ahead: 4 to 8 in half precision, fewer in float32 if they are large."""
    if precision == "float32":
        return int(min(8, max(1, (3 << 30) // image_bytes)))
    return int(min(8, max(4, (6 << 30) // image_bytes)))


def scratch(image_bytes: int) -> dict[str, int]:
    """Scratch bytes by precision, from what one slice takes in float32."""
    half = image_bytes * 6 // 10
    return {"float32": image_bytes * batch(image_bytes, "float32")} | dict.fromkeys(("bfloat16", "float16"), half * batch(half, "bfloat16"))


def sam_bytes(vision: Mapping[str, Any]) -> int:
    """What encoding one slice takes in float32: the attention over all patches of a global layer, and the activations."""
    try:
        tokens = (int(vision.get("image_size", 1024)) // int(vision.get("patch_size", 16))) ** 2
        heads, width = int(vision.get("num_attention_heads", 12)), int(vision.get("hidden_size", 768))
    except (TypeError, ValueError, ZeroDivisionError):
        raise ModelError("the model's config.json has no usable image_size and patch_size; download the model again") from None
    return int(2.5 * 4 * heads * tokens**2) + 40 * 4 * tokens * width + (64 << 20)


def hiera_bytes(config: Mapping[str, Any]) -> int:
    """As `sam_bytes`, for SAM 2's encoder: activations of its first, finest stage, and what following takes."""
    try:
        vision = config.get("vision_config") or {}
        side = (config.get("prompt_encoder_config") or {}).get("image_size", 1024)
        width = int((vision.get("backbone_config") or {}).get("hidden_size", 96))
        tokens = (int(side if isinstance(side, int) else side[0]) // 4) ** 2
    except (TypeError, ValueError, AttributeError, IndexError):
        raise ModelError("the model's config.json is not what it should be; download the model again") from None
    return 24 * 4 * tokens * width + 2 * 4 * 256 * tokens + (64 << 20)


def backbone(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The encoder's part of one of SAM 3's configurations; empty where the library's defaults are meant."""
    part: Any = config.get("tracker_config") or config.get("detector_config") or config
    for name in ("vision_config", "backbone_config"):
        part = (part.get(name) or {}) if isinstance(part, dict) else {}
    return part if isinstance(part, dict) else {}


def vit_bytes(backbone: Mapping[str, Any]) -> int:
    """As `sam_bytes`, for SAM 3's encoder, whose attention is never held whole."""
    try:
        tokens = (int(backbone.get("image_size", 1008)) // int(backbone.get("patch_size", 14))) ** 2
        width = int(backbone.get("hidden_size", 1024))
    except (TypeError, ValueError, ZeroDivisionError):
        raise ModelError("the model's config.json is not what it should be; download the model again") from None
    return 60 * 4 * tokens * width + 30 * 4 * 256 * tokens + (64 << 20)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file that was checked."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tuple(int(n) for n in entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
