"""What is known of models, as plain data for JSON and as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isocenter.core.catalog import Entry
    from isocenter.core.model import ModelSpec
    from isocenter.models._catalog.found import Folder
    from isocenter.models.registry import Registry


def folders(here: Registry) -> Iterator[Folder]:
    from isocenter.models._catalog import found

    for place in here.places:
        yield from found.folders(place)


def of_spec(spec: ModelSpec) -> dict[str, Any]:
    """A spec as plain data: labels by name, without what only the program needs."""
    facts = asdict(spec)
    facts["labels"] = [label.name for label in spec.labels]
    facts["needs_weights"] = spec.weights_bytes > 0
    facts["weights"] = str(spec.weights) if spec.weights else None
    facts.pop("factory")
    return {"id": facts.pop("id"), "state": "ready", "task": spec.task.value, **facts}


def of_broken(here: Registry, name: str) -> dict[str, Any]:
    broken = here.broken[name]
    return {"id": name, "state": "broken", "reason": broken.reason, "family": broken.family, "weights": str(broken.path) if broken.path else None}


def of_text(name: str, entry: Entry | None) -> dict[str, Any]:
    """An installed text encoder. One without a record is known by its folder alone."""
    own = {} if entry is None else {k: v for k, v in of_entry(entry).items() if k in ("task", "licence", "citation", "description")}
    rest = {"modalities": [], "prompts": ["text"], "description": "Text encoder: embeddings and BERTScore", "task": "embed"}
    return {"id": name, "state": "ready", **rest, **{k: v for k, v in own.items() if v}, "family": "text"}


def of_entry(entry: Entry) -> dict[str, Any]:
    data = {"modalities": [], "prompts": [], "labels": [], "gated": False, "commercial": True, "bytes": 0} | entry.as_dict()
    data["bytes"] = entry.bytes or sum(file.bytes for file in entry.files)
    data.pop("options", None)
    return {"id": data.pop("id"), "state": "available", "task": data.pop("task", ""), **data}


def installation(here: Registry, name: str) -> dict[str, Any]:
    """What the record of an installed model says."""
    folder = next((f for f in folders(here) if f.id == name), None)
    record = folder.record if folder else None
    if folder is None or record is None:
        return {}
    own = {key: record.get(key) for key in ("installed", "source", "accepted") if record.get(key)}
    return {**own, "weights": str(folder.path), "files": {name: file.get("sha256") for name, file in (record.get("files") or {}).items()}}


def shown(key: str, value: Any) -> str:
    """A fact for people: sizes with a unit, one line a file."""
    if key in ("bytes", "weights_bytes"):
        return size(value)
    if key in ("resident_bytes", "scratch_bytes"):
        return ", ".join(f"{size(count)} in {precision}" for precision, count in value.items())
    if key == "files":
        pairs = value.items() if isinstance(value, dict) else ((file["name"], file.get("sha256")) for file in value)
        return "\n".join(f"{name}  {sha256[:16]}..." if sha256 else name for name, sha256 in pairs)
    return plain(value)


def plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} = {v}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value)
    return str(value)


def size(count: int) -> str:
    if not count:
        return ""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
