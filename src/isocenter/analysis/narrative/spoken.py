"""What a model of language made of a case, checked sentence by sentence: only what the case bears out is passed on.

A part of which too little is left is the template's instead, and is said to be. What the model was told, what it said, and what
was wrong with it are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from isocenter.analysis.case import Case
from isocenter.analysis.narrative import prompt as prompts
from isocenter.analysis.narrative import template
from isocenter.analysis.narrative.ground import Grounded, Problem, ground
from isocenter.analysis.narrative.template import DISCLAIMER, Narrative
from isocenter.core.errors import LimitError

#: Says a prompt to a model; comprehensive: a long one. Raises `LimitError` where it is too long for the model all the same.
Speak = Callable[[str, bool], str]
#: Less is told each time a model finds the prompt too long.
_SHRINK, _TRIES = 0.65, 4
_SCENARIO_DISCLAIMER = "What-if curves are simulations, not predictions for this patient."


@dataclass(frozen=True)
class Check:
    """What became of a model's text. sentences: how many it had; left_out: how many of them did not stand.

    by_template: parts that are the template's, since too little of the model's was left.
    """

    sentences: int
    left_out: int
    problems: tuple[Problem, ...]
    by_template: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the sentences that were left out."""
        return self.left_out / self.sentences if self.sentences else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found = [asdict(p) for p in self.problems]
        return {"sentences": self.sentences, "left_out": self.left_out, "share": self.share, "problems": found, "by_template": list(self.by_template)}


@dataclass(frozen=True)
class Told:
    """A narrative by a model, and how it came about. raw: the model's own words."""

    story: Narrative
    prompt: str
    raw: str
    check: Check


@dataclass(frozen=True)
class Answer:
    """An answer to a free question. text: what stands; empty where it was refused."""

    text: str
    refused: bool
    prompt: str
    raw: str
    check: Check
    disclaimer: str = DISCLAIMER


def narrate(case: Case, speak: Speak, model: str, *, comprehensive: bool = True) -> Told:
    """The five parts by a model, each checked by itself. model: its name, said with the narrative."""
    most = prompts.COMPREHENSIVE if comprehensive else prompts.USUAL
    prompt, raw = _said(speak, lambda room: prompts.narrative(case, most=room), most, comprehensive)
    spare = template.write(case)
    parts: dict[str, str] = {}
    problems: list[Problem] = []
    replaced: list[str] = []
    sentences = left_out = 0
    given = parse(raw)
    for name in prompts.PARTS:
        checked = ground(given.get(name, ""), case)
        sentences, left_out = sentences + checked.sentences, left_out + _bad(checked)
        problems += checked.problems
        if checked.refused:
            replaced.append(name)
            parts[name] = getattr(spare, name)
        else:
            parts[name] = checked.text
    by = f"{model}, {', '.join(replaced)} by {spare.model}" if replaced else model
    if len(replaced) == len(prompts.PARTS):
        by = f"{spare.model} (nothing that {model} said could be kept)"
    simulated = any(re.search(r"scenario|what.if|simulat", text, re.I) for text in parts.values())
    disclaimer = f"{DISCLAIMER} {_SCENARIO_DISCLAIMER}" if simulated else DISCLAIMER
    story = replace(spare, **parts, model=by, disclaimer=disclaimer)
    return Told(story, prompt, raw, Check(sentences, left_out, tuple(problems), tuple(replaced)))


def answer(case: Case, asked: str, speak: Speak) -> Answer:
    """A free question, answered from the case alone. Sentences that the case does not bear out are left out."""
    prompt, raw = _said(speak, lambda room: prompts.question(case, asked, most=room), prompts.USUAL, False)
    checked = ground(raw, case)
    return Answer(checked.text, checked.refused, prompt, raw, Check(checked.sentences, _bad(checked), checked.problems))


def parse(raw: str) -> dict[str, str]:
    """The five parts out of a model's words: JSON, JSON in a fence, or headings. What cannot be told apart is `key_findings`."""
    start, end = raw.find("{"), raw.rfind("}")
    if 0 <= start < end:
        try:
            data = json.loads(raw[start : end + 1])
        except (ValueError, RecursionError):
            data = None
        if isinstance(data, dict):
            return {k: " ".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in data.items() if k in prompts.PARTS and v}
    names = "|".join(name.replace("_", "[_ ]") for name in prompts.PARTS)
    pieces = re.split(rf"^\W*({names})\W*(?:$|:)", raw, flags=re.I | re.M)
    found = {re.sub(r"\s", "_", name.lower()): text.strip() for name, text in zip(pieces[1::2], pieces[2::2], strict=True) if text.strip()}
    return found or ({"key_findings": raw.strip()} if raw.strip() else {})


def _said(speak: Speak, make: Callable[[int], str], most: int, comprehensive: bool) -> tuple[str, str]:
    for attempt in range(_TRIES):
        prompt = make(int(most * _SHRINK**attempt))
        try:
            return prompt, speak(prompt, comprehensive)
        except LimitError:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _bad(checked: Grounded) -> int:
    """How many sentences did not stand."""
    return len({p.sentence for p in checked.problems})
