"""Prompts of the native API: a JSON list, voxel indices [x, y, z] as the image's own file counts them, from 0."""

from __future__ import annotations

import json
import math
from typing import Any

from isocenter.core.errors import PromptError, UsageError
from isocenter.core.prompts import Box, Lasso, Point, Prompt, Scribble, Text, Voxel

EXAMPLE = '[{"type": "text", "text": "liver"}]'
_KINDS = "text, point, box, scribble or lasso"


def parse(text: str) -> list[Prompt]:
    """Read the form field `prompts`. Raises `UsageError` or `PromptError`."""
    try:
        raw = json.loads(text or "[]")
    except (ValueError, RecursionError):
        raise UsageError(f"prompts must be JSON, such as {EXAMPLE}") from None
    if not isinstance(raw, list) or not all(isinstance(item, dict | str) for item in raw):
        raise UsageError(f"prompts must be a JSON list, such as {EXAMPLE}")
    return [_one(item) for item in raw]


def parse_object(text: str, name: str) -> dict[str, Any]:
    """Read a form field that holds a JSON object."""
    try:
        raw = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise UsageError(f"{name} must be a JSON object")
    return raw


def _one(item: dict[str, Any] | str) -> Prompt:
    if isinstance(item, str):
        item = {"type": "text", "text": item}
    kind, positive = item.get("type"), item.get("positive", True)
    if not isinstance(positive, bool):
        raise PromptError("positive must be true or false")
    if kind == "text":
        words = item.get("text")
        if not isinstance(words, str) or not words.strip():
            raise PromptError('a text prompt is {"type": "text", "text": "liver"}')
        return Text(words.strip(), positive)
    if kind == "point":
        return Point(_voxel(item.get("xyz")), positive)
    if kind == "box":
        a, b = _voxel(item.get("from")), _voxel(item.get("to"))
        low, high = [min(p) for p in zip(a, b, strict=True)], [max(p) + 1 for p in zip(a, b, strict=True)]
        return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]), positive)
    if kind in ("scribble", "lasso"):
        points = item.get("points")
        if not isinstance(points, list):
            raise PromptError(f'a {kind} is {{"type": "{kind}", "points": [[x, y, z], ...]}}')
        path = tuple(_voxel(point) for point in points)
        return Scribble(path, positive) if kind == "scribble" else Lasso(path, positive)
    raise PromptError(f"a prompt's type must be {_KINDS}")


def _voxel(xyz: Any) -> Voxel:
    if not isinstance(xyz, list) or len(xyz) != 3 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in xyz):
        raise PromptError("a place must be [x, y, z], three numbers: xyz of a point, from and to of a box, points of a line")
    if not all(math.isfinite(v) and abs(v) < 1e9 for v in xyz):
        raise PromptError("a place must be [x, y, z], three finite numbers")
    x, y, z = (math.floor(v + 0.5) for v in xyz)
    return z, y, x
