"""BiomedParse v2: words to masks, in 2-D and 3-D, by the code of its own repository in a process of its own.

For `biomedparse_v2.ckpt` (`biomedparse_3D_AllData_MultiView_edge.ckpt`, CC BY-NC-SA 4.0) and branch v2 of
`microsoft/BiomedParse`. `BP3D_CKPT` names the weights, `BP3D_CODE` the repository's folder (else it is looked for around the
weights, as `BiomedParse-2/model_weights/...ckpt` lies in it), `BP3D_TIMEOUT` the seconds of silence after which the process is
killed (600). It needs Hydra and what the repository itself imports.

What goes in: slices of 0..255 (CT by a window for what the prompt names, other scans by percentiles), padded to a square
and brought to 512; prompts joined by the separator that is removed from each of them. What comes out: for each prompt by
itself, the probability where the slice's existence exceeds 0.5, else 0; presence is the surest slice's existence. Slices
overlapping between prompts are kept: the non-maximum suppression of BiomedParse's script, which serves one label map, is left out.

A network's colours are a slice and its two neighbours. Pictures of several clients, asked for the same words, go in as the slices of
one volume, and before the backbone sees them each gets its own grey in all three colours, as a volume of one slice has; colours
that are not made as the published code makes them are refused.

Of the real one nothing was run: neither its weights nor its code were at hand. The interface that is used (Hydra's
configuration `configs/model/biomedparse_3D`, `load_pretrained`, the call with image, text, mode and slice_batch_size,
`pred_gmasks` and `object_existence`, `backbone`) was read in the published source and is proven with a stand-in repository that has it.
Not known from a run: its speed and memory, how its text encoder is found without a network (Hugging Face's cache, offline), and
whether its bicubic resizing differs from torch's, which is used here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isocenter.core import terminology
from isocenter.core.catalog import Entry
from isocenter.core.errors import ModelError, UsageError
from isocenter.core.model import QUIET, Finding, ModelContext, ModelSpec, Question, Run, Task
from isocenter.core.volume import Volume
from isocenter.models import _weights
from isocenter.models._biomedparse import picture

if TYPE_CHECKING:
    from isocenter.models._biomedparse.child import Child

_CITATION = "Zhao et al., A foundation model for joint segmentation, detection and recognition of biomedical objects, Nature Methods 2025"
_CONFIGURATION = Path("configs") / "model" / "biomedparse_3D.yaml"
TIMEOUT_S = 600.0
#: Slices at once where nobody says; BiomedParse's script has four.
_BATCH = 4
_LONGEST = 300
_Window = tuple[float, float] | None


def offer(folder: Path, entry: Entry | None = None) -> ModelSpec:
    """The spec of the weights: their file, or the folder that holds it. Raises `ModelError` for weights or code that are not there."""
    weights = _checkpoint(folder)
    _weights.check(weights)
    code = _code(weights, dict(entry.options) if entry else {})
    size = weights.stat().st_size
    scratch = _BATCH * 512 * 512 * 4 * 600
    return ModelSpec(
        id=(entry.id if entry else "") or "biomedparse",
        version=(entry.revision[:12] if entry else "") or "2",
        task=Task.TEXT,
        factory="isocenter.models.biomedparse:BiomedParse",
        description=(entry.description if entry else "") or "BiomedParse v2: words to masks, 2-D and 3-D",
        dimensions=(2, 3),
        prompts=("text",),
        options={"code": str(code), "timeout": _timeout()},
        licence=(entry.licence if entry else "") or "CC-BY-NC-SA-4.0",
        citation=(entry.citation if entry else "") or _CITATION,
        weights_sha256=_weights.sha256([weights]),
        weights_bytes=size,
        weights=folder,
        packages=("torch", "hydra"),
        resident_bytes={"float32": size, "bfloat16": size, "float16": size},
        scratch_bytes={"float32": scratch, "bfloat16": scratch // 2, "float16": scratch // 2},
        devices=("cpu", "cuda"),
        together=True,
    )


def _checkpoint(folder: Path) -> Path:
    if folder.is_file():
        return folder
    found = sorted(p for pattern in ("*.ckpt", "*.safetensors") for p in folder.glob(pattern))
    if len(found) != 1:
        raise ModelError(f"the folder holds {len(found)} files of weights (.ckpt or .safetensors); BiomedParse is one")
    return found[0]


def _configured(*names: str) -> str:
    """A variable of the environment, or of `.env` in the working directory, as the settings are read."""
    values: dict[str, str | None] = {}
    if os.path.isfile(".env"):
        from dotenv import dotenv_values

        values = dict(dotenv_values(".env"))
    return next((v for source in (os.environ, values) for n in names if (v := source.get(n))), "")


def _code(weights: Path, options: dict[str, object]) -> Path:
    """The folder of BiomedParse's repository. Raises `ModelError` where it is not."""
    named = _configured("ISOCENTER_BIOMEDPARSE_CODE", "BP3D_CODE") or str(options.get("code") or "")
    places = [Path(named).expanduser()] if named else [weights.parent, weights.parent / "code", weights.parent.parent]
    for place in places:
        if (place / _CONFIGURATION).is_file():
            return place.resolve()
    where = "BP3D_CODE does not name" if named else "BP3D_CODE is not set and around the weights there is not"
    raise ModelError(f"{where} the folder of BiomedParse's repository (branch v2, with {_CONFIGURATION.as_posix()}); clone it and set BP3D_CODE")


def _timeout() -> float:
    text = _configured("ISOCENTER_BIOMEDPARSE_TIMEOUT", "BP3D_TIMEOUT")
    try:
        value = float(text or TIMEOUT_S)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise ModelError("BP3D_TIMEOUT must be a number of seconds")
    return value


