"""What a model folder offers: asked of its family, which may refuse it."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from isocenter.core.catalog import Entry
from isocenter.core.errors import ModelError
from isocenter.core.model import ModelSpec, Task
from isocenter.models._catalog.found import Folder

#: The extra of this package that brings what a family needs.
_EXTRAS = {"torch": "torch", "transformers": "torch", "accelerate": "torch", "bitsandbytes": "torch"}
_EXTRAS |= {"hydra": "biomedparse", "nnunetv2": "nnunet", "nnInteractive": "nninteractive", "openvino": "openvino"}


@dataclass(frozen=True)
class Broken:
    """A model that is installed or set up here and cannot be used."""

    id: str
    reason: str
    family: str = ""
    path: Path | None = None
    #: The task that it was chosen for by name in the settings; nothing else answers in its place.
    task: Task | None = None


def offer(folder: Folder) -> list[ModelSpec] | Broken:
    """What a folder's family makes of it."""
    if not folder.family:
        return Broken(folder.id, folder.reason, path=folder.path)
    entry = folder.entry or _plain(folder)
    if not folder.family.isidentifier() or importlib.util.find_spec(f"isocenter.models.{folder.family}") is None:
        return Broken(folder.id, f"nothing here runs models of the family '{folder.family[:40]}'", folder.family, folder.path)
    try:
        answer = importlib.import_module(f"isocenter.models.{folder.family}").offer(folder.path, entry)
    except ModelError as error:
        return Broken(folder.id, error.message, folder.family, folder.path)
    except Exception as error:  # a folder's content is foreign: whatever it does, the others go on
        return Broken(folder.id, f"its files are not what they should be ({type(error).__name__})", folder.family, folder.path)
    specs = [answer] if isinstance(answer, ModelSpec) else list(answer)
    if missing := [name for spec in specs for name in spec.packages if not installed(name)]:
        what = ", ".join(dict.fromkeys(missing))
        return Broken(folder.id, f"it needs {what}, which is not installed: {how_to_install(missing)}", folder.family, folder.path)
    return [replace(s, weights_sha256=s.weights_sha256 or folder.sha256) for s in specs]


def installed(package: str) -> bool:
    """Whether a package is installed, by the name that it is imported by; nothing is imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def how_to_install(packages: Sequence[str]) -> str:
    """The command that installs packages, by this package's extras where they bring them."""
    extras = {_EXTRAS[name] for name in packages if name in _EXTRAS}
    return f"pip install 'isocenter[{','.join(sorted(extras))}]'" if extras else f"pip install {' '.join(dict.fromkeys(packages))}"


def _plain(folder: Folder) -> Entry | None:
    """An entry for a folder without a record whose own name says nothing (`fold_0`); None for any other."""
    return None if folder.id == folder.path.name else Entry(folder.id, folder.family, "", "")


def biomedparse(checkpoint: Path) -> list[ModelSpec] | Broken:
    """What the variable `BP3D_CKPT` offers; it chooses BiomedParse for words, so that its faults are said, not papered over."""
    from isocenter.models import catalog

    path = checkpoint.expanduser()
    fault = ""
    if not path.exists():
        fault = "BP3D_CKPT names a file that is not there; set it to where biomedparse_3D_AllData_MultiView_edge.ckpt lies"
    elif not os.access(path, os.R_OK):
        fault = "BP3D_CKPT names a file that this program may not read; change its permissions"
    answer: list[ModelSpec] | Broken = [] if fault else offer(Folder("biomedparse", path, "biomedparse", catalog.entry("biomedparse")))
    if isinstance(answer, Broken):
        fault = f"BP3D_CKPT: {answer.reason}"
    return Broken("biomedparse", fault, "biomedparse", path, Task.TEXT) if fault else answer


def state(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells whether a folder (or a file) has changed: names, sizes and times of its files, down to folders below folders."""
    found: list[tuple[str, int, int]] = []
    if path.is_file():
        status = path.stat()
        return ((path.name, status.st_size, status.st_mtime_ns),)
    for root, names, files in os.walk(path):
        if root.count(os.sep) - str(path).count(os.sep) >= 2:
            names.clear()
        for name in files:
            try:
                status = os.stat(os.path.join(root, name))
            except OSError:
                continue
            found.append((os.path.join(root, name), status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))
