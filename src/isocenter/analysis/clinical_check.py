"""What a wrong word would cost: numbers, units, sides and negations on which a generated report and its reference do not agree.

It reads English sentences by rules, not by understanding. Negations follow NegEx (Chapman et al., J Biomed Inform 2001):
words in front of what they negate, words behind it, phrases that only look like one, and words at which their reach ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

#: Factors to one unit a kind of quantity: millimetres, millilitres.
_UNITS = {"mm": ("mm", 1.0), "cm": ("mm", 10.0), "m": ("mm", 1000.0), "ml": ("ml", 1.0), "cc": ("ml", 1.0), "l": ("ml", 1000.0)}
_UNITS |= {"mm3": ("ml", 0.001), "mm³": ("ml", 0.001), "cm3": ("ml", 1.0), "cm³": ("ml", 1.0), "liter": ("ml", 1000.0), "litre": ("ml", 1000.0)}
_UNITS |= {u: (u, 1.0) for u in ("hu", "%", "mg", "g", "kg", "suv", "mmhg", "bpm", "year", "month", "week", "day", "°")}
_UNITS |= {"millimeter": ("mm", 1.0), "millimetre": ("mm", 1.0), "centimeter": ("mm", 10.0), "centimetre": ("mm", 10.0)}
_UNITS |= {"percent": ("%", 1.0), "degree": ("°", 1.0), "hounsfield unit": ("hu", 1.0), "milliliter": ("ml", 1.0), "millilitre": ("ml", 1.0)}
_UNIT = "|".join(sorted((f"{re.escape(u)}s?" for u in _UNITS), key=len, reverse=True))
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)?)"
#: "3 x 4 x 5 mm", "6-8 mm", "0.4 and 0.6 cm" have their unit at the end; it is that of all their numbers.
_JOINED = rf"{_NUMBER}(?:\s*(?:[x*/-]|by|to|and|or|,\s*(?={_NUMBER}\s*,?\s*(?:and|or|{_NUMBER})\b)|,\s*and)\s*{_NUMBER})*"
_QUANTITY = re.compile(rf"(?<![\w.,/-])(-?)({_JOINED})(?:\s*-?\s*({_UNIT}))?(?![\w³])")
_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|th)\b")
_LEVEL = re.compile(r"\b([cls]\d{1,2}|t(?:[3-9]|1[0-2]))\b")
_WORDS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_COUNT = re.compile(rf"\b({'|'.join(_WORDS)})\b")
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH = rf"({'|'.join(_MONTHS)})[a-z]*\.?"
_DATE = re.compile(
    rf"\b(\d{{4}})-(\d\d)-(\d\d)\b|\b(\d{{1,2}})([/.])(\d{{1,2}})\5(\d{{4}}|\d\d)\b"
    rf"|\b(\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH},?\s+(\d{{4}})\b|\b{_MONTH}\s+(\d{{1,2}})(?:st|nd|rd|th)?,?\s+(\d{{4}})\b"
)
#: "1." in front of a line or a sentence is its place in a list.
_LISTED = re.compile(r"(^|[\n.:;]) *\d{1,2}[.)] +(?=\w)")
_TIME = re.compile(r"\b\d{1,2}:\d\d(?::\d\d)?\b|\b\d{1,2}\s*o'clock\b")

_LOBES = {"ul": "upper lobe", "ml": "middle lobe", "ll": "lower lobe", "uq": "upper quadrant", "lq": "lower quadrant"}
_SHORT = re.compile(r"\b([rl])(ul|ml|ll|uq|lq)\b")
_BOTH_SIDES = re.compile(
    r"\b(left|right)(?:\s+side)?\s*(?:and|&|/|as well as)\s*(?:on\s+)?(?:the\s+)?(?!\1)(?:left|right)\b|\bboth\b|\bb/l\b|\bbilaterally\b"
)
_SIDES = {"left": frozenset({"left"}), "right": frozenset({"right"}), "bilateral": frozenset({"left", "right"})}
_PLACED = frozenset(["in", "of", "on", "at", "within", "to", "along", "from", "into"])

#: They negate what follows.
_BEFORE = re.compile(
    r"\b(no longer|no|not|without|(?:absence|lack|resolution) of|absent|free of|clear of|negative for|denies|never|neither|nor|resolved|none)\b"
)
_SEEN = "seen|identified|present|visuali[sz]ed|demonstrated|evident|appreciated|detected|noted|observed|found|shown"
#: They negate what stands in front of them.
_BEHIND = re.compile(
    rf"\b(?:not|no longer)\s+(?:(?:been|be|clearly|definitely)\s+)*(?:{_SEEN})\b"
    r"|\b(?:is|are|was|were)\s+(?:\w+ly\s+)?(?:absent|negative|excluded|ruled out)\b"
    r"|\b(?:has|have|had)\s+(?:\w+\s+)?resolved\b|\b(?:been|be)\s+(?:ruled out|excluded)\b|\b(?:is|are|was|were)\s+(?:\w+\s+)?resolved\b"
)
#: They look like a negation and are none.
_SEEMING = re.compile(
    r"\b(?:cannot|can not|could not|may not|can't)\s+be\s+(?:\w+\s+)?(?:excluded|ruled out)\b|\b(?:cannot|can't|does not)\s+(?:exclude|rule out)\b"
    r"|\bnot\s+(?:\w+\s+)?(?:excluded|ruled out|resolved)\b|\bnot only\b|\bnot necessarily\b"
    r"|\b(?:no|without|not)\s+(?:\w+\s+){0,2}(?:change[sd]?|increased?|decreased?|progress(?:ion|ed))\b"
)
#: The reach of a negation ends at them.
_TURNS = re.compile(r"[;:]|\b(?:but|however|although|though|except|aside from|apart from|whereas|while|yet)\b")
_STATES = re.compile(r"\b(?:is|are|was|were|has|have|had|shows?|demonstrates?|there|measur\w+|reveals?)\b")
_COMMON = frozenset(
    """a an and or the of in on at to for with without within by from as is are was were be been has have had this that these those there it its
    no not nor neither never none absence lack absent free negative denies resolved resolution ruled out evidence seen noted identified present
    demonstrated appears appear visualized visualised evident appreciated detected observed found shown show shows demonstrate demonstrates
    right left both bilateral side sided lateral aspect new stable unchanged measuring measures measure measured size mm cm ml cc hu up about
    approximately significant definite definitely convincing obvious suspicious focal small large mild moderate severe minimal tiny other any
    further additional previous previously prior residual interval current currently remaining compared comparison since study examination exam
    finding findings change changes changed some also again only well can could cannot may longer which who suggest suggests suggesting clearly
    excluded due consistent sign signs suggestion indication""".split()  # noqa: SIM905 - readable
)


@dataclass(frozen=True)
class Difference:
    """One thing on which the two reports do not agree. kind: "number", "unit", "laterality" or "negation"."""

    kind: str
    what: str
    reference: str | None
    candidate: str | None


def clinical(candidate: str, reference: str) -> list[Difference]:
    """Where measurements, sides or negations differ."""
    ours, theirs = _plain(candidate), _plain(reference)
    return [*_numbers(ours, theirs), *_sides(ours, theirs), *_negations(ours, theirs)]


def _plain(text: str) -> str:
    """Lower case, with one kind of dash, of multiplication sign and of blank."""
    text = re.sub(r"[\u2010-\u2015\u2212]", "-", text.lower().replace("×", "x").replace("\u2019", "'"))
    return _LISTED.sub(r"\1 ", re.sub(r"[^\S\n]+", " ", text))


# Numbers.


@dataclass(frozen=True)
class _Quantity:
    """A number in its kind's one unit; written: as the report has it, which two equal ones need not share."""

    value: float
    unit: str
    digits: str
    written: str

    @property
    def key(self) -> tuple[float, str]:
        return self.value, self.unit


