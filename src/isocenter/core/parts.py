"""Which of a model's structures can stand side by side in one label map, where each voxel has one label."""

from __future__ import annotations

from collections.abc import Sequence

from isocenter.core.segmentation import Label

#: What holds all the others.
_ALL = frozenset({"body"})


def side_by_side(labels: Sequence[Label]) -> list[Label]:
    """The labels but for wholes whose parts are there as well: the body, and pairs whose left and right have labels of their own.

    A whole that is painted first leaves nothing of its parts; painted last, it is only what is left of it.
    """
    names = {label.name for label in labels}
    kept = [label for label in labels if label.name not in _ALL and not _sides(label.name) <= names]
    return kept or list(labels)


def _sides(name: str) -> set[str]:
    """What the two of a pair are called: lungs, lung_left and lung_right."""
    one = name.removesuffix("s")
    return {f"{one}_left", f"{one}_right"}
