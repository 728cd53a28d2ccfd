"""The known bombs against a real server: a 4xx that names the limit, little time, little memory, and it goes on serving."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.http.conftest import serve
from tests.io.test_bombs import BOMBS


@pytest.fixture(scope="module")
def target(home: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A server's address and its process."""
    with serve(home) as (addresses, _):
        port = int(addresses[0].rsplit(":", 1)[1])
        mine = psutil.Process()
        child = next(c for c in mine.children() if str(port) in c.cmdline())
        yield addresses[0], child


def post(address: str, data: bytes) -> tuple[int, str]:
    head = b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n{"nninter":"init"}\r\n'
    head += b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    request = urllib.request.Request(
        f"{address}/infer/segmentation", head + data + b"\r\n--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["detail"]


@pytest.mark.parametrize(("make", "limit", "most"), BOMBS)
def test_refused_cheaply(target: tuple[str, psutil.Process], make: Callable[[], bytes], limit: str | None, most: int) -> None:
    address, process = target
    data = make()
    before = memory(process)
    started = time.monotonic()
    status, detail = post(address, data)
    # Timings of a loaded machine are no proof; ten times what is promised would be one of the opposite.
    assert time.monotonic() - started < 30
    assert 400 <= status < 500, detail
    if limit:
        assert limit in detail
    assert memory(process) - before < 100e6
    assert urllib.request.urlopen(f"{address}/healthz", timeout=60).status == 200


def memory(process: psutil.Process) -> int:
    """Resident bytes of the server and its decoders."""
    found = process.memory_info().rss
    for decoder in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that was ended is replaced
            found += decoder.memory_info().rss
    return int(found)
