"""More sentences about two further cases, written before the check had seen them: true paraphrases pass, wrong ones are caught."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from isocenter.analysis.case import Case, assemble
from isocenter.analysis.narrative.ground import ground, grounded_template
from isocenter.core.patient import Patient, TherapyEvent
from tests.analysis.test_grounding import Ball, filled, visit

_LUNG, _KIDNEY, _SPLEEN = (20, 30, 30), (40, 70, 70), (45, 25, 75)


def _case(first: date, therapy: TherapyEvent, *visits: tuple[str, float, tuple[Ball, ...]]) -> Case:
    measured = [visit(name, day, first + timedelta(day), *balls) for name, day, balls in visits]
    return assemble(Patient("Q", tuple(v.timepoint for v in measured), (therapy,)), measured)


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """`mixed`: one lesion grows, one shrinks, one goes; `falling`: two shrink."""
    mixed = _case(
        date(2025, 2, 3),
        TherapyEvent("t", "immunotherapy", 10),
        ("baseline", 0, ((_LUNG, 10, "right lung"), (_KIDNEY, 8, "left kidney"), (_SPLEEN, 7, "spleen"))),
        ("week-7", 49, ((_LUNG, 11, "right lung"), (_KIDNEY, 8, "left kidney"), (_SPLEEN, 6, "spleen"))),
        ("week-14", 98, ((_LUNG, 13, "right lung"), (_KIDNEY, 7, "left kidney"))),
        ("week-21", 147, ((_LUNG, 15, "right lung"), (_KIDNEY, 7, "left kidney"))),
    )
    falling = _case(
        date(2024, 9, 2),
        TherapyEvent("t", "chemotherapy", 7, 49),
        ("visit-1", 0, ((_LUNG, 14, "right breast"), (_KIDNEY, 10, "liver"))),
        ("visit-2", 63, ((_LUNG, 8, "right breast"), (_KIDNEY, 6, "liver"))),
    )
    return {"mixed": mixed, "falling": falling}


def test_what_the_sentences_are_about(cases: dict[str, Case]) -> None:
    assert [r.sum for r in cases["mixed"].responses["recist_1.1"]] == pytest.approx([53, 42, 46])
    assert [str(r.category) for r in cases["mixed"].responses["recist_1.1"]] == ["SD"] * 3
    (last,) = cases["falling"].responses["recist_1.1"]
    assert last.sum == pytest.approx(30)
    assert str(last.category) == "PR"
    assert all(grounded_template(case) for case in cases.values())


TRUE = {
    "mixed": [
        "The lung lesion enlarged from 21 mm at baseline to 31 mm at week-21.",
        "L3 in the spleen could no longer be seen at week-14.",
        "The kidney lesion is 2 mm smaller than at baseline.",
        "Target diameters added up to 53 mm at the start and 46 mm at the end.",
        "At week-14 the sum was 20.8 % below baseline.",
        "Stable disease was recorded at every follow-up visit.",
        "L1 grew at each visit.",
        "On 12 May 2025 the right lung lesion measured 27.0 mm.",
        "L2 was unchanged between week-14 and week-21.",
        "The smallest sum, 42 mm, was reached on day 98.",
        "Immunotherapy was begun on day 10 and is still being given.",
        "The total volume at the last scan was 15.4 ml, most of it in L1.",
        "The probability of stable disease at the last visit is about {SD@week-21} %.",
        "From its nadir the sum has risen by 9.5 %.",
        "L1 has gained 10 mm in diameter since the baseline.",
        "The smallest sum was reached at week-14.",
        "L3 was first absent at week-14.",
        "The lung lesion is the largest.",
    ],
    "falling": [
        "Both lesions became smaller between the two visits.",
        "The breast lesion went from 29 to 17 mm.",
        "The liver lesion lost 8 mm in its longest diameter.",
        "The sum of diameters fell by 40 %, which is a partial response.",
        "L2 lies in the liver and measured 1.3 cm at visit-2.",
        "Nine weeks passed between the scans.",
        "Volume dropped from 15.7 ml to 3.0 ml overall.",
        "No progression and no new lesion was seen.",
        "Chemotherapy was given from day 7 to day 49.",
        "The second scan is dated 2024-11-04.",
        "L1 has a volume of about 2.1 ml now, against 11.5 ml before.",
        "There are two targets, one in the right breast and one in the liver.",
        "The response has not been confirmed.",
        "L1 is still the larger of the two lesions.",
        "The forecast for day {day} is {median} ml, with an 80 % interval of {low} to {high} ml.",
        "The breast lesion is the larger of the two.",
        "The scans lie nine weeks apart.",
        "Treatment lasted six weeks.",
    ],
}
WRONG = {
    "mixed": [
        "The lung lesion enlarged from 21 mm at baseline to 33 mm at week-21.",
        "The sum of target diameters was 49 mm at week-21.",
        "L1 has gained 14 mm in diameter since the baseline.",
        "L1 measures 31 cm at week-21.",
        "The total volume at the last scan was 15.4 mm.",
        "The kidney lesion has a diameter of 15 ml.",
        "The left lung lesion measured 27.0 mm at week-14.",
        "The lesion of the right kidney is stable.",
        "L2 grew at each visit.",
        "L1 disappeared by week-14.",
        "The spleen lesion is the largest.",
        "L1 measured 31.0 mm at week-14.",
        "The smallest sum was reached on day 147.",
        "L3 was first absent at week-7.",
        "The lung lesion has been shrinking steadily.",
        "The sum has fallen since day 98.",
        "Partial response was reached at week-14.",
        "The spleen lesion was missing at week-7.",
        "The largest sum was recorded at week-14.",
        "The kidney lesion is 2 mm smaller than at week-14.",
    ],
    "falling": [
        "The sum of diameters fell by 48 %.",
        "Six weeks passed between the scans.",
        "The breast lesion went from 29 to 17 cm.",
        "L1 has a volume of about 2.1 mm now.",
        "The left breast lesion shrank to 17 mm.",
        "There are two targets, one in the left breast and one in the liver.",
        "L2 went from 29 to 17 mm.",
        "The liver lesion is still the larger of the two.",
        "L1 measured 17 mm at visit-1.",
        "The second scan is dated 2024-09-02.",
        "The liver lesion grew to 21 mm.",
        "The confirmed best response is a partial response.",
        "A new lesion accounts for the change.",
        "L2 is the larger of the two lesions.",
        "L1 has a volume of about 2.1 ml now, against 4.2 ml before.",
        "The sum was 30 mm at the start and 50 mm at the end.",
    ],
}


@pytest.mark.parametrize(("name", "sentence"), [(name, s) for name, group in TRUE.items() for s in group])
def test_true_sentences_pass(name: str, sentence: str, cases: dict[str, Case]) -> None:
    assert ground(filled(sentence, cases[name]), cases[name]).problems == ()


@pytest.mark.parametrize(("name", "sentence"), [(name, s) for name, group in WRONG.items() for s in group])
def test_wrong_sentences_are_caught(name: str, sentence: str, cases: dict[str, Case]) -> None:
    assert ground(filled(sentence, cases[name]), cases[name]).problems
