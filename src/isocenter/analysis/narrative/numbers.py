"""Whether the numbers of a sentence are those of the case: of that lesion, at that visit, in that unit, of that kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from isocenter.analysis.case import Case
from isocenter.analysis.narrative.claims import named_categories
from isocenter.analysis.narrative.facts import NADIR, Fact
from isocenter.analysis.narrative.limits import limited, listed
from isocenter.analysis.narrative.places import organs_in, tracks_of
from isocenter.analysis.narrative.reading import NOUN, Number, Reading, after_that
from isocenter.analysis.narrative.trends import track_sign
from isocenter.analysis.narrative.words import CHANCE, CONVERT, DOWN, ERROR, SUM, UP, sign_of

_AHEAD = re.compile(r"forecast|predict|expect|project|interval|would|scenario|what.?if|simulat", re.I)
_TOTAL = re.compile(r"\btotal|\ball\b|together|combined|overall|burden|altogether|whole|entire", re.I)
_BY = re.compile(
    r"\b(?:by|of|was|is|were|amount\w* to)\s+(?:(?:about|approximately|around|some|roughly|only|just|nearly|almost|another|a further|further) )?$",
    re.I,
)
_CHANGED = re.compile(rf"\b(?:{UP}|{DOWN}|chang\w+|differ\w+|drop\w*|gain\w*|loss|lost|fall|shrinkage)\b[^\d]*$", re.I)
_DIRECTLY = re.compile(
    r"\b(?:lost|gained|dropped|fell|rose|grew|shrank|increased|decreased)\s+(?:(?:another|a further|about|some|only|roughly) )?$", re.I
)
_MORE = re.compile(r"^\s*(?:smaller|larger|bigger|less|more|shorter|longer|lower|higher|of (?:growth|shrinkage|increase|decrease))\b", re.I)
_WHOLE_SPAN = re.compile(r"\b(?:scans|visits|exam\w*|images|follow-?up|observ\w+|study|course)\b.*\b(?:over|span\w*|cover\w*|last\w*|during)\b", re.I)
_LIMITS = re.compile(r"interval|limit|bound|up to|at most|at least|as (?:much|little|low|high) as|between|rang|reach|worst|best|CI\b", re.I)
_TREATED = re.compile(r"treat|therap|dos(?:e|ing)|chemo|radi|course|regimen|cycle|given|administer|lasted|duration", re.I)
_COUNT = re.compile(rf"^\s+((?:[a-z-]+\s+){{0,3}}?)({NOUN})\b", re.I)
_PART_COUNT = re.compile(rf"^\s+(?:out\s+)?of\s+(?:the|these|those|all)\s+(?:\d+\s+)?((?:[a-z-]+\s+){{0,2}}?)({NOUN})\b", re.I)
_PRONOUN_COUNT = re.compile(r"^\s+(?:are|were|is|was|of (?:them|these|which)|remain\w*|in all|in total|in the)\b", re.I)


def wrong_numbers(reading: Reading, case: Case, known: Sequence[Fact]) -> Iterator[tuple[str, str]]:
    """Kind and words of what is not so; digits that belong to nothing are not so either."""
    ahead = bool(_AHEAD.search(reading.text))
    known = [f for f in known if (not f.scenario or f.scenario in reading.scenarios) and (not f.ahead or ahead)]
    rest = reading.masked
    for number in reading.numbers:
        rest = rest[: number.start] + " " * (number.end - number.start) + rest[number.end :]
        if not number.unit and re.search(r"\b(day|week)s?\s+$", reading.group(number)[0].before, re.I):
            right = _on_day(number, reading, known)
        elif not number.unit and (counted := _counts(number, reading, case)) is not None:
            right = any(value == count for value, _ in number.values for count in counted)
        elif re.match(r"\s*(?:times|-?\s?fold)\b", number.after, re.I):
            right = True  # looked up as a multiple
        elif (held := limited(number, reading, case, known)) is not None:
            right = held
        elif (every := listed(number, reading, case)) is not None:
            right = every
        else:
            right = _fits(number, reading, case, known)
        if not right:
            yield "number", number.text
    for left in re.findall(r"\S*\d\S*", rest.replace("\0", " ")):
        yield "number", left
    yield from _backwards(reading, known)


def _counts(number: Number, reading: Reading, case: Case) -> set[int] | None:
    """What a number of things may be; None where nothing is counted."""
    match = _COUNT.match(number.after) or _PART_COUNT.match(number.after)
    if match is None and not _PRONOUN_COUNT.match(number.after):
        return None
    adjectives, noun = (match[1].lower(), match[2].lower()) if match else ("", "lesions")
    clause = reading.words(number.start)
    visits = reading.near(reading.visits, number.start, following=True)
    here = {m.name for m in visits}
    if re.match(r"scan|exam", noun) or (re.match(r"visit|time|follow", noun) and match):
        seen = sum(v.found is not None for v in case.visits)
        missing = len(case.visits) - seen
        if re.search(r"missing|without|no (?:usable )?scan|unusable", clause, re.I):
            return {missing}
        if re.search(r"\b(?:have|has|had|with)\s+(?:an?\s+)?(?:usable\s+)?(?:scans?|images?|imaging)\b|\b(?:scanned|imaged)\b", clause, re.I):
            return {len(case.visits)} if re.search(r"\bof\s+(?:the\s+|all\s+)?$", number.before, re.I) else {seen}
        later = len(case.visits) - 1
        if noun.startswith("follow") or re.search(r"follow\w* (?:the )?(?:baseline|first)|\bafter\b|later|subsequent", clause, re.I):
            return {later, seen - 1}
        return {seen} if re.match(r"scan|exam", noun) else {len(case.visits), seen}
    if predicate := re.match(rf"\s+(?:[a-z-]+\s+){{0,3}}?{NOUN}\s+(?:is|are|was|were)\s+(new|(?:non-)?targets?)\b", number.after, re.I):
        adjectives += predicate[1].lower()
    tracks = set(case.graph.tracks)
    rows = case.lesions
    if re.search(r"\bnew\b", adjectives):
        tracks &= {k.track for k in rows if k.is_new}
    if "non-target" in adjectives + noun:
        tracks &= set(case.non_targets)
    elif "target" in adjectives + noun:
        tracks &= set(case.targets)
    if noun.startswith("node") or re.search(r"\bnod(?:e|al)\b|lymph", adjectives):
        tracks &= {k.track for k in rows if k.is_node}
    if organs_in(clause):
        tracks &= tracks_of(clause, case)
    part_of = re.search(r"\bof\s+(?:the|all|these|those|its)\s+$", number.before, re.I)
    if (sign := sign_of(clause)) is not None and not part_of:
        return {sum(track_sign(case, track, reading, number.start) == sign for track in tracks)}
    counts = {len(tracks & {k.track for k in rows if k.timepoint_id == visit}) for visit in here}
    return counts or {len(tracks), *(len(tracks & {k.track for k in case.at(v.timepoint.timepoint_id)}) for v in case.visits if v.found is not None)}


def _on_day(number: Number, reading: Reading, known: Sequence[Fact]) -> bool:
    """A day of a visit was blanked out before: this is one of a treatment or of a forecast."""
    week = bool(re.search(r"\bweeks?\s+$", reading.group(number)[0].before, re.I))
    treated = re.search(r"treat|therap|dose|chemo|radi|course|regimen|given|start|until", reading.text, re.I)
    days = [f.value for f in known if f.kind == "day" and (f.ahead or f.scenario or (f.about and treated) or f.visit)]
    return any(_equal(value, digits, day / (7 if week else 1)) for value, digits in number.values for day in days)


def _fits(number: Number, reading: Reading, case: Case, known: Sequence[Fact]) -> bool:
    """Whether some fact is this number, of the lesion and visit that it stands with."""
    group = reading.group(number)
    place = group.index(number)
    # "of 25 mm to 15 mm": the words in front of a list are those of all its members. Names in them are blank.
    front = reading.masked[group[0].start - len(group[0].before) : group[0].start]
    lesions, visits = _whose(number, group, reading, case), _when(number, group, reading)
    clause = reading.words(number.start)
    if re.search(r"\b(?:each|every)\s+(?:visit|scan|follow)", clause, re.I):
        visits = [frozenset({v.timepoint.timepoint_id}) for v in case.visits if v.found is not None][1:]
    start = reading.clause(number.start)[0]
    since = {m.name for m in reading.visits if m.reference and reading.clause(m.start) == reading.clause(number.start)}
    if not since:
        # "Compared with the baseline, it …": what opens a sentence holds for what follows.
        opening = [m for m in reading.visits if m.reference and m.start < start]
        if opening and not re.search(r"\d", reading.masked[:start]):
            since = {m.name for m in opening[-1:]}
    together = [m for m in reading.near(reading.visits, number.start, following=True) if not m.reference]
    order = [v.timepoint.timepoint_id for v in case.visits]
    if not since and len({m.name for m in together}) == 2 and re.search(r"\bbetween\b|\bfrom\b", reading.text[: together[0].start], re.I):
        since = {min((m.name for m in together), key=order.index)}
    about = _About(
        number,
        clause,
        since=since,
        last=order_of_scans(case)[-1],
        whole_days=max((f.value for f in known if f.kind == "span" and not f.about), default=0.0),
        whole=bool(_TOTAL.search(clause) or SUM.search(clause)),
        changed=_is_change(number, front, inside=place > 0),
        close=front[max((m.end() for m in re.finditer(r"\d", front)), default=0) :],
    )
    return all(any(_same(about, f, reading, lesion, visit) for f in known) for lesion in lesions for visit in visits)


@dataclass(frozen=True)
class _About:
    """What the words around a number say of it. since: with what it is compared. whole: of all lesions. close: right in front of it."""

    number: Number
    clause: str
    since: set[str]
    whole: bool
    changed: bool
    close: str
    last: str
    whole_days: float


def _is_change(number: Number, front: str, *, inside: bool) -> bool:
    """Whether a number is a difference: "by 5 mm", "a growth of 5 mm", "5 mm larger"."""
    if inside and re.search(r"\d\s*(?:mm|cm|ml)?\s*by\s*$", number.before):
        return False
    by = _BY.search(front)
    if by and _CHANGED.search(front[: by.start()] + " "):
        return True
    return bool(_DIRECTLY.search(front) or _MORE.match(number.after))


def _whose(number: Number, group: Sequence[Number], reading: Reading, case: Case) -> list[frozenset[str]]:
    """Sets of lesions: the number must be true of one of each set. An empty set leaves it open."""
    mentioned = reading.near(reading.lesions, number.start)
    if not mentioned:
        named = tracks_of(reading.words(number.start), case) if organs_in(reading.words(number.start)) else set()
        if re.search(r"\bnew\b[^,;]{0,25}\blesion", reading.words(number.start), re.I):
            named = {k.track for k in case.lesions if k.is_new}
        if not named and (
            most := re.search(
                r"\b(largest|biggest|dominant|smallest)\s+(?:target\s+)?(?:lesion|tumou?r|nodule|mass|one)\b", reading.words(number.start), re.I
            )
        ):
            at = [m.name for m in reading.near(reading.visits, number.start, following=True)] or order_of_scans(case)[-1:]
            here = sorted(case.at(at[-1]), key=lambda k: k.longest_mm or 0.0)
            named = {here[0 if most[1].lower() == "smallest" else -1].track} if here else set()
        return [frozenset(named)]
    if len(mentioned) > 1 and len(mentioned) == len(group):
        return [frozenset({mentioned[group.index(number)].name})]
    if len(mentioned) > 1 and _TOTAL.search(reading.words(number.start)):
        return [frozenset()]
    return [frozenset({m.name}) for m in mentioned]


def _when(number: Number, group: Sequence[Number], reading: Reading) -> list[frozenset[str]]:
    """Sets of visits: the number must have been measured at one of each set. An empty set leaves it open."""
    mentioned = reading.near(reading.visits, number.start, following=True)
    if len(mentioned) > 1 and len(mentioned) == len(group):
        return [frozenset({mentioned[group.index(number)].name})]
    between = reading.text[group[0].end : group[-1].start]
    if len(group) == 2 and re.fullmatch(r"\s*to\s*", between) and re.search(r"\bfrom\s*$", group[0].before, re.I) and number is group[0]:
        # "from 25 to 15 mm at visit-3": the first was measured at another one.
        return [frozenset({m.name for m in reading.visits if m.reference})]
    start, end = reading.clause(number.start)
    if mentioned and after_that(reading, start) and not any(start <= m.start < end for m in mentioned):
        return [frozenset()]  # after the visit that was named, and so not at it
    if re.match(r"\s*to\s", reading.text[start:end]) and not any(start <= m.start < end for m in mentioned):
        return [frozenset()]
    if len(mentioned) > 1 and re.search(r"\bbetween\b|\bfrom\b", reading.text[:end], re.I):
        return [frozenset({mentioned[-1].name})]
    if len(group) == 1 and len({m.name for m in mentioned}) > 1 and re.search(r"\b(?:both|all|each)\b|\band\b", reading.text[start:end], re.I):
        return [frozenset({m.name}) for m in mentioned]
    return [frozenset(m.name for m in mentioned)]


def _same(about: _About, fact: Fact, reading: Reading, lesions: frozenset[str], visits: frozenset[str]) -> bool:
    """Whether a fact is the number, of one of the lesions and at one of the visits."""
    number, clause, whole = about.number, about.clause, about.whole
    scale = 1.0 if number.unit == fact.unit else CONVERT.get((number.unit, fact.unit))
    if scale is None:
        return False
    if lesions and fact.lesion not in lesions and not (not fact.lesion and (whole or fact.kind in {"chance", "level", "span", "day", "dose"})):
        return False
    if not fact.lesion and fact.kind in {"volume", "change", "percent"} and not lesions and _one(clause):
        return False
    if fact.lesion and not lesions and fact.kind in {"volume", "change", "percent"} and whole:
        return False
    if fact.ahead and (visits or not _that_day(fact, clause)):
        return False
    if fact.kind == "span" and fact.about and not _TREATED.search(reading.text):
        return False  # how long a treatment was, not how far scans lie apart
    if fact.limit and not _LIMITS.search(reading.text[: number.end + 20]):
        return False
    if fact.kind == "span" and not _between(fact, reading, number, about.whole_days):
        return False
    if fact.kind != "span" and fact.visit and visits and fact.visit not in visits:
        return False
    if not _kind_fits(about, fact, reading, visits):
        return False
    wanted = fact.value * scale
    directed = sign_of(clause) if sign_of(clause) is not None else sign_of(reading.text)
    if fact.kind in {"change", "percent"} and not number.signed:
        if directed and wanted * directed < 0:
            return False
        wanted = abs(wanted)
    return any(_equal(value, digits, wanted) for value, digits in number.values)


def _that_day(fact: Fact, clause: str) -> bool:
    """Whether a clause names no day, or that of a forecast."""
    days = [float(day) for day in re.findall(r"\bday\s+(\d+(?:\.\d+)?)\b", clause, re.I)]
    return not fact.about or not days or float(fact.about) in days


def _between(fact: Fact, reading: Reading, number: Number, whole: float) -> bool:
    """Whether the visits that are named around a span of days are those between which it lies. whole: days from the first to the last."""
    start, end = reading.clause(number.start)
    named = {m.name for m in reading.visits if start <= m.start < end}
    if not named and not fact.about and _WHOLE_SPAN.search(reading.text[start : number.start]):
        return fact.value >= whole
    return not named or named <= {fact.visit, fact.since} or bool(fact.about)


def _kind_fits(about: _About, fact: Fact, reading: Reading, visits: frozenset[str]) -> bool:
    """Whether the words around a number mean this kind of figure."""
    number, clause, since, changed = about.number, about.clause, about.since, about.changed
    if CHANCE.search(clause) and number.unit == "%" and fact.kind not in {"chance", "level"}:
        return False
    if re.search(r"standard deviation|\bsd\b|uncertaint\w+|\berrors?\b", about.close, re.I) and fact.kind != "error" and number.unit != "%":
        return False
    if fact.kind in {"change", "percent"}:
        if fact.kind == "change" and not changed and not number.signed:
            return False
        volume, size = re.search(r"volum|burden", clause, re.I), re.search(r"diamet|longest|axis|\bsum\b|\blength", clause, re.I)
        if (volume and not size and fact.about != "volume") or (size and not volume and fact.about == "volume"):
            return False
        if re.search(r"\bsum\b", clause, re.I) and fact.about != "sum":
            return False
        if re.search(r"nadir|smallest|least|lowest", clause, re.I):
            return fact.since == NADIR
        if since:
            # Compared with an earlier visit and nothing else said, it is what came of it in the end.
            return fact.since in since and (bool(visits) or fact.visit == about.last)
        return not (len(visits) == 1 and fact.since in visits)
    if changed and number.unit != "%" and fact.kind in {"size", "volume", "sum"}:
        return False
    if fact.kind == "chance":
        named = named_categories(clause) or named_categories(reading.text)
        return bool(CHANCE.search(reading.text)) and fact.about in named
    if fact.kind == "level":
        return "interval" in reading.text.lower()
    if fact.kind == "error":
        return bool(ERROR.search(clause))
    if fact.kind == "sum":
        return bool(SUM.search(reading.text)) and not (fact.about == NADIR and not re.search(r"nadir|smallest|least|lowest", clause, re.I))
    if fact.kind == "dose":
        return bool(re.search(r"dose", clause, re.I))
    if fact.kind == "day":
        if number.unit and _WHOLE_SPAN.search(number.before):
            return False
        return bool(fact.ahead or fact.scenario or fact.about or fact.visit)
    if fact.kind == "size" and re.search(r"\bsums?\b", number.before, re.I) and not reading.lesions:
        return False
    if fact.kind == "size":
        words = re.findall(r"short|longest|long axis|3-?d|three", number.before or about.close, re.I)
        last = words[-1].lower() if words else ""
        return (
            not last
            or fact.about == {"short": "short", "3d": "3d", "3-d": "3d", "three": "3d"}.get(last, "longest")
            or (last == "longest" and fact.about == "3d")
        )
    return True


def order_of_scans(case: Case) -> list[str]:
    """Visits with a scan, in their order."""
    return [v.timepoint.timepoint_id for v in case.visits if v.found is not None]


def _one(clause: str) -> bool:
    """Whether a clause speaks of one lesion alone, whichever."""
    return bool(re.search(r"\b(?:the|a|this|each|every|one|largest|smallest)\s+(?:\w+\s+)?(?:lesion|tumou?r|nodule|mass)\b", clause, re.I))


def _equal(value: float, digits: int, wanted: float) -> bool:
    return abs(value - wanted) <= 0.5 * 10.0**-digits + 1e-9


def _backwards(reading: Reading, known: Sequence[Fact]) -> Iterator[tuple[str, str]]:
    """What goes "from a to b" must do so in the order of the visits."""
    order = [f.visit for f in known if f.kind == "day" and f.visit]
    for a, b in pairwise(reading.numbers):
        joined = re.fullmatch(r"[^.;]{0,40}?\bto\s*", reading.text[a.end : b.start])
        if (
            not joined
            or not re.search(r"\bfrom\s*$" if not re.search(r"\bthen\s+to\s*$", joined[0], re.I) else "", a.before, re.I)
            or a.unit != b.unit
            or re.search(r"rang|interval|vary|varied", reading.text, re.I)
        ):
            continue
        sizes = [f for f in known if f.kind in {"size", "volume", "sum", "intensity"} and f.visit]
        named = {m.name for m in reading.near(reading.lesions, a.start)}

        def meant(number: Number, sizes: Sequence[Fact] = sizes, named: set[str] = named) -> list[Fact]:
            scaled = [(f, 1.0 if number.unit == f.unit else CONVERT.get((number.unit, f.unit))) for f in sizes]
            return [
                f
                for f, s in scaled
                if s and (not named or f.lesion in named or not f.lesion) and any(_equal(v, d, f.value * s) for v, d in number.values)
            ]

        pairs = [(f, g) for f in meant(a) for g in meant(b) if (f.kind, f.lesion, f.about) == (g.kind, g.lesion, g.about)]
        if not any(order.index(f.visit) < order.index(g.visit) for f, g in pairs):
            yield "trend", f"{a.text} to {b.text}"
