"""Whether a sentence speaks English, which is all that the check can take apart, and of what was measured.

What the check cannot read it must not pass on.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from isocenter.analysis.case import Case
from isocenter.analysis.narrative.places import organs_in
from isocenter.analysis.narrative.reading import Reading

#: Words that only hold sentences together.
_FUNCTION = frozenset(
    """
    a about above after again against all already also although an and another any are as at be because been before being below between both but
    by can cannot could did do does down during each either else enough even ever every few for from further had has have having he her here him
    his how however i if in indeed into is it its itself just last least less like many may me might more most much must my near nearly neither
    never new next no nor none not now of off on once one only or other others otherwise our out over own per quite rather roughly same several
    she should since so some still such than that the their them then there these they this those though through thus to together too toward
    towards two three four five six seven eight nine ten under until up upon very via was we well were what when where whereas whether which while
    who whose why will with within without would yet you your
    """.split()  # noqa: SIM905
)
#: Stems of words that texts on measured lesions are made of.
_SUBJECT = re.compile(
    r"(?:lesion|target|node|nodul|mass|tumou?r|metasta|disease|scan|visit|exam|imag|ct|mri?|study|studies|control|follow|baseline|nadir|time|day|"
    r"week|month|year|date|interval|period|course|spring|summer|autumn|winter|sum|diameter|volum|size|axis|axes|longest|shortest|largest|smallest|larger|"
    r"smaller|bigger|greatest|lowest|highest|lower|higher|shorter|longer|half|halv|third|quarter|fifth|tenth|doubl|tripl|trebl|quadrupl|twice|fold|times|"
    r"factor|percent|mm|cm|ml|cc|hu|milli|centi|cubic|square|hounsfield|unit|measur|respon|stable|stabl|partial|complete|progress|regress|remission|"
    r"recist|rano|criteri|categor|confirm|overall|best|probab|likel|unlikel|chance|certain|uncertain|error|deviation|standard|sd|limit|margin|range|rang|"
    r"accura|precis|reliab|confiden|quality|data|fact|known|unknown|evaluab|inevaluab|evaluat|assess|usable|unusable|missing|available|absent|"
    r"present|visible|seen|found|detect|identif|appear|disappear|vanish|resolv|gone|return|remain|stay|persist|new|change|unchanged|constant|"
    r"static|plateau|trend|steady|steadi|continu|consist|grow|grew|increas|enlarg|expand|rise|rose|risen|rising|gain|up|shr|decreas|reduc|declin|drop|"
    r"fall|fell|fallen|diminish|lost|lose|loss|improv|worsen|treat|therap|chemo|radi|immun|dose|dosing|drug|regimen|cycle|given|start|stop|end|ongoing|"
    r"began|begin|finish|forecast|predict|expect|project|median|simulat|scenario|what-if|model|law|curve|exponential|logistic|gompertz|bertalanffy|"
    r"natural|histor|holiday|resist|escalat|combin|earlier|later|switch|effect|burden|total|number|count|figure|value|amount|differ|compar|"
    r"relative|absolute|previous|prior|current|initial|original|final|first|second|last|latest|early|late|left|right|upper|lower|middle|lobe|side|"
    r"bilateral|body|organ|lymph|gland|axill|contribut|account|hold|contain|lie|lies|located|follow|match|link|track|split|merg|merge|equal|"
    r"exceed|reach|meet|met|threshold|cut|enough|just|short|product|intensit|mean|average|surface|extent|large|small|slight|minor|major|"
    r"marked|clear|significant|good|poor|common|normal|abnormal|healthy|separate|register|alignment|template|patient|case|report|finding|"
    r"evidence|sign|note|reason|explain|allow|distinguish|tell|told|say|said|answer|information|show|indicat|mean|describ|add|make|made|take|took|"
    r"taken|place|occur|happen|acquir|perform|done|date|go|goes|going|went|gone|come|came|back|all|weigh|fit|weight)\w*",
    re.I,
)
#: Small words of other languages in Latin letters, none of them an English one.
_OTHER_TONGUES = re.compile(
    r"\b(?:der|das|und|ist|nicht|ein|eine|einen|im|mit|wurde|les|des|est|une|dans|et|ont|pas|avec|pour|sont|el|los|las|una|con|por|del|esta|"
    r"il|della|dello|nel|nella|sono|che|di|uma|os|foi|com|het|een|van|niet|zijn|jest|nie|och|ikke|og|ar|av|yang|dan|ve|bir)\b"
)
#: Share of the words with a meaning that must be of what was measured.
_ON_SUBJECT = 0.5
_MONTHS = re.compile(r"jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec", re.I)
#: "The facts do not say": the one thing that can always be said.
_NOT_TOLD = re.compile(
    r"^(?:it|that|this|the|these|those|whether|no|not|i|there|from)\b[^.;:!?]*\b(?:known|unknown|says?|tell|told|answer\w*|include|contain|show|available|information|"
    r"stated?|given|recorded|provided|mentioned|determined)\b",
    re.I,
)
_NEGATED = re.compile(r"\b(?:not|no|cannot|unknown|neither|nor)\b|n't\b", re.I)
_ADDRESS = re.compile(
    r"https?:|www\.|<\s*/?\s*[a-z]|\{\{|\b(?:system prompt|instructions?|ignore|password|as an? (?:ai|assistant|language model))\b", re.I
)


def says_not_known(text: str) -> bool:
    """Whether a sentence only says that something cannot be told: such a one may name what it is that nobody measured."""
    return bool(_NOT_TOLD.match(text.strip()) and _NEGATED.search(text)) and not re.search(r"\d|\bbut\b|\bhowever\b|,", text)


def foreign(reading: Reading, case: Case) -> Iterator[tuple[str, str]]:
    """Sentences that are not English or not on the subject, and words in letters that English does not use and the case does not hold."""
    own = " ".join([*(k.organ or "" for k in case.lesions), *case.names.values(), *(t.therapy_type for t in case.patient.therapies)]).lower()
    for word in re.findall(r"[^\W\d_]+", reading.masked):
        plain = unicodedata.normalize("NFC", word).lower()
        if not plain.isascii() and plain not in own and plain not in {"\u03bc", "\u03c3", "\u00b5"}:
            yield "claim", f"not in English: {word}"
            return
    if (address := _ADDRESS.search(reading.text)) is not None:
        yield "claim", address[0]
        return
    if says_not_known(reading.text):
        return
    words = re.findall(r"[A-Za-z][A-Za-z']*", re.sub(r"\b[A-Z]{1,3}\d+\b", " ", reading.masked))
    words = [w.lower() for w in words if w.lower() not in own.split()]
    content = [w for w in words if w not in _FUNCTION]
    known = [w for w in content if _SUBJECT.fullmatch(w) or organs_in(w) or _MONTHS.match(w)]
    other = _OTHER_TONGUES.search(reading.masked)
    # A word or two, as a heading has them, need one that is known.
    strange = len(known) < _ON_SUBJECT * len(content) if len(content) > 2 else bool(content) and not known
    if other or strange:
        yield "claim", f"not in English, or not on what was measured: {' '.join(words)[:40]}"
