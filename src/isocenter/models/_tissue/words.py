"""Which words mean which structure."""

from __future__ import annotations

import re

#: Other words for each structure, as `normal` leaves them.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "body": ("patient", "trunk", "torso", "skin", "person", "whole body", "body contour", "external contour"),
    "lungs": ("lung", "pulmonary", "both lungs", "lung parenchyma", "lung field", "lung tissue", "pulmonary parenchyma"),
    "lung_left": ("left lung", "lung left", "left pulmonary"),
    "lung_right": ("right lung", "lung right", "right pulmonary"),
    "airways": (
        "airway",
        "trachea",
        "windpipe",
        "bronchus",
        "bronchi",
        "main bronchi",
        "bronchial tree",
        "tracheobronchial tree",
        "respiratory tract",
    ),
    "bone": ("bones", "skeleton", "skeletal", "osseous", "bony structure", "bone tissue"),
    "fat": ("adipose", "adipose tissue", "fatty tissue", "fat tissue"),
    "muscle": ("muscles", "muscular", "skeletal muscle", "muscle tissue", "musculature"),
    "air": ("gas", "free air", "bowel gas", "intestinal gas", "airspace"),
    "liver": ("hepatic", "hepar", "liver parenchyma", "hepatic parenchyma", "livers"),
}
#: Words that say nothing about the structure.
_FILLERS = {
    "the",
    "a",
    "an",
    "of",
    "in",
    "all",
    "whole",
    "entire",
    "this",
    "organ",
    "region",
    "area",
    "please",
    "segment",
    "show",
    "find",
    "ct",
    "patients",
}
_SIDES = {"left", "right"}


def normal(text: str) -> str:
    """Lower case words without articles, punctuation and plural endings; a side stands first."""
    words = [w for w in re.split(r"[^a-z0-9]+", text.lower().replace("'s", " ")) if w]
    kept = [_singular(w) for w in words if w not in _FILLERS] or [_singular(w) for w in words]
    sides = [w for w in kept if w in _SIDES]
    return " ".join(sides + [w for w in kept if w not in _SIDES])


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


TABLE = {normal(word): name for name, words in SYNONYMS.items() for word in (name, *words)}


def structure(text: str) -> str | None:
    """The structure that a prompt names, None when no word is known."""
    return TABLE.get(normal(text))
