"""Installing models of the catalog: fetched, checked, converted and put in place in one step.

Nothing of this is called while serving.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from isocenter.core.catalog import Entry, File, safe
from isocenter.core.errors import ModelError, UsageError
from isocenter.models._catalog import convert, found, offers, sources
from isocenter.models._catalog.offers import Broken
from isocenter.models._catalog.sources import Came, Source
from isocenter.store import weights

#: The most that an archive of weights may unpack to, and in how many files.
_UNPACKED_BYTES, _UNPACKED_FILES = 64 << 30, 10_000
_BLOCK = 1 << 20


def _no_progress(name: str, done: int, total: int) -> None:
    return None


def _say_nothing(message: str) -> None:
    return None


@dataclass(frozen=True)
class Watch:
    """Who watches an installation. file(name, bytes so far, bytes in all or 0); say(what is done now)."""

    file: Callable[[str, int, int], None] = _no_progress
    say: Callable[[str], None] = _say_nothing


#: An installation that nobody watches.
UNWATCHED = Watch()


@dataclass(frozen=True)
class Installed:
    """What came of it. reason: why the model cannot be used yet, "" for one that can."""

    folder: Path
    entry: Entry
    reason: str = ""


class LicenceError(UsageError):
    """The licence does not allow commercial use, and nobody has agreed to it."""


def pull(entry: Entry, models: Path, source: Source, *, accept: bool = False, watch: Watch = UNWATCHED) -> Installed:
    """Install an entry of the catalog below `models`, in place of an older installation.

    Raises `LicenceError` without `accept` for a licence that forbids commercial use, `ModelError` for what cannot be had or
    is not what was published.
    """
    if not entry.commercial and not accept:
        raise LicenceError(
            f"'{entry.id}' is licensed under {entry.licence}, which does not allow commercial use ({entry.licence_url or entry.homepage}); "
            "agree to it with --accept-license"
        )
    _check_packages(entry, watch)
    with weights.staging(models, entry.id) as folder:
        came = _bring(entry, folder, source, watch)
        entry = replace(entry, revision=source.commit or entry.revision)
        if entry.convert:
            watch.say(f"converting to {'ONNX' if entry.convert == 'meshnet' else entry.convert}")
            convert.run(entry.convert, folder)
        watch.say("checking")
        convert.check_pickles(folder)
        return _install(entry, folder, models, source.name, came, accept)


def _check_packages(entry: Entry, watch: Watch) -> None:
    """Say before gigabytes are fetched what is not installed; raise `ModelError` where that is needed to install them."""
    missing = [name for name in entry.packages if not offers.installed(name)]
    pickled = entry.convert == "safetensors" or (
        entry.convert != "meshnet" and any(f.name.endswith(convert.PICKLED) or (f.unpack and entry.family == "nnunet") for f in entry.files)
    )
    if pickled and not offers.installed("torch"):
        how = offers.how_to_install([*missing, "torch"])
        raise ModelError(f"'{entry.id}' is published as a pickled file, which only torch can check or convert; install it first: {how}")
    if missing:
        watch.say(f"'{entry.id}' needs {', '.join(missing)} to run, which is not installed: {offers.how_to_install(missing)}")


def _bring(entry: Entry, folder: Path, source: Source, watch: Watch) -> dict[str, Came]:
    """All files of the entry in `folder`; what came before and is whole is not fetched again."""
    came: dict[str, Came] = {}
    for file in (f for listed in entry.files for f in source.resolve(entry, listed)):
        target = folder / safe(file.name)
        done = _done(folder, file)
        if done is not None:
            came[file.name] = done
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            came[file.name] = source.fetch(entry, file, target, lambda so_far, total, name=file.name: watch.file(name, so_far, total))  # type: ignore[misc]
        except ModelError as error:
            if file.optional and getattr(error, "status", 0) == 404:
                continue
            raise
        _mark(folder, file, came[file.name])
        if file.unpack:
            watch.say(f"unpacking {file.name}")
            _unpack(target, folder)
            target.unlink()
    _write_config(entry, folder)
    return {name: how for name, how in came.items() if (folder / name).is_file()}


def _mark(folder: Path, file: File, came: Came) -> None:
    """Note beside the files that this one is whole, for a next try."""
    marks = folder / ".came"
    marks.mkdir(exist_ok=True)
    (marks / f"{file.name.replace('/', '--')}.json").write_text(json.dumps([came.sha256, came.checked, file.sha256]))


def _done(folder: Path, file: File) -> Came | None:
    try:
        sha256, checked, wanted = json.loads((folder / ".came" / f"{file.name.replace('/', '--')}.json").read_text())
    except (OSError, ValueError):
        return None
    here = file.unpack or (folder / file.name).is_file()
    return Came(str(sha256), str(checked)) if here and wanted == file.sha256 else None


def _write_config(entry: Entry, folder: Path) -> None:
    """The `config.json` that the entry itself brings, for a network that is published without one."""
    settings = entry.options.get("config")
    if isinstance(settings, dict) and not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a ZIP archive below `folder`, without the folders that hold nothing but the next one."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.is_dir() and not Path(m.filename).name.startswith("._")]
            if len(members) > _UNPACKED_FILES or sum(m.file_size for m in members) > _UNPACKED_BYTES:
                raise ModelError(f"{archive.name} unpacks to more than a model has")
            if sum(m.file_size for m in members) > shutil.disk_usage(folder).free:
                raise ModelError(f"there is not enough room on this disk to unpack {archive.name}")
            front = _common([safe(m.filename).parts for m in members])
            for member in members:
                target = folder.joinpath(*safe(member.filename).parts[front:])
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file, _BLOCK)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError):
        raise ModelError(f"{archive.name} is damaged or cut short; fetch it again") from None


def _common(paths: list[tuple[str, ...]]) -> int:
    """How many folders all paths have in common at their beginning."""
    if not paths:
        raise ModelError("the archive is empty")
    depth = 0
    while all(len(p) > depth + 1 and p[depth] == paths[0][depth] and not p[depth].startswith("fold_") for p in paths):
        depth += 1
    return depth


def _install(entry: Entry, folder: Path, models: Path, source: str, came: dict[str, Came], accept: bool) -> Installed:
    """Put a complete folder in place and say whether its family can use it."""
    shutil.rmtree(folder / ".came", ignore_errors=True)
    hashes = {name: how.sha256 for name, how in came.items()}
    published = {name: how.checked for name, how in came.items() if how.checked}
    target = weights.commit(folder, models, entry, source=source, hashes=hashes, published=published, accepted=accept)
    return Installed(target, entry, reason(target))


def reason(path: Path) -> str:
    """Why an installed folder cannot be used, "" where it can."""
    folder = found.one(path)
    if folder.reason:
        return folder.reason
    if folder.family == found.TEXT:
        return text_reason(path)
    offered = offers.offer(folder)
    return offered.reason if isinstance(offered, Broken) else ""


def text_reason(path: Path) -> str:
    from isocenter.models._text import folder
    from isocenter.models._text.weights import Weights

    try:
        folder.read(path)
        with Weights(path):
            return ""
    except ModelError as error:
        return error.message


def source_of(entry: Entry, place: str, environment: Mapping[str, str]) -> Source:
    """The source that a command's `--from` and the environment (`HF_TOKEN`, `HF_ENDPOINT`) choose."""
    return sources.choose(entry, place, token=environment.get("HF_TOKEN") or None, endpoint=environment.get("HF_ENDPOINT", ""))
