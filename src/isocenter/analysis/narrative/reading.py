"""A sentence taken apart: which lesions and visits it names, which numbers it holds, and which of them belong together.

Numbers in words become digits first. What is mentioned is found by its place in the sentence; a number belongs to the lesion and the
visit that are named next to it in its clause, else in the clauses before, else in those after.
"""

from __future__ import annotations

import calendar
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import pairwise
from typing import TypeVar

from isocenter.analysis.case import Case

_UNIT = (
    r"mm\^?3|mm\^?2|cubic millimet(?:er|re)s?|square millimet(?:er|re)s?|millimet(?:er|re)s?|mm|cm\^?3|cubic centimet(?:er|re)s?|cc|"
    r"centimet(?:er|re)s?|cm|millilit(?:er|re)s?|ml|%|percent|per cent|days?|weeks?|months?|years?|hu|hounsfield units?"
)
_UNITS = (
    (r"mm\^?3|cubic milli\w+", "mm3"), (r"mm\^?2|square milli\w+", "mm2"), (r"mm|millimet\w+", "mm"),
    (r"cm\^?3|cc|cubic centi\w+|ml|millilit\w+", "ml"), (r"cm|centimet\w+", "cm"), (r"%|per ?cent", "%"), (r"days?", "day"),
    (r"weeks?", "week"), (r"months?", "month"), (r"years?", "year"), (r"hu|houns.*", "hu"),
)  # fmt: skip
_NUMBER = re.compile(rf"(?<![\w.,])([-+]?\d+(?:[.,]\d+)*)(?![\d])(?:[\s-]*({_UNIT})(?!\w))?(?![A-Za-z])", re.I)
#: What may stand between members of one list: "25, 19 and 15 mm", "visit-1 to visit-3", "25 x 19 mm".
_JOINT = re.compile(r"\s*(?:,|/|;)?\s*(?:and|or|to|by|x|×|-|,)?\s*(?:the|at|on)?\s*", re.I)
_BREAK = re.compile(r"[;:]|,(?!\d)|\.\s|\s(?:and|but|while|whereas|although|then|yet|or)\s", re.I)
NOUN = r"(?:lesions?|nodes?|targets?|non-targets?|scans?|visits?|time ?points?|follow-?ups?|examinations?|tumou?rs?|nodules?|masses)"
_SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORD = rf"(?:{'|'.join(_SMALL + _TENS)}|hundred|point|dozen)"
_COUNTED = (
    rf"\s+(?:out\s+)?of\s+(?:the|these|those|all)\s+(?:[a-z\d-]+\s+){{0,2}}{NOUN}\b|\s+(?:[a-z-]+\s+){{0,2}}{NOUN}\b|-?fold\b|"
    r"(?<!one)\s+(?:in the|are|were|of (?:them|these))\b"
)
_IN_WORDS = re.compile(rf"\b(?:an?\s+)?({_WORD}(?:[\s-]+(?:and\s+)?{_WORD})*)(?=[\s-]*(?:{_UNIT})(?!\w)|{_COUNTED})", re.I)
#: Numbers in words that count nothing that is known: they are looked up like all others, and so refused. "One" is a pronoun, too.
_LONE = re.compile(
    rf"(?<!the )(?<!these )(?<!those )\b(?:{'|'.join(_SMALL[2:] + _TENS)})(?:-(?:{'|'.join(_SMALL[1:10])}))?\b"
    r"(?!\s+(?:thirds?|quarters?|fifths?|tenths?|times)|-?fold)",
    re.I,
)
_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_SCAN = r"(?:visits?|scans?|time ?points?|examinations?|exams?|studies|study|imaging|ct|mri?|measurements?)"
_REFERENCE = re.compile(
    r"(?:since|from|than|versus|vs\.?|against|over|below|above|compared (?:with|to)|relative to|with respect to)"
    r"(?:\s+(?:at|in|on))?(?:\s+the)?(?:\s+(?:\w+\s+)?(?:study|scan|visit|imaging|ct|mri?|exam\w*)\s+(?:of|from|dated|on))?(?:\s+the)?\s*$",
    re.I,
)
_MONTHS = {name.lower(): n for names in (calendar.month_name, calendar.month_abbr) for n, name in enumerate(names) if name}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))


@dataclass(frozen=True)
class Mention:
    """A lesion or visit that is named. reference: what something is compared with ("since the baseline"), not where it was measured."""

    start: int
    end: int
    name: str
    reference: bool = False


