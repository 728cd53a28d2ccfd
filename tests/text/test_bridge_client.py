"""What the bridge's TypeScript client does, replayed against two real servers: turns, keys, retries, failover, timeouts, recovery."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.http.conftest import serve
from tests.text.bridge_client import Client, Host, RefusedError

KEY = "a key"


@dataclass(frozen=True)
class Server:
    url: str
    pid: int

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers={"X-API-Key": KEY}), timeout=60) as answer:
            return json.loads(answer.read())


@pytest.fixture(scope="module")
def servers(minilm: Path, home: Path) -> Iterator[list[Server]]:
    """Two processes with one slot each and little patience with those who wait for it; a batch lasts many times as long."""
    env: dict[str, Any] = {
        "GPU_MAX_CONCURRENT": "1",
        "ISOCENTER_TEXT_BATCH_TOKENS": "16384",
        "GPU_EMBED_BATCH": "64",
        "ISOCENTER_TEXT_WAIT": "0.05",
        "GPU_MAX_BATCH_SIZE": "2000",
        "API_KEY": KEY,
    }
    env |= {"ISOCENTER_TEXT_MODELS": f"all-MiniLM-L6-v2={minilm}", "ISOCENTER_DECODERS": "0", "ISOCENTER_TEXT_ENGINE": "onnxruntime"}
    found = []
    with ExitStack() as stack:
        for _ in range(2):
            addresses, _ = stack.enter_context(serve(home, **env))
            port = int(addresses[0].rsplit(":", 1)[1])
            (pid,) = (c.pid for c in psutil.Process().children() if str(port) in c.cmdline())
            found.append(Server(addresses[0], pid))
        yield found


@pytest.fixture
def hosts(servers: list[Server]) -> list[Host]:
    return [Host(s.url, f"gpu-{i + 1}", KEY, timeout=120) for i, s in enumerate(servers)]


class Naps:
    """Sleeps a tenth of what it is asked for, and notes it."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        time.sleep(seconds / 10)


def answered(client: Client) -> list[tuple[str, str, str, int | None]]:
    """What was sent after the first looks at health, without what had to be asked again: a slow machine's one slot may be busy."""
    return [sent for sent in client.sent[2:] if sent[3] != 503]


def test_turns_and_what_every_request_looks_like(hosts: list[Host]) -> None:
    client = Client(hosts, sleep=Naps())
    for _ in range(4):
        assert client.embed(["No effusion."])["dimensions"] == 384
    assert client.get("/status")["active_jobs"] == []
    assert client.get("/info")["device"] == "cpu"
    assert client.sent[:2] == [(f"gpu-{i}", "GET", "/health", 200) for i in (1, 2)]
    calls = [(f"gpu-{i}", "POST", "/embed", 200) for i in (1, 2, 1, 2)]
    assert answered(client) == [*calls, ("gpu-1", "GET", "/status", 200), ("gpu-2", "GET", "/info", 200)]


def test_the_least_busy_host_is_asked_for_its_memory_before_each_call(hosts: list[Host]) -> None:
    client = Client(hosts, strategy="least-busy", sleep=Naps())
    client.embed(["No effusion."])
    info = [(f"gpu-{i}", "GET", "/info", 200) for i in (1, 2)]
    # Without a card both are the same to it, and the first is taken.
    assert answered(client) == [*info, ("gpu-1", "POST", "/embed", 200)]
    assert {"vram_total_mb", "vram_used_mb"} <= set(hosts[0].info or {})
    hosts[0].info, hosts[1].info = {"vram_total_mb": 24000, "vram_used_mb": 12000}, {"vram_total_mb": 24000, "vram_used_mb": 100}
    assert min(hosts, key=lambda h: h.load) is hosts[1]


def test_a_wrong_key_makes_the_next_host_answer(hosts: list[Host]) -> None:
    hosts[0].key = "wrong"
    client = Client(hosts, sleep=Naps())
    assert [h.healthy for h in hosts] == [True, True], "health needs no key"
    assert client.embed(["a"])["model"] == "all-MiniLM-L6-v2"
    assert answered(client) == [("gpu-1", "POST", "/embed", 401), ("gpu-2", "POST", "/embed", 200)]
    assert not hosts[0].healthy
    client.embed(["a"])
    assert answered(client)[2:] == [("gpu-2", "POST", "/embed", 200)], "the unhealthy one is left out"
    hosts[1].key = "wrong"
    with pytest.raises(RefusedError, match=r'All GPU hosts failed for /embed: GPU host gpu-\d /embed returned 401: {"detail":"Unauthorized"}'):
        client.embed(["a"])


