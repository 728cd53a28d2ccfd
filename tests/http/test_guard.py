"""Who is let in: keys, host names, browser origins, addresses to listen on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from fastapi.testclient import TestClient

from isocenter.core.errors import UsageError
from isocenter.core.settings import Settings
from isocenter.http import server
from isocenter.http.app import create_app


@pytest.fixture(scope="module")
def locked(home: Path) -> TestClient:
    """An application with a key. Not started: the guard answers before anything else is needed."""
    return TestClient(create_app(Settings(home=home, api_key="secret", decoders=0)), base_url="http://127.0.0.1")


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/api/biomedparse/v1/health", "/auth/", "/ui/"])
def test_open_without_a_key(locked: TestClient, path: str) -> None:
    locked.app.state.context = None  # type: ignore[attr-defined]
    assert locked.get(path).status_code != 401 if path != "/api/biomedparse/v1/health" else True


@pytest.mark.parametrize(
    "path", ["/info/", "/monai/info/", "/metrics", "/docs", "/openapi.json", "/files/seg_aaaaaaaa.npz", "/nowhere", "/healthz/x"]
)
@pytest.mark.parametrize(
    "headers", [{}, {"X-API-Key": "Secret"}, {"X-API-Key": ""}, {"Authorization": "Bearer nope"}, {"Authorization": "Basic secret"}]
)
def test_closed_without_the_key(locked: TestClient, path: str, headers: dict[str, str]) -> None:
    answer = locked.get(path, headers=headers)
    assert (answer.status_code, answer.json()) == (401, {"detail": "Unauthorized"})


@pytest.mark.parametrize("headers", [{"X-API-Key": "secret"}, {"Authorization": "Bearer secret"}, {"Authorization": "bearer secret"}])
def test_open_with_the_key(locked: TestClient, headers: dict[str, str]) -> None:
    assert locked.get("/openapi.json", headers=headers).status_code == 200


def test_the_key_is_asked_for_before_the_body_is_read(locked: TestClient) -> None:
    read = []

    def body() -> Iterator[bytes]:
        read.append(1)
        yield b"x"

    assert locked.post("/infer/segmentation", content=body(), headers={"X-API-Key": "no"}).status_code == 401


def test_a_face_can_be_opened_for_old_clients(home: Path) -> None:
    app = create_app(Settings(home=home, api_key="secret", open_faces=("monai",), decoders=0))
    client = TestClient(app, base_url="http://127.0.0.1")
    assert client.post("/api/biomedparse/v1/predict-2d").status_code == 401
    assert client.get("/monai/infer/segmentation").status_code == 405


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1:9", 200),
        ("[::1]:8000", 200),
        ("10.1.2.3", 200),
        ("evil.example", 400),
        ("listed.example:8000", 200),
    ],
)
def test_host_names(home: Path, host: str, status: int) -> None:
    client = TestClient(create_app(Settings(home=home, allowed_hosts=("listed.example",), decoders=0)))
    assert client.get("/healthz", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("http://viewer.example", True),
        ("http://evil.example", False),
        ("http://localhost.evil.example", False),
    ],
)
def test_browser_origins(home: Path, origin: str, allowed: bool) -> None:
    client = TestClient(create_app(Settings(home=home, cors_origins=("http://viewer.example",), decoders=0)), base_url="http://127.0.0.1")
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    answer = client.options("/infer/segmentation", headers=headers)
    assert (answer.headers.get("access-control-allow-origin") == origin) is allowed


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "gpu.example"])
def test_strangers_are_not_let_in_by_accident(home: Path, host: str) -> None:
    with pytest.raises(UsageError, match="ISOCENTER_API_KEY"):
        server.check_address(Settings(home=home, host=host))
    for allowed in ({"insecure": True}, {"container": True}, {"api_key": "k"}):
        server.check_address(Settings(home=home, host=host, **allowed))


def test_a_taken_port_is_named() -> None:
    taken = server.listen("127.0.0.1", [0])[0]
    port = taken.getsockname()[1]
    taken.listen()
    with pytest.raises(UsageError, match=str(port)):
        server.listen("127.0.0.1", [port])
    taken.close()


def test_the_first_stranger_without_a_key_is_warned_of_once(home: Path) -> None:
    """Below `uvicorn gpu_service:app --host 0.0.0.0` the address is not this program's to choose."""

    def said(**settings: object) -> list[str]:
        app = create_app(Settings(home=home, decoders=0, **settings))  # type: ignore[arg-type]
        with structlog.testing.capture_logs() as logs:
            for address in ("127.0.0.1", "::1", "192.0.2.7", "192.0.2.8"):
                TestClient(app, base_url="http://127.0.0.1", client=(address, 5000)).get("/openapi.json", headers={"X-API-Key": "k"})
        return [str(entry["event"]) for entry in logs if "ANYBODY" in str(entry["event"])]

    assert len(said()) == 1
    assert said(api_key="k") == said(insecure=True) == said(container=True) == []


def test_openais_clients_are_told_in_their_shape(locked: TestClient) -> None:
    answer = locked.get("/v1/models", headers={"Authorization": "Bearer no"})
    assert (answer.status_code, answer.json()["detail"]) == (401, "Unauthorized")
    assert answer.json()["error"] == {"message": "Unauthorized", "type": "invalid_request_error", "param": None, "code": None}
