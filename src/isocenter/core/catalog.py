"""What is known of weights that can be installed: data only, whether they are here or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any

from isocenter.core.errors import ModelError


@dataclass(frozen=True)
class File:
    """One file of an entry.

    name: where it lies in the installed folder, with `/` for one in a folder below; with `*` for all files of the
    repository that match. url: where it is fetched from; "" for one of the entry's Hugging Face repository, or for one that
    only a person can get. path: its name in that repository, where that is another. sha256, md5: as published; None where
    nobody published one. bytes: 0 if unknown. optional: the model works without it. unpack: it is a ZIP archive whose
    members are installed instead of it.
    """

    name: str
    url: str = ""
    sha256: str | None = None
    md5: str | None = None
    bytes: int = 0
    path: str = ""
    optional: bool = False
    unpack: bool = False

    def __post_init__(self) -> None:
        safe(self.name)


@dataclass(frozen=True)
class Entry:
    """One model of the catalog.

    family: the module of `isocenter.models` that runs it; its `offer(folder, entry)` turns an installed folder into a
    `ModelSpec` (or into several, for a network with several tasks), reading what the folder itself says, and raises
    `ModelError` for one that it cannot use.
    repository, revision: on Hugging Face. options: what the family needs to know beside the folder. task, modalities,
    prompts, labels: what it does, as told before it is installed. gated: its publisher wants its licence accepted by an
    account (`HF_TOKEN`). convert: what is done with the files once they are here, see `models/_catalog/convert.py`.
    packages: what must be installed to run it. bytes: of all its files, 0 if unknown. note: what a reader should know.
    """

    id: str
    family: str
    description: str
    licence: str
    files: tuple[File, ...] = ()
    repository: str = ""
    revision: str = ""
    commercial: bool = True
    citation: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""
    modalities: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    licence_url: str = ""
    homepage: str = ""
    gated: bool = False
    convert: str = ""
    packages: tuple[str, ...] = ()
    bytes: int = 0
    note: str = ""

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Entry:
        """An entry from plain data (TOML, JSON). Raises `ModelError` for data that is none."""
        try:
            known = {f.name for f in fields(cls)}
            if unknown := set(data) - known:
                raise TypeError(f"it has no {', '.join(sorted(unknown))}")
            values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
            values["files"] = tuple(File(**file) for file in data.get("files", ()))
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise ModelError(f"this is no entry of the catalog: {error}") from None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, without what is not set."""
        data = _set(self)
        data["files"] = [_set(file) for file in self.files]
        return data


def _set(thing: Entry | File) -> dict[str, Any]:
    """The fields of a thing that are not as they would be anyway."""
    usual = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(thing)}
    return {key: value for key, value in asdict(thing).items() if value != usual[key]}


def safe(name: str) -> PurePosixPath:
    """A relative path that stays where it is put. Raises `ModelError` for any other."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in name or not path.parts:
        raise ModelError(f"a file of a model cannot be called '{name[:60]}'")
    return path
