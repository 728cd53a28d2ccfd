"""What a sentence claims in words: where lesions lie, which are new or gone, which is largest, categories, trends, judgements.

Each check yields kind and words of what the case does not bear out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from isocenter.analysis.case import Case
from isocenter.analysis.narrative.language import says_not_known
from isocenter.analysis.narrative.places import lies, organs_in, sides_in
from isocenter.analysis.narrative.reading import Reading
from isocenter.analysis.narrative.words import claimed

Claims = Iterator[tuple[str, str]]
_CATEGORIES = {
    "CR": r"complete(?:ly)? (?:imaging )?respon\w+|respond\w* complete(?:ly)?",
    "PR": r"partial(?:ly)? respon\w+|respond\w* partial(?:ly)?",
    "SD": r"stable disease|disease (?:is|was|remains|remained|has been) (?:\w+ ){0,2}stable",
    "PD": r"progressive disease|(?:disease|patient|case) (?:has |had )?progress(?:ed|es)|disease progression|\bprogression\b",
    "NE": r"not evaluable|inevaluable",
}
_NOT = r"(?:\bno\b|\bnot\b|n't\b|\bwithout\b|\bneither\b|\bnor\b|\bnever\b|\bnone\b|\babsen\w+|\brul\w+ out)"
_NO_CATEGORY = re.compile(
    rf"{_NOT}(?:\s+(?:a|an|any|the|yet|signs?|of|evidence|had|have|has|shown?|been|criteria|for|confirmed|reach\w*|met|meet)){{0,5}}\s*$", re.I
)
_THRESHOLD = re.compile(r"\b(?:(?:needed|required|necessary)\s+for|(?:threshold|limit|cut-?off)\s+(?:for|of)|short\s+of)\s+(?:an?\s+|the\s+)?$", re.I)
_UNCONFIRMED = re.compile(
    rf"\s+(?:(?:has|have|had|was|is|were|remains?)\s+)?(?:yet\s+)?(?:{_NOT}\s+(?:yet\s+|been\s+)*(?:re)?confirmed|unconfirmed)", re.I
)
#: Judgements that no measurement of lesions bears out.
_JUDGEMENTS = re.compile(
    r"\b(?:cur(?:e|ed|es|ative)|remission|metasta\w+|malignan\w+|benign|surviv\w+|prognos\w+|recommend\w*|advis\w+|advice|should|must be|"
    r"died|dead|death|fatal|surgery|surgical\w*|resect\w+|biops\w+|symptom\w*|pain\w*|he|she|his|her|male|female|man|woman|year-old|necro\w+|calcif\w+|"
    r"o?edema\w*|ha?emorrhag\w+|cavit\w+|invad\w+|invasi\w+|effective\w*|efficacy|benefit\w*|toxic\w*|because|due to|"
    r"caused by|thanks to|as a result of|in response to|accelerat\w*|decelerat\w*|slow(?:ed|ing|s)?|faster|rapid\w*|aggressive\w*|exponentially|"
    r"stage|grade|responded well|well tolerated|resistan(?:t|ce)|fail(?:ed|ure)|treatable|hopeless|urgent\w*|emergency|harmless|dangerous)\b",
    re.I,
)
#: Advice as an order: "Stop the chemotherapy".
_ORDER = re.compile(
    r"^\W*(?:please\s+|now\s+)?(?:stop|start|begin|continue|increase|reduce|lower|raise|double|halve|switch|change|give|administer|consider|schedule|order|"
    r"perform|repeat|discontinue|refer|take|avoid|keep|resume|delay|add)\s+(?:the|an?|his|her|their|all|any|this|that|to|chemo\w*|radio\w*|immuno\w*|"
    r"treatment|therapy|dose|drugs?)\b(?!\s+of\b)",
    re.I,
)
#: Looks, tissues and diagnoses, by their stems and endings: none of them was measured.
_LOOKS = re.compile(
    r"\b(?:(?!diagnosis|prognosis)[a-z]{3,}(?:omas?|omata|omatous|itis|osis|pathy|pathies|plasia|plastic)|margins?|spicul\w+|lobulat\w+|enhanc\w+|"
    r"(?:homo|hetero)gen\w+|(?:hypo|hyper|iso)\w*(?:dense|echoic|intense|metabolic|vascular)|ground.?glass|effusions?|infiltrat\w+|cystic|cysts?|"
    r"infect\w+|inflam\w+|abscess\w*|emboli\w*|ascites|primary|secondary|suspicious|suspect\w*|differential|adenopathy|tumou?r markers?)\b",
    re.I,
)
_TREATMENTS = {
    "chemo": r"chemo\w*",
    "radi": r"radiotherapy|radiation|irradiat\w+",
    "immun": r"immuno\w+|checkpoint",
    "surg": r"operated|operation",
    "target": r"targeted therapy",
    "horm": r"hormon\w+",
}
_GONE = re.compile(r"\b(?:disappear\w*|vanish\w*|resolv\w*|gone|no longer (?:visible|seen|detect\w+|present|there)|eradicat\w*|cleared)\b", re.I)
_BACK = re.compile(r"\b(?:return\w*|reappear\w*|recur\w*|came back|relaps\w*)\b", re.I)
_THERE = re.compile(r"\b(?:seen|found|detected|visible|present|identified|appeared|observed|noted)\b", re.I)
_ABSENT = re.compile(r"\b(?:absent|missing|invisible|undetectable|not there)\b", re.I)
_NOTHING = re.compile(
    r"\b(?:nothing|no\s+(?:\w+\s+)?(?:lesions?|tumou?rs?))\s+(?:\w+\s+){0,3}?(?:seen|found|visible|detect\w*|left|remain\w*|present|measur\w*)\b",
    re.I,
)
_IS_AT = (
    r"\s*(?:\(|(?:scan|visit|examination)?\s*(?:(?:was|is|took place|occurred|(?:was|is) (?:made|done|performed|acquired))\s*)?"
    r"(?:on|of|dated|=|was|is)\s*)(?:the\s+)?"
)
_STARTS = re.compile(r"\b(?:start|began|begun|begin|initiat|commenc)\w*\b", re.I)
_ENDS = re.compile(r"\b(?:stopp?|end|finish|complet|discontinu|until|ceas)\w*\b", re.I)
_NEW = re.compile(
    r"\bnew(?:ly)?\b(?:\s+\w+){0,2}?\s+(?:lesions?|nodules?|mass(?:es)?|findings?|tumou?rs?|disease|one)\b|\bappear(?:ed|s|ing)\b|\bemerged?\b", re.I
)


def sides(reading: Reading, case: Case) -> Claims:
    """Organs and sides: of the lesions that are named with them, or of some lesion."""
    organs = {(k.organ, k.is_node) for k in case.lesions}
    for start, clause in reading.clauses():
        if not organs_in(clause) and not sides_in(clause):
            continue
        named = {m.name for m in reading.lesions if start <= m.start < start + len(clause)} or {m.name for m in reading.near(reading.lesions, start)}
        for organ in re.findall(r"\bboth (lungs|kidneys|breasts|adrenals|ovaries)\b", clause, re.I):
            (stem, *_) = organs_in(organ) or [organ]
            if not all(any(lies(o, f"{side} {stem}", node=n) for o, n in organs) for side in ("left", "right")):
                yield "side", f"both {organ}"
        several = len(re.findall(r"\b(?:left|right)\b", clause, re.I)) > 1 or len(set(organs_in(clause))) > 1
        if several and len(named) != 1:
            # Each place by itself: a side goes with the organ after it.
            texts = [m[0] for m in re.finditer(r"(?:\b(?:left|right)[-\s]+)?\b\w+\b", clause, re.I) if organs_in(m[0])]
        else:
            texts = [clause]
        for text in texts:
            rows = [k for k in case.lesions if not named or k.track in named]
            owners = {k.track for k in rows if lies(k.organ, text, node=k.is_node)}
            if re.search(r"\bno\s+(?:\w+\s+)?(?:lesions?|tumou?rs?)\b(?!\s+\w*(?:grew|shrank|chang|increas|decreas))", clause, re.I):
                if owners and "new" not in clause.lower():
                    yield "side", f"no lesion: {' '.join(organs_in(text))}"
                continue
            if (
                not named
                and not claimed(clause)
                and re.search(r"\b(?:all|every|each|only)\b(?:\s+\w+){0,2}\s+lesions?\b|\bonly\b|(?:confined|limited|restricted) to", clause, re.I)
            ):
                named_all = owners == set(case.graph.tracks)
            else:
                named_all = True
            if (
                not named_all
                or (named and not several and owners != named & set(case.graph.tracks))
                or not owners
                or not any(lies(o, text, node=n) for o, n in organs)
            ):
                yield "side", " ".join(dict.fromkeys([*sides_in(text), *organs_in(text)]))


def new_lesions(reading: Reading, case: Case) -> Claims:
    """Whether there are new lesions, and which."""
    fresh = {k.track for k in case.lesions if k.is_new}
    for start, clause in reading.clauses():
        named = {m.name for m in reading.lesions if start <= m.start < start + len(clause)}
        said = _NEW.search(clause) or (re.search(r"\bnew\b", clause, re.I) if named else None)
        if not said or re.search(r"\b(?:if|whether|would)\b", clause, re.I):
            continue
        before = clause[: said.start()]
        after = clause[said.end() :]
        denied = re.search(rf"{_NOT}(?:\s+\w+){{0,3}}\s*$", before, re.I) or re.match(rf"\s+(?:\w+\s+){{0,2}}(?:{_NOT})", after, re.I)
        visits = {m.name for m in reading.near(reading.visits, start + said.start(), following=True) if not m.reference}
        there = {k.track for k in case.lesions if k.is_new and (not visits or k.timepoint_id in visits)}
        told = bool(named & fresh) if denied else not named <= fresh
        if told if named else bool(there) == bool(denied):
            yield "lesion", said[0].strip()


def presence(reading: Reading, case: Case) -> Claims:
    """Lesions that are said to be seen, gone, or back, and nothing that is said to be seen."""
    seen = [v.timepoint.timepoint_id for v in case.visits if v.found is not None]
    for start, clause in reading.clauses():
        visits = [m.name for m in reading.near(reading.visits, start, following=True) if not m.reference]
        if (none := _NOTHING.search(clause)) and not re.search(r"\bnew\b", none[0], re.I) and any(case.at(v) for v in visits or seen[-1:]):
            yield "lesion", none[0]
        for match in _THERE.finditer(clause):
            named = {m.name for m in reading.lesions if start <= m.start < start + match.start()}
            if not named and organs_in(clause):
                named = {k.track for k in case.lesions if lies(k.organ, clause, node=k.is_node)}
            denied = re.search(rf"{_NOT}(?:\s+\w+){{0,3}}\s*$", clause[: match.start()], re.I)
            if not named or not visits or re.search(r"\b(?:before|until|till|prior|since|from)\b", clause, re.I):
                continue
            for track in named:
                there = [v for v in seen if any(k.track == track for k in case.at(v))]
                wrong = any((v in there) == bool(denied) for v in visits)
                if wrong or (re.search(r"\bfirst\s*$", clause[: match.start()], re.I) and visits[0] != (there or [""])[0]):
                    yield "lesion", f"{track} {match[0]}"
        yield from _absent(reading, case, start, clause, visits, seen)
        back = _BACK.search(clause)
        went = _GONE.search(clause) or back
        if went is None:
            continue
        denied = re.search(rf"{_NOT}(?:\s+\w+){{0,3}}\s*$", clause[: went.start()], re.I)
        named = {m.name for m in reading.near(reading.lesions, start)}
        tracks = named or set(case.graph.tracks)
        absent = {t for t in tracks if all(not any(k.track == t for k in case.at(v)) for v in visits or seen[-1:])}
        if re.search(r"\b(?:all|every|both|each)\b", clause, re.I) and not named:
            true = absent == tracks
        else:
            true = absent == named if named else bool(absent)
        if back is not None:
            true = any(_returned(case, t, seen) for t in tracks)
        if true == bool(denied):
            yield "lesion", went[0]


def _absent(reading: Reading, case: Case, start: int, clause: str, visits: Sequence[str], seen: Sequence[str]) -> Claims:
    """Lesions that are said to be missing at a visit (the last, where none is named), or to be so for the first time."""
    for match in _ABSENT.finditer(clause):
        named = {m.name for m in reading.lesions if start <= m.start < start + match.start()}
        if not named and organs_in(clause):
            named = {k.track for k in case.lesions if lies(k.organ, clause, node=k.is_node)}
        denied = re.search(rf"{_NOT}(?:\s+\w+){{0,2}}\s*$", clause[: match.start()], re.I)
        for track in named:
            there = [any(k.track == track for k in case.at(v)) for v in seen]
            wrong = any(there[seen.index(v)] != bool(denied) for v in visits or seen[-1:] if v in seen)
            if re.search(r"\bfirst\s*$", clause[: match.start()], re.I) and visits:
                since = [v for before, now, v in zip(there, there[1:], seen[1:], strict=False) if before and not now]
                wrong = wrong or visits[0] not in since[:1]
            if wrong:
                yield "lesion", f"{track} {match[0]}"


def _returned(case: Case, track: str, seen: Sequence[str]) -> bool:
    there = [any(k.track == track for k in case.at(v)) for v in seen]
    return any(not b and any(there[:i]) and any(there[i:]) for i, b in enumerate(there))


def named_categories(text: str) -> set[str]:
    """Categories of response that a text names."""
    return {category for category, _ in _said(text)}


def _said(text: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Categories in words, and as they are abbreviated, in capitals only."""
    for category, words in _CATEGORIES.items():
        yield from ((category, m) for m in re.finditer(words, text, re.I))
        yield from ((category, m) for m in re.finditer(rf"\b{category}\b", text))


