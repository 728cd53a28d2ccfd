"""Changes told as multiples and parts ("doubled", "a third smaller", "less than half of"): against the figures of what they are told of."""

from __future__ import annotations

import re
from collections.abc import Iterator

from isocenter.analysis.case import Case
from isocenter.analysis.narrative.places import tracks_of_each
from isocenter.analysis.narrative.reading import Mention, Reading
from isocenter.analysis.narrative.trends import interval, series, subjects
from isocenter.analysis.narrative.words import DOWN, UP

_PARTS = {"half": 1 / 2, "third": 1 / 3, "quarter": 1 / 4, "fourth": 1 / 4, "fifth": 1 / 5, "sixth": 1 / 6, "seventh": 1 / 7, "eighth": 1 / 8}
_PARTS |= {"ninth": 1 / 9, "tenth": 1 / 10}
_TIMES = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0, "six": 6.0, "seven": 7.0, "eight": 8.0, "nine": 9.0, "ten": 10.0}
_PART = rf"(?:(?P<of>an?|one|two|three|four|\d)[\s-]+)?(?P<part>{'|'.join(_PARTS)})s?\b"
#: How often: "3-fold", "two times", "twice".
_MULTIPLE = re.compile(
    rf"\b(?:(?P<n>{'|'.join(_TIMES)}|\d+(?:\.\d+)?)(?:-?\s?fold|\s+times)|factor of (?P<f>{'|'.join(_TIMES)}|\d+(?:\.\d+)?)|"
    r"(?P<twice>twice|doubl(?:ed|es|ing))|(?P<thrice>tripl(?:ed|es|ing)|trebl\w+)|(?P<four>quadrupl\w+)|(?P<halved>halv(?:ed|es|ing)))\b",
    re.I,
)
_FRACTION = re.compile(rf"\b{_PART}", re.I)
#: Parts that are no sizes: "the first half", "the third scan", "a third lesion".
_NO_PART = re.compile(r"\b(?:first|second|the|other)\s+$", re.I)
_LESS = re.compile(r"^\s*(?:smaller|less|lower|shorter|below|decrease|reduction|(?:of (?:its|their|the) \w+ )?(?:is|was|has been) lost)\b", re.I)
_MORE = re.compile(r"^\s*(?:larger|bigger|greater|more|higher|longer|above|increase)\b", re.I)
_AGAIN = re.compile(r"^\s*again as (?:large|big|long|much|wide)\b", re.I)
_ABOUT_IT = r"(?:(?:about|around|roughly|nearly|almost|just|over|under|more than|less than|well) )*$"
_RISE = r"(?:rise|increase|growth|gain|fall|decrease|reduction|loss|drop|shrinkage|decline)"
_BY = re.compile(rf"\b(?:by|{_RISE} of)\s+{_ABOUT_IT}", re.I)
_TAKEN = re.compile(rf"\b(?:lost|shed|gained|added)\s+{_ABOUT_IT}", re.I)
_OVER = re.compile(r"\b(?:more than|over|greater than|at least|well over)\s*$", re.I)
_UNDER = re.compile(r"\b(?:less than|under|below|not even|at most|fewer than)\s*$", re.I)
_LOOSE = re.compile(r"\b(?:about|around|roughly|approximately|nearly|almost|some|close to|virtually)\s+(?:an?\s+|one\s+|the\s+)?$", re.I)
#: How near a factor must come, and how near where the text says "about"; how far "more than double" may lead away from double.
_NEAR, _ABOUT, _FURTHER = 0.10, 0.15, 1.5


def factors(reading: Reading, case: Case) -> Iterator[tuple[str, str]]:
    """What says "doubled" and the like: over the visits that are named, else over the last step or from first to last, of what is named."""
    for start, clause in reading.clauses():
        for match, factor, part in _told(clause):
            if factor is None:
                yield "trend", match[0]
                continue
            ratios = list(_ratios(reading, case, start, clause, start + match.start()))
            front = clause[: match.start()]
            over, under = bool(_OVER.search(front)), bool(_UNDER.search(front))
            if part < 0:  # "more than a third smaller" leaves less
                over, under = under, over
            near = _ABOUT if _LOOSE.search(front) else _NEAR
            if over:
                right = any(factor < r <= factor * _FURTHER for r in ratios)
            elif under:
                right = any(factor / _FURTHER <= r < factor for r in ratios)
            elif part:  # what came or went must be about that part
                right = any(abs((r - 1) / part - 1) <= 2 * near for r in ratios)
            else:
                right = any(abs(r / factor - 1) <= near for r in ratios)
            if not right:
                yield "trend", match[0]


