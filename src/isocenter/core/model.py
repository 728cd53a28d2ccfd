"""What a model is to the rest of the program: a description that is pure data, and one method for its task.

A model lives in one file of `isocenter.models` (or in another package, by the entry point group `isocenter.models`)
that holds `SPEC` and a class. The class is only imported when the model is used, so listing models costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isocenter.core.prompts import Box, Prompt
from isocenter.core.segmentation import Label
from isocenter.core.volume import Volume


class Task(StrEnum):
    """The one thing that a model does, which is also the name of its class's method."""

    INTERACTIVE = "interactive"  #: clicks and lines, answer after answer: `prepare`, `begin`
    SCRIBBLES = "scribbles"  #: foreground and background lines, one answer: `separate`
    TEXT = "text"  #: words to masks: `find`
    SEGMENT = "segment"  #: the whole label map, no prompts: `segment`
    EMBED = "embed"  #: texts to vectors: `embed`
    SCORE = "score"  #: pairs of texts to how alike they are: `score`


@dataclass(frozen=True)
class ModelSpec:
    """All that is known of a model without loading it.

    factory: "module:Class", imported on first use. prompts: kinds taken ("point", "box", "scribble", "lasso", "mask",
    "text"). labels: what it can name, where that is fixed. synonyms: other words for them. options: parameters with
    their defaults (a list offers a choice, its first entry is the default). weights_sha256 is None for a model without
    weights. resident_bytes and scratch_bytes: by precision, for the memory ledger. fallback: a stand-in, not a network.
    """

    id: str
    version: str
    task: Task
    factory: str
    description: str
    modalities: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = (2, 3)
    prompts: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "Apache-2.0"
    citation: str = ""
    weights_sha256: str | None = None
    weights_bytes: int = 0
    resident_bytes: Mapping[str, int] = field(default_factory=dict)
    scratch_bytes: Mapping[str, int] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu",)
    fallback: bool = False


def _nothing(fraction: float, message: str) -> None:
    return None


def _never() -> bool:
    return False


@dataclass(frozen=True)
class ModelContext:
    """What a model is handed by the runtime, and all that it knows of it.

    progress(fraction 0..1, message) may be called from the model's thread; `cancelled()` is asked between steps.
    slots: how many threads call a model that can be called by several; threads: cores for each of them.
    """

    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1
    slots: int = 1
    progress: Callable[[float, str], None] = _nothing
    cancelled: Callable[[], bool] = _never


class Model(Protocol):
    """What every model's class has."""

    def load(self, context: ModelContext) -> None:
        """Make it ready to answer; called once, before anything else."""

    def close(self) -> None:
        """Give its memory back."""


class Prepared(Protocol):
    """What depends on the volume alone; made once per volume and kept while the volume is."""

    @property
    def nbytes(self) -> int:
        """Memory that it holds beside the volume."""


class Interaction(Protocol):
    """One person's work on one structure. Not for use by two threads at once."""

    @property
    def mask(self) -> NDArray[np.uint8]:
        """(z, y, x), 0 or 1, updated in place by `add` and `undo`."""

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""

    def add(self, prompts: Sequence[Prompt]) -> Box | None:
        """Take prompts in; returns the box outside of which nothing changed, None when nothing did at all."""

    def undo(self) -> Box | None:
        """Take the last `add` back, exactly. None when there is nothing to undo."""


class InteractiveModel(Model, Protocol):
    """A model of `Task.INTERACTIVE`."""

    def prepare(self, volume: Volume) -> Prepared: ...

    def begin(self, prepared: Prepared) -> Interaction: ...


class ScribblesModel(Model, Protocol):
    """A model of `Task.SCRIBBLES`."""

    def separate(
        self,
        volume: Volume,
        foreground: NDArray[np.bool_],
        background: NDArray[np.bool_],
        *,
        roi: Box | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> NDArray[np.uint8]:
        """The mask (z, y, x), 0 or 1, from scribbles of the volume's shape."""


@dataclass(frozen=True, eq=False)
class Finding:
    """One text prompt's answer.

    mask: (z, y, x) uint8. probability: (z, y, x) uint8, floor of 255 times the probability; the mask is exactly where
    the probability exceeds the threshold asked for. presence: 0..1. notes: what was guessed, e.g. the modality.
    """

    prompt: str
    label: Label
    mask: NDArray[np.uint8]
    probability: NDArray[np.uint8]
    presence: float
    notes: tuple[str, ...] = ()


class TextModel(Model, Protocol):
    """A model of `Task.TEXT`."""

    def find(self, volume: Volume, prompts: Sequence[str], *, threshold: float = 0.5) -> list[Finding]:
        """One finding per prompt, in order. Raises `UnknownPromptError` or `UnsupportedError`."""
