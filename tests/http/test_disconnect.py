"""Clients that leave: what they asked for leaves the queue, and running work ends at its next step."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi import FastAPI

from isocenter.core.errors import CancelledError
from isocenter.core.model import ModelSpec, Task
from isocenter.core.settings import Settings
from isocenter.http import errors
from isocenter.http.context import Context, Here
from isocenter.runtime.runtime import Lease
from isocenter.service import Service


class Patient:
    """A model that works until it is told to stop."""

    def load(self, context: object) -> None: ...

    def close(self) -> None: ...


class Server:
    """A real server with one route that computes for ever, and what became of its work."""

    def __init__(self, settings: Settings) -> None:
        self.service = Service(settings)
        self.service.runtime._loader.create = lambda spec: Patient()
        self.began = threading.Semaphore(0)
        self.ended: list[str] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        app = FastAPI()
        app.state.context = Context(self.service)
        errors.install(app)
        spec = ModelSpec("patient", "1", Task.TEXT, "x:Y", "")

        def work(lease: Lease) -> None:
            self.began.release()
            try:
                while True:
                    lease.run.check()
                    time.sleep(0.005)
            except CancelledError:
                self.ended.append("stopped")
                raise

        @app.get("/compute")
        async def compute(here: Here) -> None:
            await here.infer(lambda: self.service.runtime.call(spec, work))

        @app.get("/quick")
        async def quick(here: Here) -> str:
            return await here.infer(lambda: "quick")

        self.server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def ask(self, path: str) -> socket.socket:
        client = socket.create_connection(self.socket.getsockname(), timeout=60)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return client

    def waits_for(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while self.service.runtime.waiting != count:
            assert time.monotonic() < deadline, self.service.runtime.waiting
            time.sleep(0.005)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        self.socket.close()
        self.service.close()


@pytest.fixture
def server(app_settings: Settings) -> Iterator[Server]:
    made = Server(app_settings)
    yield made
    made.close()


def test_who_leaves_takes_the_work_along(server: Server) -> None:
    first = server.ask("/compute")
    assert server.began.acquire(timeout=60)
    waiting = [server.ask("/compute") for _ in range(3)]
    server.waits_for(4)
    for client in waiting:
        client.close()
    server.waits_for(1)
    assert server.ended == [], "those never began"
    first.close()
    server.waits_for(0)
    assert server.ended == ["stopped"]
    with server.ask("/quick") as client:
        answer = b"".join(iter(lambda: client.recv(10_000), b""))
        assert answer.endswith(b'"quick"')
