"""Bodies: cut short, malformed, too large."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.core.settings import Settings
from isocenter.http.app import create_app

URL = "/api/biomedparse/v1/predict-2d"


@pytest.fixture(scope="module")
def small(home: Path) -> Iterator[TestClient]:
    """An application that takes uploads of at most 1000 bytes."""
    with TestClient(create_app(Settings(home=home, max_upload_bytes=1000, decoders=0)), base_url="http://127.0.0.1") as client:
        yield client


def test_an_upload_too_large_is_told_the_limit(small: TestClient) -> None:
    answer = small.post(URL, files={"file": ("a.png", b"x" * 1001)}, data={"prompts": "liver"})
    assert answer.status_code == 413
    assert "max_upload_bytes = 1 000" in answer.json()["detail"]


def test_a_declared_length_too_large_is_refused_unread(small: TestClient) -> None:
    answer = small.post(URL, content=b"", headers={"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(10**12)})
    assert answer.status_code == 413


@pytest.mark.parametrize("cut", [1, 10, 60, 100])
def test_a_body_cut_short(client: TestClient, cut: int) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + b"y" * 100 + b"\r\n--x--\r\n"
    answer = client.post(URL, content=body[:-cut], headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code in (400, 422)


def test_a_client_that_hangs_up_in_mid_upload_is_no_fault_of_the_servers(client: TestClient) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    events: list[dict[str, Any]] = [{"type": "http.request", "body": head + b"y" * 100, "more_body": True}, {"type": "http.disconnect"}]
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return events.pop(0)

    async def send(message: Any) -> None:
        said.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=x"), (b"content-length", b"9000")]
    scope = {"type": "http", "method": "POST", "path": URL, "raw_path": URL.encode(), "query_string": b"", "headers": headers, "http_version": "1.1"}
    anyio.run(client.app, scope | {"scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 9)}, receive, send)
    assert said[0]["status"] == 499


@settings(deadline=None, max_examples=150, derandomize=True)
@given(body=st.binary(max_size=300), boundary=st.text(alphabet="ab-", min_size=0, max_size=4))
def test_garbage_is_a_users_mistake(client: TestClient, body: bytes, boundary: str) -> None:
    answer = client.post(
        URL, content=b"--" + boundary.encode() + b"\r\n" + body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
    assert 400 <= answer.status_code < 500


def test_too_much_text(client: TestClient) -> None:
    answer = client.post(URL, files={"file": ("a.png", b"")}, data={"prompts": "x" * (4 * 1024 * 1024 + 1)})
    assert answer.status_code == 413
