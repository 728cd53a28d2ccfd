"""Words of trends, as patterns, and which way they point."""

from __future__ import annotations

import re

UP = (
    r"grew|grown|grows?|growing|growth|increas\w*|enlarg\w*|larger|bigger|expand\w*|progress(?:ed|ing)|rose|risen|rises?|rising|worsen\w*|"
    r"higher|above|upwards?"
)
DOWN = (
    r"shr[aiu]nk\w*|decreas\w*|smaller|regress\w*|declin\w*|fell|fallen|falls?|reduc\w*|lower|dropp?\w*|diminish\w*|improv\w*|"
    r"below|lost|downwards?"
)
STILL = r"unchanged|stable|hardly changed|constant|did not change|no change|remained the same|plateau\w*|static"
#: Words that say of which kind a figure is.
SUM = re.compile(r"\bsums?\b|\btotal\b|diameters|target|burden|\bSLD\b|\bSOD\b", re.I)
CHANCE = re.compile(r"probab|likel|chance|certain|risk|confiden|odds", re.I)
ERROR = re.compile(r"deviation|error|uncertain|\bsd\b|\+/-|±|accura|precis|plus or minus|margin", re.I)
#: Units as people write them, in those of the case.
CONVERT = {("cm", "mm"): 0.1, ("mm3", "ml"): 1000.0, ("week", "day"): 1 / 7, ("month", "day"): 12 / 365.25, ("year", "day"): 1 / 365.25}
_NOT_TREND = re.compile(
    r"(?:disease|patient|case) (?:has |had )?progress\w*|"
    r"disease (?:is|was|remains|remained|has been) (?:\w+ ){0,2}stable|"
    r"(?:below|above|under|over|lower than|higher than|less than|more than) (?:the )?[+-]?\d[\d.,]*|"
    r"complete response|partial response|stable disease|progressive disease|disease progression|growth (?:rate|model|law|curve|cannot)|"
    r"(?:larger|smaller|bigger|higher|lower) than (?:L\d+|(?:the\s+)?(?:[a-z]+\s+){0,2}(?:lesion|tumou?r|one))|"
    r"the (?:larger|smaller|bigger) (?:of|one|lesion|target)\b|smaller lesions? (?:are|is) not listed|(?:upper|lower|middle) lobe",
    re.I,
)
_DENIED = r"(?:\bnot\b|n't\b|\bno\b|\bnever\b|\bwithout\b|\bneither\b|\bnor\b|\bhardly\b|\bnone\b)"
_BETWEEN = (
    r"(?:have|has|had|been|be|being|yet|further|any|significant\w*|clear\w*|relevant|measurabl\w*|more|of|the|it|them|these|target|lesions?|"
    r"signs?|evidence|to|is|are|was|were|seen)"
)


def plain(text: str) -> str:
    """Without words that only sound like trends."""
    return _NOT_TREND.sub(" ", text)


def claimed(text: str) -> dict[int, bool]:
    """Ways that a text says something went: 1, -1 or 0, each with whether it is said (True) or denied."""
    found: dict[int, bool] = {}
    words = plain(text)
    still = re.search(rf"\b(?:{STILL})\b", words, re.I)
    if still:
        found[0] = not re.search(rf"{_DENIED}\s+(?:\w+\s+){{0,2}}(?:unchanged|stable|constant|static)", words, re.I)
        words = re.sub(rf"\b(?:{STILL})\b", " ", words, flags=re.I)
    if re.search(rf"{_DENIED}\s+(?:{_BETWEEN}\s+)*chang(?:ed?|es|ing)\b", words, re.I):
        found[0] = True
    for sign, pattern in ((1, UP), (-1, DOWN)):
        if match := re.search(rf"\b(?:{pattern})\b", words, re.I):
            found[sign] = not re.search(rf"{_DENIED}\s+(?:{_BETWEEN}\s+)*$", words[: match.start()], re.I)
    return found


def sign_of(text: str) -> int | None:
    """The one way that a text says something went; None where it says none, or more than one."""
    said = [sign for sign, sure in claimed(text).items() if sure]
    return said[0] if len(said) == 1 else None
