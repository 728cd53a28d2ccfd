"""Whether a text says only what a case holds: every number, name, side, category and trend is looked up.

A text that fails is repaired by leaving out the sentences that fail, or refused when too little is left. The check is strict
where a wrong word does harm (numbers, lesions, visits, sides, categories, trends, judgements that no measurement bears out) and silent on
style. What it cannot take apart it refuses: a true sentence may be lost, which does less harm than a wrong one that stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from isocenter.analysis.case import Case
from isocenter.analysis.narrative import claims, trends
from isocenter.analysis.narrative.factors import factors
from isocenter.analysis.narrative.facts import Fact, facts
from isocenter.analysis.narrative.language import foreign
from isocenter.analysis.narrative.numbers import wrong_numbers
from isocenter.analysis.narrative.reading import Mention, read
from isocenter.analysis.narrative.template import write

_PRONOUN = re.compile(r"\b(?:it|its|this lesion|that lesion|the lesion|the same lesion|the former|the latter)\b", re.I)

#: Characters of a sentence; a longer one is a model that repeats itself, and is not taken apart.
_LONGEST = 600
#: Shorter words of the case are no quotation.
_LEAST_QUOTE = 25


@dataclass(frozen=True)
class Problem:
    """What a sentence says that the case does not. kind: number, lesion, visit, side, category, trend or claim."""

    sentence: str
    kind: str
    what: str


@dataclass(frozen=True)
class Grounded:
    """A text after the check. repaired: sentences were left out. refused: too little was left, `text` is empty."""

    text: str
    problems: tuple[Problem, ...]
    repaired: bool
    refused: bool
    sentences: int = 0


def ground(text: str, case: Case, *, least: float = 0.5) -> Grounded:
    """Check a text; sentences with a problem are left out. Refused when less than `least` of the sentences stand."""
    sentences = [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z\d\"'(*-])|\n+", text.strip()) if s.strip()]
    problems: list[Problem] = []
    bad: set[int] = set()
    about: tuple[str, ...] = ()
    known = facts(case)
    for k, sentence in enumerate(sentences):
        found = check(sentence, case, about, known)
        problems += found
        if found:
            bad.add(k)
        named = tuple(m.name for m in read(sentence[:_LONGEST], case).lesions)
        # "It" is what was named last; without its sentence nobody knows what that was.
        about = named or (about if _PRONOUN.search(sentence) else ())
    kept = [s for k, s in enumerate(sentences) if k not in bad]
    refused = not kept or len(kept) < least * len(sentences)
    return Grounded("" if refused else " ".join(kept), tuple(problems), bool(bad) and not refused, refused, len(sentences))


def check(sentence: str, case: Case, about: tuple[str, ...] = (), known: Sequence[Fact] | None = None) -> list[Problem]:
    """What one sentence says that the case does not hold. about: the lesions that "it" stands for. known: `facts` of the case."""
    if len(sentence) > _LONGEST:
        return [Problem(sentence, "claim", f"more than {_LONGEST} characters without an end")]
    said = sentence
    for quote in _quotes(case):
        said = said.replace(quote, " ")
    reading = read(said, case)
    it = _PRONOUN.search(reading.text)
    inherited = about if it and not reading.lesions else ()
    if inherited and it:
        reading = reading.having([Mention(it.start(), it.end(), name) for name in inherited])
    found = list(reading.unknown)
    found += wrong_numbers(reading, case, facts(case) if known is None else known)
    found += claims.sides(reading, case)
    found += claims.new_lesions(reading, case)
    found += claims.presence(reading, case)
    found += trends.ranks(reading, case)
    found += trends.extremes(reading, case)
    found += claims.categories(reading, case)
    found += trends.trends(reading, case)
    found += factors(reading, case)
    found += claims.roles(reading, case)
    found += claims.courses(reading, case)
    found += claims.same_visit(reading)
    found += claims.unscanned(reading, case)
    found += claims.judgements(reading, case)
    found += foreign(reading, case)
    return [Problem(sentence, kind, what) for kind, what in dict.fromkeys(found)]


def _quotes(case: Case) -> list[str]:
    """What the case itself says in words, the longest first: reasons why something is not known, as they stand."""
    words = {reason for track in case.growth for reason in track.reasons}
    words |= {visit.reason for visit in case.visits if visit.reason}
    return sorted((w for w in words if len(w) >= _LEAST_QUOTE), key=len, reverse=True)


def grounded_template(case: Case) -> bool:
    """Whether the template's own text passes: the two are written apart and hold each other to account."""
    return not any(ground(text, case).problems for _, text in write(case).parts)
