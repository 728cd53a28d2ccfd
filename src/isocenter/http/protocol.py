"""The server's HTTP protocol: uvicorn's, reading large bodies in large pieces, and closing so that answers arrive."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import Any, Literal

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

#: Seconds for which the rest of a refused body is read and thrown away before the connection is closed, all in all.
_LINGER = 30.0
#: Bytes that are read at a time once a body is larger; event loops read 64 or 256 KiB at a time, and pay for each piece.
_READ_BYTES = 1 << 20


def _large(name: bytes, value: bytes) -> bool:
    """Whether a header announces a body that is worth a large buffer."""
    return (name == b"content-length" and int(value) > _READ_BYTES) or name == b"transfer-encoding"


class _Wide(asyncio.BufferedProtocol):
    """Reads into one large buffer for another protocol."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._room = memoryview(bytearray(_READ_BYTES))
        self._protocol = protocol
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        """They are there. The parser copies what it hands on, so the buffer is free again afterwards."""
        self._protocol.data_received(self._room[:nbytes])  # type: ignore[arg-type]


def choose() -> type[asyncio.Protocol] | Literal["auto"]:
    """What uvicorn is to speak HTTP with; its own choice where httptools (the extra `fast`) is not installed."""
    if find_spec("httptools") is None:
        return "auto"
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(HttpToolsProtocol):
        """Hands on what the parser found as it is, and closes a connection only when its client can have read the answer."""

        lingering: asyncio.TimerHandle | None = None
        wide = False

        def on_headers_complete(self) -> None:
            """Called by the parser when a request begins."""
            super().on_headers_complete()
            if self.cycle is not None:
                self.cycle.transport = _Patient(self)  # type: ignore[assignment]
            if not self.wide and self.scheme == "http" and any(_large(name, value) for name, value in self.headers):
                self._widen()

        def _widen(self) -> None:
            """From now on what comes is read in pieces of up to `_READ_BYTES`."""
            self.wide = True
            if self.flow.read_paused:
                self.transport.set_protocol(_Wide(self))
                return
            self.transport.pause_reading()  # a loop chooses how to read when it starts to
            self.transport.set_protocol(_Wide(self))
            self.transport.resume_reading()

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

        def data_received(self, data: bytes) -> None:
            """What comes; nobody wants it once the answer to a body that was not read is out."""
            if self.lingering is None:
                super().data_received(data)

        def linger(self) -> None:
            """Say that nothing more is written; read on until the client closes too, or its time is up (RFC 9112 section 9.6).

            A socket that is closed with unread bytes in it resets the connection, and the client loses the answer that says why.
            """
            self.pipeline.clear()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.lingering = self.loop.call_later(_LINGER, self.transport.close)

        def timeout_keep_alive_handler(self) -> None:
            """No next request came: nothing to do while the timer of `linger` runs."""
            if self.lingering is None:
                super().timeout_keep_alive_handler()

        def connection_lost(self, exc: Exception | None) -> None:
            """The connection is gone."""
            if self.lingering is not None:
                self.lingering.cancel()
            super().connection_lost(exc)

    class _Patient:
        """A connection as one request's answer sees it: to close it in the middle of that request's body is to linger."""

        def __init__(self, protocol: Protocol) -> None:
            self._protocol, self._cycle, self._transport = protocol, protocol.cycle, protocol.transport

        def __getattr__(self, name: str) -> Any:
            return getattr(self._transport, name)

        def close(self) -> None:
            """See `linger`."""
            if self._cycle.more_body and not self._transport.is_closing():
                self._protocol.linger()
            else:
                self._transport.close()

    return Protocol
