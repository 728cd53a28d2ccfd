"""Serving: one process on one or several ports, refusing to be reachable by strangers unless told so."""

from __future__ import annotations

import ipaddress
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from isocenter.core.errors import UsageError
from isocenter.core.settings import Settings
from isocenter.http import logs, protocol
from isocenter.http.app import create_app
from isocenter.jobs.backend import check_installed

log = structlog.get_logger("isocenter")


def check_address(settings: Settings) -> None:
    """Raise `UsageError` when strangers could reach a server without a key; warn where that was asked for."""
    if _is_loopback(settings.host) or settings.api_key:
        return
    if not (settings.insecure or settings.container):
        raise UsageError(
            f"listening on {settings.host} without a key would let anybody on the network in; set ISOCENTER_API_KEY, "
            "or pass --insecure if that is what you want"
        )
    log.warning("ANYBODY WHO REACHES THIS ADDRESS CAN USE THIS SERVER: no ISOCENTER_API_KEY is set", host=settings.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, ports: Sequence[int]) -> list[socket.socket]:
    """Sockets on all ports. Raises `UsageError` that names the port that is taken."""
    sockets: list[socket.socket] = []
    for port in ports:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            for opened in [*sockets, sock]:
                opened.close()
            raise UsageError(f"cannot listen on {host}:{port} ({error.strerror}); choose another with --port") from None
        sockets.append(sock)
    return sockets


class _Draining(uvicorn.Server):
    """Goes on answering, not ready any more, until its jobs have ended or their time is up; a second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self._asked = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler."""
        desk = getattr(self._app.state, "jobs", None)
        if self._asked or desk is None or sig != signal.SIGTERM or not (desk.worker and desk.worker.busy):
            super().handle_exit(sig, frame)
            return
        self._asked = desk.draining = True
        log.info("draining")

        def drain() -> None:
            desk.drain()
            super(_Draining, self).handle_exit(sig, None)

        threading.Thread(target=drain, name="draining", daemon=True).start()


def run(settings: Settings) -> None:
    """Serve until interrupted. Raises `UsageError` before it listens, `StoreError` where the database stays away."""
    logs.configure(settings)
    check_address(settings)
    check_installed(settings)
    sockets = listen(settings.host, settings.ports)
    for sock in sockets:
        log.info(f"Listening on http://{settings.host}:{sock.getsockname()[1]}")
    app = create_app(settings)
    config = uvicorn.Config(
        app, http=protocol.choose(), log_config=None, access_log=False, timeout_graceful_shutdown=30, server_header=False, lifespan="on", ws="none"
    )
    server = _Draining(config, app)
    app.state.stop = lambda: setattr(server, "should_exit", True)
    # uvicorn raises the signal that ended it once more when all is done: to be stopped is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.run(sockets=sockets)
    finally:
        for sock in sockets:
            sock.close()
    if (failed := getattr(app.state, "failed", None)) is not None:
        raise failed