@dataclass(frozen=True)
class Number:
    """A number. values: what it may mean ("1,250" is read both ways), each with the digits after its point. signed: it has a sign.

    unit: "" where there is none. before, after: the words around it in its clause.
    """

    start: int
    end: int
    text: str
    values: tuple[tuple[float, int], ...]
    unit: str
    signed: bool
    before: str = ""
    after: str = ""


T = TypeVar("T", Mention, Number)


@dataclass(frozen=True)
class Reading:
    """A sentence taken apart. text: with digits for words; masked: the same with all names blanked out.

    scenarios: what-ifs that are named. unknown: kind and words of names that are none. breaks: where clauses begin.
    """

    text: str
    masked: str
    lesions: tuple[Mention, ...]
    visits: tuple[Mention, ...]
    numbers: tuple[Number, ...]
    unknown: tuple[tuple[str, str], ...]
    scenarios: frozenset[str] = frozenset()
    breaks: tuple[int, ...] = ()

    def clause(self, place: int) -> tuple[int, int]:
        """Where the clause begins and ends that holds a place."""
        edges = [0, *self.breaks, len(self.text)]
        k = max(i for i, edge in enumerate(edges[:-1]) if edge <= place)
        return edges[k], edges[k + 1]

    def words(self, place: int) -> str:
        """The words of the clause that holds a place."""
        start, end = self.clause(place)
        return self.text[start:end]

    def clauses(self) -> Iterator[tuple[int, str]]:
        """Where each clause begins, and its words."""
        edges = [0, *self.breaks, len(self.text)]
        for start, end in pairwise(edges):
            yield start, self.text[start:end]

    def near(self, mentions: Sequence[Mention], place: int, *, following: bool = False) -> list[Mention]:
        """The group of mentions that a place belongs to. following: those after it in its clause come before those in front of it."""
        groups = [group for group in _grouped(self.text, mentions) if not all(m.reference for m in group)]
        start, end = self.clause(place)
        inside = [g for g in groups if start <= g[0].start < end]
        behind = [g for g in inside if g[0].start >= place]
        front = [g for g in inside if g[0].start < place]
        if following and behind and not any(place < n.start < behind[0][0].start and not _list(self.text[place : n.start]) for n in self.numbers):
            return behind[0]
        if front or behind:
            return (front[-1:] or behind[:1])[0]
        earlier = [g for g in groups if g[0].start < start]
        later = [g for g in groups if g[0].start >= end]
        return (earlier[-1:] or later[:1] or [[]])[0]

    def having(self, lesions: Sequence[Mention]) -> Reading:
        """The same with lesions that a pronoun stands for."""
        return replace(self, lesions=tuple(lesions))

    def group(self, number: Number) -> list[Number]:
        """The list of numbers that a number stands in."""
        return next(g for g in _grouped(self.text, self.numbers) if number in g)


def after_that(reading: Reading, start: int) -> bool:
    """Whether the clause that begins at a place tells what came next: "... and then grew"."""
    return bool(re.search(r"\bthen\s*$", reading.text[:start], re.I) or re.match(r"\s*then\b", reading.text[start:], re.I))


def read(sentence: str, case: Case) -> Reading:
    """Take a sentence apart by the names of a case."""
    text = _plain(sentence)
    lesions, unknown = _lesions(text, case)
    visits, more = _visits(text, case)
    masked = _blank(text, [*lesions, *visits])
    scenarios = set()
    for name in {s.name for track in case.growth for s in track.scenarios}:
        spoken = re.compile(re.escape(name).replace("_", "[_ -]"), re.I)
        if spoken.search(masked):
            scenarios.add(name)
            masked = spoken.sub(lambda m: "\0" * len(m[0]), masked)
    for pattern in (r"\b[im]?RECIST\s*(?:1\.[01])?", r"\b[23]-?D\b", *(re.escape(t.therapy_type) for t in case.patient.therapies)):
        masked = re.sub(pattern, lambda m: "\0" * len(m[0]), masked, flags=re.I)
    reading = Reading(text, masked, tuple(lesions), tuple(visits), tuple(_numbers(masked)), (*unknown, *more), frozenset(scenarios))
    reading = replace(reading, breaks=tuple(_breaks(reading)))
    return replace(reading, numbers=tuple(_around(reading)))


