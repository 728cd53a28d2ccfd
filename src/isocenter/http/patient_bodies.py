"""Bodies that are JSON, or a form with files and the JSON in one of its fields."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from isocenter.core.errors import LimitError, UsageError
from isocenter.core.settings import Settings
from isocenter.http.body import MAX_FIELD_BYTES, Form, read_form

Body = TypeVar("Body", bound=BaseModel)


def described(kind: type[BaseModel], name: str, **files: str) -> dict[str, Any]:
    """The body for the published schema: JSON alone, or files with the JSON in the field `name`."""
    sent = {key: {"type": "string", "format": "binary", "description": text} for key, text in files.items()}
    form = {"type": "object", "properties": {**sent, name: {"type": "string", "description": "The request as JSON."}}}
    return {"requestBody": {"content": {"multipart/form-data": {"schema": form}, "application/json": {"schema": kind.model_json_schema()}}}}


@asynccontextmanager
async def read(request: Request, kind: type[Body], name: str, settings: Settings) -> AsyncIterator[tuple[Body, Form]]:
    """The request and its files, which live as long as the block. Raises `UsageError` for JSON that does not fit."""
    if request.headers.get("content-type", "").startswith("application/json"):
        yield _parsed(kind, await _bytes(request)), Form()
        return
    async with read_form(request, settings) as form:
        yield _parsed(kind, form.text(name).encode() or b"{}"), form


def _parsed(kind: type[Body], data: bytes) -> Body:
    try:
        text = data.decode()
        if "\\u0000" in text or "\\ud8" in text.lower():
            raise UsageError("the request holds a character that cannot be kept")
        return kind.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(str(part) for part in first['loc']) or 'the request'}: {first['msg']}") from None
    except (ValueError, RecursionError):
        raise UsageError("the request is not JSON") from None


async def _bytes(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FIELD_BYTES:
            raise LimitError("the request is too large", limit="form field bytes", value=MAX_FIELD_BYTES)
    return bytes(body)
