"""Form fields that hold JSON, or shorter what a command line can type."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from isocenter.core.errors import UsageError
from isocenter.core.plain_prompts import parse_prompts
from isocenter.core.prompts import Prompt

EXAMPLE = '[{"type": "text", "text": "liver"}]'


def plain_prompts(texts: Sequence[str]) -> list[Any]:
    """What the form fields `prompts` say, as `parse_prompts` takes it: each a JSON list or a word. Raises `UsageError`."""
    found: list[Any] = []
    for text in texts:
        if not text.lstrip().startswith(("[", "{")):
            found += [text.strip()] if text.strip() else []
            continue
        raw = _json(text)
        if not isinstance(raw, list):
            raise UsageError(f"prompts must be a JSON list, such as {EXAMPLE}, or a word")
        found += raw
    return found


def prompts(texts: Sequence[str]) -> list[Prompt]:
    """Read the form fields `prompts`. Raises `UsageError` or `PromptError`."""
    return parse_prompts(plain_prompts(texts))


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