def _told(clause: str) -> Iterator[tuple[re.Match[str], float | None, float]]:
    """Each multiple and part: by what the figure was multiplied (None: it cannot be taken apart), and the part that came or, below 0, went."""
    for match in _MULTIPLE.finditer(clause):
        if match["n"] or match["f"]:
            word = (match["n"] or match["f"]).lower()
            factor = _TIMES.get(word) or float(word)
        else:
            factor = 2.0 if match["twice"] else 3.0 if match["thrice"] else 4.0 if match["four"] else 0.5
        shrank = match["f"] and re.search(rf"\b(?:{DOWN})\b", clause[: match.start()], re.I)
        times_smaller = (match["n"]) and re.match(r"\s*(?:smaller|less|lower)\b", clause[match.end() :], re.I)
        if factor > 0:
            yield match, 1 / factor if shrank or times_smaller else factor, 0.0
    for match in _FRACTION.finditer(clause):
        front, after = clause[: match.start()], clause[match.end() :]
        count = (match["of"] or "").lower()
        if match["part"].lower() != "half" and (not count or (_NO_PART.search(front) and count not in {"two", "three"})):
            continue  # an ordinal
        if match["part"].lower() == "third" and re.match(r"\s+(?:\w+\s+)?(?:lesion|visit|scan|node|nodule|exam|target|follow)", after, re.I):
            continue
        part = _PARTS[match["part"].lower()] * (float(count) if count.isdigit() else _TIMES.get(count, 1.0))
        if _AGAIN.match(after) or _MORE.match(after) or ((_BY.search(front) or _TAKEN.search(front)) and _goes(front) > 0):
            yield match, 1 + part, part
        elif _LESS.match(after) or ((_BY.search(front) or _TAKEN.search(front)) and _goes(front) < 0):
            yield match, 1 - part, -part
        elif re.search(r"\bto\s+(?:\w+\s+){0,2}$", front, re.I) or re.match(
            r"\s*(?:(?:of\s+)?(?:what|its|their|the|that)\b|as (?:large|big|long|much|wide)\b)", after, re.I
        ):
            yield match, part, 0.0
        else:
            yield match, None, 0.0


def _goes(text: str) -> int:
    """Which way the words before a part say it went: the nearest decides."""
    found = [
        (m.start(), sign)
        for sign, words in ((1, rf"{UP}|gained|added|up|gain"), (-1, rf"{DOWN}|shed|down|loss|drop|fall"))
        for m in re.finditer(rf"\b(?:{words})\b", text, re.I)
    ]
    return max(found)[1] if found else 0


def _ratios(reading: Reading, case: Case, start: int, clause: str, place: int) -> Iterator[float]:
    """Of volume, diameter and sum, over the visits that are named; where none is, over the last step and over all visits."""
    told = subjects(reading, case, start, clause)
    if told == ["total"] and not re.search(r"total|volume|burden|sum|all|disease|tumou?r", clause, re.I):
        told = sorted(tracks_of_each(reading.text[:start], case)) or told  # "the hepatic lesion has grown, a rise of one half"
    volume, size = re.search(r"volum|burden", clause, re.I), re.search(r"diamet|longest|axis|\bsums?\b|\blength|across|\bmm\b|\bcm\b", clause, re.I)
    rows: list[dict[str, float]] = []
    if not size or volume:
        rows += [series(case, track) for track in told if track != "sum"]
    if not volume or size:
        rows += [{k.timepoint_id: k.longest_mm for k in case.lesions if k.track == track and k.longest_mm} for track in told]
        rows += [{k.timepoint_id: k.short_axis_mm for k in case.lesions if k.track == track and k.short_axis_mm and k.is_node} for track in told]
        rows += [series(case, "sum")] if set(told) & {"total", "sum"} else []
    for values in rows:
        known = {v: x for v, x in values.items() if x}
        if len(known) > 1:
            order = list(known)
            spans = {interval(reading, place, order, case)}
            if not any(_names(m, reading, start, clause, known) for m in reading.visits):
                spans.add((order[0], order[-1]))
            yield from (known[b] / known[a] for a, b in spans if a in known and b in known)


def _names(mention: Mention, reading: Reading, start: int, clause: str, known: dict[str, float]) -> bool:
    """Whether a visit's name says over which time the clause tells: the last one alone leaves open since when."""
    return mention.name in known and mention.name != list(known)[-1] and start <= mention.start < start + len(clause)
