"""Organs and sides as people name them, and which lesions lie there."""

from __future__ import annotations

import re

from isocenter.analysis.case import Case

#: Words for organs, each with what a lesion's organ then holds.
_ORGANS = {
    r"lungs?|pulmonary": "lung", r"liver|hepatic": "liver", r"kidneys?|renal": "kidney", r"spleen|splenic": "spleen",
    r"pancreas|pancreatic": "pancrea", r"brain|cerebral|intracranial": "brain", r"bones?|osseous|bony": "bone",
    r"breasts?|mammary": "breast", r"colon|colonic": "colon", r"prostate|prostatic": "prostat", r"adrenals?": "adrenal",
    r"mediastin\w+": "mediastin", r"neck|cervical": "neck", r"pleura\w*": "pleura", r"abdom\w+": "abdom", r"pelvi\w+": "pelvi",
    r"stomach|gastric": "stomach", r"bladder|vesical": "bladder", r"gallbladder": "gallbladder", r"heart|cardiac": "heart",
    r"aort\w+": "aort", r"spine|spinal|vertebra\w*": "spine", r"ribs?|costal": "rib", r"sternum|sternal": "sternum", r"thyroid": "thyroid",
    r"ovar\w+": "ovar", r"uter\w+": "uter", r"skin|cutaneous": "skin", r"esophag\w+|oesophag\w+": "esophag", r"rect(?:um|al)": "rect",
    r"hil(?:um|ar)": "hil", r"periton\w+": "periton", r"bowel|intestin\w+|duoden\w+": "bowel", r"lymph nodes?|nodal": "node",
    r"axill\w+": "axilla", r"inguinal": "inguinal", r"chest|thora\w+": "chest",
}  # fmt: skip
_ORGAN = re.compile(rf"\b(?:{'|'.join(_ORGANS)})\b", re.I)
SIDE = re.compile(r"\b(left|right|bilateral|(?:upper|middle|lower) lobe)(?:[- ]sided)?\b(?!\s+(?:over|out|unchanged|behind))", re.I)


def organs_in(text: str) -> list[str]:
    """Organs that a text names, as lesions' organs call them."""
    return [stem for word in _ORGAN.findall(text) for words, stem in _ORGANS.items() if re.fullmatch(words, word, re.I)]


def sides_in(text: str) -> list[str]:
    """Sides and lobes that a text names."""
    return [side.lower() for side in SIDE.findall(text)]


def lies(organ: str | None, text: str, *, node: bool = False) -> bool:
    """Whether a lesion of an organ lies in all places that a text names."""
    name = f"{organ or ''}{' node' if node else ''}".lower()
    return all(stem in name for stem in organs_in(text)) and all(side in name for side in sides_in(text))


def tracks_of(text: str, case: Case) -> set[str]:
    """Lesions that lie where a text says."""
    return {k.track for k in case.lesions if lies(k.organ, text, node=k.is_node)}


def tracks_of_each(text: str, case: Case) -> set[str]:
    """Lesions that lie in any of the places that a text names, a side going with the organ after it."""
    phrases = [m[0] for m in re.finditer(r"(?:\b(?:left|right)[-\s]+)?\b\w+\b", text, re.I) if organs_in(m[0])]
    return {track for phrase in phrases for track in tracks_of(phrase, case)}
