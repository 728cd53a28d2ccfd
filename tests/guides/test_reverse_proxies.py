"""The reverse proxies of `docs/deploy`, in front of a real server: their configurations as the pages have them, but for ports and places."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from isocenter.core.phantom import phantom
from isocenter.io import nifti
from tests.certificates import Authority
from tests.guides import pages
from tests.guides.test_deploy_guides import DEPLOY
from tests.http.conftest import serve
from tests.ports import free_port

KEY, HOST = "secret", "iso.example.org"
#: nginx gives up on a silent server after 60 s where nothing else is said; here after one second.
IMPATIENT = "proxy_read_timeout 1s;"


@dataclass(frozen=True)
class Proxy:
    """port: where it listens. authority: who signed its certificate."""

    port: int
    authority: Path

    def connect(self) -> http.client.HTTPConnection:
        """A connection that believes that certificate alone."""
        connection = http.client.HTTPConnection(HOST)
        plain = socket.create_connection(("127.0.0.1", self.port), 120)
        connection.sock = ssl.create_default_context(cafile=str(self.authority)).wrap_socket(plain, server_hostname=HOST)
        return connection

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, http.client.HTTPMessage]:
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, json.loads(data) if "json" in answer.headers.get("Content-Type", "") else data, answer.headers


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With the key and the host of the guide; jobs wait, so that their events are silent."""
    flags: dict[str, Any] = {"ISOCENTER_API_KEY": KEY, "ISOCENTER_ALLOWED_HOSTS": HOST, "ISOCENTER_JOB_WORKERS": "0", "ISOCENTER_DECODERS": "0"}
    with serve(tmp_path_factory.mktemp("server"), **flags, ISOCENTER_MIN_FREE_BYTES="0") as (addresses, _):
        yield addresses[0]


def block(page: str, language: str, first: str) -> str:
    """The one block of a page that begins with these words."""
    (found,) = [text for text in pages.blocks((DEPLOY / page).read_text(), language) if text.startswith(first)]
    return found


def put(text: str, **places: tuple[str, str]) -> str:
    """A configuration with its ports and places put to others; each must be there."""
    for old, new in places.values():
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def nginx(folder: Path, inside: str) -> Iterator[None]:
    """nginx with these servers in its `http`, and all its files in a folder."""
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx")
    temporary = "".join(f"  {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;\n" if os.geteuid() == 0 else ""
    text = f"{user}daemon off;\npid {folder}/pid;\nerror_log {folder}/log;\nevents {{}}\nhttp {{\n  access_log off;\n{temporary}{inside}}}\n"
    (folder / "nginx.conf").write_text(text)
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    with running(command, folder):
        yield


@contextlib.contextmanager
def running(command: list[str], folder: Path, **env: str) -> Iterator[None]:
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, **env}, cwd=folder)
    try:
        yield
        assert process.poll() is None, (folder / "out").read_text()
    finally:
        process.terminate()
        process.wait(60)


