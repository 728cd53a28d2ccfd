"""Which models there are: built-in ones, those of other packages, and the folders that are installed on this machine.

- A module of this package offers a model that needs no weights by holding `SPEC` (or `SPECS`, for several).
- An entry point of the group `isocenter.models` offers one of another package: a `ModelSpec`, or a module that holds such.
- A folder below `ISOCENTER_HOME/models` or the setting `models_path` is handed to its family's `offer(folder, entry)`.

Only the family's module file is imported here; what it needs to run is imported when the model is created. A folder that
cannot be used takes nothing else down: it is kept in `broken`, with the reason that whoever asks for it is told.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import isocenter.models
from isocenter.core import naming
from isocenter.core.errors import ModelError, UnknownModelError, UnknownPromptError
from isocenter.core.model import Model, ModelSpec, Task
from isocenter.models._catalog import found, offers
from isocenter.models._catalog.found import Folder
from isocenter.models._catalog.offers import Broken

if TYPE_CHECKING:
    from isocenter.core.settings import Settings

GROUP = "isocenter.models"
#: Modules of this package that are no models.
_OTHERS = {"registry", "catalog"}
#: Who answers where nobody asked for a model: the first of these families that is here, then any other network, then
#: stand-ins. Clicks go to what was made for medical volumes and answers in 3-D before the SAM family, which sees slices.
PREFERRED: Mapping[Task, tuple[str, ...]] = {
    Task.INTERACTIVE: ("nninteractive", "geodesic", "sam2", "sam3", "sam"),
    Task.TEXT: ("biomedparse", "sam3"),
    Task.SEGMENT: ("nnunet", "onnx_volume"),
}
#: Seconds for which a look at the folders is good.
_FRESH = 1.0


@dataclass(frozen=True)
class _Seen:
    """One look at everything."""

    specs: dict[str, ModelSpec]
    broken: dict[str, Broken]
    texts: tuple[Folder, ...]


class Registry:
    """The models of one set of folders. Safe to use from several threads; it notices folders that come and go.

    checkpoint: BiomedParse's weights, as `BP3D_CKPT` names them. defaults: "task=model", before the order in `PREFERRED`.
    """

    def __init__(self, places: Sequence[Path] = (), *, checkpoint: Path | None = None, defaults: Sequence[str] = ()) -> None:
        self.places = tuple(places)
        self._checkpoint = checkpoint
        self._defaults = dict(pair.split("=", 1) for pair in defaults if "=" in pair)
        self._lock = threading.Lock()
        self._offers: dict[Path, tuple[Any, list[ModelSpec] | Broken]] = {}
        self._seen: _Seen | None = None
        self._looked = 0.0

    @classmethod
    def of(cls, settings: Settings) -> Registry:
        """The models that these settings name."""
        return cls(
            places(settings.home, settings.models_path),
            checkpoint=settings.biomedparse_checkpoint,
            defaults=settings.default_models,
        )

    @property
    def specs(self) -> dict[str, ModelSpec]:
        """All usable models by id: built-in ones, other packages', installed ones; the last named wins an id."""
        return self._look().specs

    @property
    def broken(self) -> dict[str, Broken]:
        """What is here and cannot be used, by id."""
        return self._look().broken

    @property
    def texts(self) -> tuple[Folder, ...]:
        """Folders of text encoders, which `models/text.py` serves."""
        return self._look().texts

    def refresh(self) -> None:
        """Look again at the next question, however short ago the last look was."""
        with self._lock:
            self._seen = None

    def spec(self, model: str) -> ModelSpec:
        """The model of this id. Raises `UnknownModelError` with the ids that there are, `ModelError` for a broken one."""
        seen = self._look()
        if model in seen.specs:
            return seen.specs[model]
        if model in seen.broken:
            raise ModelError(f"the model '{model}' cannot be used: {seen.broken[model].reason}")
        raise UnknownModelError(f"no model is called '{model[:60]}'; there are: {', '.join(seen.specs)}") from None

    def first(self, task: Task) -> ModelSpec:
        """The model that answers a task when none was asked for; see `PREFERRED`.

        Raises `ModelError` when there is none, and for a model that was chosen in the settings and is broken: a stand-in in
        its place would be taken for it.
        """
        chosen = self._chosen(task)
        if chosen is not None:
            return chosen
        candidates = self._candidates(task)
        if not candidates:
            raise ModelError(f"no model for the task '{task}' is installed; `isocenter models list` shows what there is")
        return candidates[0]

    def first_for(self, words: Sequence[str], modality: str | None = None) -> ModelSpec:
        """The model that answers words when none was asked for: as `first`, but before a stand-in comes a network that needs no
        prompts, is for this modality and has a label for every word.
        """
        spec = self.first(Task.TEXT)
        if not spec.fallback or self._chosen(Task.TEXT) is not None:
            return spec
        for candidate in self._candidates(Task.SEGMENT):
            if (not modality or not candidate.modalities or modality in candidate.modalities) and _names_all(candidate, words):
                return candidate
        return spec

    def _chosen(self, task: Task) -> ModelSpec | None:
        """The model that the settings choose for a task."""
        name = self._defaults.get(task.value)
        if name:
            spec = self.spec(name)
            if spec.task is not task:
                raise ModelError(f"the setting default_models names '{name}' for '{task}', but that model's task is '{spec.task}'")
            return spec
        for broken in self._look().broken.values():
            if broken.task is task:
                raise ModelError(f"the model '{broken.id}' cannot be used: {broken.reason}")
        return None

    def _candidates(self, task: Task) -> list[ModelSpec]:
        """The models of a task, the first choice first."""
        order = PREFERRED.get(task, ())
        found = (s for s in self._look().specs.values() if s.task is task)
        return sorted(found, key=lambda s: (s.fallback, order.index(family(s)) if family(s) in order else len(order)))

    def _look(self) -> _Seen:
        with self._lock:
            if self._seen is None or time.monotonic() - self._looked > _FRESH:
                self._seen = self._read()
                self._looked = time.monotonic()
            return self._seen

    def _read(self) -> _Seen:
        built = _built_in()
        specs, broken = dict(built[0]), dict(built[1])
        texts: list[Folder] = []
        asked: dict[Path, tuple[Any, list[ModelSpec] | Broken]] = {}
        for place in self.places:
            for folder in found.folders(place):
                if folder.family == found.TEXT:
                    texts.append(folder)
                    continue
                asked[folder.path] = self._offer(folder)
                _sort(asked[folder.path][1], specs, broken)
        if self._checkpoint is not None:
            state, known = offers.state(self._checkpoint), self._offers.get(self._checkpoint)
            asked[self._checkpoint] = known if known and known[0] == state else (state, offers.biomedparse(self._checkpoint))
            _sort(asked[self._checkpoint][1], specs, broken)
            if isinstance(asked[self._checkpoint][1], Broken):
                del asked[self._checkpoint]  # what it lacks may lie elsewhere: its code, a variable
        self._offers = asked
        return _Seen(specs, {k: v for k, v in broken.items() if k not in specs}, tuple(texts))

    def _offer(self, folder: Folder) -> tuple[Any, list[ModelSpec] | Broken]:
        """What a folder offers; asked again only when something in it has changed."""
        state = offers.state(folder.path)
        known = self._offers.get(folder.path)
        return known if known is not None and known[0] == state else (state, offers.offer(folder))