def _quantities(text: str) -> dict[tuple[float, str], _Quantity]:
    """Each different number, dates and times apart."""
    rest = _TIME.sub(" ", _DATE.sub(" ", text))
    found = [_Quantity(float(m[1]), "th", m[1], m[0]) for m in _ORDINAL.finditer(rest)]
    found += [_Quantity(0, m[1], m[1], m[1].upper()) for m in _LEVEL.finditer(rest)]
    found += [_Quantity(float(_WORDS.index(m[1]) + 2), "", m[1], m[1]) for m in _COUNT.finditer(rest)]
    for match in _QUANTITY.finditer(rest):
        written = match[3] or ""
        unit, factor = _UNITS.get(written) or _UNITS.get(written.removesuffix("s")) or ("", 1.0)
        # A length or a share is never negative: its dash is a list's.
        sign = "-" if match[1] and unit in ("", "hu", "suv", "°") else ""
        for digits in re.findall(_NUMBER, match[2]):
            found.append(_Quantity(round(float(sign + _decimal(digits)) * factor, 6), unit, sign + digits, f"{sign}{digits} {written}".strip()))
            sign = ""
    return {q.key: q for q in found}


def _decimal(digits: str) -> str:
    return digits.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", digits) else digits.replace(",", ".")


def _numbers(candidate: str, reference: str) -> Iterator[Difference]:
    theirs, ours = _quantities(reference), _quantities(candidate)
    lacking, extra = ([q for k, q in a.items() if k not in b] for a, b in ((theirs, ours), (ours, theirs)))
    slips: dict[str, _Quantity] = {}
    for quantity in extra:
        slips.setdefault(quantity.digits, quantity)
    told: set[tuple[float, str]] = set()
    for quantity in lacking:
        # The same digits with another unit are a slip of the unit, the worst kind.
        twin = slips.get(quantity.digits)
        if twin is not None and twin.key not in told:
            told |= {twin.key, quantity.key}
            yield Difference("unit", quantity.digits, quantity.written, twin.written)
    yield from (Difference("number", q.written, q.written, None) for q in lacking if q.key not in told)
    yield from (Difference("number", q.written, None, q.written) for q in extra if q.key not in told)
    dates, others = _dates(reference), _dates(candidate)
    yield from (Difference("number", w, w, None) for w, d in dates.items() if not any(d & o for o in others.values()))
    yield from (Difference("number", w, None, w) for w, d in others.items() if not any(d & o for o in dates.values()))


