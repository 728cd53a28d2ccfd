"""The bridge's TypeScript client in Python: which requests it sends, to whom, when it waits and when it gives up.

Its rules, oddities included: a 503 is tried three times more, after the seconds of `Retry-After` or, without that header,
at once; any failure marks the host unhealthy and the next one is asked; unhealthy hosts are asked only when no other is
left; a host is only ever healed by an answer, which the health checks fetch.
"""

from __future__ import annotations

import http.client
import json
import math
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

RETRIES = 3


class RefusedError(Exception):
    """A host's answer, or its silence, that the client takes for a failure."""


@dataclass(eq=False)
class Host:
    """One server as the client sees it. timeout: seconds until its silence is a failure."""

    url: str
    name: str
    key: str | None = None
    timeout: float = 45
    healthy: bool = True
    in_a_row: int = 0
    info: dict[str, Any] | None = None

    @property
    def load(self) -> float:
        """Share of the card's memory that is in use; a host that does not tell comes last."""
        total, used = (self.info or {}).get("vram_total_mb"), (self.info or {}).get("vram_used_mb")
        return used / total if total and used is not None else math.inf


class Client:
    """hosts: in order. sleep: what waits between attempts. sent: (host's name, method, path, status) of every request."""

    def __init__(self, hosts: Sequence[Host], *, strategy: str = "round-robin", sleep: Callable[[float], None]) -> None:
        self.hosts = list(hosts)
        self.sent: list[tuple[str, str, str, int | None]] = []
        self._strategy, self._sleep = strategy, sleep
        self._turn = 0
        self.check()

    def check(self) -> None:
        """What the client does when it is made and every 30 seconds."""
        for host in self.hosts:
            try:
                self._ask(host, "/health")
            except RefusedError:
                continue

    def get(self, path: str) -> Any:
        return self._anybody(path, None)

    def embed(self, texts: list[str], model: str = "all-MiniLM-L6-v2") -> Any:
        return self._anybody("/embed", {"texts": texts, "model": model})

    def bertscore(self, candidates: list[str], references: list[str], model: str = "microsoft/deberta-xlarge-mnli") -> Any:
        return self._anybody("/bertscore", {"candidates": candidates, "references": references, "lang": "en", "model_type": model})

    def _anybody(self, path: str, body: Any) -> Any:
        tried: list[Host] = []
        last = ""
        for _ in self.hosts:
            host = self._choose(path)
            if host in tried:
                continue
            tried.append(host)
            try:
                return self._ask(host, path, body)
            except RefusedError as error:
                last = str(error)
        raise RefusedError(f"All GPU hosts failed for {path}: {last}")

    def _healthy(self) -> list[Host]:
        return [h for h in self.hosts if h.healthy] or self.hosts

    def _choose(self, path: str) -> Host:
        pool = self._healthy()
        if self._strategy == "least-busy" and path != "/health":
            for host in pool:
                try:
                    host.info = self._ask(host, "/info")
                except RefusedError:
                    continue
            return min(self._healthy(), key=lambda h: h.load)
        self._turn += 1
        return pool[(self._turn - 1) % len(pool)]

    def _ask(self, host: Host, path: str, body: Any = None) -> Any:
        for attempt in range(RETRIES + 1):
            status, headers, data = self._once(host, path, body)
            if status == 503:
                host.in_a_row += 1
                wait = headers.get("Retry-After")
                if wait and attempt < RETRIES:
                    self._sleep(int(wait))
                    continue
                host.healthy = False
                if attempt < RETRIES:
                    continue
                raise RefusedError(f"GPU host {host.name} returned 503 after {host.in_a_row} consecutive attempt(s)")
            if not 200 <= status < 300:
                host.healthy = False
                raise RefusedError(f"GPU host {host.name} {path} returned {status}: {data.decode()}")
            host.healthy, host.in_a_row = True, 0
            return json.loads(data)
        raise AssertionError("the last attempt returns or raises")

    def _once(self, host: Host, path: str, body: Any) -> tuple[int, Any, bytes]:
        method = "GET" if body is None else "POST"
        headers = {"Content-Type": "application/json"} | ({"X-API-Key": host.key} if host.key else {})
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(host.url).netloc, timeout=host.timeout)
        status = None
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            data, status = answer.read(), answer.status
            return status, answer.headers, data
        except OSError as error:
            host.healthy = False
            raise RefusedError(type(error).__name__) from None
        finally:
            self.sent.append((host.name, method, path, status))
            connection.close()
