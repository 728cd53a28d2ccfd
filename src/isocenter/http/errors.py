"""Errors as clients see them: always `{"detail": ...}`, a 4xx for a user's mistake, and never an exception's own words."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from isocenter.core import errors

log = structlog.get_logger("isocenter.http")

#: The most specific class decides.
STATUS: dict[type[errors.IsocenterError], int] = {
    errors.LimitError: 413,
    errors.UnsupportedError: 415,
    errors.InputError: 400,
    errors.UsageError: 400,
    errors.NotFoundError: 404,
    errors.UnknownModelError: 404,
    errors.ModelError: 503,
    errors.BusyError: 503,
    errors.StoreError: 503,
    errors.ConflictError: 409,
    errors.MemoryLimitError: 507,
    errors.CancelledError: 499,
    errors.DeadlineError: 504,
    errors.IsocenterError: 500,
}


def status_of(error: errors.IsocenterError) -> int:
    """The HTTP status for an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def body(path: str, status: int, detail: Any) -> dict[str, Any]:
    """An error's body: `{"detail": ...}`, on OpenAI's routes with the `error` beside it that its clients show to people."""
    if not path.startswith("/v1/"):
        return {"detail": detail}
    told = detail if isinstance(detail, str) else "; ".join(f"{'.'.join(map(str, d['loc']))}: {d['msg']}" for d in detail)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"detail": detail, "error": {"message": told, "type": kind, "param": None, "code": None}}


def answer(error: errors.IsocenterError, path: str = "") -> JSONResponse:
    """The response for an error. path: the request's."""
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, errors.BusyError | errors.StoreError) else None
    return JSONResponse(body(path, status_of(error), error.message), status_of(error), headers)


def missing(field: str) -> RequestValidationError:
    """A required multipart field is not there, in FastAPI's own form."""
    return RequestValidationError([{"type": "missing", "loc": ("body", field), "msg": "Field required", "input": None}])


def install(app: FastAPI) -> None:
    """Teach an application to answer with these."""

    @app.exception_handler(errors.IsocenterError)
    async def known(request: Request, error: errors.IsocenterError) -> Response:
        return answer(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # What was sent is not echoed: it may hold patient data.
        detail = [{key: value for key, value in item.items() if key in ("type", "loc", "msg")} for item in error.errors()]
        return JSONResponse(body(request.url.path, 422, detail), 422)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return JSONResponse(body(request.url.path, error.status_code, error.detail), error.status_code, error.headers)

    @app.exception_handler(MemoryError)
    async def full(request: Request, error: MemoryError) -> Response:
        return answer(errors.MemoryLimitError("not enough memory for this request; send a smaller volume or try again later"))

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        # In mid-upload: nobody reads the answer, but it is not a fault of the server's.
        return answer(errors.CancelledError("the client closed the connection"))

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        log.error("request failed", path=getattr(request.scope.get("route"), "path", ""), error=type(error).__name__, exc_info=error)
        return JSONResponse(body(request.url.path, 500, "Internal error; the server's log says more"), 500)
