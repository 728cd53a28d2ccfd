"""What adapters share: the service behind the application, and the way from the event loop to its threads."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from isocenter.service import Service

T = TypeVar("T")


class Context:
    """One application's service, and threads for reading and encoding beside those for inference."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._reading = ThreadPoolExecutor(2, thread_name_prefix="reading")

    async def read(self, work: Callable[[], T]) -> T:
        """Run decoding or encoding off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, work)

    async def infer(self, work: Callable[[], T]) -> T:
        """Run inference in the runtime's queue; a caller that goes away takes waiting work out of it."""
        future = self.service.runtime.submit(work)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Stop the threads."""
        self._reading.shutdown(wait=True, cancel_futures=True)
        self.service.close()


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Here = Annotated[Context, Depends(_context)]


def owner_of(request: Request, client_id: str = "") -> str:
    """Who is asking, as far as old clients tell: address, program, key and, where sent, their own session id."""
    headers = request.headers
    parts = [
        request.client.host if request.client else "",
        headers.get("user-agent", ""),
        headers.get("x-api-key", "") or headers.get("authorization", ""),
        client_id,
    ]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:32]
