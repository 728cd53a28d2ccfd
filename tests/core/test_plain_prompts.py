"""Prompts as plain data: both forms of them, and what is neither."""

from __future__ import annotations

import json
from typing import Any

import pytest

from isocenter.core.errors import PromptError
from isocenter.core.plain_prompts import parse_prompts, plain_prompts
from isocenter.http import native_prompts

TYPED: list[Any] = [
    "spleen",
    {"type": "text", "text": "liver"},
    {"type": "point", "xyz": [1, 2, 3], "positive": False},
    {"type": "box", "from": [4, 5, 6], "to": [1, 2, 3]},
    {"type": "scribble", "points": [[1, 2, 3], [2, 3, 4]]},
    {"type": "lasso", "points": [[1, 2, 3], [5, 2, 3], [5, 6, 3]], "positive": False},
]


def test_the_native_apis_prompts_mean_the_same_in_a_job() -> None:
    found = parse_prompts(TYPED)
    assert found == native_prompts.parse(json.dumps(TYPED))
    assert parse_prompts(plain_prompts(found)) == found


@pytest.mark.parametrize(
    "item",
    [
        {"type": "point"},
        {"type": "moon", "xyz": [1, 2, 3]},
        {"type": ["point"], "xyz": [1, 2, 3]},
        {"type": "box", "from": [1, 2], "to": [1, 2, 3]},
        {"type": "point", "xyz": [1, 2, 3], "box": [1, 2, 3, 4, 5, 6]},
        {"type": "point", "xyz": [1, 2, 3], "positive": "yes"},
        {"point": [1, 2, 3], "text": "liver"},
        7,
    ],
)
def test_what_is_no_prompt_is_refused(item: Any) -> None:
    with pytest.raises(PromptError):
        parse_prompts([item])
