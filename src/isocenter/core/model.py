"""What a model is to the rest of the program: a description that is pure data, and one method for its task.

A model lives in one file of `isocenter.models` (or in another package, by the entry point group `isocenter.models`)
that holds `SPEC` and a class. The class is only imported when the model is used, so listing models costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import CancelledError, ModelError
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
    DESCRIBE = "describe"  #: pictures to vectors: `describe`
    NARRATE = "narrate"  #: words and pictures to words: `narrate`


@dataclass(frozen=True)
class ModelSpec:
    """All that is known of a model without loading it.

    factory: "module:Class", imported on first use. prompts: kinds taken ("point", "box", "scribble", "lasso", "mask",
    "text"). labels: what it can name, where that is fixed. synonyms: other words for them. options: parameters with
    their defaults (a list offers a choice, its first entry is the default). weights_sha256 is None for a model without
    weights; weights is the file or folder where they lie here. resident_bytes and scratch_bytes: by precision, for the
    memory ledger; insisted: those of them that are taken only where somebody insists, and only on a processor that computes in them.
    packages: what must be installed to run it, beside the base. concurrent: how many threads may call it at once.
    devices: "cpu", "cuda" (CUDA and ROCm), "mps". fallback: a stand-in, not a network. together: it answers several clients' pictures in
    one call, by `find_pictures` or `segment_pictures`, or prepares them in one, by `look`.
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
    weights: Path | None = None
    packages: tuple[str, ...] = ()
    resident_bytes: Mapping[str, int] = field(default_factory=dict)
    scratch_bytes: Mapping[str, int] = field(default_factory=dict)
    insisted: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu",)
    concurrent: int = 1
    fallback: bool = False
    together: bool = False


def _nothing(fraction: float, message: str) -> None:
    return None


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Run:
    """One call of a model that takes long, as its caller sees it.

    progress(fraction 0..1, message) is called from the model's thread; `cancelled()` is asked between steps (tiles,
    slices, tokens) by `check`.
    batch: most slices, patches or pictures at once, 0 where the model decides. tile: edge of its tiles as a part of what
    it would take, 0..1, for a model whose tiles may be of any size. The runtime calls again with less of both when
    memory runs out, so a model asks them in every call and lets `torch.OutOfMemoryError` and the like pass.
    """

    progress: Callable[[float, str], None] = _nothing
    cancelled: Callable[[], bool] = _never
    batch: int = 0
    tile: float = 1.0

    def check(self, fraction: float | None = None, message: str = "") -> None:
        """Report how far the call is and go on. Raises `CancelledError` when nobody wants the answer any more."""
        if self.cancelled():
            raise CancelledError("the work was cancelled")
        if fraction is not None:
            self.progress(fraction, message)


#: A call that nobody watches.
QUIET = Run()


@dataclass(frozen=True)
class ModelContext:
    """What a model is handed by the runtime when it is loaded, and all that it knows of it.

    spec: the description that it was created from, with `spec.weights` where its files lie.
    device: "cpu", "cuda:0" (CUDA and ROCm), "mps". precision: "float32", "bfloat16", "float16", "nf4".
    slots: how many threads call a model that can be called by several; threads: cores for each of them.
    engine: what runs an ONNX file: "onnxruntime", "openvino" or "auto". providers: ONNX Runtime's execution providers in
    the order of preference, none is the processor's; arena_bytes: the most that its CUDA arena may hold.
    max_memory: bytes by device for a model that is spread over several ("cuda:0", "cuda:1", "cpu"), as accelerate takes
    them; empty for one that fits on `device`.
    """

    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1
    slots: int = 1
    spec: ModelSpec | None = None
    engine: str = "auto"
    providers: tuple[str, ...] = ()
    arena_bytes: int | None = None
    max_memory: Mapping[str, int] = field(default_factory=dict)

    @property
    def weights(self) -> Path:
        """Where the model's files lie. Raises `ModelError` for a model that has none."""
        if self.spec is None or self.spec.weights is None:
            raise ModelError("this model has no weights here; `isocenter models list` shows what is installed")
        return self.spec.weights


class Model(Protocol):
    """What every model's class has."""

    def load(self, context: ModelContext) -> None:
        """Make it ready to answer; called once, before anything else."""

    def close(self) -> None:
        """Give its memory back.

        A model that computes in a child process may also have `abort()`, called from another thread when a call takes
        longer than it may: end the child, so that the call fails and its memory comes back.
        """


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

    # Where the spec says `together`, also:
    # def look(self, wanted: Sequence[tuple[Prepared, Sequence[Prompt]]], *, run: Run = QUIET) -> None
    #     do for several volumes at once what the answers to these prompts need of each volume alone, and keep it there.


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


@dataclass(frozen=True, eq=False)
class Question:
    """Words about a volume. threshold: a voxel is in the mask when its probability is larger."""

    volume: Volume
    prompts: tuple[str, ...]
    threshold: float = 0.5


class TextModel(Model, Protocol):
    """A model of `Task.TEXT`.

    Where the spec says `together`, it also has `find_pictures(questions, *, run) -> list[list[Finding]]`: for each
    question about a volume of one slice what `find` would answer alone.
    """

    def find(self, volume: Volume, prompts: Sequence[str], *, threshold: float = 0.5, run: Run = QUIET) -> list[Finding]:
        """One finding per prompt, in order. Raises `UnknownPromptError` or `UnsupportedError`."""


@dataclass(frozen=True, eq=False)
class LabelMap:
    """What a model of `Task.SEGMENT` answers, on the volume's own grid.

    mask: (z, y, x), uint8 or uint16, 0 is background. labels: what its values mean, also those that were not found.
    scores: how sure it is of each label, 0..1, by name, where the model says so. notes: what its reader should know.
    """

    mask: NDArray[Any]
    labels: tuple[Label, ...]
    scores: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class SegmentModel(Model, Protocol):
    """A model of `Task.SEGMENT`: no prompts, all its structures at once.

    Where the spec says `together`, it also has `segment_pictures(volumes, *, options, run) -> list[LabelMap]`: for each volume
    of one slice what `segment` would answer alone.
    """

    def segment(self, volume: Volume, *, options: Mapping[str, Any] | None = None, run: Run = QUIET) -> LabelMap:
        """Raises `UnsupportedError` for a volume that it cannot take, `UsageError` for an option that it does not know."""


class DescribeModel(Model, Protocol):
    """A model of `Task.DESCRIBE`: pictures (and words, into the same space) to vectors of length one."""

    def describe(self, pictures: Sequence[NDArray[np.uint8]], *, run: Run = QUIET) -> NDArray[np.float32]:
        """(pictures, dimensions) from pictures of (rows, columns) or (rows, columns, 3)."""

    def describe_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(texts, dimensions)."""


class NarrateModel(Model, Protocol):
    """A model of `Task.NARRATE`. It remembers nothing from one call to the next."""

    def narrate(self, prompt: str, pictures: Sequence[NDArray[np.uint8]] = (), *, max_tokens: int = 400, run: Run = QUIET) -> str:
        """The model's words. Raises `LimitError` when the prompt or the pictures are more than it takes."""
