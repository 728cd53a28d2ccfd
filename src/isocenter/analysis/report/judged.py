"""What every criterion says of every visit, and the best overall responses, as the tables and the coded outputs tell it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from isocenter.analysis.case import Case
from isocenter.analysis.response.visit import Response

#: Names of the criteria, and what the targets are summed in.
NAMES = {"recist_1.1": ("RECIST 1.1", "mm"), "irecist": ("iRECIST", "mm"), "mrecist": ("mRECIST", "mm"), "rano": ("RANO", "mm2")}
VOLUMETRIC = ("volumetric response", "mm3")


@dataclass(frozen=True)
class Judgement:
    """A visit by one criterion. unit: of the sum and its standard deviation sd. chances: 0..1 by category, for RECIST 1.1 alone."""

    criterion: str
    day: float
    category: str
    unit: str
    response: Response
    reasons: tuple[str, ...]
    sd: float | None = None
    chances: Mapping[str, float] = field(default_factory=dict)


def judgements(case: Case) -> list[Judgement]:
    """All of them, RECIST 1.1 first, each criterion's visits in their order."""
    made = []
    for key, responses in case.responses.items():
        name, unit = NAMES.get(key, VOLUMETRIC)
        first = key == "recist_1.1"
        for k, response in enumerate(responses):
            sd = case.sums_sd_mm[k] if first and k < len(case.sums_sd_mm) else None
            chances = {str(c): p for c, p in case.chances[k].items()} if first and k < len(case.chances) else {}
            made.append(Judgement(name, response.day, str(response.category), unit, response, response.reasons, sd, chances))
    name, unit = NAMES["irecist"]
    made += [Judgement(name, one.day, str(one.category), unit, one.recist, one.reasons) for one in case.irecist]
    return made


@dataclass(frozen=True)
class Best:
    """A best overall response by RECIST 1.1. why: what confirmation took away, where it did."""

    category: str
    confirmed: bool
    why: str = ""

    @property
    def words(self) -> str:
        return "best overall response, confirmed" if self.confirmed else "best overall response, without confirmation"


def best(case: Case) -> Iterator[Best]:
    """With confirmation, then without; nothing where there is one visit only."""
    why = next((note for note in case.notes if note.startswith("best overall response ")), "")
    for category, confirmed in ((case.best_overall, True), (case.best_seen, False)):
        if category is not None:
            yield Best(str(category), confirmed, why if confirmed else "")
