"""Which of a model's labels a person means: "left kidney" and "kidney_left" are the same structure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from isocenter.core.errors import UnknownPromptError
from isocenter.core.model import Finding, LabelMap
from isocenter.core.segmentation import Label

#: Words that say nothing of which structure is meant.
_EMPTY = frozenset({"the", "of", "a", "an", "in", "and"})
#: How many names an error lists.
_LISTED = 40


def _words(text: str) -> tuple[str, ...]:
    """The words of a name in no particular order: lower case, a plural's final s dropped where it is long enough to be one."""
    found = (w for w in re.split(r"[^0-9a-z]+", text.lower()) if w and w not in _EMPTY)
    return tuple(sorted(w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith(("us", "is", "ss")) else w for w in found))


def label_of(word: str, labels: Sequence[Label], synonyms: Mapping[str, str]) -> Label:
    """The label that `word` names, by the words of its name or by a synonym.

    Raises `UnknownPromptError` that lists what is understood.
    """
    wanted = _words(word)
    meant = {_words(synonym): _words(name) for synonym, name in synonyms.items()}
    for label in labels:
        if _words(label.name) in (wanted, meant.get(wanted)):
            return label
    names = ", ".join(label.name for label in labels[:_LISTED]) + (f" and {len(labels) - _LISTED} more" if len(labels) > _LISTED else "")
    raise UnknownPromptError(f"'{word[:60]}' is none of the structures that this model finds: {names}")


def findings(words: Sequence[str], wanted: Sequence[Label], answer: LabelMap, threshold: float) -> list[Finding]:
    """One finding per word, from a label map. It knows no probabilities: they are 0 and 1 (of 255) as the mask says.

    presence is the model's own score of the label, or whether there is a voxel of it at all.
    """
    made = []
    for word, label in zip(words, wanted, strict=True):
        inside = answer.mask == label.value
        mask = inside.view(np.uint8) if threshold < 1 else np.zeros(inside.shape, np.uint8)
        presence = answer.scores.get(label.name, float(bool(inside.any())))
        made.append(Finding(word, label, mask, inside.view(np.uint8) * np.uint8(255), presence, answer.notes))
    return made


def only(answer: LabelMap, kept: Sequence[Label]) -> LabelMap:
    """The label map with nothing but `kept`; all else is background."""
    values = sorted({label.value for label in kept})
    table = np.zeros(int(np.iinfo(answer.mask.dtype).max) + 1, answer.mask.dtype)
    table[values] = values
    labels = tuple(label for label in answer.labels if label.value in values)
    scores = {label.name: answer.scores[label.name] for label in labels if label.name in answer.scores}
    return LabelMap(table[answer.mask], labels, scores, answer.notes)