def places(home: Path, models_path: Path | None = None) -> tuple[Path, ...]:
    """The folders that hold models' folders: `models_path`, and the home folder's own, whose models win."""
    return tuple(p.expanduser() for p in dict.fromkeys((*((models_path,) if models_path else ()), home / "models")))


def _names_all(spec: ModelSpec, words: Sequence[str]) -> bool:
    try:
        return bool([naming.label_of(word, spec.labels, spec.synonyms) for word in words])
    except UnknownPromptError:
        return False


def family(spec: ModelSpec) -> str:
    """The module of a built-in model, "sam2" of `isocenter.models.sam2:...`."""
    module = spec.factory.partition(":")[0]
    return module.rpartition(".")[2] if module.startswith("isocenter.models.") else module


def _sort(answer: list[ModelSpec] | Broken, specs: dict[str, ModelSpec], broken: dict[str, Broken]) -> None:
    if isinstance(answer, Broken):
        broken[answer.id] = answer
    else:
        specs.update({s.id: s for s in answer})


def _offered(module: ModuleType) -> Iterator[ModelSpec]:
    if isinstance(spec := getattr(module, "SPEC", None), ModelSpec):
        yield spec
    yield from getattr(module, "SPECS", ())


@lru_cache(maxsize=1)
def _built_in() -> tuple[dict[str, ModelSpec], dict[str, Broken]]:
    """Models that need no folder, in the order of their modules' names; those of other packages last."""
    specs: dict[str, ModelSpec] = {}
    broken: dict[str, Broken] = {}
    for info in pkgutil.iter_modules(isocenter.models.__path__):
        if not info.name.startswith("_") and info.name not in _OTHERS:
            specs.update({s.id: s for s in _offered(importlib.import_module(f"isocenter.models.{info.name}"))})
    for point in entry_points(group=GROUP):
        try:
            loaded = point.load()
            specs.update({s.id: s for s in ([loaded] if isinstance(loaded, ModelSpec) else _offered(loaded))})
        except Exception as error:  # a broken plug-in must not take the others down with it
            broken[point.name] = Broken(point.name, f"its package cannot be imported ({type(error).__name__}); install it again or remove it")
    return specs, broken


def built_in() -> dict[str, ModelSpec]:
    """Models that need no folder here."""
    return _built_in()[0]


def default() -> Registry:
    """The registry of this process's environment; made anew when that changes."""
    read = _environment()
    defaults = tuple(part.strip() for part in read("ISOCENTER_DEFAULT_MODELS").split(",") if part.strip())
    return _default(
        Path(read("ISOCENTER_HOME") or "~/.isocenter"),
        read("ISOCENTER_MODELS_PATH", "MODELS_PATH"),
        read("ISOCENTER_BIOMEDPARSE_CHECKPOINT", "BP3D_CKPT"),
        defaults,
    )


@lru_cache(maxsize=4)
def _default(home: Path, models_path: str, checkpoint: str, defaults: tuple[str, ...]) -> Registry:
    found = places(home, Path(models_path) if models_path else None)
    return Registry(found, checkpoint=Path(checkpoint) if checkpoint else None, defaults=defaults)


def _environment() -> Any:
    """Reads variables as the settings do, the environment before `.env`, without what importing those costs."""
    values: dict[str, str | None] = {}
    if os.path.isfile(".env"):
        from dotenv import dotenv_values

        values = dotenv_values(".env")

    def read(*names: str) -> str:
        return next((v for source in (os.environ, values) for n in names if (v := source.get(n))), "")

    return read


def specs() -> dict[str, ModelSpec]:
    """The usable models of this process's environment, by id."""
    return default().specs


def spec(model: str) -> ModelSpec:
    """As `Registry.spec`, for this process's environment."""
    return default().spec(model)


def first(task: Task) -> ModelSpec:
    """As `Registry.first`, for this process's environment."""
    return default().first(task)


def create(spec: ModelSpec) -> Model:
    """A new, not yet loaded instance of the model's class."""
    module, _, name = spec.factory.partition(":")
    return cast(Model, getattr(importlib.import_module(module), name)())
