"""Where weights come from: a repository on Hugging Face, any address, a mirror of either, or a folder of this machine."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from isocenter.core.catalog import Entry, File, safe
from isocenter.core.errors import ModelError, UsageError
from isocenter.io import fetch
from isocenter.io.fetch import FetchError, Progress, Wanted

HUB = "https://huggingface.co"
#: The files of a transformers repository beside its weights.
_USUAL: tuple[str, ...] = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "chat_template.json"),
)
_SHA = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Came:
    """A file that has arrived. sha256: its hash; checked: against whose, "catalog", "publisher" or "" for nobody's."""

    sha256: str
    checked: str = ""


class Source(Protocol):
    """A place that holds an entry's files."""

    name: str
    #: The commit that the files are of, where the source tells.
    commit: str

    def resolve(self, entry: Entry, file: File) -> list[File]:
        """The files that a name with `*` stands for; any other stands for itself."""

    def fetch(self, entry: Entry, file: File, target: Path, progress: Progress) -> Came:
        """Bring one file to `target`. Raises `ModelError`."""


def choose(entry: Entry, place: str = "", *, token: str | None = None, endpoint: str = "") -> Source:
    """The source for an entry. place: a folder or address to take it from instead of its publisher; endpoint: a mirror of the hub."""
    if place.startswith(("http://", "https://")):
        return Mirror(place.rstrip("/"))
    if place:
        folder = Path(place).expanduser()
        if not folder.exists():
            raise UsageError(f"there is nothing at the place that --from names ('{folder.name}')")
        return Local(folder)
    return Publisher((endpoint or HUB).rstrip("/"), token)


def _came(got: fetch.Fetched, file: File) -> Came:
    return Came(got.sha256, "catalog" if file.sha256 or file.md5 else "publisher" if got.stated else "")


class Publisher:
    """The addresses that the entry names: its Hugging Face repository, and each file's own."""

    def __init__(self, endpoint: str, token: str | None) -> None:
        self.name = endpoint
        self.commit = ""
        self._token = token
        self._listed: dict[str, File] | None = None

    def resolve(self, entry: Entry, file: File) -> list[File]:
        """The files that a name with `*` stands for, with the hashes and sizes that the hub states."""
        listed = self._list(entry) if entry.repository and not file.url else {}
        if "*" not in file.name:
            return [file]
        found = [replace(f, optional=file.optional) for name, f in sorted(listed.items()) if _matches(name, file.name)]
        return found or (_nothing(entry, file) if listed else _usual(entry, file))

    def fetch(self, entry: Entry, file: File, target: Path, progress: Progress) -> Came:
        """Bring one file to `target`."""
        if file.url:
            return _came(fetch.download(Wanted(file.url, file.name, file.sha256, file.md5, file.bytes), target, progress), file)
        if not entry.repository:
            raise ModelError(f"{file.name} can only be had from its publisher by hand: {entry.homepage or entry.licence_url}; then use --from FOLDER")
        path = file.path or file.name
        url = f"{self.name}/{entry.repository}/resolve/{self._revision(entry)}/{urllib.parse.quote(path)}"
        stated = (self._listed or {}).get(path)
        wanted = Wanted(url, file.name, file.sha256 or (stated.sha256 if stated else None), file.md5, file.bytes, self._token)
        came = _came(fetch.download(wanted, target, progress), file)
        return replace(came, checked=came.checked or ("publisher" if stated and stated.sha256 else ""))

    def _list(self, entry: Entry) -> dict[str, File]:
        """The repository's files, once; a mirror that cannot list is told by what is missing then."""
        if self._listed is None:
            self._listed = {}
            # A branch may move while its files are fetched: they are all taken from the commit that it is at now.
            fixed = {"sha": entry.revision} if _SHA.fullmatch(entry.revision) else None
            told = fixed or self._ask(f"{self.name}/api/models/{entry.repository}/revision/{self._revision(entry)}")[0]
            sha = str(told.get("sha", "")) if isinstance(told, dict) else ""
            self.commit = sha if _SHA.fullmatch(sha) else ""
            url = f"{self.name}/api/models/{entry.repository}/tree/{self._revision(entry)}?recursive=true"
            while url:
                items, url = self._ask(url)
                for item in items if isinstance(items, list) else ():
                    if item.get("type") == "file":
                        large = item.get("lfs") or {}
                        name = str(item["path"])
                        self._listed[name] = File(name, sha256=large.get("oid"), bytes=int(large.get("size") or item.get("size") or 0))
        return self._listed

    def _revision(self, entry: Entry) -> str:
        return urllib.parse.quote(self.commit or entry.revision or "main", safe="")

    def _ask(self, url: str) -> tuple[Any, str]:
        """What the hub's interface answers, None where a mirror has no such thing, and the address of what comes next."""
        try:
            data, headers = fetch.get(url, token=self._token)
            found = json.loads(data)
        except FetchError as error:
            if error.status == 404:
                return None, ""
            raise
        except ValueError:
            return None, ""
        link = next((value for key, value in headers.items() if key.lower() == "link"), "")
        match = re.search(r'<([^>]+)>;\s*rel="next"', link)
        return found, urllib.parse.urljoin(url, match[1]) if match else ""