def categories(reading: Reading, case: Case) -> Claims:
    """Categories of response: of the visits that they stand with, of any where none is named, or the best of all."""
    responses = case.responses.get("recist_1.1", ())
    days = {v.timepoint.timepoint_id: v.timepoint.day for v in case.visits}
    for start, clause in reading.clauses():
        for category, match in _said(clause):
            place = start + match.start()
            visits = {m.name for m in reading.near(reading.visits, place, following=True) if not m.reference}
            if re.search(r"\b(?:last|final|latest|current\w*|present\w*|now)\b", clause, re.I) and not visits:
                visits = {v for v, day in days.items() if responses and day == responses[-1].day}
            overall = re.search(r"\bbest\b|confirmed", clause, re.I) or (not visits and re.search(r"overall", clause, re.I))
            if re.search(
                r"\b(?:both|all|every|each)\s+(?:of the\s+)?(?:follow-?up\s+)?(?:visits?|scans?|follow-?ups?)|\bthroughout\b|\balways\b", clause, re.I
            ):
                visits = {v for v, day in days.items() if any(r.day == day for r in responses)}
            asked = {days[v] for v in visits} if visits and not overall else set()
            known = [str(r.category) for r in responses if not asked or r.day in asked]
            if overall or not asked:
                known = [*([] if overall else known), str(case.best_overall)]
            chances = [(c, p) for r, c_p in zip(responses, case.chances, strict=False) if not asked or r.day in asked for c, p in c_p.items()]
            mine = [p for c, p in chances if str(c) == category]
            denied = _NO_CATEGORY.search(clause[: match.start()])
            # Without names: May is a month, too.
            words = reading.masked[start : start + len(clause)]
            if _THRESHOLD.search(clause[: match.start()]):
                continue  # a limit's name: "the 30 % needed for a partial response"
            if _UNCONFIRMED.match(clause[match.end() :]) or re.search(r"\bunconfirmed\s+$", clause[: match.start()], re.I):
                right = any(str(r.category) == category for r in responses) and str(case.best_overall) != category
            elif re.search(r"\bunlikely|improbable\b", words, re.I):
                right = not mine or max(mine) < 0.5
            elif re.search(r"\blikely|probabl[ey]\b", words, re.I) and not re.search(r"\d", words):
                right = bool(mine) and max(mine) >= 0.5
            elif re.search(r"probab|likel|chance|could|may\b|might|possib", words, re.I) or (
                re.search(r"probab|likel|chance", reading.text, re.I) and re.search(r"\d\s*%", clause)
            ):
                right = bool(mine) or category in known
            elif denied:
                right = category not in known
            else:
                # Of several visits it must be that of each.
                each = all(any(r.day == day and str(r.category) == category for r in responses) for day in asked)
                right = each if asked else category in known
            if not right:
                yield "category", category