class BiomedParse:
    """The process with the network. For one caller at a time."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._context = ModelContext()
        self._unwanted = threading.Event()

    def load(self, context: ModelContext) -> None:
        """Start the process and have it load the network. Raises `ModelError`, `MemoryLimitError`, `DeadlineError`, `CancelledError`."""
        from isocenter.models._biomedparse.child import Child

        options = dict(context.spec.options) if context.spec else {}
        weights = _checkpoint(context.weights)
        settings = {
            "code": str(options.get("code") or _code(weights, {})),
            "weights": str(weights.resolve()),
            "device": context.device,
            "precision": context.precision,
            "threads": max(1, context.threads),
        }
        self._context = context
        self._child = Child(settings, float(options.get("timeout") or TIMEOUT_S))
        try:
            self._child.start(Run(cancelled=self._unwanted.is_set))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def abort(self) -> None:
        """End the process from another thread: the call that runs, or the loading, fails, and its memory is back."""
        self._unwanted.set()  # a process that is about to be started is not seen yet
        child = self._child
        if child is not None:
            child.kill()

    def find(self, volume: Volume, prompts: Sequence[str], *, threshold: float = 0.5, run: Run = QUIET) -> list[Finding]:
        """One finding a prompt, in order. Raises `UsageError` for a prompt that is empty or far too long."""
        if self._child is None:
            raise ModelError("the model is not loaded")
        asked = _Asked.of(Question(volume, tuple(prompts), threshold))
        axes, flips = picture.order(volume)
        found: list[Finding | None] = [None] * len(prompts)
        groups = asked.groups()
        for number, (window, which) in enumerate(groups):
            grey = picture.turned(picture.scaled(volume, window), axes, flips)
            request = {"texts": [asked.texts[i] for i in which], "batch": run.batch or _BATCH, "threshold": threshold}
            head, answer = self._child.find(request, grey, Run(partial(_part, run, number, len(groups)), run.cancelled))
            for place, i in enumerate(which):
                probability, mask = (picture.back(answer[kind, place], axes, flips) for kind in (0, 1))
                found[i] = asked.finding(i, window, mask, probability, max(head["existence"][place]))
        run.check(1.0, "done")
        return [finding for finding in found if finding is not None]

    def find_pictures(self, questions: Sequence[Question], *, run: Run = QUIET) -> list[list[Finding]]:
        """For each picture what `find` says of it alone; those of whom the same words are asked go through the network together.

        Raises as `find`, for all of them.
        """
        if self._child is None:
            raise ModelError("the model is not loaded")
        everything = [_Asked.of(question) for question in questions]
        found: list[list[Finding | None]] = [[None] * len(asked.texts) for asked in everything]
        alike: dict[tuple[str, ...], list[tuple[int, _Window, list[int]]]] = {}
        for number, asked in enumerate(everything):
            for window, which in asked.groups():
                alike.setdefault(tuple(asked.texts[i] for i in which), []).append((number, window, which))
        for texts, shown in alike.items():
            greys = [picture.scaled(questions[number].volume, window)[0] for number, window, _ in shown]
            request = {"texts": list(texts), "batch": run.batch or _BATCH, "sizes": [grey.shape for grey in greys]}
            request["threshold"] = [questions[number].threshold for number, _, _ in shown]
            head, answer = self._child.find(request, np.concatenate([grey.reshape(-1) for grey in greys]), Run(cancelled=run.cancelled))
            first = 0
            for row, (grey, (number, window, which)) in enumerate(zip(greys, shown, strict=True)):
                mine = answer[first : (first := first + 2 * len(texts) * grey.size)].reshape(2, len(texts), 1, *grey.shape)
                for place, i in enumerate(which):
                    probability, mask = (np.ascontiguousarray(mine[kind, place]) for kind in (0, 1))
                    found[number][i] = everything[number].finding(i, window, mask, probability, head["existence"][place][row])
        return [[finding for finding in findings if finding is not None] for findings in found]


@dataclass(frozen=True)
class _Asked:
    """A question as the network takes it. texts: without separators; windows: what each is shown in, None for no CT."""

    question: Question
    texts: tuple[str, ...]
    windows: tuple[_Window, ...]

    @classmethod
    def of(cls, question: Question) -> _Asked:
        """Raises `UsageError` for a prompt that is empty or far too long."""
        texts = tuple(picture.escaped(prompt) for prompt in question.prompts)
        if not all(0 < len(text) <= _LONGEST for text in texts):
            raise UsageError(f"a prompt names a structure in at most {_LONGEST} characters")
        return cls(question, texts, tuple(picture.window_of(text) if question.volume.modality == "CT" else None for text in texts))

    def groups(self) -> list[tuple[_Window, list[int]]]:
        """The windows, and which prompts are asked in each."""
        return [(window, [i for i, w in enumerate(self.windows) if w == window]) for window in dict.fromkeys(self.windows)]

    def finding(self, index: int, window: _Window, mask: NDArray[np.uint8], probability: NDArray[np.uint8], presence: float) -> Finding:
        """The answer to one prompt."""
        label = terminology.label(self.texts[index].lower().replace(" ", "_"))
        notes = _notes(self.question.volume, window)
        return Finding(self.question.prompts[index], label, mask, probability, float(np.clip(presence, 0, 1)), notes)


def _part(run: Run, number: int, count: int, fraction: float, message: str) -> None:
    run.progress((number + fraction) / count, message)


def _notes(volume: Volume, window: _Window) -> tuple[str, ...]:
    if window is not None:
        return (f"shown in the CT window {window[1]:g}/{window[0]:g}",)
    if volume.dtype == np.uint8:
        return ()
    return ("shown between the 0.5 and 99.5 percentiles of its values",)
