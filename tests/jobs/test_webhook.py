"""The webhook, on a real receiver: signed, tried again, never forgotten."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from isocenter.core.settings import Settings
from isocenter.jobs import webhook
from isocenter.jobs.backend import Backend
from isocenter.jobs.table import NewJob
from isocenter.store.tables import JOBS


class Receiver(http.server.ThreadingHTTPServer):
    """Answers what it is told to, and keeps what it was told."""

    answers: list[int]
    heard: list[tuple[dict[str, str], bytes]]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((dict(self.headers), body))
        status = self.server.answers.pop(0) if self.server.answers else 204
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(("127.0.0.1", 0), _Handler) as server:
        server.answers, server.heard = [], []
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_end_of_a_job_is_told_until_it_is_taken(tmp_path: Path, receiver: Receiver) -> None:
    settings = Settings(home=tmp_path, webhook_url=f"http://127.0.0.1:{receiver.server_port}/hook", webhook_secret="s3cret")
    backend = Backend(settings)
    queue = backend.queue

    def soon() -> None:
        backend.database.write(lambda c: c.execute(sa.update(JOBS).where(JOBS.c.webhook_at.is_not(None)).values(webhook_at=0.0)))

    first, _ = queue.submit(NewJob("x", {"words": ["liver"]}))
    assert webhook.deliver(queue, settings) == 0
    job = queue.claim("w")
    assert job is not None
    queue.complete(job, [], {"private": 1}, {})
    receiver.answers = [500, 302]
    for taken in (0, 0, 1, 0):
        assert webhook.deliver(queue, settings) == taken
        soon()
    assert len(receiver.heard) == 3, "a redirect is not followed"
    headers, body = receiver.heard[-1]
    told = json.loads(body)
    assert (told["id"], told["status"]) == (first.id, "completed")
    assert b"liver" not in body
    assert b"private" not in body
    expected = hmac.new(b"s3cret", headers["X-Isocenter-Timestamp"].encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers["X-Isocenter-Signature"] == f"sha256={expected}"
    second, _ = queue.submit(NewJob("x", {}))
    queue.cancel(second.id)
    receiver.answers = [500] * 20
    for _ in range(12):
        webhook.deliver(queue, settings)
        soon()
    assert len(receiver.heard) == 3 + webhook.TRIES
    backend.close()


def test_without_an_address_nobody_is_told(backend: Backend) -> None:
    job, _ = backend.queue.submit(NewJob("x", {}))
    backend.queue.cancel(job.id)
    assert webhook.deliver(backend.queue, backend.settings) == 0
