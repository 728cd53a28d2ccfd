"""Prompts as plain data, the form in which they come as JSON and lie in the job table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from isocenter.core.errors import PromptError
from isocenter.core.prompts import Box, Lasso, Point, Prompt, Scribble, Text, Voxel

_MOST_PROMPTS = 10_000
#: What the objects with a `type` call the place that the others name by their kind.
_PLACES = {"text": "text", "point": "xyz", "scribble": "points", "lasso": "points"}


def parse_prompts(items: Sequence[Any]) -> list[Prompt]:
    """Core prompts of plain ones. Positions are voxel indices [x, y, z] as the image's own file counts them, from 0.

    A text is a word. An object has one of `text`, `point` [x, y, z], `box` [x0, y0, z0, x1, y1, z1] (both corners inside),
    `scribble` or `lasso` [[x, y, z], ...], and may say `"positive": false`, a text excepted. The other form of the same, an object
    with a `type` and `text`, `xyz`, `from` and `to`, or `points`, is understood as well. Raises `PromptError` for anything else.
    """
    if isinstance(items, str) or not isinstance(items, Sequence) or len(items) > _MOST_PROMPTS:
        raise PromptError(f"prompts must be a list of at most {_MOST_PROMPTS}")
    return [_prompt(item) for item in items]


def _prompt(item: Any) -> Prompt:
    if isinstance(item, str):
        item = {"text": item}
    if isinstance(item, Mapping):
        item = _untyped(item)
        positive = item.get("positive", True)
        if not isinstance(positive, bool):
            raise PromptError("positive must be true or false")
        kinds: dict[str, Callable[[Any], Prompt]] = {
            "text": lambda v: _text(v, positive),
            "point": lambda v: Point(_voxel(v), positive),
            "box": lambda v: _box(v, positive),
            "scribble": lambda v: Scribble(_path(v), positive),
            "lasso": lambda v: Lasso(_path(v), positive),
        }
        named = [k for k in kinds if k in item]
        if len(named) == 1 and set(item) <= {named[0], "positive"}:
            return kinds[named[0]](item[named[0]])
    raise PromptError(
        'a prompt is a word or an object with one of "text", "point", "box", "scribble", "lasso" (or with that as its "type"), and perhaps "positive"'
    )


def _untyped(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"type": "point", "xyz": [...]}` as `{"point": [...]}`; what has no known type stays as it is."""
    kind, rest = item.get("type"), {key: value for key, value in item.items() if key not in ("type", "positive")}
    sign = {key: value for key, value in item.items() if key == "positive"}
    if kind == "box" and set(rest) == {"from", "to"}:
        corners = (rest["from"], rest["to"])
        return {"box": [n for c in corners for n in c] if all(isinstance(c, list) and len(c) == 3 for c in corners) else None, **sign}
    place = _PLACES.get(kind) if isinstance(kind, str) else None
    return {str(kind): rest[place], **sign} if place is not None and set(rest) == {place} else item


def _text(value: Any, positive: bool) -> Text:
    if not isinstance(value, str) or not value.strip() or len(value) > 1000:
        raise PromptError("a text prompt must be 1 to 1000 characters")
    if not positive:
        raise PromptError("a text says what is meant; what is not can be said with a point, a line or a box")
    return Text(value.strip())


def _voxel(value: Any) -> Voxel:
    numbers = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 3
    if not numbers or not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e9 for n in value):
        raise PromptError("a position is three voxel indices [x, y, z], finite numbers")
    x, y, z = (math.floor(n + 0.5) for n in value)
    if min(x, y, z) < 0:
        raise PromptError(f"the prompt at x={x}, y={y}, z={z} lies outside the image, whose voxels are counted from 0")
    return z, y, x


def _path(value: Any) -> tuple[Voxel, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value or len(value) > _MOST_PROMPTS:
        raise PromptError("a scribble or lasso is a list of positions [[x, y, z], ...]")
    return tuple(_voxel(v) for v in value)


def _box(value: Any, positive: bool) -> Box:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 6:
        raise PromptError("a box is two corners [x0, y0, z0, x1, y1, z1], both inside")
    a, b = _voxel(value[:3]), _voxel(value[3:])
    low, high = [min(p, q) for p, q in zip(a, b, strict=True)], [max(p, q) + 1 for p, q in zip(a, b, strict=True)]
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]), positive)


def plain_prompts(prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """The plain data that `parse_prompts` makes these of. Raises `PromptError` for masks, which have no such form."""
    return [_plain(prompt) for prompt in prompts]


def _plain(prompt: Prompt) -> dict[str, Any]:
    def xyz(voxel: Voxel) -> list[int]:
        return [voxel[2], voxel[1], voxel[0]]

    if isinstance(prompt, Text):
        return {"text": prompt.text}
    sign = {} if prompt.positive else {"positive": False}
    if isinstance(prompt, Point):
        return {"point": xyz(prompt.zyx), **sign}
    if isinstance(prompt, Box):
        z, y, x = prompt.hi
        return {"box": [*xyz(prompt.lo), x - 1, y - 1, z - 1], **sign}
    if isinstance(prompt, Scribble | Lasso):
        return {type(prompt).__name__.lower(): [xyz(voxel) for voxel in prompt.path], **sign}
    raise PromptError("a mask cannot be sent as a prompt of a job")
