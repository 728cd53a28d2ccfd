"""Bodies of requests: forms, JSON, and forms with files and the JSON in one of their fields; how the schema shows them, how they are read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from isocenter.core.errors import LimitError, UsageError
from isocenter.core.settings import Settings
from isocenter.http.body import MAX_FIELD_BYTES, ONE_FILE, Form, read_form
from isocenter.io.upload import Upload

Body = TypeVar("Body", bound=BaseModel)
FILE = {"type": "string", "format": "binary"}
TEXT = {"type": "string"}


def form_of(required: Sequence[str], kind: str = "multipart/form-data", /, **fields: Any) -> dict[str, Any]:
    """A form for the published schema. fields: by name, what each is."""
    schema = {"type": "object", "properties": fields, **({"required": list(required)} if required else {})}
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


def described(kind: type[BaseModel], name: str, **files: str) -> dict[str, Any]:
    """The body for the published schema: JSON alone, or files with the JSON in the field `name`."""
    sent = {key: {**FILE, "description": text} for key, text in files.items()}
    form = {"type": "object", "properties": {**sent, name: {**TEXT, "description": "The request as JSON."}}}
    return {"requestBody": {"content": {"multipart/form-data": {"schema": form}, "application/json": {"schema": kind.model_json_schema()}}}}


@asynccontextmanager
async def read(request: Request, kind: type[Body], name: str, settings: Settings) -> AsyncIterator[tuple[Body, Form]]:
    """The request and its files, which live as long as the block. Raises `UsageError` for JSON that does not fit."""
    if request.headers.get("content-type", "").startswith("application/json"):
        yield parsed(kind, await json_bytes(request)), Form()
        return
    async with read_form(request, settings) as form:
        yield parsed(kind, form.text(name).encode() or b"{}"), form


def one_file(form: Form) -> Upload | None:
    """The file of a form. Raises `UsageError` for several: of a series that is sent slice by slice, one slice would be taken for all."""
    if len(form.files) > 1:
        raise UsageError(ONE_FILE)
    return form.files.get("file")


def check_fields(form: Form, known: Iterable[str]) -> None:
    """Raise `UsageError` for a field or file that nobody knows: a typing error in a name would else give another answer than was meant."""
    known = list(known)
    if unknown := [name for name in (*form.fields, *form.files) if name not in known and name.partition("#")[0] not in known]:
        raise UsageError(f"there is no field '{unknown[0][:40]}'; there are: {', '.join(known)}")


def parsed(kind: type[Body], data: bytes) -> Body:
    """JSON as a request. Raises `UsageError` for what is none, does not fit, or holds characters that no database keeps."""
    try:
        values = json.loads(data)
        try:
            kept = json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            kept = b"\\u0000"
        if b"\\u0000" in kept:
            raise UsageError("the request holds a character that cannot be kept")
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(str(part) for part in first['loc']) or 'the request'}: {first['msg']}") from None
    except (ValueError, RecursionError):
        raise UsageError("the request is not JSON") from None


async def json_bytes(request: Request) -> bytes:
    """The whole body. Raises `LimitError` for one that is longer than a form's field may be."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FIELD_BYTES:
            raise LimitError("the request is too large", limit="form field bytes", value=MAX_FIELD_BYTES)
    return bytes(body)
