"""Whether a text says only what a case holds: every number, name, side, category and trend is looked up.

A text that fails is repaired by leaving out the sentences that fail, or refused when too little is left. The check is strict
where a wrong word does harm (numbers, lesions, visits, sides, trends) and silent on style.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from isocenter.analysis.case import Case
from isocenter.analysis.narrative.template import write

#: Words that say which way something went, with the sign that they claim.
_TRENDS = {
    1: r"grew|grown|grow|growing|growth|increas\w*|enlarg\w*|larger|progress(?:ed|ing)|rose|risen",
    -1: r"shr[aiu]nk\w*|decreas\w*|smaller|regress\w*|declin\w*|fell|reduc\w*",
    0: r"unchanged|stable|hardly changed|constant",
}
_CATEGORIES = {
    "CR": r"complete response|\bCR\b",
    "PR": r"partial response|\bPR\b",
    "SD": r"stable disease|\bSD\b",
    "PD": r"progressive disease|progression|\bPD\b",
}
_UNIT = r"(mm³|mm\^?3|mm²|mm\^?2|millimet(?:er|re)s?|mm|cm|ml|millilit(?:er|re)s?|%|percent|days?|weeks?|hu)"
_NUMBER = re.compile(rf"(?<![\w.])([-+−]?\d+(?:[.,]\d+)?)\s*{_UNIT}?(?![\w])", re.I)
#: "12 to 15 mm", "12 x 15 mm": the unit of the first number comes after the second.
_SHARED = re.compile(rf"\s*(?:to|and|or|by|x|×|-|–)\s*[-+−]?\d+(?:[.,]\d+)?\s*{_UNIT}(?![\w])", re.I)
_UNITS = {"mm³": "mm3", "mm^3": "mm3", "mm²": "mm2", "mm^2": "mm2", "percent": "%", "days": "day", "weeks": "week", "": ""}
#: A change below this, in percent of a diameter or volume, is none.
_STILL = 10.0
#: Numbers in words, before what is counted.
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_LESION = r"\blesion\s+(?:number\s+|no\.\s*|#\s*)?(\d+)\b(?!\.\d|\s*(?:mm|cm|ml|x|×|%))"
_COUNTED = re.compile(rf"\b({'|'.join(_WORDS)})(?=(?:\s+[a-z-]+)?\s+(?:lesions?|scans?|visits?|targets?|nodes?)\b)", re.I)
_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_ORDINAL = re.compile(rf"\b({'|'.join(_ORDINALS)})\s+(?:visit|scan)\b", re.I)
_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b")
#: "doubled", by how much a volume or a diameter must then have changed, within a tenth.
_FACTORS = {2.0: r"doubled|twofold|two-fold", 3.0: r"tripled|threefold|three-fold", 0.5: r"halved|by half"}
_AHEAD = re.compile(r"forecast|predict|expect|project|interval|would|scenario|likely", re.I)
_NO_NEW = re.compile(r"\b(?:no|without|not any)\s+(?:\w+\s+){0,2}new\s+(?:\w+\s+)?lesions?", re.I)
_NEW = re.compile(r"\bnew\s+(?:\w+\s+)?lesions?", re.I)


@dataclass(frozen=True)
class Problem:
    """What a sentence says that the case does not. kind: number, lesion, visit, side, category or trend."""

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


@dataclass(frozen=True)
class _Fact:
    """A number of the case. unit as in the text; lesion and visit that it belongs to, "" for the whole.

    scenario: what-if that it belongs to, which the sentence must name. ahead: a forecast, which the sentence must call one.
    """

    value: float
    unit: str
    lesion: str = ""
    visit: str = ""
    scenario: str = ""
    ahead: bool = False


def ground(text: str, case: Case, *, least: float = 0.5) -> Grounded:
    """Check a text; sentences with a problem are left out. Refused when less than `least` of the sentences stand."""
    sentences = [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z\d])|\n+", text.strip()) if s.strip()]
    problems = [problem for sentence in sentences for problem in check(sentence, case)]
    bad = {p.sentence for p in problems}
    kept = [s for s in sentences if s not in bad]
    refused = not kept or len(kept) < least * len(sentences)
    return Grounded("" if refused else " ".join(kept), tuple(problems), bool(bad) and not refused, refused, len(sentences))


def check(sentence: str, case: Case) -> list[Problem]:
    """What one sentence says that the case does not hold."""
    found: list[Problem] = []
    lesions = re.findall(r"\bL\d+\b", sentence) + [f"L{n}" for n in re.findall(_LESION, sentence, re.I)]
    visits = [v.timepoint.timepoint_id for v in case.visits]
    named = [v for v in visits if re.search(rf"(?<![\w-]){re.escape(v)}(?![\w-])", sentence)]
    found += [Problem(sentence, "lesion", name) for name in lesions if name not in case.graph.tracks]
    for name in re.findall(r"\bvisit[- ]?\d+\b", sentence, re.I):
        if name.lower().replace(" ", "-") not in [v.lower() for v in visits]:
            found.append(Problem(sentence, "visit", name))
    for word in _ORDINAL.findall(sentence):
        place = _ORDINALS.index(word.lower())
        if place < len(visits):
            named.append(visits[place])
        else:
            found.append(Problem(sentence, "visit", f"{word} visit"))
    dates = {v.timepoint.scan_date.isoformat(): v.timepoint.timepoint_id for v in case.visits if v.timepoint.scan_date}
    for day in _DATE.findall(sentence):
        if day in dates:
            named.append(dates[day])
        else:
            found.append(Problem(sentence, "visit", day))
    fresh = any(lesion.is_new for lesion in case.lesions)
    denied, claimed = _NO_NEW.search(sentence), _NEW.search(sentence)
    if (denied and fresh) or (claimed and not denied and not fresh and not re.search(r"\b(if|whether|would)\b", sentence, re.I)):
        found.append(Problem(sentence, "lesion", "new lesions"))
    organs = " ".join(lesion.organ or "" for lesion in case.lesions).lower()
    found += [Problem(sentence, "side", side) for side in re.findall(r"\b(?:left|right|bilateral)\b", sentence.lower()) if side not in organs]
    found += _numbers(sentence, case, set(lesions), set(named))
    found += _categories(sentence, case, named)
    found += _trend(sentence, case, lesions)
    found += _factors(sentence, case, lesions)
    return found


def _numbers(sentence: str, case: Case, lesions: set[str], visits: set[str]) -> list[Problem]:
    known = facts(case)
    plain = re.sub(_LESION, " ", re.sub(r"\bL\d+\b|RECIST 1\.1|RANO|iRECIST", " ", sentence), flags=re.I)
    plain = _DATE.sub(" ", plain)
    named = {name for name in _scenarios(case) if re.search(re.escape(name).replace("_", "[_ -]"), plain, re.I)}
    for name in named:
        plain = re.sub(re.escape(name).replace("_", "[_ -]"), " ", plain, flags=re.I)
    known = [f for f in known if (not f.scenario or f.scenario in named) and (not f.ahead or _AHEAD.search(sentence))]
    plain = _COUNTED.sub(lambda m: str(_WORDS.index(m[1].lower())), plain)
    for visit in sorted((v.timepoint.timepoint_id for v in case.visits), key=len, reverse=True):
        plain = plain.replace(visit, " ")
    problems = []
    for match in _NUMBER.finditer(plain):
        shared = _SHARED.match(plain, match.end()) if not match[2] else None
        text, unit = match[1].replace("−", "-").replace(",", "."), (match[2] or (shared[1] if shared else "")).lower()
        unit = "mm" if unit.startswith("millimet") else "ml" if unit.startswith("millilit") else _UNITS.get(unit, unit)
        before = plain[: match.start()].rstrip().lower()
        if not unit and re.search(r"\b(days?|weeks?)$", before):
            unit = "week" if re.search(r"weeks?$", before) else "day"
        if not any(_same(text, unit, fact, lesions, visits) for fact in known):
            problems.append(Problem(sentence, "number", match[0].strip()))
    return problems


def _same(text: str, unit: str, fact: _Fact, lesions: set[str], visits: set[str]) -> bool:
    """Whether a printed number is this fact, rounded as it is printed, of a lesion and visit that the sentence names."""
    value, scale = fact.value, 1.0
    if unit != fact.unit:
        # The same length or volume in the other unit.
        scales = {("cm", "mm"): 0.1, ("mm3", "ml"): 1000.0, ("week", "day"): 1 / 7}
        if (unit, fact.unit) not in scales:
            return False
        scale = scales[(unit, fact.unit)]
    if (fact.lesion and lesions and fact.lesion not in lesions) or (fact.visit and visits and fact.visit not in visits):
        return False
    digits = len(text.split(".")[1]) if "." in text else 0
    wanted = value * scale
    if text[0] not in "+-":
        wanted = abs(wanted) if unit == "%" else wanted
    return abs(float(text) - wanted) <= 0.5 * 10.0**-digits + 1e-9


def facts(case: Case) -> list[_Fact]:
    """Every number that a text about the case may hold."""
    found = [_Fact(v.timepoint.day, "day", visit=v.timepoint.timepoint_id) for v in case.visits]
    seen = [v for v in case.visits if v.found is not None]
    counts = {len(case.graph.tracks), len(seen), len(case.visits), len(case.targets), len(case.visits) - len(seen)}
    found += [_Fact(float(c), "") for c in counts]
    for visit in case.visits:
        name = visit.timepoint.timepoint_id
        here = case.at(name)
        found += [_Fact(float(len(here)), "", visit=name), _Fact(sum(k.volume_mm3 or 0 for k in here) / 1000, "ml", visit=name)]
        for k in here:
            sizes = (
                ("mm", k.longest_mm),
                ("mm", k.short_axis_mm),
                ("mm", k.max_3d_diameter_mm),
                ("mm", k.sd_mm),
                ("mm2", k.who_product_mm2),
                ("hu", k.mean),
            )
            found += [_Fact(value, unit, k.track, name) for unit, value in sizes if value is not None]
            found += [_Fact(k.volume_mm3 / 1000, "ml", k.track, name)] if k.volume_mm3 is not None else []
    for response, chances in zip(case.responses.get("recist_1.1", ()), [*case.chances, *[{}] * 999], strict=False):
        sums = (
            ("mm", response.sum),
            ("mm", response.baseline),
            ("mm", response.nadir),
            ("%", response.percent_baseline),
            ("%", response.percent_nadir),
        )
        found += [_Fact(value, unit) for unit, value in sums if value is not None]
        found += [_Fact(100 * p, "%") for p in chances.values()]
    for track in case.growth:
        lesion = "" if track.track == "total" else track.track
        volumes = [(d, v) for d, v in zip(track.days, track.volumes_mm3, strict=True) if v]
        pairs = pairwise(volumes)
        found += [_Fact(100 * (b / a - 1), "%", lesion) for (_, a), (_, b) in pairs]
        if track.forecast is not None:
            path = track.forecast
            found += [_Fact(100 * path.level, "%", ahead=True), *(_Fact(float(d), "day", ahead=True) for d in path.days)]
            curves = (path.median_mm3, path.low_mm3, path.high_mm3)
            found += [_Fact(float(v) / 1000, "ml", lesion, ahead=True) for curve in curves for v in curve]
        for scenario in track.scenarios:
            # What a scenario comes to; every point of its curve would let nearly any volume pass.
            ends = (scenario.median_mm3[-1], scenario.low_mm3[-1], scenario.high_mm3[-1])
            found += [_Fact(float(v) / 1000, "ml", lesion, scenario=scenario.name) for v in ends]
            found += [_Fact(100 * scenario.level, "%", scenario=scenario.name), _Fact(float(scenario.days[-1]), "day", scenario=scenario.name)]
    return found


def _scenarios(case: Case) -> set[str]:
    return {s.name for track in case.growth for s in track.scenarios}


def _factors(sentence: str, case: Case, lesions: list[str]) -> list[Problem]:
    """What says "doubled" and the like: some two visits of what is named must bear it out."""
    problems = []
    for factor, words in _FACTORS.items():
        if not re.search(rf"\b(?:{words})\b", sentence, re.I):
            continue
        tracks = set(lesions) or {"total"}
        series = [[v for v in g.volumes_mm3 if v] for g in case.growth if g.track in tracks]
        for track in set(lesions):
            series.append([k.longest_mm for k in case.lesions if k.track == track and k.longest_mm])
        series.append([r.sum for r in case.responses.get("recist_1.1", ()) if r.sum])
        ratios = [b / a for values in series for i, a in enumerate(values) for b in values[i + 1 :]]
        if not any(abs(r / factor - 1) <= 0.1 for r in ratios):
            problems.append(Problem(sentence, "trend", words.split("|", 1)[0]))
    return problems


def _categories(sentence: str, case: Case, visits: Iterable[str]) -> list[Problem]:
    """Categories that no visit (or, where visits are named, none of those) and no overall judgement has."""
    named = set(visits)
    days = {v.timepoint.day for v in case.visits if v.timepoint.timepoint_id in named}
    known = {str(r.category) for r in case.responses.get("recist_1.1", ()) if not days or r.day in days}
    if not days or re.search(r"overall|best", sentence, re.I):
        known |= {str(case.best_overall)}
    likely = re.search(r"probab|likel|chance|could|may\b", sentence, re.I)
    for chances in case.chances if likely else ():
        known |= {str(c) for c in chances}
    denied = re.search(r"\b(no|not|without|neither)\b", sentence, re.I)
    return [
        Problem(sentence, "category", category)
        for category, words in _CATEGORIES.items()
        if re.search(words, sentence, re.I if " " in words else 0) and category not in known and not denied
    ]


def _trend(sentence: str, case: Case, lesions: list[str]) -> list[Problem]:
    """A trend is checked against the last change of the lesion that is named, or of all together."""
    plain = re.sub("|".join(_CATEGORIES.values()) + r"|growth rate|growth cannot", " ", sentence, flags=re.I)
    claimed = {sign for sign, words in _TRENDS.items() if re.search(rf"\b(?:{words})\b", plain, re.I)}
    if len(claimed) != 1 or re.search(r"\b(forecast|would|if|limits?|enough)\b", plain, re.I):
        return []
    track = next((g for g in case.growth if g.track == (lesions[0] if len(set(lesions)) == 1 else "total")), None)
    if track is None:
        return []
    volumes = [v for v in track.volumes_mm3 if v is not None]
    if len(volumes) < 2 or not volumes[0]:
        return []
    since = re.search(r"baseline|overall|first", plain, re.I)
    before = volumes[0] if since else volumes[-2]
    change = 100 * (volumes[-1] / before - 1) if before else 100.0
    true = 1 if change > _STILL else -1 if change < -_STILL else 0
    between = {1 if b > a else -1 for a, b in pairwise(volumes) if a}
    if re.search(r"\bday|visit|scan", plain, re.I) and claimed <= between:
        return []  # a change between two visits that the case has somewhere
    return [] if claimed == {true} else [Problem(sentence, "trend", f"{change:+.0f} %")]


def grounded_template(case: Case) -> bool:
    """Whether the template's own text passes: the two are written apart and hold each other to account."""
    return not any(ground(text, case).problems for _, text in write(case).parts)
