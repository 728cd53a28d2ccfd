"""Form fields of the native API that hold JSON."""

from __future__ import annotations

import json
from typing import Any

from isocenter.core.errors import UsageError
from isocenter.core.plain_prompts import parse_prompts
from isocenter.core.prompts import Prompt

EXAMPLE = '[{"type": "text", "text": "liver"}]'


def prompts(text: str) -> list[Prompt]:
    """Read the form field `prompts`. Raises `UsageError` or `PromptError`."""
    raw = _json(text or "[]")
    if not isinstance(raw, list):
        raise UsageError(f"prompts must be a JSON list, such as {EXAMPLE}")
    return parse_prompts(raw)


def json_object(text: str, name: str) -> dict[str, Any]:
    """Read a form field that holds a JSON object."""
    raw = _json(text or "{}")
    if not isinstance(raw, dict):
        raise UsageError(f"{name} must be a JSON object")
    return raw


def names(texts: list[str]) -> list[str]:
    """Labels, as a JSON list or as repeated fields."""
    listed: list[str] = []
    for text in texts:
        if text.lstrip().startswith("["):
            found = _json(text)
            if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
                raise UsageError('labels must be a JSON list of names, such as ["thalamus"]')
            listed += found
        elif text.strip():
            listed.append(text.strip())
    return listed


def _json(text: str) -> Any:
    """What the text says; None where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