def wait_for(proxy: Proxy) -> None:
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError):
            if proxy.ask("GET", "/healthz")[0] == 200:
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def in_front(kind: str, server: str, folder: Path, *, without: str = "") -> Iterator[Proxy]:
    """A proxy as the guide has it. without: a line that is left out."""
    port, behind = free_port(), server.removeprefix("http://")
    if kind == "nginx":
        authority = Authority(folder, "authority")
        pair = authority.issue(HOST)
        text = put(
            block("cloud-gpu.md", "nginx", "server {").replace(without, ""),
            listen=("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            certificate=("/etc/ssl/iso.pem", str(pair.certificate)),
            key=("/etc/ssl/iso.key", str(pair.key)),
            server=("127.0.0.1:8000", behind),
        )
        proxy = Proxy(port, authority.path)
        with nginx(folder, f"  {IMPATIENT}\n{text}"):
            wait_for(proxy)
            yield proxy
        return
    if shutil.which("caddy") is None:
        pytest.skip("needs caddy")
    # Its certificate is its own here: an authority on the internet would not give it one.
    options = f"{{\n  admin off\n  local_certs\n  skip_install_trust\n  auto_https disable_redirects\n  storage file_system {folder}/storage\n}}\n"
    text = put(block("cloud-gpu.md", "", f"{HOST} {{"), site=(f"{HOST} {{", f"https://{HOST}:{port} {{"), server=("127.0.0.1:8000", behind))
    (folder / "Caddyfile").write_text(options + text)
    with running(["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"], folder, HOME=str(folder)):
        root = folder / "storage" / "pki" / "authorities" / "local" / "root.crt"
        deadline = time.monotonic() + 120
        while not root.exists():
            assert time.monotonic() < deadline, (folder / "out").read_text()
            time.sleep(0.05)
        wait_for(Proxy(port, root))
        yield Proxy(port, root)


def form(file: bytes) -> tuple[bytes, str]:
    """A job of a scan, as a multipart body, and its type."""
    edge = secrets.token_hex(16)
    parts = [f'--{edge}\r\nContent-Disposition: form-data; name="prompts"\r\n\r\nlungs\r\n'.encode()]
    parts += [f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="ct.nii"\r\n\r\n'.encode(), file, f"\r\n--{edge}--\r\n".encode()]
    return b"".join(parts), f"multipart/form-data; boundary={edge}"


def submitted(proxy: Proxy) -> tuple[int, Any]:
    """Send a scan of 1.7 MB, more than nginx takes where nothing else is said."""
    ct = phantom((96, 96, 96)).volume
    scan = nifti.write(ct.array, ct.grid, compress=False)
    assert len(scan) > 1_500_000
    body, kind = form(scan)
    status, job, _ = proxy.ask("POST", "/api/v1/jobs", body, **{"Content-Type": kind, "X-API-Key": KEY})
    return status, job


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
def test_uploads_events_and_refusals_come_through(kind: str, server: str, tmp_path: Path) -> None:
    """The events of a job come when they happen, also after the server was silent for longer than a proxy waits by itself."""
    with in_front(kind, server, tmp_path) as proxy:
        status, told, headers = proxy.ask("GET", "/api/v1/jobs")
        assert (status, told, headers["WWW-Authenticate"]) == (401, {"detail": "Unauthorized"}, "Bearer")
        status, job = submitted(proxy)
        assert status == 201, job
        with contextlib.closing(proxy.connect()) as connection:
            connection.request("GET", f"/api/v1/jobs/{job['id']}/events", headers={"X-API-Key": KEY})
            answer = connection.getresponse()
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert event(answer) == ("progress", "pending"), "it is here while the job waits"
            time.sleep(2.5)
            assert proxy.ask("POST", f"/api/v1/jobs/{job['id']}/cancel", b"", **{"X-API-Key": KEY})[0] == 200
            assert event(answer) == ("end", "cancelled")


def event(answer: http.client.HTTPResponse) -> tuple[str, str]:
    """The next event's name, and the job's status in it."""
    found: dict[str, str] = {}
    while (line := answer.readline().decode()) != "":
        name, _, value = line.rstrip("\r\n").partition(": ")
        if name:
            found[name] = value
        elif "data" in found:
            return found["event"], json.loads(found["data"])["status"]
    return "cut off", ""


def test_without_its_lines_nginx_would_not_do(server: str, tmp_path: Path) -> None:
    """What the guide's nginx says is needed: this is how the test would fail."""
    for number, line in enumerate(("client_max_body_size 4g;", "proxy_read_timeout 3600s;")):
        folder = tmp_path / str(number)
        folder.mkdir()
        with in_front("nginx", server, folder, without=line) as proxy:
            if line.startswith("client_max_body_size"):
                assert submitted(proxy)[0] == 413
                continue
            with contextlib.closing(proxy.connect()) as connection:
                connection.request("GET", f"/api/v1/jobs/{waiting_job(server)}/events", headers={"X-API-Key": KEY})
                answer = connection.getresponse()
                if answer.status == 504:
                    continue  # a machine so slow that not even the first event came in time
                assert event(answer)[0] == "progress"
                with contextlib.suppress(http.client.HTTPException, OSError):
                    assert event(answer)[0] == "cut off"


def waiting_job(server: str) -> str:
    """A job, sent past the proxy."""
    ct = phantom((24, 32, 32)).volume
    body, kind = form(nifti.write(ct.array, ct.grid, compress=False))
    request = urllib.request.Request(f"{server}/api/v1/jobs", body, {"Content-Type": kind, "X-API-Key": KEY})
    with urllib.request.urlopen(request, timeout=120) as answer:
        made: str = json.load(answer)["id"]
    return made


def test_several_servers_behind_nginx(server: str, tmp_path: Path) -> None:
    """The balancer of the guide, with the same server twice: one of its names answers nothing."""
    port, behind = free_port(), server.removeprefix("http://")
    balanced = put(
        block("several-servers.md", "nginx", "upstream"),
        one=("10.0.0.11:8000", behind),
        two=("10.0.0.12:8000", f"127.0.0.1:{free_port()} down"),
    )
    front = f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://isocenter; proxy_set_header Host {HOST}; }} }}\n"
    with nginx(tmp_path, balanced + front):
        deadline = time.monotonic() + 120
        while True:
            try:
                with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
                    connection.request("GET", "/healthz")
                    assert connection.getresponse().status == 200
                    return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
