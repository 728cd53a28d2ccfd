"""The server's HTTP protocol: uvicorn's, without two of the copies that it makes of every byte of a body."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import Literal

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT


def choose() -> type[asyncio.Protocol] | Literal["auto"]:
    """What uvicorn is to speak HTTP with; its own choice where httptools (the extra `fast`) is not installed."""
    if find_spec("httptools") is None:
        return "auto"
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(HttpToolsProtocol):
        """Hands on what the parser found as it is."""

        def on_body(self, body: bytes) -> None:
            """Called by the parser with the next piece."""
            cycle = self.cycle
            if cycle.body or cycle.response_complete or self.parser.should_upgrade():
                super().on_body(body)
                return
            # `receive` makes bytes of what lies here, which of bytes is no copy: its empty bytearray need not be filled.
            cycle.body = body  # type: ignore[assignment]
            if len(body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    return Protocol
