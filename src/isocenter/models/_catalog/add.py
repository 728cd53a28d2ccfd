"""Making a network of one's own a served model: copied or converted, loaded once, put in place in one step."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
from dataclasses import replace
from pathlib import Path

from isocenter.core.catalog import Entry
from isocenter.core.errors import ModelError, UsageError
from isocenter.models import registry
from isocenter.models._catalog import convert, found, offers
from isocenter.models._catalog.found import Folder
from isocenter.models._catalog.offers import Broken
from isocenter.models._catalog.pull import UNWATCHED, Installed, Watch, text_reason
from isocenter.store import weights

#: Families that convert their first publisher's checkpoints.
_CONVERTING = ("sam", "sam2")


def add(
    path: Path, models: Path, *, name: str = "", config: Path | None = None, family: str = "", replace_old: bool = False, watch: Watch = UNWATCHED
) -> Installed:
    """Make a network that somebody has a served model: an `.onnx` file with its `config.json`, or a folder of a known kind.

    name: its id; by default the file's or the folder's. config: where it does not lie beside the file. family: of a checkpoint
    in its first publisher's own format, which that family converts. The model is loaded once, so that what does not fit is
    said now. Raises `UsageError`, or `ModelError` for a model that cannot be used.
    """
    given = path.expanduser()
    if not given.exists():
        raise UsageError(f"there is no '{given.name}' at that place")
    model = name or (given.stem if given.is_file() else given.name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}", model):
        raise UsageError("a model's name has letters, digits, dots, dashes and underscores; give one with --name")
    if (models / weights.folder_name(model)).exists() and not replace_old:
        raise UsageError(f"a model '{model}' is installed already; choose another --name, or --replace it")
    if model in registry.built_in():
        raise UsageError(f"'{model}' is the name of a built-in model; choose another --name")
    with weights.staging(models, model) as folder:
        shutil.rmtree(folder)
        try:
            if family:
                _convert(given, family, folder, watch)
            else:
                _copy(given, config, folder, watch)
            convert.check_pickles(folder)
            entry = _entry(model, folder, given)
            watch.say("loading it once")
            _load(folder, entry)
            return Installed(weights.commit(folder, models, entry, source="added by hand"), entry)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _copy(given: Path, config: Path | None, folder: Path, watch: Watch) -> None:
    watch.say(f"copying {given.name}")
    if given.is_dir():
        shutil.copytree(given, folder, symlinks=False, ignore=shutil.ignore_patterns(weights.RECORD, ".*"))
        if config is not None:
            shutil.copyfile(config, folder / "config.json")
        return
    if given.suffix.lower() != ".onnx":
        raise UsageError(
            "give an .onnx file, the folder of an nnU-Net, a transformers model or another known kind, or a checkpoint of SAM with --family"
        )
    settings = config or given.with_name("config.json")
    if not settings.is_file():
        raise UsageError(f"an .onnx file needs a configuration: put config.json beside '{given.name}', or name it with --config")
    folder.mkdir()
    shutil.copyfile(given, folder / given.name)
    for beside in (given.with_name(given.name + ".data"), given.with_name(given.stem + ".data")):
        if beside.is_file():
            shutil.copyfile(beside, folder / beside.name)
    shutil.copyfile(settings, folder / "config.json")


def _convert(given: Path, family: str, folder: Path, watch: Watch) -> None:
    """A checkpoint such as `sam2.1_hiera_tiny.pt`, as its family takes it."""
    known = [name for name in _CONVERTING if importlib.util.find_spec(f"isocenter.models.{name}")]
    if family not in known or not given.is_file():
        raise UsageError(f"--family goes with a checkpoint file and is one of: {', '.join(known)}")
    watch.say(f"converting {given.name}")
    importlib.import_module(f"isocenter.models.{family}").convert(given, folder)


def _entry(model: str, folder: Path, given: Path) -> Entry:
    """The entry of a network that somebody brought: what its own files say of it."""
    known = found.one(folder)
    if known.reason:
        raise ModelError(f"'{model}' cannot be added: {known.reason}")
    entry = Entry(model, known.family, "added by hand", "unknown")
    if known.family == "nnunet" and "__" in given.name:
        # nnU-Net's folder tells its configuration by its name alone, which is not kept.
        entry = replace(entry, options={"configuration": given.name.rpartition("__")[2]})
    if known.family == "sam":
        entry = replace(entry, options={"medsam": "medsam" in f"{given.name} {model}".lower()})
    offered = [] if known.family == found.TEXT else offers.offer(known)
    if isinstance(offered, Broken) or not offered:
        return entry
    own = offered[0]
    return replace(entry, description=own.description or entry.description, licence=own.licence, citation=own.citation)


def _load(folder: Path, entry: Entry) -> None:
    """Load a staged folder's model once. Raises `ModelError` for one that cannot be used."""
    from isocenter.core.model import ModelContext

    if entry.family == found.TEXT:
        if said := text_reason(folder):
            raise ModelError(f"'{entry.id}' cannot be added: {said}")
        return
    offered = offers.offer(Folder(entry.id, folder, entry.family, entry))
    if isinstance(offered, Broken):
        raise ModelError(f"'{entry.id}' cannot be added: {offered.reason}")
    for spec in offered:
        model = registry.create(spec)
        try:
            model.load(ModelContext(spec=spec))
        except ModelError as error:
            raise ModelError(f"'{entry.id}' cannot be added: {error.message}") from None
        except Exception as error:  # a file that somebody has may fail a library in any way
            raise ModelError(f"'{entry.id}' cannot be added: it cannot be loaded ({type(error).__name__})") from None
        model.close()
