"""Which way lesions are said to have gone: over the visits that a sentence names, of what it speaks of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from isocenter.analysis.case import Case
from isocenter.analysis.narrative.places import lies, organs_in, sides_in, tracks_of_each
from isocenter.analysis.narrative.reading import Reading, after_that
from isocenter.analysis.narrative.words import claimed

Claims = Iterator[tuple[str, str]]
#: A change of a volume below this, in percent, is none.
_STILL = 10.0
_STEADY = re.compile(
    r"\b(?:steadily|continu\w+|consistent\w*|constantly|progressively|monoton\w+|every (?:visit|scan)|each (?:visit|scan)|throughout)\b", re.I
)


def track_sign(case: Case, track: str, reading: Reading, place: int) -> int | None:
    """Which way a lesion ("total": all) went over the visits that a sentence names there, else at last; None where nobody knows."""
    values = series(case, track)
    if len(values) < 2:
        return None
    start, end = interval(reading, place, list(values), case)
    if start not in values or end not in values:
        return None
    before, after = values[start], values[end]
    change = 100 * (after / before - 1) if before else (100.0 if after else 0.0)
    return 1 if change > _STILL else -1 if change < -_STILL else 0


def series(case: Case, track: str) -> dict[str, float]:
    """Volumes by visit; 0 where it is gone or not there yet."""
    seen = [v.timepoint.timepoint_id for v in case.visits if v.found is not None]
    if track == "sum":
        names = {v.timepoint.day: v.timepoint.timepoint_id for v in case.visits}
        responses = [r for r in case.responses.get("recist_1.1", ()) if r.sum is not None]
        first = next((r.baseline for r in responses if r.baseline is not None), None)
        return {**({seen[0]: first} if first is not None and seen else {}), **{names[r.day]: float(r.sum or 0) for r in responses}}
    told = [v for v in seen if case.assessed(v, "" if track == "total" else track)]
    return {v: sum(k.volume_mm3 or 0.0 for k in case.at(v) if track in {"total", k.track}) for v in told}


def interval(reading: Reading, place: int, order: Sequence[str], case: Case) -> tuple[str, str]:
    """From which visit to which a trend is told."""
    start, end = reading.clause(place)
    here = [m for m in reading.visits if start <= m.start < end] or [m for m in reading.visits if m.start < start][-1:]
    clause = reading.text[start:end]
    known = sorted({m.name for m in here if m.name in order}, key=order.index)
    if len(known) > 1:
        return known[0], known[-1]
    if known and after_that(reading, start) and not any(start <= m.start for m in here):
        k = order.index(known[-1])
        return known[-1], order[min(k + 1, len(order) - 1)]
    if known and re.search(r"\b(?:since(?: then)?|thereafter|afterwards?|from then on)\W*$", clause, re.I):
        return known[-1], order[-1]
    if known:
        reference = next(m.reference for m in here if m.name == known[0])
        k = order.index(known[0])
        if reference or k == 0:
            return known[0], order[-1]
        return (order[0] if re.search(r"overall|in all", clause, re.I) else order[k - 1]), known[0]
    if re.search(r"\boverall\b|\bover (?:the (?:whole|entire|course)|time)|\bover (?:the |all |these )*\w+ (?:visits|scans)", reading.text, re.I):
        return order[0], order[-1]
    return order[-2], order[-1]


def trends(reading: Reading, case: Case) -> Claims:
    """Trends, clause by clause, each of what it is told of."""
    for start, clause in reading.clauses():
        said = claimed(clause)
        if (
            not said
            or re.search(r"\b(?:forecast|would|if|limits?|enough|predict\w*|expect\w*|project\w*|scenario|what.if)\b", clause, re.I)
            or reading.scenarios
        ):
            continue
        for track in subjects(reading, case, start, clause):
            for sign, sure in said.items():
                true = _sign(case, track, reading, start, sign)
                if true is None or (true == sign) != sure:
                    yield "trend", f"{track or 'all'}: {clause.strip()[:60]}"
                elif sure and _STEADY.search(clause):
                    steps = list(series(case, track).values())
                    if any((b - a) * sign < 0 for a, b in pairwise(steps)) or (
                        sign == 0 and any(abs(b / a - 1) > 0.1 for a, b in pairwise(steps) if a)
                    ):
                        yield "trend", f"{track}: {clause.strip()[:60]}"


def subjects(reading: Reading, case: Case, start: int, clause: str) -> list[str]:
    """Of what a clause tells a trend: lesions, the sum, or all together."""
    end = start + len(clause)
    named = [m.name for m in reading.lesions if start <= m.start < end]
    if not named and re.search(r"\bsums?\b|\bdiameters\b", clause, re.I):
        return ["sum"]
    if not named and re.search(r"volume of (?:all|the) lesions|total|together|combined|burden", clause, re.I):
        return ["total"]
    if not named and (organs_in(clause) or sides_in(clause)):
        named = sorted({k.track for k in case.lesions if lies(k.organ, clause, node=k.is_node)})
        if named:
            return named
    if not named and re.search(
        r"\b(?:all|both|every|each|neither|none|no)\s+(?:of the\s+)?(?:\d+ |three |two |target )?(?:lesions?|targets?|nodes?)", clause, re.I
    ):
        return list(case.targets) if "target" in clause.lower() else list(case.graph.tracks)
    if not named and re.search(r"\btarget lesions\b", clause, re.I):
        return list(case.targets)
    if not named and re.match(
        r"\s*(?:\d+|one|some|several|most)\s+(?:of\s+(?:the|these|those)\s+)?(?:\d+\s+)?(?:\w+\s+)?(?:lesions?|targets?|nodes?)", clause, re.I
    ):
        return []  # a count, which is looked up as such
    if not named and re.search(r"\b(?:volume|burden|total|disease|tumou?r)\b", clause, re.I):
        return ["total"]
    named = named or [m.name for m in reading.near(reading.lesions, start) if m.start < start]
    named = named or sorted(tracks_of_each(reading.text[:start], case))  # "In the right lung, a nodule has grown"
    return named or ["total"]


def _sign(case: Case, track: str, reading: Reading, place: int, claimed_sign: int) -> int | None:
    if track != "sum":
        return track_sign(case, track, reading, place) if track == "total" or track in case.graph.tracks else None
    values = series(case, "sum")
    if len(values) < 2:
        return None
    a, b = interval(reading, place, list(values), case)
    if a not in values or b not in values:
        return None
    if claimed_sign == 0:
        return 0 if abs(values[b] - values[a]) <= _STILL / 100 * values[a] else (1 if values[b] > values[a] else -1)
    return 1 if values[b] > values[a] else -1 if values[b] < values[a] else 0


def ranks(reading: Reading, case: Case) -> Claims:
    """Which is largest or smallest, and which is larger than which."""
    seen = [v.timepoint.timepoint_id for v in case.visits if v.found is not None]
    for start, clause in reading.clauses():
        place = re.search(
            r"\b(largest|biggest|dominant|smallest|(?:(?<=the )|(?<=The ))(?:larger|bigger|smaller)"
            r"(?= (?:of|one|lesion|node|mass|nodule|tumou?r)\b))\b(?!\s+sum)",
            clause,
            re.I,
        )
        named = [m.name for m in reading.lesions if start <= m.start < start + len(clause)]
        named = named or [name for name in [_single(case, clause, reading, start)] if name]
        at = [m.name for m in reading.near(reading.visits, start, following=True)] or seen[-1:]
        rows = {k.track: k for k in case.lesions if k.timepoint_id in at[-1:]}
        if place and named and rows:
            pick = min if place[1].lower().startswith("small") else max
            longest = {t: k.longest_mm or 0.0 for t, k in rows.items()}
            volume = {t: k.volume_mm3 or 0.0 for t, k in rows.items()}
            best = {pick(longest, key=longest.__getitem__), pick(volume, key=volume.__getitem__)}
            if not {named[0], named[-1]} & best:
                yield "trend", f"{place[1]}: {named[0]}"
        than = re.search(r"\b(larger|bigger|smaller)\s+than\s+", clause, re.I)
        if than is None:
            continue
        parts = ((clause[: than.start()], start), (clause[than.end() :], start + than.end()))
        sides = [_single(case, part, reading, offset) for part, offset in parts]
        if all(sides):
            a, b = (rows.get(name) for name in sides)
            sign = -1 if than[1].lower() == "smaller" else 1
            if a is None or b is None or sign * ((a.longest_mm or 0) - (b.longest_mm or 0)) <= 0:
                yield "trend", f"{sides[0]} {than[1]} than {sides[1]}"


def extremes(reading: Reading, case: Case) -> Claims:
    """At which visit the sum is said to have been least or greatest."""
    sums = series(case, "sum")
    for match in re.finditer(r"\b(smallest|lowest|least|minimum|largest|highest|greatest|maximum)\s+(?:\w+\s+)?sum\b|\bnadir\b", reading.text, re.I):
        if re.search(r"\b(?:since|from|above|over|than|to|against|below|of)\s+(?:its\s+|the\s+|their\s+)?$", reading.text[: match.start()], re.I):
            continue  # what something is compared with
        after = next((m for m in reading.visits if m.start >= match.end()), None)
        said = r"[^;]*?\b(?:was|is|reached|recorded|attained|observed|seen|found|occurr\w+|came|fell)\b[^;]{0,40}?\s*(?:at|on|in|by)?\s*(?:the\s+)?"
        if after is None or after.name not in sums or not re.fullmatch(said, reading.text[match.end() : after.start], re.I):
            continue
        greatest = (match[1] or "").lower() in ("largest", "highest", "greatest", "maximum")
        if sums[after.name] != (max if greatest else min)(sums.values()):
            yield "trend", reading.text[match.start() : after.end]


def _single(case: Case, text: str, reading: Reading, offset: int) -> str:
    """The one lesion that a part of a sentence is about; "" where it is none, or several."""
    named = {m.name for m in reading.lesions if offset <= m.start < offset + len(text)}
    if not named and organs_in(text):
        named = {k.track for k in case.lesions if lies(k.organ, text, node=k.is_node)}
    return named.pop() if len(named) == 1 else ""
