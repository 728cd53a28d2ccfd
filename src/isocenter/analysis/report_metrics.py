"""A generated report against a reference: overlap of words by kept libraries, and a check of what a wrong word would cost.

The check compares measurements, sides and negations. It reads sentences by rules, not by understanding: it is there to
point a reader at a place, not to pass a report.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

#: Factors to one unit a kind of quantity: millimetres, millilitres.
_UNITS = {"mm": ("mm", 1.0), "cm": ("mm", 10.0), "m": ("mm", 1000.0), "ml": ("ml", 1.0), "cc": ("ml", 1.0), "l": ("ml", 1000.0)}
_UNITS |= {u: (u, 1.0) for u in ("hu", "%", "mg", "g", "kg", "suv", "mmhg", "bpm", "years", "months", "weeks", "days")}
_UNITS |= {"millimeter": ("mm", 1.0), "millimetre": ("mm", 1.0), "centimeter": ("mm", 10.0), "centimetre": ("mm", 10.0), "percent": ("%", 1.0)}
_UNIT = "|".join(sorted((f"{re.escape(u)}s?" for u in _UNITS), key=len, reverse=True))
_NUMBER = r"\d+(?:[.,]\d+)?"
#: "3 x 4 x 5 mm" has its unit at the end; it is that of all its numbers.
_QUANTITY = re.compile(rf"(?<![\w.])({_NUMBER}(?:\s*[x×]\s*{_NUMBER})*)\s*-?({_UNIT})?(?![\w])", re.IGNORECASE)
_SIDES = {"left": "left", "right": "right", "bilateral": "both", "bilaterally": "both", "both": "both"}
_NEGATIONS = re.compile(r"\b(no|not|without|absence of|absent|free of|negative for|denies|never|neither|nor|resolved|ruled out)\b", re.IGNORECASE)
#: Where the reach of a negation ends.
_TURNS = re.compile(r"[.;:]|\b(but|however|although|though|except|aside from|apart from)\b", re.IGNORECASE)
_COMMON = frozenset(
    """a an and or the of in on at to for with without within by from as is are was were be been has have had this that these those there it its
    no not nor neither never absence absent free negative denies resolved ruled out evidence seen noted identified demonstrated appears appear
    right left both bilateral bilaterally new stable unchanged measuring measures size mm cm ml cc hu""".split()  # noqa: SIM905 - readable
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
    return [*_numbers(candidate, reference), *_sides(candidate, reference), *_negations(candidate, reference)]


def _quantities(text: str) -> list[tuple[float, str, str]]:
    """(value in its kind's one unit, that unit, as written) of each number."""
    found = []
    for match in _QUANTITY.finditer(text):
        written = (match[2] or "").lower()
        unit, factor = _UNITS.get(written) or _UNITS.get(written.removesuffix("s")) or ("", 1.0)
        for number in re.findall(_NUMBER, match[1]):
            value = float(number.replace(",", "."))
            found.append((round(value * factor, 6), unit, f"{number} {match[2] or ''}".strip()))
    return found


def _numbers(candidate: str, reference: str) -> Iterator[Difference]:
    theirs, ours = _quantities(reference), _quantities(candidate)
    lacking = Counter((v, u) for v, u, _ in theirs) - Counter((v, u) for v, u, _ in ours)
    extra = Counter((v, u) for v, u, _ in ours) - Counter((v, u) for v, u, _ in theirs)
    shown = {(v, u): w for v, u, w in [*ours, *theirs]}
    bare = {key: shown[key].split()[0] for key in shown}
    for key in list(lacking.elements()):
        # The same digits with another unit are a slip of the unit, the worst kind.
        twin = next((k for k in extra.elements() if bare[k] == bare[key]), None)
        if twin is not None:
            extra[twin] -= 1
            lacking[key] -= 1
            yield Difference("unit", bare[key], shown[key], shown[twin])
    yield from (Difference("number", shown[key], shown[key], None) for key in lacking.elements())
    yield from (Difference("number", shown[key], None, shown[key]) for key in extra.elements())


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z][a-z-]*", text.lower())


def _located(text: str) -> dict[str, set[str]]:
    """Sides by the two words of substance that follow them."""
    found: dict[str, set[str]] = {}
    for sentence in re.split(r"[.;\n]", text):
        words = _words(sentence)
        for index, word in enumerate(words):
            if word in _SIDES:
                for place in [w for w in words[index + 1 : index + 5] if w not in _COMMON][:2]:
                    found.setdefault(place.removesuffix("s"), set()).add(_SIDES[word])
    return found


def _sides(candidate: str, reference: str) -> Iterator[Difference]:
    theirs, ours = _located(reference), _located(candidate)
    for place in theirs:
        # Agreement on one side is enough: a report may name a place twice.
        if place in ours and not theirs[place] & ours[place]:
            yield Difference("laterality", place, ", ".join(sorted(theirs[place])), ", ".join(sorted(ours[place])))


def _polarities(text: str) -> dict[str, set[bool]]:
    """Each word of substance, and whether it stands under a negation (True), outside of one (False), or both."""
    found: dict[str, set[bool]] = {}
    for sentence in re.split(r"[.\n]", text):
        start = 0
        for end in [*(m.end() for m in _TURNS.finditer(sentence)), len(sentence)]:
            clause, start = sentence[start:end], end
            cue = _NEGATIONS.search(clause)
            before, after = (clause, "") if cue is None else (clause[: cue.start()], clause[cue.end() :])
            for part, negated in ((before, False), (after, True)):
                for word in _words(part):
                    if word not in _COMMON and len(word) > 2:
                        found.setdefault(word.removesuffix("s"), set()).add(negated)
    return found


def _negations(candidate: str, reference: str) -> Iterator[Difference]:
    theirs, ours = _polarities(reference), _polarities(candidate)
    say = {True: "negated", False: "affirmed"}
    for word in theirs:
        if word in ours and len(theirs[word]) == len(ours[word]) == 1 and theirs[word] != ours[word]:
            yield Difference("negation", word, say[next(iter(theirs[word]))], say[next(iter(ours[word]))])


def overlap(candidate: str, reference: str) -> dict[str, float]:
    """ROUGE-L F (0..1), BLEU and chrF (0..100). Raises `ImportError` without the libraries that define them."""
    import sacrebleu
    from rouge_score import rouge_scorer

    rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False).score(reference, candidate)["rougeL"].fmeasure
    return {
        "rouge_l": float(rouge),
        "bleu": float(sacrebleu.sentence_bleu(candidate, [reference]).score),
        "chrf": float(sacrebleu.sentence_chrf(candidate, [reference]).score),
    }


def compare(candidate: str, reference: str) -> dict[str, Any]:
    """All of the above for one pair, as plain data; a metric whose library is missing is null, with the reason."""
    differences = [asdict(d) for d in clinical(candidate, reference)]
    result: dict[str, Any] = {"rouge_l": None, "bleu": None, "chrf": None, "clinical": {"agree": not differences, "differences": differences}}
    try:
        result.update(overlap(candidate, reference))
    except ImportError:
        result["reason"] = "ROUGE, BLEU and chrF need: pip install 'isocenter[reports]'"
    return result
