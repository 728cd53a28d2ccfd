"""The demonstration's server: `isocenter serve` as a child process, on a port that is free."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from isocenter.cli.chosen import settings
from isocenter.core.errors import IsocenterError
from isocenter.demo.wire import Wire

HOST = "127.0.0.1"
#: A first start compiles all kernels, on a slow machine for a minute.
_START_SECONDS = 300.0


def free_port(wanted: int) -> int:
    """`wanted`, or a port that the system gives when that one is taken."""
    for candidate in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, candidate))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise IsocenterError("no port is free on this machine")


@dataclass(frozen=True)
class Child:
    """A server that was started."""

    wire: Wire
    process: subprocess.Popen[bytes]
    log: Path

    def _complaint(self) -> str:
        """What the server said last of an error, or else where its log lies."""
        with self.log.open(errors="replace") as log:
            said = [line.removeprefix("Error: ").strip() for line in log if line.startswith("Error: ")]
        return said[-1] if said else f"{self.log} says why"

    def wait_ready(self) -> None:
        """Return when it is up and warm. Raises `IsocenterError` when it ends, or takes too long."""
        deadline = time.monotonic() + _START_SECONDS
        while not self.wire.ready():
            if self.process.poll() is not None:
                raise IsocenterError(f"the server did not start: {self._complaint()}")
            if time.monotonic() > deadline:
                raise IsocenterError(f"the server did not get ready within {_START_SECONDS:.0f} s; {self.log} may say why")
            time.sleep(0.05)


def _end(number: int, frame: object) -> None:
    """Leave as after an exception, so that the child is ended too."""
    raise SystemExit(128 + number)


@contextmanager
def server(port: int, log: Path) -> Iterator[Child]:
    """A server on its way up; it ends with the block. What it says goes to `log`."""
    command = [sys.executable, "-m", "isocenter.cli", "serve", "--host", HOST, "--port", str(port)]
    # A session of its own keeps the terminal's Ctrl-C away from it: this process ends it, after its own last words.
    with log.open("wb") as sink:
        process = subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    for ending in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(ending, _end)  # else a closed terminal would leave the child behind
    try:
        yield Child(Wire(f"http://{HOST}:{port}", settings().api_key), process, log)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
