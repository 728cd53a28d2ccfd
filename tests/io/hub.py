"""A real web server for the tests of fetching: one that can break off, lie, refuse and send on, and counts what it is asked."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What the server holds and how it behaves. files: by path.

    drop: how many more answers break off half-way. token: what it wants, 401 without and 403 with another. refuse: statuses that it answers
    first. ranges: whether it can go on in the middle. length: whether it says how long a file is. linked: paths that send on to
    another one, with the hash of the file, as Hugging Face does.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    drop: int = 0
    token: str = ""
    refuse: list[int] = field(default_factory=list)
    ranges: bool = True
    length: bool = True
    linked: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def repository(self, name: str, files: dict[str, bytes], revision: str = "main", large: tuple[str, ...] = (".safetensors", ".bin")) -> None:
        """Put a repository of Hugging Face there, with its list of files and the commit that its branch is at."""
        commit = revision if len(revision) == 40 else hashlib.sha1(name.encode()).hexdigest()
        self.files[f"/api/models/{name}/revision/{revision}"] = json.dumps({"sha": commit}).encode()
        listed: list[dict[str, Any]] = []
        for path, data in files.items():
            self.files[f"/{name}/resolve/{commit}/{path}"] = data
            item: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
            if path.endswith(large):
                item["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            listed.append(item)
        half = len(listed) // 2
        base = f"/api/models/{name}/tree/{commit}"
        self.files[base] = json.dumps(listed[:half]).encode()
        self.files[base + "/next"] = json.dumps(listed[half:]).encode()

    def at(self, name: str, path: str) -> str:
        """Where a file of a repository lies."""
        return f"/{name}/resolve/{hashlib.sha1(name.encode()).hexdigest()}/{path}"

    def ranges_asked(self) -> list[str]:
        return [value for _, value, _ in self.asked if value]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.asked.append((path, self.headers.get("Range", ""), self.headers.get("Authorization", "")))
        if hub.refuse:
            return self._answer(hub.refuse.pop(0), b"no", {"Retry-After": "0"})
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}" and not path.startswith("/store/"):
            return self._answer(403 if self.headers.get("Authorization") else 401, b"no")
        if path in hub.linked:
            target = hub.linked[path]
            digest = hashlib.sha256(hub.files[path]).hexdigest()
            return self._answer(302, b"", {"Location": target, "X-Linked-Etag": f'"{digest}"'})
        if path not in hub.files:
            return self._answer(404, b"not found")
        data = hub.files[path]
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}
        if path + "/next" in hub.files:
            headers["Link"] = f'<{hub.url}{path}/next>; rel="next"'
        start = 0
        asked = self.headers.get("Range", "")
        if asked and hub.ranges and self.headers.get("If-Range") == headers["ETag"]:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                return self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(206 if start else 200, data[start:], headers, breaks=True)
        return None

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, breaks: bool = False) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if self.hub.length or not breaks:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if breaks and self.hub.drop:
            self.hub.drop -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Hub]:
    """A server on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
