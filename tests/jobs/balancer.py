"""A balancer: sends each new connection to the next server in turn, as a plain round-robin proxy does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def round_robin(ports: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """Yields its address, and the list that it writes each connection's server into."""
    loop = asyncio.new_event_loop()
    turns, taken = itertools.cycle(ports), list[int]()
    started: list[asyncio.Server] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            with contextlib.suppress(ConnectionError, RuntimeError):
                writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = next(turns)
        taken.append(port)
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, back_writer), pump(back_reader, writer))

    async def start() -> None:
        started.append(await asyncio.start_server(serve, "127.0.0.1", 0))

    async def stop() -> None:
        started[0].close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{started[0].sockets[0].getsockname()[1]}", taken
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
