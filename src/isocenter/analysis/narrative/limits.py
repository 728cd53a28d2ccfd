"""Numbers that are limits ("below 10 mm"), and lists of sizes that go through all lesions ("the three lesions measure 41, 19 and 11 mm")."""

from __future__ import annotations

import re
from collections.abc import Sequence

from isocenter.analysis.case import Case
from isocenter.analysis.narrative.claims import named_categories
from isocenter.analysis.narrative.facts import Fact
from isocenter.analysis.narrative.places import organs_in, tracks_of_each
from isocenter.analysis.narrative.reading import NOUN, Number, Reading
from isocenter.analysis.narrative.words import CHANCE, CONVERT, ERROR, SUM
from isocenter.core.patient import Lesion

_HOW = r"(?:\s+(?:the|a|an|about|by))*\s*$"
_BELOW = re.compile(rf"\b(?:below|under|less than|smaller than|lower than|shorter than|fewer than|short of|at most|within|not reach\w*){_HOW}", re.I)
_ABOVE = re.compile(rf"\b(?:above|over|exceed\w*|more than|larger than|greater than|bigger than|longer than|at least|surpass\w*){_HOW}", re.I)
_DENIED = re.compile(r"(?:\b(?:not|never|no|neither|none|nor)\b|n't\b)[^,;]*$", re.I)
_ALWAYS = re.compile(r"throughout|always|at (?:all|every|each)|ever\b|never|at any", re.I)
_INCLUSIVE = re.compile(r"\b(?:at most|at least|within)\b", re.I)


def limited(number: Number, reading: Reading, case: Case, known: Sequence[Fact]) -> bool | None:
    """Whether a limit that a number is holds for what it stands with; None where it is no limit.

    It must hold for each lesion that is named, at all visits that are named (without any: at the last one; "throughout": at all).
    """
    front = reading.text[reading.clause(number.start)[0] : number.start]
    below, above = _BELOW.search(front), _ABOVE.search(front)
    match = below or above
    if match is None or number.unit not in {"mm", "cm", "ml", "mm3", "%"}:
        return None
    denied = bool(_DENIED.search(reading.text[: number.start - len(front) + match.start()]))
    order = [v.timepoint.timepoint_id for v in case.visits if v.found is not None]
    visits = {m.name for m in reading.near(reading.visits, number.start, following=True) if not m.reference} or {order[-1]}
    if _ALWAYS.search(reading.text):
        visits = set(order)
    rows, names = _figures(number, reading, case, [f for f in known if not f.ahead and not f.scenario and f.visit in visits], order[0])
    limit = number.values[0][0] / CONVERT.get((number.unit, "mm" if number.unit == "cm" else "ml"), 1.0)
    upward = (above is match) != denied
    # "Not above 10 mm" may be 10 mm, and so may "at most 10 mm".
    equal = denied != bool(_INCLUSIVE.search(match[0]))
    for name in names or [""]:
        values = [abs(f.value) if f.kind == "percent" else f.value for f in rows if f.lesion == name]
        if not values or not all((v > limit if upward else v < limit) or (equal and v == limit) for v in values):
            return False
    return True


def _figures(number: Number, reading: Reading, case: Case, known: Sequence[Fact], first: str) -> tuple[list[Fact], list[str]]:
    """Figures that a limit is one of, and the lesions that they must be known of. first: the first visit with a scan."""
    clause = reading.words(number.start)
    names = [m.name for m in reading.near(reading.lesions, number.start)]
    names = names or sorted(tracks_of_each(clause if organs_in(clause) else reading.text, case))
    if number.unit == "%" and CHANCE.search(reading.text):
        said = named_categories(clause) or named_categories(reading.text)
        return [f for f in known if f.kind == "chance" and f.about in said], []
    if number.unit == "%":
        since = {m.name for m in reading.visits if m.reference} or {first}
        return [f for f in known if f.kind == "percent" and f.since in since and (f.about == "sum" or names)], names
    if number.unit in {"ml", "mm3"}:
        return [f for f in known if f.kind == "volume"], names
    if ERROR.search(reading.text):
        rows = [f for f in known if f.kind == "error"]
    elif SUM.search(reading.text) and not names:
        return [f for f in known if f.kind == "sum"], names
    else:
        nodes = {k.track for k in case.lesions if k.is_node}
        short = bool(re.search(r"short", reading.text, re.I)) or bool(names and nodes.issuperset(names))
        rows = [f for f in known if f.kind == "size" and f.about == ("short" if short else "longest")]
    return rows, names or sorted({f.lesion for f in rows})


def listed(number: Number, reading: Reading, case: Case) -> bool | None:
    """Whether a list of sizes that goes through all lesions is that of one visit, lesion by lesion; None where it is no such list."""
    group = reading.group(number)
    clause = reading.words(number.start)
    order = [v.timepoint.timepoint_id for v in case.visits if v.found is not None]
    one = {m.name for m in reading.near(reading.lesions, number.start)} or tracks_of_each(reading.text, case)
    if len(one) == 1 and len(group) == len(order) > 2 and len({n.unit for n in group}) == 1 and group[0].unit in {"mm", "cm", "ml"}:
        # One lesion with as many figures as there are scans: they are told in the order of the scans.
        (name,) = one
        rows = [[k for k in case.at(visit) if k.track == name] for visit in order]
        if not all(rows) or SUM.search(clause) or any(m.start < group[-1].end and m.start > group[0].start for m in reading.visits):
            return None
        return any(_in_order(group, [row(found[0]) for found in rows]) for row in (_volume, _longest, _short))
    if len(group) < 2 or len({n.unit for n in group}) > 1 or group[0].unit not in {"mm", "cm", "ml"} or reading.near(reading.lesions, number.start):
        return None
    all_of_them = re.search(rf"\b(?:all|both|two|\d+|the)\s+(?:\w+\s+)?{NOUN}\b", clause, re.I)
    if not all_of_them or SUM.search(clause) or not re.search(r"\band\b", reading.text[group[-2].end : group[-1].start]):
        return None
    visits = {m.name for m in reading.near(reading.visits, number.start, following=True) if not m.reference}
    if len(visits) > 1:
        return None
    for visit in visits or order:
        here = case.at(visit)
        figures = [[_volume(k) for k in here]]
        if group[0].unit != "ml":
            figures = [[k.longest_mm for k in here], [k.short_axis_mm if k.is_node else k.longest_mm for k in here]]
        if any(_each_once(group, [f for f in row if f is not None]) for row in figures):
            return True
    return False


def _volume(lesion: Lesion) -> float | None:
    return lesion.volume_mm3 / 1000 if lesion.volume_mm3 is not None else None


def _longest(lesion: Lesion) -> float | None:
    return lesion.longest_mm


def _short(lesion: Lesion) -> float | None:
    return lesion.short_axis_mm


def _is(number: Number, figure: float | None) -> bool:
    scale = 10.0 if number.unit == "cm" else 1.0
    return figure is not None and any(abs(v * scale - figure) <= 0.5 * scale * 10.0**-digits + 1e-9 for v, digits in number.values)


def _in_order(group: Sequence[Number], figures: Sequence[float | None]) -> bool:
    return all(_is(one, figure) for one, figure in zip(group, figures, strict=True))


def _each_once(group: Sequence[Number], figures: list[float]) -> bool:
    """Whether every number of a list is another one of the figures."""
    left = list(figures)
    for one in group:
        fit = next((f for f in left if _is(one, f)), None)
        if fit is None:
            return False
        left.remove(fit)
    return True
