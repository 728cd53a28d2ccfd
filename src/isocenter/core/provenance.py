"""How an answer came about: kept with every artifact, so that nobody mistakes one model's mask for another's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

RESEARCH_USE = "Research use only; not a medical device."


@dataclass(frozen=True)
class Provenance:
    """Model, input and settings behind an answer.

    input: the volume's content hash. prompts: as plain data. seconds: by stage ("read", "prepare", "infer", ...).
    notes: sentences on everything that was guessed or changed. fallback: true where a weight-free method answers in
    place of a network.
    """

    model: str
    version: str
    input: str
    weights_sha256: str | None = None
    prompts: tuple[dict[str, Any], ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    precision: str = "float32"
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fallback: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "intended_use": RESEARCH_USE}
