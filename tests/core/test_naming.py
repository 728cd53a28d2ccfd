"""Which label a person means by a word."""

from __future__ import annotations

import numpy as np
import pytest

from isocenter.core import naming
from isocenter.core.errors import UnknownPromptError
from isocenter.core.model import LabelMap
from isocenter.core.segmentation import Label

LABELS = [Label(1, "kidney_left"), Label(2, "kidney_right"), Label(3, "liver"), Label(4, "vertebrae_L1"), Label(5, "pancreas"), Label(6, "rib")]
SYNONYMS = {"hepar": "liver", "costa": "rib"}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("liver", 3),
        ("The LIVER", 3),
        ("left kidney", 1),
        ("kidney, right", 2),
        ("kidneys right", 2),
        ("vertebrae l1", 4),
        ("hepar", 3),
        ("pancreas", 5),
        ("ribs", 6),
        ("costa", 6),
    ],
)
def test_words_and_labels(word: str, value: int) -> None:
    assert naming.label_of(word, LABELS, SYNONYMS).value == value


@pytest.mark.parametrize("word", ["kidney", "left", "", "spleen", "liver tumour", "vertebrae l2"])
def test_what_is_not_said_clearly_is_not_guessed(word: str) -> None:
    with pytest.raises(UnknownPromptError, match="kidney_left"):
        naming.label_of(word, LABELS, SYNONYMS)


def test_an_error_lists_no_hundred_names() -> None:
    with pytest.raises(UnknownPromptError, match="and 60 more"):
        naming.label_of("x", [Label(i, f"part_{i}") for i in range(1, 101)], {})


def test_findings_are_the_label_map_taken_apart() -> None:
    mask = np.array([[[0, 1, 3, 3]]], np.uint8)
    answer = LabelMap(mask, tuple(LABELS), {"liver": 0.7}, ("a note",))
    wanted = [LABELS[2], LABELS[1]]
    liver, right = naming.findings(["hepar", "right kidney"], wanted, answer, 0.5)
    assert liver.mask.tolist() == [[[0, 0, 1, 1]]]
    assert liver.probability.tolist() == [[[0, 0, 255, 255]]]
    assert (liver.prompt, liver.label.name, liver.presence, liver.notes) == ("hepar", "liver", 0.7, ("a note",))
    assert (int(right.mask.sum()), right.presence) == (0, 0.0)
    assert not naming.findings(["hepar"], wanted[:1], answer, 1.0)[0].mask.any()
