"""Prompts as plain data: both forms of them, and what is neither."""

from __future__ import annotations

from typing import Any

import pytest

from isocenter.core.errors import PromptError
from isocenter.core.plain_prompts import parse_prompts, plain_prompts
from isocenter.core.prompts import Box, Lasso, Point, Prompt, Scribble, Text

TYPED: list[Any] = [
    "spleen",
    {"type": "text", "text": "liver"},
    {"type": "point", "xyz": [1, 2, 3], "positive": False},
    {"type": "box", "from": [4, 5, 6], "to": [1, 2, 3], "positive": False},
    {"type": "scribble", "points": [[1, 2, 3], [2, 3, 4]]},
    {"type": "lasso", "points": [[1, 2, 3], [5, 2, 3], [5, 6, 3]], "positive": False},
]


MEANT: list[Prompt] = [
    Text("spleen"),
    Text("liver"),
    Point((3, 2, 1), False),
    Box((3, 2, 1), (7, 6, 5), False),
    Scribble(((3, 2, 1), (4, 3, 2))),
    Lasso(((3, 2, 1), (3, 2, 5), (3, 6, 5)), False),
]


def test_both_forms_mean_the_same() -> None:
    assert parse_prompts(TYPED) == MEANT
    assert parse_prompts(plain_prompts(MEANT)) == MEANT


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
        {"point": [1, -1, 3]},
        {"point": [1, 2, float("inf")]},
        {"type": "box", "from": [1, 2], "to": [1, 2, 3, 4]},
        {"text": "liver", "positive": False},
        7,
    ],
)
def test_what_is_no_prompt_is_refused(item: Any) -> None:
    with pytest.raises(PromptError):
        parse_prompts([item])
