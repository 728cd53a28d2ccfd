"""Which models there are: every module of this package, and every entry point of the group `isocenter.models`.

A module offers a model by holding `SPEC` (or `SPECS`, for several). Only these module files are imported here; what they
need to run is imported when the model is created.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import cast

import isocenter.models
from isocenter.core.errors import ModelError, UnknownModelError
from isocenter.core.model import Model, ModelSpec, Task

GROUP = "isocenter.models"


def _offered(module: ModuleType) -> Iterator[ModelSpec]:
    if isinstance(spec := getattr(module, "SPEC", None), ModelSpec):
        yield spec
    yield from getattr(module, "SPECS", ())


@lru_cache(maxsize=1)
def specs() -> dict[str, ModelSpec]:
    """All models by id, in the order of their modules' names; those of other packages last."""
    found: dict[str, ModelSpec] = {}
    for info in pkgutil.iter_modules(isocenter.models.__path__):
        if not info.name.startswith("_") and info.name != "registry":
            found.update({s.id: s for s in _offered(importlib.import_module(f"isocenter.models.{info.name}"))})
    for point in entry_points(group=GROUP):
        loaded = point.load()
        found.update({s.id: s for s in ([loaded] if isinstance(loaded, ModelSpec) else _offered(loaded))})
    return found


def spec(model: str) -> ModelSpec:
    """The model of this id. Raises `UnknownModelError` with the ids that there are."""
    try:
        return specs()[model]
    except KeyError:
        raise UnknownModelError(f"no model is called '{model[:60]}'; there are: {', '.join(specs())}") from None


def first(task: Task) -> ModelSpec:
    """The model that answers a task when none was asked for: networks before weight-free fallbacks."""
    candidates = sorted((s for s in specs().values() if s.task is task), key=lambda s: s.fallback)
    if not candidates:
        raise ModelError(f"no model for the task '{task}' is installed; `isocenter models list` shows what there is")
    return candidates[0]


def create(spec: ModelSpec) -> Model:
    """A new, not yet loaded instance of the model's class."""
    module, _, name = spec.factory.partition(":")
    return cast(Model, getattr(importlib.import_module(module), name)())
