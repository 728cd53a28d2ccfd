"""Fetching files over HTTP: resumed where it broke off, hashed on the way, and only kept when it is what it should be.

A file grows as `<name>.part` beside its target, with what is needed to go on with it later in `<name>.part.json`. Only
commands that a person gives fetch anything; nothing is fetched while serving.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from isocenter.core.errors import ModelError

_BLOCK = 1 << 20
_TIMEOUT = 60.0
#: Tries in a row that bring nothing, before it is given up.
_TRIES = 5
#: Answers after which trying again helps.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_POINTER = b"version https://git-lfs.github.com/spec/"
_AGENT = "isocenter"

#: progress(bytes so far, bytes in all or 0)
Progress = Callable[[int, int], None]


class FetchError(ModelError):
    """A file cannot be fetched. status: the server's answer, 0 where there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Wanted:
    """A file to fetch. sha256, md5, bytes: what it must be, where that is known. token: sent to the first host only."""

    url: str
    name: str
    sha256: str | None = None
    md5: str | None = None
    bytes: int = 0
    token: str | None = None


@dataclass(frozen=True)
class Fetched:
    """What came. stated: the hash that the server itself told (Hugging Face does), and that it was checked against."""

    sha256: str
    bytes: int
    stated: str | None = None


@dataclass
class _Part:
    """A file on its way: its bytes so far and their hashes. validator: what the server tells this version of the file by."""

    path: Path
    validator: str = ""
    size: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)
    md5: Any = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))

    def take(self, block: bytes) -> None:
        self.sha256.update(block)
        self.md5.update(block)
        self.size += len(block)

    def again(self) -> None:
        self.path.unlink(missing_ok=True)
        self.validator = ""
        self.size, self.sha256, self.md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects without taking the token to another host, and never from HTTPS to plain HTTP."""

    def __init__(self) -> None:
        self.stated: str | None = None

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The next request."""
        # Hugging Face names the hash of a large file in the answer that sends on to where it lies.
        linked = (headers.get("X-Linked-Etag") or "").strip('"')
        if len(linked) == 64:
            self.stated = linked
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme != "https" and (new.scheme != "http" or old.scheme == "https"):
            raise FetchError(f"{old.netloc} sends on to an address that is not safe; it was not followed")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and old.netloc != new.netloc:
            request.remove_header("Authorization")
        return request


def get(url: str, *, token: str | None = None, limit: int = 16 << 20) -> tuple[bytes, Mapping[str, str]]:
    """A small file and its headers. Raises `FetchError`."""
    for attempt in range(_TRIES):
        try:
            with _open(_request(url, token), _Redirects()) as answer:
                data = answer.read(limit + 1)
                if len(data) > limit:
                    raise FetchError(f"{_host(url)} answers with more than {limit} bytes where a small file was expected")
                if (answer.headers.get("Content-Length") or str(len(data))) != str(len(data)):
                    raise ConnectionError("the connection broke off")
                return data, dict(answer.headers.items())
        except (OSError, http.client.HTTPException) as error:
            _pause_or_raise(error, url, attempt)
    raise FetchError(f"{_host(url)} does not answer; try again later")


def download(wanted: Wanted, target: Path, progress: Progress = lambda done, total: None) -> Fetched:
    """Fetch a file to `target`, going on with what came before.

    Raises `FetchError` for a server that refuses, and `ModelError` for a file that is not what was wanted: another hash,
    another size, a pointer of Git LFS, a web page. What came is removed then, so that the next try starts anew.
    """
    part = _Part(target.with_name(target.name + ".part"))
    part.path.parent.mkdir(parents=True, exist_ok=True)
    memory = part.path.with_name(part.path.name + ".json")
    _resume(part, memory, wanted)
    redirects = _Redirects()
    idle = 0
    while True:
        before = part.size
        try:
            _transfer(wanted, part, memory, redirects, progress)
            break
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno == 28:
                raise ModelError(f"the disk is full; {wanted.name} was not fetched") from None
            idle = 0 if part.size > before else idle + 1
            _pause_or_raise(error, wanted.url, idle)
    stated = redirects.stated
    try:
        _check(wanted, part, stated)
    except ModelError:
        part.again()
        memory.unlink(missing_ok=True)
        raise
    os.replace(part.path, target)
    memory.unlink(missing_ok=True)
    return Fetched(part.sha256.hexdigest(), part.size, stated)


def _resume(part: _Part, memory: Path, wanted: Wanted) -> None:
    """Take in what came before."""
    try:
        known = json.loads(memory.read_text())
        if known.get("url") != wanted.url or not isinstance(known.get("validator"), str):
            raise ValueError
        with part.path.open("rb") as file:
            while block := file.read(_BLOCK):
                part.take(block)
        part.validator = known["validator"]
    except (OSError, ValueError, AttributeError):
        part.again()