def _plain(sentence: str) -> str:
    """One way to write everything: usual digits and signs, no emphasis, digits for words."""
    text = unicodedata.normalize("NFKC", sentence)
    text = "".join(str(unicodedata.digit(c)) if c.isdigit() and not c.isascii() else c for c in text)
    text = re.sub(r"[\u2012-\u2015]", " to ", re.sub(r"[\u2212\u2010\u2011]", "-", re.sub(r"[*`]+", "", text)))
    text = re.sub(rf"\b(?:about\s+)?half\s+an?\s+(?={_UNIT}\b)", "0.5 ", text, flags=re.I)
    # "the first and second scan": both are scans.
    ordinal = "|".join(_ORDINALS)
    text = re.sub(rf"\b({ordinal})\s+(and|to|or)\s+(the\s+)?({ordinal})\s+([a-z]+)", r"\1 \5 \2 \3\4 \5", text, flags=re.I)
    return _LONE.sub(lambda m: _value(m[0]), _IN_WORDS.sub(lambda m: _value(m[1]), text))


def _value(words: str) -> str:
    """Digits for a number in words."""
    whole, total, tail = 0, 0, ""
    for word in re.findall(r"[a-z]+", words.lower()):
        if word == "and":
            continue
        if word == "point":
            tail = "."
        elif tail:
            tail += str(_SMALL.index(word)) if word in _SMALL[:10] else ""
        elif word in _SMALL:
            whole += _SMALL.index(word)
        elif word in _TENS:
            whole += 10 * (_TENS.index(word) + 2)
        elif word == "dozen":
            whole = 12 * max(whole, 1)
        else:
            total, whole = total + 100 * max(whole, 1), 0
    return f"{total + whole}{tail}"


def _lesions(text: str, case: Case) -> tuple[list[Mention], list[tuple[str, str]]]:
    known = case.graph.tracks
    found: dict[tuple[int, int], str] = {}
    for name in known:
        for match in re.finditer(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text):
            found[match.span()] = name
    for match in re.finditer(r"\bL\d+\b", text):
        found.setdefault(match.span(), match[0])
    numbered = re.compile(r"\blesions?\s+(?:number\s+|no\.?\s*|#\s*)?(\d+)\b(?![.,]\d|\s*-?\s*(?:mm|cm|ml|x|×|%))", re.I)
    for match in numbered.finditer(text):
        found[match.span()] = f"L{match[1]}"
    unknown = [("lesion", name) for name in found.values() if name not in known]
    return [Mention(*span, name) for span, name in sorted(found.items())], unknown


def _visits(text: str, case: Case) -> tuple[list[Mention], list[tuple[str, str]]]:
    """Visits by name, number, date, day, or order; and names and dates that are none."""
    names = [v.timepoint.timepoint_id for v in case.visits]
    scanned = [v.timepoint.timepoint_id for v in case.visits if v.found is not None] or names
    found: dict[tuple[int, int], str] = {}
    unknown: list[tuple[str, str]] = []

    def put(match: re.Match[str], name: str | None) -> None:
        if any(a < match.end() and match.start() < b for a, b in found):
            return
        if name is None:
            unknown.append(("visit", match[0]))
        found[match.span()] = name or ""

    # "60 days after baseline" is one visit, not two.
    for match in re.finditer(rf"\b(\d+)\s+(day|week)s?\s+after\s+(?:the\s+)?(?:baseline|start|first\s+{_SCAN})\b(?:\s+{_SCAN})?", text, re.I):
        if at := _on_day(case, float(match[1]), match[2]):
            put(match, at)
    for match in re.finditer(r"\b(?:over|in|during|within)\s+the\s+first\s+(\d+)\s+(day|week)s\b", text, re.I):
        if at := _on_day(case, float(match[1]), match[2]):
            put(match, at)
    for name in sorted(names, key=len, reverse=True):
        # However its words are joined: "follow-up_1", "follow-up 1".
        spoken = "[-_ ]?".join(re.escape(part) for part in re.split(r"[-_ ]", name) if part)
        for match in re.finditer(rf"(?<![\w-]){spoken}(?![\w-])", text, re.I):
            put(match, name)
    for match in re.finditer(r"\bvisit[- ]?(?:number |no\.? ?|#)?(\d+)\b(?!-\d)", text, re.I):
        put(match, next((n for n in names if n.lower() == f"visit-{match[1]}"), None))
    for match, days in _dates(text):
        dated = [v.timepoint.timepoint_id for v in case.visits if v.timepoint.scan_date in days]
        put(match, dated[0] if dated else None)
    for match in re.finditer(rf"\b({_MONTH})\.?\s+(\d{{4}})\b", text, re.I):
        when = (int(match[2]), _MONTHS[match[1].lower()])
        there = [v.timepoint for v in case.visits if v.timepoint.scan_date and (v.timepoint.scan_date.year, v.timepoint.scan_date.month) == when]
        put(match, there[0].timepoint_id if there else None)
    for pattern, meant in _ordered(names, scanned):
        for match in re.finditer(pattern, text, re.I):
            put(match, meant)
    for match in re.finditer(
        r"\b(?:(day|week)s?\s+(\d+)(?!\d|\s*(?:,|and)\s*\d)|after\s+(\d+)\s+(day|week)s?(?!\s+each)|(\d+)\s+(day|week)s?\s+(?:later|after))\b(?![.,]\d)",
        text,
        re.I,
    ):
        unit = next(g for g in (match[1], match[4], match[6]) if g).lower()
        if at := _on_day(case, float(match[2] or match[3] or match[5]), unit):
            put(match, at)
    for match in re.finditer(r"\b(?:\d+|an?|another|some)\s+(?:visits?|scans?|follow-?ups?)\s+(?:later|before|earlier)\b", text, re.I):
        put(match, None)
    mentions = [Mention(*span, name, bool(_REFERENCE.search(text[: span[0]]))) for span, name in sorted(found.items())]
    return [m for m in mentions if m.name], unknown


