"""What the use-cases answer with, and how each answer says how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core import naming, terminology
from isocenter.core.model import Finding, LabelMap, Question
from isocenter.core.prompts import Box, MaskPrompt, Prompt, Text
from isocenter.core.provenance import Provenance
from isocenter.core.segmentation import Label, Segmentation
from isocenter.core.volume import Volume
from isocenter.runtime.runtime import Lease
from isocenter.runtime.sessions import Session


@dataclass(frozen=True)
class Found:
    """Text prompts answered: one finding a prompt, in order, and how they came about."""

    findings: tuple[Finding, ...]
    provenance: Provenance


@dataclass(frozen=True, eq=False)
class Clicked:
    """A click answered. mask (z, y, x) is the session's own: copy or encode it before the session is let go.

    changed: the box outside of which nothing changed since this session's last answer.
    """

    mask: NDArray[np.uint8]
    changed: Box | None
    session: Session
    provenance: Provenance


def as_segmentation(
    lease: Lease, volume: Volume, answer: LabelMap, kept: Sequence[Label], options: Mapping[str, Any], elapsed: float
) -> Segmentation:
    """The answer of a model that needs no prompts. kept: only these labels are shown, all where there are none. elapsed: seconds."""
    shown = naming.only(answer, kept) if kept else answer
    settings = {**options, **({"labels": [label.name for label in kept]} if kept else {})}
    provenance = provenance_of(lease, volume, [], settings, {"infer": elapsed}, volume.source.notes + answer.notes)
    return Segmentation(shown.mask, volume.grid, shown.labels, provenance, shown.scores)


def as_found(lease: Lease, asked: Question, findings: tuple[Finding, ...], elapsed: float) -> Found:
    """The answer to words. elapsed: seconds."""
    notes = asked.volume.source.notes + tuple(dict.fromkeys(n for f in findings for n in f.notes))
    words = [Text(p) for p in asked.prompts]
    return Found(findings, provenance_of(lease, asked.volume, words, {"threshold": asked.threshold}, {"infer": elapsed}, notes))


def _plain(prompt: Prompt) -> dict[str, Any]:
    """A prompt as plain data, for provenance; of a mask only its size."""
    if isinstance(prompt, MaskPrompt):
        return {"type": "mask", "positive": prompt.positive, "voxels": int(np.count_nonzero(prompt.mask))}
    data = asdict(prompt) if is_dataclass(prompt) else {}
    return {"type": type(prompt).__name__.lower(), **data}


def provenance_of(
    lease: Lease, volume: Volume, prompts: Sequence[Prompt], settings: dict[str, Any], seconds: dict[str, float], notes: tuple[str, ...]
) -> Provenance:
    """What answered, what it was asked and on what. seconds: by stage."""
    spec = lease.spec
    rounded = {stage: round(value, 4) for stage, value in seconds.items()}
    plain = tuple(_plain(p) for p in prompts)
    return Provenance(
        spec.id,
        spec.version,
        volume.key,
        spec.weights_sha256,
        plain,
        settings,
        device=lease.device,
        precision=lease.precision,
        seconds=rounded,
        notes=tuple(dict.fromkeys((*notes, *lease.notes))),
        fallback=spec.fallback,
    )


def label_map(volume: Volume, found: Found) -> Segmentation:
    """One label map from findings, a label each; earlier ones win where they overlap."""
    mask = np.zeros(volume.shape, dtype=np.uint8 if len(found.findings) < 256 else np.uint16)
    labels, scores = [], {}
    for value, finding in enumerate(found.findings, start=1):
        mask[(finding.mask != 0) & (mask == 0)] = value
        labels.append(terminology.label(finding.label.name, value))
        scores[finding.label.name] = finding.presence
    probability = None
    if len(found.findings) == 1:
        probability = found.findings[0].probability.astype(np.float32) / np.float32(255)
    return Segmentation(mask, volume.grid, tuple(labels), found.provenance, scores, probability)