def _transfer(wanted: Wanted, part: _Part, memory: Path, redirects: _Redirects, progress: Progress) -> None:
    """One connection's worth of the file. Raises `OSError` when it breaks off."""
    request = _request(wanted.url, wanted.token)
    if part.size and part.validator:
        request.add_header("Range", f"bytes={part.size}-")
        request.add_header("If-Range", part.validator)
    try:
        answer = _open(request, redirects)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not part.size:
            raise
        error.close()
        whole = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if whole == str(part.size):
            return  # it was all here already
        part.again()
        raise ConnectionError("the file has become another one") from None
    with answer:
        if answer.status != 206:
            part.again()
        elif not (answer.headers.get("Content-Range") or "").startswith(f"bytes {part.size}-"):
            part.again()
            raise ConnectionError("the server went on at another place")
        length = answer.headers.get("Content-Length")
        total = part.size + int(length) if length and length.isdigit() else wanted.bytes
        etag = answer.headers.get("ETag") or ""
        # A weak validator does not promise the same bytes.
        part.validator = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified") or ""
        _room(part.path, total - part.size, wanted.name)
        memory.write_text(json.dumps({"url": wanted.url, "validator": part.validator}))
        with part.path.open("ab") as file:
            while block := answer.read(_BLOCK):
                file.write(block)
                part.take(block)
                progress(part.size, total)
            file.flush()
            os.fsync(file.fileno())
        if length and part.size < total:
            raise ConnectionError("the connection broke off")


def _check(wanted: Wanted, part: _Part, stated: str | None) -> None:
    """Raise `ModelError` for a file that is not what was wanted."""
    with part.path.open("rb") as file:
        check_head(file.read(1024), wanted.name)
    if wanted.bytes and part.size != wanted.bytes:
        raise ModelError(f"{wanted.name} has {part.size} bytes where {wanted.bytes} are published; it is not the same file")
    for sha256, who in ((wanted.sha256, "is published"), (stated, f"{_host(wanted.url)} states")):
        if sha256 and part.sha256.hexdigest() != sha256.lower():
            raise ModelError(f"{wanted.name} has the hash {part.sha256.hexdigest()[:16]}... where {who} {sha256[:16]}...; it was not kept")
    if wanted.md5 and part.md5.hexdigest() != wanted.md5.lower():
        raise ModelError(f"{wanted.name} has the MD5 {part.md5.hexdigest()} where {wanted.md5} is published; it was not kept")


def check_head(head: bytes, name: str) -> None:
    """Raise `ModelError` for what is sent instead of weights: a pointer of Git LFS, or a web page."""
    if head.startswith(_POINTER):
        raise ModelError(f"{name} is a pointer of Git LFS, not the file itself; fetch it with 'git lfs pull' or from its publisher")
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")) and not name.endswith((".html", ".htm")):
        raise ModelError(f"{name} is a web page, not the file itself; does its publisher want a login?")


def _request(url: str, token: str | None) -> urllib.request.Request:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise FetchError("only http:// and https:// addresses are fetched")
    request = urllib.request.Request(url, headers={"User-Agent": _AGENT, "Accept-Encoding": "identity"})  # noqa: S310 - checked above
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    return request


def _open(request: urllib.request.Request, redirects: _Redirects) -> Any:
    return urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT)


def _pause_or_raise(error: Exception, url: str, idle: int) -> None:
    """Wait before another try, or raise what the user is told."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if error.code in _PASSING and idle < _TRIES - 1:
            after = error.headers.get("Retry-After") or ""
            time.sleep(min(float(after), 60.0) if after.isdigit() else _delay(idle))
            return
        raise FetchError(_refusal(error.code, url), error.code) from None
    if idle >= _TRIES - 1:
        raise FetchError(f"{_host(url)} cannot be reached or keeps breaking off; what came so far is kept, run the command again to go on") from None
    time.sleep(_delay(idle))


def _delay(idle: int) -> float:
    return float(min(0.2 * 2**idle, 8.0))


def _refusal(status: int, url: str) -> str:
    host = _host(url)
    if status == 401:
        return f"{host} wants to know who you are (401): set HF_TOKEN to an access token of an account that may read this"
    if status == 403:
        return f"{host} refuses (403): open the model's page there, accept its conditions with your account, and set HF_TOKEN to a token of it"
    if status in (404, 410):
        return f"{host} has no such file ({status}): {urllib.parse.urlsplit(url).path[-120:]}"
    if 300 <= status < 400:
        return f"{host} sends on to an address that is not safe; it was not followed"
    return f"{host} answers {status}; try again later"


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or "the server"


def _room(path: Path, needed: int, name: str) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise ModelError(f"{name} needs {needed / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free on this disk")