def _dates(text: str) -> dict[str, frozenset[tuple[int, int, int]]]:
    """Each date as written, with the days that it may be: 3/12 is one in March or one in December."""
    found = {}
    for m in _DATE.finditer(text):
        if m[1]:
            days = {(int(m[1]), int(m[2]), int(m[3]))}
        elif m[4]:
            year = int(m[7]) + (2000 if len(m[7]) == 2 else 0)
            days = {(year, int(m[4]), int(m[6])), (year, int(m[6]), int(m[4]))}
        elif m[8]:
            days = {(int(m[10]), _MONTHS.index(m[9]) + 1, int(m[8]))}
        else:
            days = {(int(m[13]), _MONTHS.index(m[11]) + 1, int(m[12]))}
        found[m[0]] = frozenset(days)
    return found


# Sides.


def _stem(word: str) -> str:
    return word.removesuffix("s") if len(word) > 3 and not word.endswith(("ss", "us", "is")) else word


def _sentences(text: str) -> list[str]:
    # A full stop within a number ends nothing.
    return re.split(r"(?<!\d)\.|\.(?!\d)|\n", text)


def _located(text: str) -> dict[str, list[frozenset[str]]]:
    """The sides that are told of each word of substance: the words behind a side, and those placed by it ("a cyst in the left ...")."""
    text = _SHORT.sub(lambda m: f"{'right' if m[1] == 'r' else 'left'} {_LOBES[m[2]]}", text)
    text = _BOTH_SIDES.sub("bilateral", text)
    found: dict[str, list[frozenset[str]]] = {}
    for clause in (c for s in _sentences(text) for c in _TURNS.split(s)):
        words = re.findall(r"[a-z]+|,", clause)
        marks = [i for i, w in enumerate(words) if w in _SIDES]
        for start, index, stop in zip([-1, *marks], marks, [*marks[1:], len(words)], strict=False):
            places = _following(words[index + 1 : stop])
            before = [w for w in words[start + 1 : index] if w not in ("the", "a", "an", "its", "patient's")]
            if (before and before[-1] in _PLACED) or not places:
                places += _preceding(before, fresh=start < 0)
            for place in places:
                found.setdefault(_stem(place), []).append(_SIDES[words[index]])
    return found