def test_an_error_is_told_as_the_server_said_it(hosts: list[Host]) -> None:
    client = Client(hosts, sleep=Naps())
    with pytest.raises(RefusedError, match=r"returned 422: .*texts array length 2001 exceeds max batch size of 2000"):
        client.embed(["a"] * 2001)
    with pytest.raises(RefusedError, match=r'returned 400: {"detail":"candidates and references must have equal length"}'):
        client.bertscore(["a"], [], "all-MiniLM-L6-v2")


def test_a_503_without_a_time_to_wait_is_given_up_at_once(hosts: list[Host]) -> None:
    naps = Naps()
    client = Client(hosts, sleep=naps)
    with pytest.raises(RefusedError, match=r"All GPU hosts failed for /bertscore: GPU host gpu-2 returned 503 after 4 consecutive"):
        client.bertscore(["a"], ["a"])  # the default model is not installed
    assert naps.asked == []
    assert [h.healthy for h in hosts] == [False, False]
    client.check()
    assert [h.healthy for h in hosts] == [True, True]


def hog(server: Server) -> http.client.HTTPConnection:
    """A request that keeps the one slot for minutes, begun but not answered."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=120)
    texts = [f"finding {i} " * 100 for i in range(2000)]
    connection.request("POST", "/embed", json.dumps({"texts": texts}), {"X-API-Key": KEY})
    deadline = time.monotonic() + 180
    while not server.ask("/status")["queue"]["in_flight"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return connection


def next_batch(server: Server) -> list[float]:
    """Wait until a batch of the one job begins, for whoever asks between two batches is served. Returns the progress seen meanwhile."""
    seen: list[float] = []
    deadline = time.monotonic() + 180
    while len(set(seen)) < 2:
        assert time.monotonic() < deadline, "progress grows batch by batch"
        (job,) = server.ask("/status")["active_jobs"]
        seen.append(job["progress"])
        time.sleep(0.01)
    return seen


def idle(server: Server) -> bool:
    """Whether the server gets idle: a batch that runs is finished, but there are dozens behind it."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        status = server.ask("/status")
        if status["active_jobs"] == [] and status["queue"] == {"max_concurrent": 1, "in_flight": 0, "available_slots": 1, "waiting_estimate": 0}:
            return True
        time.sleep(0.05)
    return False


def test_a_busy_host_is_waited_for_and_its_work_ends_with_its_client(hosts: list[Host], servers: list[Server]) -> None:
    connection = hog(servers[0])
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        connection.close()  # the other client leaves, long before its work is done
        assert idle(servers[0])

    try:
        client = Client(hosts, sleep=sleep)
        progress = [*next_batch(servers[0]), *next_batch(servers[0])]
        assert client.embed(["No effusion."])["dimensions"] == 384
    finally:
        connection.close()
    assert progress == sorted(progress)
    assert progress[-1] < 1
    assert asked
    assert set(asked) == {5}, "told in whole seconds when to come again"
    assert client.sent[2:] == [("gpu-1", "POST", "/embed", 503)] * len(asked) + [("gpu-1", "POST", "/embed", 200)]
    assert idle(servers[0])


def test_three_retries_then_the_next_host(hosts: list[Host], servers: list[Server]) -> None:
    connection = hog(servers[1])
    naps = Naps()
    try:
        client = Client(hosts[::-1], sleep=lambda seconds: naps(seconds / 25))
        next_batch(servers[1])
        assert client.embed(["No effusion."])["dimensions"] == 384
    finally:
        connection.close()
    by_host = {name: [status for host, _, _, status in client.sent[2:] if host == name] for name in ("gpu-2", "gpu-1")}
    assert by_host["gpu-2"] == [503] * 4
    assert by_host["gpu-1"][-1] == 200
    assert len(naps.asked) == 3 + by_host["gpu-1"].count(503)
    assert idle(servers[1])


def test_a_host_that_does_not_answer_is_left_until_its_health_comes_back(hosts: list[Host], servers: list[Server]) -> None:
    client = Client(hosts, sleep=Naps())
    hosts[0].timeout = 1.5
    os.kill(servers[0].pid, signal.SIGSTOP)
    try:
        assert client.embed(["No effusion."])["dimensions"] == 384
        client.embed(["No effusion."])
    finally:
        os.kill(servers[0].pid, signal.SIGCONT)
    assert answered(client) == [("gpu-1", "POST", "/embed", None), *[("gpu-2", "POST", "/embed", 200)] * 2]
    assert [h.healthy for h in hosts] == [False, True]
    assert idle(servers[0]), "what the client gave up is not computed"
    hosts[0].timeout = 120
    client.check()
    assert [h.healthy for h in hosts] == [True, True]
    client.embed(["a"])
    client.embed(["a"])
    assert {name for name, *_ in answered(client)[-2:]} == {"gpu-1", "gpu-2"}
