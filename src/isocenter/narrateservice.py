"""Cases told in words by a model of language: which one speaks, what it is shown, and what is passed on of what it says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.case import Case
from isocenter.analysis.narrative import spoken, template
from isocenter.analysis.narrative.spoken import Answer, Speak
from isocenter.analysis.narrative.template import Narrative
from isocenter.core.errors import MemoryLimitError, ModelError, UsageError
from isocenter.core.model import QUIET, ModelSpec, Run, Task
from isocenter.runtime.runtime import Lease
from isocenter.service import Service

TEMPLATE = template.NAME
#: Tokens of an answer: the five parts, and a free question's.
_PARTS_TOKENS, _ANSWER_TOKENS = 600, 200
#: How a model of language comes here, said where there is none.
INSTALL = "isocenter models pull medgemma-1.5-4b"

Pictures = Sequence[NDArray[np.uint8]]
T = TypeVar("T")


@dataclass(frozen=True)
class Provenance:
    """How a text came about. check: of `spoken.Check`, None for the template's. seconds: that the model took."""

    model: str
    version: str
    weights_sha256: str | None
    prompt: str | None
    raw: str | None
    check: dict[str, Any] | None
    pictures: int
    seconds: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "notes": list(self.notes)}


def narrators(service: Service, *, large: bool = False) -> list[ModelSpec]:
    """Models of language, the smallest (large: the largest) first; one that the settings choose before them. Empty where there are none."""
    specs = sorted((s for s in service.models() if s.task is Task.NARRATE), key=lambda s: (s.weights_bytes or 0, s.id), reverse=large)
    if any(pair.partition("=")[0].strip() == Task.NARRATE.value for pair in service.settings.default_models):
        chosen = service.registry.first(Task.NARRATE)
        return [chosen, *(s for s in specs if s.id != chosen.id)]
    return specs


def tell(service: Service, case: Case, *, model: str | None = None, report: bool = True, pictures: Pictures = (), run: Run = QUIET) -> Told:
    """The five parts. model: an id, "template", or by default what is installed: for a report the largest model that fits this machine,
    else the smallest; without any, the template, which says so. pictures: of the last scan and the one before, at most three.

    Raises `ModelError` for a model that was named and cannot answer.
    """
    specs = _chosen(service, model, large=report) if model != TEMPLATE else []
    if not specs:
        notes = () if model == TEMPLATE else (f"no model of language is installed here, so the template wrote this; install one with: {INSTALL}",)
        story = template.write(case)
        return Told(story, Provenance(story.model, template.VERSION, None, None, None, None, 0, 0.0, notes))
    started = time.perf_counter()
    spec, told = _first(
        service, specs, pictures, _PARTS_TOKENS, run, lambda spec, speak: spoken.narrate(case, speak, _name(spec), comprehensive=report)
    )
    used = time.perf_counter() - started
    return Told(told.story, _provenance(spec, told.prompt, told.raw, told.check.as_dict(), pictures, used))


def ask(service: Service, case: Case, question: str, *, model: str | None = None, run: Run = QUIET) -> tuple[Answer, Provenance]:
    """A free question on a case, answered by itself (nothing of other questions is known) by the smallest model unless one is named.

    Raises `ModelError`, with how to install one, without a model of language; `UsageError` for no question.
    """
    if not question.strip():
        raise UsageError("ask something")
    specs = _chosen(service, model, large=False)
    if not specs:
        raise ModelError(f"no model of language is installed here; install one with: {INSTALL}")
    started = time.perf_counter()

    def answered(spec: ModelSpec, speak: Speak) -> Answer:
        return spoken.answer(case, question, speak)

    spec, answer = _first(service, specs, (), _ANSWER_TOKENS, run, answered)
    return answer, _provenance(spec, answer.prompt, answer.raw, answer.check.as_dict(), (), time.perf_counter() - started)


@dataclass(frozen=True)
class Told:
    """A narrative and how it came about."""

    story: Narrative
    provenance: Provenance


def _chosen(service: Service, model: str | None, *, large: bool) -> list[ModelSpec]:
    if model is None:
        return narrators(service, large=large)
    spec = service.registry.spec(model)
    if spec.task is not Task.NARRATE:
        raise UsageError(f"the model '{spec.id}' tells nothing; `isocenter models list` shows which do")
    return [spec]


def _first(
    service: Service, specs: Sequence[ModelSpec], pictures: Pictures, tokens: int, run: Run, work: Callable[[ModelSpec, Speak], T]
) -> tuple[ModelSpec, T]:
    """What the first model makes of it that this machine is large enough for."""
    for k, spec in enumerate(specs):
        shown = pictures if "picture" in spec.prompts else ()

        def speak(prompt: str, comprehensive: bool, spec: ModelSpec = spec, shown: Pictures = shown) -> str:
            def call(lease: Lease) -> str:
                return str(lease.model.narrate(prompt, shown, max_tokens=tokens, comprehensive=comprehensive, run=lease.run))

            return service.runtime.call(spec, call, run=run)

        try:
            answer = work(spec, speak)
        except MemoryLimitError:
            if k == len(specs) - 1:
                raise
            continue
        return spec, answer
    raise ModelError(f"no model of language is installed here; install one with: {INSTALL}")


def _name(spec: ModelSpec) -> str:
    return f"{spec.id} {spec.version}"


def _provenance(spec: ModelSpec, prompt: str, raw: str, check: dict[str, Any], pictures: Pictures, seconds: float) -> Provenance:
    shown = len(pictures) if "picture" in spec.prompts else 0
    return Provenance(spec.id, spec.version, spec.weights_sha256, prompt, raw, check, shown, round(seconds, 3))
