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


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    app, settings = FastAPI(), Settings()

    @app.post("/")
    async def digests(request: Request) -> dict[str, str]:
        async with read_form(request, settings) as form:
            return {name: f"{upload.size} {upload.digest} {blake3(upload.file.read()).hexdigest()}" for name, upload in form.files.items()}

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=protocol.choose(), log_level="critical", lifespan="off"))
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


def head(length: str) -> bytes:
    return f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n{length}\r\n\r\n".encode()


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
