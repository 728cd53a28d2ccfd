"""Installed models: a folder each, with a record of what was installed from where, written in one step or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from isocenter.core.catalog import Entry, safe
from isocenter.core.errors import BusyError, ModelError, UsageError

RECORD = "isocenter.json"
#: Names of what is not (yet, or any more) an installed model begin so; looking for models passes over them.
_STAGING, _OLD = ".installing-", ".old-"
_WEIGHTS = (".onnx", ".safetensors", ".pth", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class Checked:
    """One file of an installed model, compared with its record. state: "ok", "missing", "changed" or "unrecorded"."""

    name: str
    state: str
    note: str = ""
    bytes: int = 0


def folder_name(model: str) -> str:
    """The folder of a model: its id, with `--` for the slash between publisher and name."""
    safe(model)
    name = model.replace("/", "--")
    if name.startswith(".") or len(name) > 120:
        raise UsageError("a model's name begins with a letter or a digit and has at most 120 characters")
    return name


@contextmanager
def staging(models: Path, model: str) -> Iterator[Path]:
    """The folder in which a model is put together. It stays when that fails, so that the next try can go on with it.

    Raises `BusyError` while another process installs the same model.
    """
    from filelock import FileLock, Timeout

    name = folder_name(model)
    models.mkdir(parents=True, exist_ok=True)
    lock = FileLock(models / f"{_STAGING}{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(f"another process is installing '{model}' at the moment") from None
    try:
        folder = models / f"{_STAGING}{name}"
        folder.mkdir(exist_ok=True)
        yield folder
    finally:
        lock.release()
        if not (models / f"{_STAGING}{name}").exists():
            (models / f"{_STAGING}{name}.lock").unlink(missing_ok=True)


def commit(
    staged: Path,
    models: Path,
    entry: Entry,
    *,
    source: str,
    hashes: Mapping[str, str] | None = None,
    published: Mapping[str, str] | None = None,
    accepted: bool = False,
) -> Path:
    """Make a staged folder the installed one, in place of an older one.

    hashes: of files that were hashed already. published: against whose hash a file was checked, "catalog" or "publisher".
    accepted: a person agreed to the licence.
    """
    files: dict[str, dict[str, Any]] = {}
    for name in _names(staged):
        path = staged / name
        files[name] = {"bytes": path.stat().st_size, "sha256": (hashes or {}).get(name) or sha256(path)}
        if checked := (published or {}).get(name):
            files[name]["published"] = checked
    record = {
        "entry": entry.as_dict(),
        "source": source,
        "installed": datetime.now(UTC).isoformat(timespec="seconds"),
        "accepted": accepted,
        "sha256": together({name: file["sha256"] for name, file in files.items()}),
        "files": files,
    }
    with (staged / RECORD).open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    target = models / folder_name(entry.id)
    old = models / f"{_OLD}{target.name}"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    staged.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def together(hashes: Mapping[str, str]) -> str:
    """One hash for a model: that of its only weights file, else that of the list of all its files' hashes."""
    weights = [name for name in hashes if name.endswith(_WEIGHTS)]
    if len(weights) == 1:
        return hashes[weights[0]]
    return hashlib.sha256("".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)).encode()).hexdigest()


def verify(folder: Path, record: Mapping[str, Any]) -> Iterator[Checked]:
    """Compare each file with the record, one after the other, since hashing takes its time."""
    recorded: Mapping[str, Mapping[str, Any]] = record.get("files") or {}
    for name, file in recorded.items():
        path = folder / safe(name)
        if not path.is_file():
            yield Checked(name, "missing", "install the model again")
            continue
        size = path.stat().st_size
        if size != file.get("bytes"):
            yield Checked(name, "changed", f"{size} bytes where {file.get('bytes')} were installed", size)
        elif sha256(path) != file.get("sha256"):
            yield Checked(name, "changed", "its hash is not that of the file that was installed", size)
        else:
            by = {"catalog": "the hash is the published one", "publisher": "the hash is the one that its publisher states"}
            yield Checked(name, "ok", by.get(str(file.get("published")), "size checked, no published hash; unchanged since it was installed"), size)
    for name in _names(folder):
        if name not in recorded:
            yield Checked(name, "unrecorded", "put there after the installation", (folder / name).stat().st_size)


def remove(models: Path, model: str) -> int:
    """Delete an installed model and what an unfinished installation left; returns the bytes that were freed."""
    freed = 0
    for folder in _folders(models, model):
        freed += sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        shutil.rmtree(folder)
    (models / f"{_STAGING}{folder_name(model)}.lock").unlink(missing_ok=True)
    return freed


def holds(models: Path, model: str) -> bool:
    """Whether there is something of a model that `remove` would delete."""
    return bool(_folders(models, model))


def _folders(models: Path, model: str) -> list[Path]:
    name = folder_name(model)
    mine = (models / name, models / f"{_STAGING}{name}", models / f"{_OLD}{name}")
    return [folder for folder in mine if folder.is_dir() and not folder.is_symlink()]


def unfinished(models: Path) -> dict[str, int]:
    """Models whose installation did not end, and the bytes that are here of them."""
    found = (p for p in models.glob(f"{_STAGING}*") if p.is_dir())
    return {p.name.removeprefix(_STAGING): sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in sorted(found)}


def sha256(path: Path) -> str:
    """The hash of a file, which may be larger than memory. Raises `ModelError` for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise ModelError(f"{path.name} cannot be read") from None


def _names(folder: Path) -> list[str]:
    """A folder's files by their relative names, without the record and what is still on its way."""
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.endswith((".part", ".part.json")))
    return sorted(name for p in found if (name := p.relative_to(folder).as_posix()) != RECORD)