class Mirror:
    """An address below which the files lie: under the model's id, or by their names alone."""

    def __init__(self, base: str) -> None:
        self.name = base
        self.commit = ""

    def resolve(self, entry: Entry, file: File) -> list[File]:
        """A plain address cannot be listed; shards are named by their index."""
        if "*" not in file.name:
            return [file]
        if _matches("model-00001-of-00002.safetensors", file.name):
            for url in self._addresses(entry, File("model.safetensors.index.json")):
                try:
                    shards = json.loads(fetch.get(url)[0])["weight_map"].values()
                    return [File(str(safe(name))) for name in ("model.safetensors.index.json", *sorted(set(shards)))]
                except (FetchError, ValueError, KeyError, AttributeError):
                    continue
            return [File("model.safetensors")]
        return _usual(entry, file)

    def fetch(self, entry: Entry, file: File, target: Path, progress: Progress) -> Came:
        """Bring one file to `target`, from the first of the addresses that has it."""
        refused: FetchError | None = None
        for url in self._addresses(entry, file):
            try:
                return _came(fetch.download(Wanted(url, file.name, file.sha256, file.md5, file.bytes), target, progress), file)
            except FetchError as error:
                if error.status != 404:
                    raise
                refused = error
        raise refused or FetchError(f"{file.name} is not there")

    def _addresses(self, entry: Entry, file: File) -> Iterator[str]:
        for name in _names(entry, file):
            yield f"{self.name}/{urllib.parse.quote(name)}"


class Local:
    """A folder of this machine, or a single file: copied, and checked like what comes over the network."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder if folder.is_dir() else folder.parent
        self.name = "a local folder"
        self.commit = ""

    def resolve(self, entry: Entry, file: File) -> list[File]:
        """The files that a name with `*` stands for."""
        if "*" not in file.name:
            return [file]
        for base in (self._folder / entry.id, self._folder):
            found = sorted(p.relative_to(base).as_posix() for p in base.glob(file.name) if p.is_file())
            if found:
                return [File(name) for name in found]
        return [] if file.optional else _nothing(entry, file)

    def fetch(self, entry: Entry, file: File, target: Path, progress: Progress) -> Came:
        """Copy one file to `target`."""
        from isocenter.store.weights import sha256

        for name in _names(entry, file):
            path = self._folder / name
            if path.is_file():
                break
        else:
            raise FetchError(f"the folder that --from names has no '{file.name}' of '{entry.id}'", 404)
        size = path.stat().st_size
        with path.open("rb") as opened:
            fetch.check_head(opened.read(1024), file.name)
        if file.bytes and size != file.bytes:
            raise ModelError(f"{file.name} has {size} bytes where {file.bytes} are published; it is not the same file, or cut short")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        progress(size, size)
        found = sha256(target)
        if file.sha256 and found != file.sha256.lower():
            target.unlink()
            raise ModelError(f"{file.name} has the hash {found[:16]}... where {file.sha256[:16]}... is published; it was not kept")
        return Came(found, "catalog" if file.sha256 else "")


def _names(entry: Entry, file: File) -> list[str]:
    """Where a mirror or a folder may keep a file."""
    url = urllib.parse.unquote(urllib.parse.urlsplit(file.url).path.rpartition("/")[2])
    names = [file.name, file.path, url, Path(file.name).name]
    return list(dict.fromkeys(f"{front}{name}" for front in (f"{entry.id}/", "") for name in names if name))


def _matches(name: str, pattern: str) -> bool:
    """As in a shell: a star stands for no slash."""
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def _usual(entry: Entry, file: File) -> list[File]:
    """What a name with `*` may stand for in a place that cannot be listed; of these only the configuration must be there."""
    found = [File(name, optional=file.optional or name != "config.json") for name in _USUAL if _matches(name, file.name)]
    return found or _nothing(entry, file)


def _nothing(entry: Entry, file: File) -> list[File]:
    if file.optional:
        return []
    raise ModelError(f"the source cannot tell which files '{file.name}' of '{entry.id}' are; use the publisher or a folder")
