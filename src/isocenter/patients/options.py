"""How a patient's scans are measured, as plain data that a client sends and the record keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isocenter.analysis import case_response
from isocenter.analysis.tracking.register import Freedom
from isocenter.core.errors import UsageError
from isocenter.followup.options import TrackOptions

_OPTIONS = ("model", "labels", "least_mm3", "spacing_mm", "preprocessed", "registration", "immunotherapy", "criteria", "embedder")


def options_of(data: Mapping[str, Any]) -> TrackOptions:
    """Options out of plain data. Raises `UsageError` for others than there are."""
    unknown = set(data) - set(_OPTIONS)
    if unknown:
        raise UsageError(f"there is no option '{sorted(unknown)[0][:40]}'; there are: {', '.join(_OPTIONS)}")
    words: tuple[type, ...] = (list, tuple)
    kinds: dict[str, type | tuple[type, ...]]
    kinds = {"model": str, "embedder": str, "preprocessed": bool, "immunotherapy": bool, "labels": words, "criteria": words, "registration": str}
    for name, kind in kinds.items():
        if data.get(name) is not None and not isinstance(data[name], kind):
            raise UsageError(f"the option {name} is of another kind; see docs/track.md")
    if not all(isinstance(word, str) for name in ("labels", "criteria") for word in data.get(name) or ()):
        raise UsageError("labels and criteria are lists of names")
    values = {**data, "labels": tuple(data.get("labels") or ()), "criteria": tuple(data.get("criteria") or ())}
    case_response.check(values["criteria"])
    freedom = values.pop("registration", "affine")
    if freedom not in (None, "none", *Freedom):
        raise UsageError(f"registration is one of: none, {', '.join(Freedom)}")
    options = TrackOptions(**values, registration=None if freedom in (None, "none") else Freedom(freedom))
    numbers = [v for v in (options.least_mm3, options.spacing_mm) if v is not None]
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v < 1e9 for v in numbers) or options.spacing_mm == 0:
        raise UsageError("least_mm3 and spacing_mm are numbers of mm³ and mm")
    return options
