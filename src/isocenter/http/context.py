"""What adapters share: the service behind the application, and the way from the event loop to its threads."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from isocenter.core.errors import CancelledError
from isocenter.runtime.priority import stand_back
from isocenter.service import Service

T = TypeVar("T")
#: The request that a task answers; None for the server's own work.
_ASKED: ContextVar[Request | None] = ContextVar("asked", default=None)


class Context:
    """One application's service, and threads for reading and encoding beside those for inference."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._reading = ThreadPoolExecutor(2, thread_name_prefix="reading", initializer=stand_back)

    async def read(self, work: Callable[[], T]) -> T:
        """Run decoding or encoding off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, work)

    async def infer(self, work: Callable[[], T], *, seconds: float | None = None) -> T:
        """Run inference in the runtime's queue. A client that goes away takes waiting work out of it and ends running work at its next step.

        seconds: its own time limit in place of the setting's, infinite for none.
        """
        return await self.wait(self.service.runtime.submit(work, seconds=seconds))

    async def wait(self, job: Future[T]) -> T:
        """The answer to what waits in the runtime's queue. A client that goes away takes it out, as in `infer`."""
        request = _ASKED.get()
        if request is None:
            return await asyncio.wrap_future(job)
        answer: asyncio.Future[Any] = asyncio.wrap_future(job)
        gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise CancelledError("the client closed the connection")
            result: T = answer.result()
            return result
        finally:
            gone.cancel()
            answer.cancel()  # nothing happens when it is done

    def close(self) -> None:
        """Stop the threads."""
        self._reading.shutdown(wait=True, cancel_futures=True)
        self.service.close()


async def _gone(request: Request) -> None:
    """Ends when the client has left; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


# Not a plain function, which the framework would send to a thread at every request.
async def _context(request: Request) -> Context:
    _ASKED.set(request)
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
