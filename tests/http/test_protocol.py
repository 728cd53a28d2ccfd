"""Bodies through a real socket and the server's own protocol: every byte arrives, whatever the pieces."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from blake3 import blake3
from fastapi import FastAPI, Request

from isocenter.core.settings import Settings
from isocenter.http import protocol
from isocenter.http.body import BATCH_BYTES, read_form

BOUNDARY = "------------------------d74496d66958873e5f2c1a"


@pytest.fixture(scope="module", params=["auto", "asyncio"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of a server on uvicorn's choice of event loop, and on Python's own."""
    app, settings = FastAPI(), Settings()

    @app.post("/")
    async def digests(request: Request) -> dict[str, str]:
        async with read_form(request, settings) as form:
            return {name: f"{upload.size} {upload.digest} {blake3(upload.file.read()).hexdigest()}" for name, upload in form.files.items()}

    @app.post("/refused", status_code=401)
    async def refuses() -> dict[str, str]:
        return {"detail": "not you"}

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=protocol.choose(), log_level="critical", lifespan="off", loop=request.param))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield int(listening.getsockname()[1])
    server.should_exit = True
    thread.join(60)
    listening.close()


def form(files: dict[str, bytes]) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'.encode() + data for name, data in files.items()
    ]
    return b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def head(length: str, path: str = "/") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n{length}\r\n\r\n".encode()


def chunked(body: bytes, rng: random.Random) -> bytes:
    out, place = bytearray(), 0
    while place < len(body):
        piece = body[place : place + rng.choice([1, 7, 900, 70_000, 600_000])]
        out += f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
        place += len(piece)
    return bytes(out + b"0\r\n\r\n")


def send(client: socket.socket, pieces: list[bytes]) -> None:
    for piece in pieces:
        client.sendall(piece)


def answers(port: int, sent: list[bytes], count: int) -> bytes:
    """What comes back when these pieces are sent, until there are as many answers as there were requests."""
    received, deadline = b"", time.monotonic() + 120
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        sender = threading.Thread(target=send, args=(client, sent))
        sender.start()
        while received.count(b"HTTP/1.1 200") < count or not received.endswith(b"}"):
            assert time.monotonic() < deadline, received[:300]
            got = client.recv(65536)
            assert got, received[:300]
            received += got
        sender.join(60)
    return received


@pytest.mark.parametrize("how", ["whole", "pieces", "chunked"])
def test_files_of_all_sizes_arrive_whole(port: int, how: str) -> None:
    rng = random.Random(how)
    sizes = {"empty": 0, "small": 100, "batch": BATCH_BYTES, "large": 3 * BATCH_BYTES + 12_345, "last": 77}
    files = {name: rng.randbytes(size) for name, size in sizes.items()}
    body = form(files)
    if how == "chunked":
        sent = [head("Transfer-Encoding: chunked"), chunked(body, rng)]
    else:
        sent, place = [head(f"Content-Length: {len(body)}")], 0
        while place < len(body):
            sent.append(body[place : place + (len(body) if how == "whole" else rng.choice([1, 300, 40_000, 500_000]))])
            place += len(sent[-1])
    found = answers(port, sent, 1)
    for name, data in files.items():
        digest = blake3(data).hexdigest()
        assert f'"{name}":"{len(data)} {digest} {digest}"'.encode() in found


def test_requests_behind_one_another_on_one_connection(port: int) -> None:
    bodies = [form({"file": random.Random(i).randbytes(200_000 + i)}) for i in range(4)]
    found = answers(port, [b"".join(head(f"Content-Length: {len(body)}") + body for body in bodies)], 4)
    places = [found.index(blake3(random.Random(i).randbytes(200_000 + i)).hexdigest().encode()) for i in range(4)]
    assert places == sorted(places)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_refusal_reaches_a_client_that_is_still_sending(port: int, version: str) -> None:
    """With `Connection: close` (or HTTP/1.0) the rest of the body is read before the connection goes, or its client would see a reset."""
    size = 30_000_000
    asked = head(f"Content-Length: {size}\r\nConnection: close", "/refused").replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        for piece in [asked, *[bytes(100_000)] * (size // 100_000)]:
            client.sendall(piece)
        found = b"".join(iter(lambda: client.recv(65536), b""))
    assert found.startswith(b"HTTP/1.1 401")
    assert found.endswith(b'{"detail":"not you"}')


def test_who_hangs_up_after_a_refusal_leaves_nothing_behind(port: int) -> None:
    """The next requests are answered as ever, also behind a refused one that was sent whole on a connection that stays."""
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(head("Content-Length: 1000000\r\nConnection: close", "/refused"))
            assert client.recv(12) == b"HTTP/1.1 401"
    refused, body = head("Content-Length: 300000", "/refused") + bytes(300_000), form({"file": b"data"})
    found = answers(port, [refused + head(f"Content-Length: {len(body)}") + body], 1)
    assert found.count(b"HTTP/1.1 401") == 1
    assert blake3(b"data").hexdigest().encode() in found