def _on_day(case: Case, count: float, unit: str) -> str | None:
    """The visit that many days or weeks after the first, about; None where there is none."""
    day = count * (7 if unit.lower() == "week" else 1)
    at = [v.timepoint for v in case.visits if abs(v.timepoint.day - day) <= (0.5 if unit.lower() == "day" else 3.5)]
    return min(at, key=lambda t: abs(t.day - day)).timepoint_id if at else None


def _ordered(names: Sequence[str], scanned: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Patterns for visits by their order, and which they mean."""
    for k, word in enumerate(_ORDINALS):
        number = rf"{k + 1}(?:st|nd|rd|th)"
        yield rf"\b(?:{word}|{number})\s+follow-?up(?:\s+{_SCAN})?\b", names[k + 1] if k + 1 < len(names) else None
        yield rf"\b(?:{word}|{number})\s+(?:\w+\s+)?{_SCAN}\b", names[k] if k < len(names) else None
    yield r"\b\d+(?:st|nd|rd|th)\b(?=\s+\w*\s*(?:visit|scan|follow))", None
    yield rf"\b(?:penultimate|next.to.last|last but one)\s+{_SCAN}\b", scanned[-2] if len(scanned) > 1 else None
    yield rf"\b(?:last|final|latest|most recent|current)\s+(?:follow-?up\s+)?(?:{_SCAN}|follow-?up)\b", scanned[-1]
    yield r"\b(?:now|currently|at present|today|as of now)\b", scanned[-1]
    yield rf"\b(?:at\s+)?(?:initial|earliest|starting)\s+{_SCAN}\b", scanned[0]
    yield r"\b(?:initially|originally|at first|at the (?:start|beginning|outset))\b", scanned[0]
    yield r"\b(?:at|in|by) the end\b(?!\s+of\b)", scanned[-1]
    if len(scanned) > 1:
        # As the last word of what is compared: the scan before the last, which of two is the first.
        yield r"\b(?:previously|before(?:hand)?)\b(?=\s*(?:[.,;)]|$))", scanned[-2]
        yield r"\b(?:previously|formerly|prior(?: scan| exam\w*| study| ct)?:?)\b(?=\s*(?:measured\s+|measuring\s+)?\d)", scanned[-2]
    yield r"\bbaseline\b", scanned[0]
    yield r"\b(?<=after )the first(?: one)?\b(?=\s*(?:[.,;)]|$))", scanned[0]
    yield r"\b(?:original|initial|starting)\b(?=\s+\d)", scanned[0]
    # With what they are of left out: "5.4 cm at the first exam and 2.6 cm at the last".
    yield r"\b(?:at|in|on|to) the first\b(?=\s*(?:[.,;)]|$|and\b|to\b))", scanned[0]
    yield r"\b(?:at|in|on|to|the) (?:the )?last\b(?=\s*(?:[.,;)]|$))", scanned[-1]


def _dates(text: str) -> Iterator[tuple[re.Match[str], set[date]]]:
    """Days of the calendar, however they are written; each with all that it may mean."""
    orders = (
        (r"\b(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})\b", ((0, 1, 2),)),
        (r"\b(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})\b", ((2, 1, 0), (2, 0, 1))),
        (rf"\b(\d{{1,2}})(?:st|nd|rd|th)?\.?\s+(?:of\s+)?({_MONTH})\.?,?\s+(\d{{4}})\b", ((2, 1, 0),)),
        (rf"\b({_MONTH})\.?\s+(\d{{1,2}})(?:st|nd|rd|th)?,?\s+(\d{{4}})\b", ((2, 0, 1),)),
    )
    for pattern, readings in orders:
        for match in re.finditer(pattern, text, re.I):
            numbers = [_MONTHS.get(g.lower()) or int(g) for g in match.groups()]
            days = set()
            for y, m, d in readings:
                try:
                    days.add(date(numbers[y], numbers[m], numbers[d]))
                except ValueError:
                    continue
            yield match, days


def _numbers(masked: str) -> Iterator[Number]:
    for match in _NUMBER.finditer(masked):
        # "41 of the 71 mm": the unit is that of both.
        shared = re.match(rf"\s+(?:out\s+)?of\s+(?:the\s+|a\s+total\s+of\s+)?\d[\d.,]*\s*({_UNIT})(?!\w)", masked[match.end() :], re.I)
        said = match[2] or (shared[1] if shared else "")
        unit = next((short for words, short in _UNITS if re.fullmatch(words, said, re.I)), "")
        yield Number(*match.span(), match[0].strip(), tuple(_values(match[1])), unit, match[1][0] in "+-")


def _values(text: str) -> Iterator[tuple[float, int]]:
    """What digits with points and commas may mean."""
    plain = text.lstrip("+")
    if "." in plain and "," in plain:
        point = max(plain.rfind("."), plain.rfind(","))
        yield float(re.sub(r"[.,]", "", plain[:point]) + "." + plain[point + 1 :]), len(plain) - point - 1
        return
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+", plain):
        yield float(plain.replace(",", "")), 0
    if plain.count(",") + plain.count(".") <= 1:
        decimal = plain.replace(",", ".")
        yield float(decimal), len(decimal.split(".")[1]) if "." in decimal else 0


def _blank(text: str, mentions: Iterable[Mention]) -> str:
    for m in mentions:
        text = text[: m.start] + "\0" * (m.end - m.start) + text[m.end :]
    return text


def _list(between: str) -> bool:
    return bool(_JOINT.fullmatch(between))


def _grouped(text: str, items: Sequence[T]) -> list[list[T]]:
    """Neighbours in one list: nothing but commas and the like between them."""
    groups: list[list[T]] = []
    for item in items:
        if groups and _list(text[groups[-1][-1].end : item.start]):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _breaks(reading: Reading) -> Iterator[int]:
    """Where clauses begin: at commas and conjunctions that do not only join members of a list."""
    lists = [
        (group[0].start, group[-1].end)
        for groups in (_grouped(reading.text, reading.lesions), _grouped(reading.text, reading.visits), _grouped(reading.text, reading.numbers))
        for group in groups
        if len(group) > 1
    ]
    marks = [m.end() for m in _BREAK.finditer(reading.text)]
    # "25 mm at the baseline to 19 mm": what comes after is of another visit.
    for a, b in pairwise(reading.numbers):
        visits = [v for v in reading.visits if a.end <= v.start < b.start and not v.reference]
        if visits and re.fullmatch(r"\s*to\s*", reading.text[visits[-1].end : b.start]):
            marks.append(visits[-1].end)
    yield from sorted({m for m in marks if not any(start < m < end for start, end in lists)})


def _around(reading: Reading) -> Iterator[Number]:
    """Numbers with the words around them, and with the unit that comes later in their list."""
    for group in _grouped(reading.text, reading.numbers):
        unit = ""
        done: list[Number] = []
        for number in reversed(group):
            unit = number.unit or unit
            start, end = reading.clause(number.start)
            done.append(replace(number, unit=unit, before=reading.text[start : number.start], after=reading.text[number.end : end]))
        yield from reversed(done)