def judgements(reading: Reading, case: Case) -> Claims:
    """What is no measurement: advice, causes, fates, and treatments that nobody gave."""
    if says_not_known(reading.text):
        return
    if order := _ORDER.match(reading.text):
        yield "claim", order[0]
    yield from (("claim", match[0]) for match in _JUDGEMENTS.finditer(reading.text))
    own = " ".join([*(k.organ or "" for k in case.lesions), *case.names.values(), *(t.therapy_type for t in case.patient.therapies)]).lower()
    yield from (("claim", match[0]) for match in _LOOKS.finditer(reading.text) if match[0].lower() not in own)
    given = " ".join(t.therapy_type.lower() for t in case.patient.therapies)
    for stem, words in _TREATMENTS.items():
        if (match := re.search(rf"\b(?:{words})\b", reading.text, re.I)) and stem not in given:
            yield "claim", match[0]


def unscanned(reading: Reading, case: Case) -> Claims:
    """What a visit without a scan is said to have shown."""
    without = {v.timepoint.timepoint_id for v in case.visits if v.found is None}
    for start, clause in reading.clauses():
        here = [m for m in reading.visits if start <= m.start < start + len(clause) and m.name in without and not m.reference]
        shown = re.search(r"\b(?:show\w*|reveal\w*|demonstrat\w*|seen|measur\w*|grew|shr[aiu]nk\w*|found|confirmed|scanned)\b", clause, re.I)
        if here and shown and not re.search(rf"{_NOT}|missing|unavailable|unusable|evaluable|unknown", clause, re.I):
            yield "visit", f"{here[0].name}: {shown[0]}"


