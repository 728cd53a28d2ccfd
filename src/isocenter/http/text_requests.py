"""What the text routes take in: JSON bodies, bounded while they are read, checked without being echoed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from isocenter.core.errors import LimitError
from isocenter.core.settings import Settings

Name = Annotated[str, Field(max_length=300)]
#: Lists end at the first item that is wrong: an error for each of a million takes seconds, and an answer of megabytes.
_MOST = 100_000
_MANY = Field(max_length=_MOST, fail_fast=True)
Texts = Annotated[list[str], _MANY]
#: JSON writes a character in up to six bytes, twice that outside of the basic plane.
_BYTES_A_CHARACTER = 12
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class ScoreRequest(_Body):
    """`POST /bertscore`. idf, rescale_with_baseline and num_layers are as in the package `bert_score`."""

    candidates: Texts
    references: Texts
    lang: str = Field("en", max_length=20, pattern=r"^[A-Za-z0-9-]*$")
    model_type: Name | None = None
    idf: bool = False
    rescale_with_baseline: bool = False
    num_layers: int | None = Field(None, ge=1, le=1000)


class EmbedRequest(_Body):
    """`POST /embed`: `texts` and `model`, or text-embeddings-inference's `inputs`, `normalize` and `truncate`."""

    texts: Texts | None = None
    model: Name | None = None
    inputs: str | Texts | None = None
    normalize: bool | None = None
    truncate: bool = False
    prompt_name: Name | None = None


Ids = Annotated[list[Annotated[int, Field(strict=True, ge=0)]], _MANY]


class OpenAiRequest(_Body):
    """`POST /v1/embeddings`, as OpenAI's."""

    input: str | Texts | Ids | Annotated[list[Ids], _MANY]
    model: Name = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


class ReportRequest(_Body):
    """`POST /api/v1/report-metrics`: one generated report, or several, each with its reference."""

    candidates: Texts
    references: Texts
    lang: str = Field("en", max_length=20, pattern=r"^[A-Za-z0-9-]*$")
    model_type: Name | None = None
    bertscore: bool = True


Kind = TypeVar("Kind", bound=_Body)


def described(kind: type[BaseModel]) -> dict[str, Any]:
    """A body that is read by `read`, for the OpenAPI document."""
    schema = kind.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def read(request: Request, kind: type[Kind], settings: Settings) -> Kind:
    """The body. Raises `LimitError` as soon as it is longer than any that could be accepted, 422 for one of another shape."""
    limit = 2 * settings.text_max_items * settings.text_max_length * _BYTES_A_CHARACTER + 65_536
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise LimitError("the request is too large", limit="bytes in a request for texts", value=limit)
    if _nested(body) > _MOST:
        raise invalid("", f"the body has more than {_MOST} lists and objects in it", "too_long")
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        found = [{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_input=False, include_url=False, include_context=False)]
        raise RequestValidationError(found) from None


def _nested(body: bytearray) -> int:
    """How many lists and objects begin in a JSON body, at most: millions of empty ones take seconds to parse, and are counted in a moment."""
    found = body.count(b"[") + body.count(b"{")
    if found <= _MOST:
        return found
    outside = _STRING.sub(b"", body)
    return outside.count(b"[") + outside.count(b"{")


def invalid(field: str, message: str, kind: str = "value_error") -> RequestValidationError:
    """A 422 for one field."""
    return RequestValidationError([{"type": kind, "loc": ("body", field) if field else ("body",), "msg": message}])


def check(settings: Settings, **fields: Sequence[Any]) -> None:
    """Raise a 422 in the document's words for lists or texts that are too long."""
    wrong = []
    for name, values in fields.items():
        texts = [(i, len(v)) for i, v in enumerate(values) if isinstance(v, str)]
        long = next(((i, n) for i, n in texts if n > settings.text_max_length), None)
        if len(values) > settings.text_max_items:
            wrong.append((name, f"{name} array length {len(values)} exceeds max batch size of {settings.text_max_items}"))
        elif long is not None:
            wrong.append((name, f"{name}[{long[0]}] length {long[1]} exceeds max text length of {settings.text_max_length}"))
    if wrong:
        raise RequestValidationError([{"type": "value_error", "loc": ("body", name), "msg": f"Value error, {text}"} for name, text in wrong])
