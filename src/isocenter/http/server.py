"""Serving: one process on one or several ports, refusing to be reachable by strangers unless told so."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

import structlog
import uvicorn

from isocenter.core.errors import UsageError
from isocenter.core.settings import Settings
from isocenter.http import logs
from isocenter.http.app import create_app

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


def run(settings: Settings) -> None:
    """Serve until interrupted."""
    logs.configure(settings)
    check_address(settings)
    sockets = listen(settings.host, settings.ports)
    for sock in sockets:
        log.info(f"Listening on http://{settings.host}:{sock.getsockname()[1]}")
    config = uvicorn.Config(
        create_app(settings), log_config=None, access_log=False, timeout_graceful_shutdown=30, server_header=False, lifespan="on", ws="none"
    )
    server = uvicorn.Server(config)
    try:
        server.run(sockets=sockets)
    finally:
        for sock in sockets:
            sock.close()