def roles(reading: Reading, case: Case) -> Claims:
    """Which lesions are said to be targets."""
    for start, clause in reading.clauses():
        match = re.search(r"\b(?:is|are|was|were|as)\s+(not\s+)?(?:an?\s+|the\s+|both\s+|all\s+)?(non-?)?target", clause, re.I)
        named = {m.name for m in reading.lesions if match and start <= m.start < start + match.start()}
        if match and any((name in case.targets) == (bool(match[1]) != bool(match[2])) for name in named):
            yield "lesion", match[0]


def courses(reading: Reading, case: Case) -> Claims:
    """On which days treatments began and ended, where these are said by a visit."""
    days = {v.timepoint.timepoint_id: v.timepoint.day for v in case.visits}
    therapies = case.patient.therapies
    names = "|".join([r"treatment|therapy|course|regimen", *(re.escape(t.therapy_type) for t in therapies)])
    for start, clause in reading.clauses():
        if not re.search(rf"\b(?:{names})\b", clause, re.I):
            continue
        told = [t for t in therapies if t.therapy_type.lower() in clause.lower()] or therapies
        for verbs, known in ((_STARTS, {t.start_day for t in told}), (_ENDS, {t.end_day for t in told})):
            match = verbs.search(clause)
            if match is None:
                continue
            at: set[float | None] = {days[m.name] for m in reading.visits if start + match.end() <= m.start < start + len(clause)}
            at |= {float(day) for day in re.findall(r"\bday\s+(\d+(?:\.\d+)?)", clause[match.end() :], re.I)}
            denied = re.search(rf"{_NOT}(?:\s+\w+){{0,2}}\s*$", clause[: match.start()], re.I)
            never = known == {None} and re.search(rf"\b(?:{names})\s+(?:\w+\s+){{0,2}}$", clause[: match.start()], re.I)
            if (at and not at & known) or (never and not denied):
                yield "claim", match[0]
        if (still := re.search(r"\bongoing|continues|still (?:being )?given\b", clause, re.I)) and all(t.end_day is not None for t in told):
            yield "claim", still[0]


def same_visit(reading: Reading) -> Claims:
    """Two names of one visit ("the baseline scan was on …") must be of one."""
    for a, b in pairwise(reading.visits):
        between = reading.text[a.end : b.start]
        if a.name != b.name and re.fullmatch(_IS_AT, between, re.I):
            yield "visit", reading.text[a.start : b.end]