def _following(words: list[str]) -> list[str]:
    """Up to three words of substance, as far as the thing goes."""
    found: list[str] = []
    for word in words:
        if found and word in (",", "and", "with", "without", "is", "are", "or"):
            break
        if word not in _COMMON and word != "," and len(word) > 2:
            found.append(word)
    return found[:3]


def _preceding(words: list[str], *, fresh: bool) -> list[str]:
    """The words of substance that a side places. fresh: no other side stands in front of them; else theirs end at a comma or an "and"."""
    if not fresh:
        last = max((i for i, w in enumerate(words) if w in (",", "and")), default=None)
        words = [] if last is None else words[last + 1 :]
    return [w for w in words if w not in _COMMON and w != "," and len(w) > 2][-4:]


def _sides(candidate: str, reference: str) -> Iterator[Difference]:
    theirs, ours = _located(reference), _located(candidate)
    both = _SIDES["bilateral"]
    for place in theirs:
        if place not in ours:
            continue
        a, b = (frozenset[str]().union(*sides) for sides in (theirs[place], ours[place]))
        # Agreement on one side is enough, since a report may name a place twice; unless one speaks of both at once.
        if not a & b or (a != b and both in (*theirs[place], *ours[place])):
            yield Difference("laterality", place, " and ".join(sorted(a)), " and ".join(sorted(b)))


# Negations.


def _statements(sentence: str) -> Iterator[str]:
    """Parts of a sentence beyond which no negation reaches."""
    for clause in _TURNS.split(sentence):
        parts = [p.strip() for p in clause.split(",")]
        current = parts[0]
        for part in parts[1:]:
            listed = re.search(r"\bn?or\b", part) or (part.startswith("and ") and len(parts) > 2 and not _STATES.search(current))
            begins = _STATES.search(part) or _BEFORE.match(part.removeprefix("and "))
            if begins and not listed and (_STATES.search(current) or _BEFORE.search(current)):
                yield current
                current = part
            else:
                current += f" , {part}"
        yield current


def _polarities(text: str) -> dict[str, set[bool]]:
    """Each word of substance, and whether it stands under a negation (True), outside of one (False), or both."""
    found: dict[str, set[bool]] = {}
    for statement in (s for sentence in _sentences(_SEEMING.sub(" ", text)) for s in _statements(sentence)):
        behind = _BEHIND.search(statement)
        if behind is not None:
            parts = [(statement[: behind.start()], True), (statement[behind.end() :], False)]
        else:
            cues = [(m.start(), m.end()) for m in _BEFORE.finditer(statement)]
            bounds = [*cues[:1], (len(statement), len(statement))]
            parts = [(statement[: bounds[0][0]], False), *((statement[a[1] : b[0]], True) for a, b in pairwise(bounds))]
        for part, negated in parts:
            for word in _negated(part) if negated else _substance(part):
                found.setdefault(_stem(word), set()).add(negated)
    return found


def _substance(part: str) -> list[str]:
    return [w for w in re.findall(r"[a-z]{3,}", part) if w not in _COMMON]


def _negated(part: str) -> Iterator[str]:
    """What is not there, without the place where it is not: no lesion of the pancreas says nothing against the pancreas."""
    for phrase in re.split(r",|\b(?:or|nor|and)\b", part):
        first, *others = re.split(r"\b(?:of|in|within|at|on|along|involving|from)\b", phrase)
        # "No evidence of": the thing itself stands behind the preposition.
        yield from next((words for words in map(_substance, (first, *others)) if words), [])


def _negations(candidate: str, reference: str) -> Iterator[Difference]:
    theirs, ours = _polarities(reference), _polarities(candidate)
    say = {True: "negated", False: "affirmed"}
    for word in theirs:
        if word in ours and len(theirs[word]) == len(ours[word]) == 1 and theirs[word] != ours[word]:
            yield Difference("negation", word, say[next(iter(theirs[word]))], say[next(iter(ours[word]))])
