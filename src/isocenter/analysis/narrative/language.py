"""Whether a sentence is in English, the one language that the check can take apart: what it cannot read it must not pass on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from isocenter.analysis.case import Case
from isocenter.analysis.narrative.reading import Reading

_WORDS = """
a about above after again against all also although an and any are as at be because been before being below between both but by can cannot
could did does down during each either else enough even ever every few for from further had has have having here how however if in interval
into is it its just last least less many may more most much must near nearly neither never new no nor none not now of off on once one only
or other out over own per same several shows since so some still such than that the their them then there these they third this those three
through to together too two under until up upon very was were what when where whether which while who whose will with within without would
yet four five first second before baseline disease lesion lesions target targets node nodes nodule mass tumour tumor tumors scan scans visit
visits exam day days week weeks sum diameter diameters volume largest smallest longest short axis measured measures measuring measurement
measurements response stable partial complete progressive progression probability chance change changed unchanged grew grown grows growing
growth shrank shrunk shrinks shrinking increase increased increasing decrease decreased decreasing larger smaller seen found visible
appeared disappeared gone resolved doubled halved tripled fell rose dropped treatment therapy forecast median lung liver kidney spleen brain
breast bone best overall confirmed data known standard deviation error uncertainty total size present absent left right
"""
#: Words of which any English sentence holds some, and those that sentences on lesions are made of.
_ENGLISH = frozenset(_WORDS.split())
#: Least share of a sentence's words.
_SHARE = 0.3


def foreign(reading: Reading, case: Case) -> Iterator[tuple[str, str]]:
    """Sentences of which too little is English, and words in letters that English does not use and the case does not hold."""
    own = " ".join([*(k.organ or "" for k in case.lesions), *case.names.values(), *(t.therapy_type for t in case.patient.therapies)]).lower()
    for word in re.findall(r"[^\W\d_]+", reading.masked):
        plain = unicodedata.normalize("NFC", word).lower()
        if not plain.isascii() and plain not in own and plain not in {"\u03bc", "\u03c3", "\u00b5"}:
            yield "claim", f"not in English: {word}"
            return
    # The case's own words say nothing of the language.
    words = [w for w in re.findall(r"[A-Za-z]{2,}", reading.masked) if w.lower() not in {"mm", "cm", "ml", "hu", "cc", "recist", "sd"}]
    words = [w for w in words if w.lower() not in own.split()]
    if len(words) > 2 and sum(w.lower() in _ENGLISH for w in words) < _SHARE * len(words):
        yield "claim", f"not in English, or nothing that can be checked: {' '.join(words)[:40]}"
