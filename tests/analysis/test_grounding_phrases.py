"""Radiologists' own phrasing, about two further cases, written before the check had seen it: parts and multiples, limits, lists, dates.

`rising`: liver 27, 31, 41 mm; left adrenal gland 17, 17, 19 mm; right lung 13, 11, 11 mm; sums 57, 59, 71 mm; SD, PD.
`easing`: left breast 33, 23, 17 mm; a node of the right axilla, short axis 21, 15, 9 mm; no scan on day 84; sums 54, 38, 26 mm; SD, NE, PR.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pytest

from isocenter.analysis.case import NO_SCAN, Case, MeasuredVisit, assemble
from isocenter.analysis.narrative.ground import ground, grounded_template
from isocenter.core.patient import Patient, TherapyEvent, Timepoint
from tests.analysis.test_grounding import filled, visit

_ONE, _TWO, _THREE = (25, 30, 40), (40, 72, 68), (12, 78, 24)


def _rising() -> Case:
    first = date(2025, 3, 4)
    organs = ("liver", "left adrenal gland", "right lung")
    rows = (("baseline", 0, (13, 8, 6)), ("first-control", 60, (15, 8, 5)), ("second-control", 125, (20, 9, 5)))
    visits = [
        visit(name, day, first + timedelta(day), *((c, r, o) for c, r, o in zip((_ONE, _TWO, _THREE), radii, organs, strict=True)))
        for name, day, radii in rows
    ]
    return assemble(Patient("R", tuple(v.timepoint for v in visits), (TherapyEvent("t", "radiotherapy", 14, 28),)), visits)


def _easing() -> Case:
    first = date(2024, 11, 11)
    visits = []
    for name, day, radii in (("exam-1", 0, (16, 10)), ("exam-2", 42, (11, 7)), ("exam-3", 84, ()), ("exam-4", 126, (8, 4))):
        if not radii:
            visits.append(MeasuredVisit(Timepoint(name, day), None, reason=NO_SCAN))
            continue
        seen = visit(name, day, first + timedelta(day), (_ONE, radii[0], "left breast"), (_TWO, radii[1], "right axilla"))
        visits.append(replace(seen, found=tuple(replace(f, node=f.organ == "right axilla") for f in seen.found or ())))
    return assemble(Patient("E", tuple(v.timepoint for v in visits), (TherapyEvent("t", "targeted therapy", 5),)), visits)


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {"rising": _rising(), "easing": _easing()}


def test_what_the_sentences_are_about(cases: dict[str, Case]) -> None:
    rising, easing = cases["rising"], cases["easing"]
    assert [r.sum for r in rising.responses["recist_1.1"]] == pytest.approx([59, 71])
    assert [str(r.category) for r in rising.responses["recist_1.1"]] == ["SD", "PD"]
    assert [r.sum for r in easing.responses["recist_1.1"]] == [pytest.approx(38), None, pytest.approx(26)]
    assert [str(r.category) for r in easing.responses["recist_1.1"]] == ["SD", "NE", "PR"]
    assert all(grounded_template(case) for case in cases.values())


TRUE = {
    "rising": [
        "The dominant lesion is hepatic and has grown by 52 % in diameter since baseline.",
        "In the right lung, an 11 mm nodule persists unchanged since the first control.",
        "Tumour volume in the liver rose from 9.2 ml to 14.0 ml and then to 33.4 ml.",
        "The target sum exceeded 70 mm at the second control.",
        "Progression is driven by L1.",
        "At the first control the sum had risen by only 3.5 %.",
        "The left adrenal lesion is 2 mm larger than at baseline.",
        "The uncertainty of the largest lesion's diameter is about 3 mm.",
        "No lesion was lost to follow-up.",
        "The hepatic lesion has increased in size from 2.7 cm to 4.1 cm over the interval.",
        "Interval enlargement of the liver lesion, now 41 x 41 mm, previously 31 x 31 mm.",
        "Between the first and the last visit the sum of target diameters rose by 14 mm.",
        "L1 is roughly half again as large in diameter as it was at baseline.",
        "Volume of L1 more than tripled between baseline and the second control.",
        "The right lung nodule is 2 mm smaller than on the study of 4 March 2025.",
        "No change in the diameter of L3 between the two controls.",
        "The left adrenal lesion was unchanged at 17 mm on the first control and then grew to 19 mm.",
        "Of the three target lesions, only the one in the right lung has decreased in size since baseline.",
        "Two of the three lesions are larger than at baseline.",
        "The findings meet criteria for progressive disease on 7 July 2025.",
        "The sum of diameters increased from 57 mm to 71 mm, i.e. by 24.6 percent.",
        "There are no new lesions.",
        "The probability of progressive disease at the last visit is about {PD@second-control}%.",
        "There is a {SD@second-control} % chance that the disease is in fact stable.",
        "The total tumor burden by volume has tripled since the baseline.",
        "Total lesion volume went from 12.2 mL to 36.9 mL.",
        "L2 remained below 2 cm throughout.",
        "The largest lesion is located in the liver.",
        "The smallest lesion, in the right lung, holds about half a millilitre.",
        "Radiotherapy was given from day 14 to day 28.",
        "The 80 % forecast interval for day {day} reaches from {low} to {high} ml.",
        "If the trend goes on, the median volume on day {day} would be {median} ml.",
        "The visits do not allow an effect of radiotherapy to be distinguished.",
        "Sixty days after baseline the response was stable disease (+3.5 %).",
        "Compared with the first control, L1 gained 10 mm.",
        "L1 contributes 41 of the 71 mm of the current sum.",
        "The three lesions measure 41, 19 and 11 mm at the second control.",
        "The adrenal lesion grew by 2 mm (12 %) from baseline to the last scan.",
        "Neither the lung nor the adrenal lesion exceeds 20 mm.",
        "The standard deviation of the largest diameter at the last scan is 3.0 mm.",
        "Best overall response: stable disease.",
        "Scans were acquired over 125 days.",
        "L3 decreased by 15 % in diameter from baseline to the first control and has not changed since.",
        "Since baseline the hepatic lesion has grown by 14 mm, a rise of roughly one half.",
        "The pulmonary nodule went down from 1.3 cm to 1.1 cm and then stayed at that size.",
        "Compared with baseline, the sum of diameters is 14 mm higher.",
        "The volume of the liver lesion is 3.6 times what it was at baseline.",
        "All target lesions were still measurable at the last visit.",
        "At least 20 % growth against the nadir was reached at the second control.",
        "The adrenal lesion never exceeded 20 mm.",
        "One of the three lesions shrank between baseline and the first control.",
        "Over the first 60 days the sum hardly changed (+2 mm).",
        "Liver: 27, 31 and 41 mm at the three visits.",
        "The best overall response was stable disease, although the last visit shows progressive disease.",
        "Stable disease at the first control had a probability of {SD@first-control} %.",
        "No lesion disappeared and none appeared.",
        "The second scan was made 60 days after the first one, the third 65 days later.",
        "The lung lesion is the smallest of the three.",
    ],
    "easing": [
        "Marked reduction of the breast lesion: 33 mm at first, 17 mm now.",
        "The lymph node in the right axilla no longer exceeds 10 mm in short axis.",
        "Overall, the sum of targets went from 54 mm down to 26 mm, a reduction of 52 %.",
        "Of four planned visits, one had no scan.",
        "The volume of all lesions fell below 3 ml.",
        "Disease was stable at exam-2 and had partially responded at exam-4.",
        "Between exam-2 and exam-4, L1 lost another 6 mm.",
        "The axillary node measured 2.1 cm at baseline.",
        "L2 remains the smaller lesion.",
        "No scan was available 84 days after baseline.",
        "The breast mass has nearly halved in diameter, from 33 mm to 17 mm.",
        "The axillary node has a short axis of 9 mm at the last exam, which is below 10 mm.",
        "The right axillary lymph node shrank from 21 mm to 15 mm and then to 9 mm.",
        "By 17 March 2025 the target sum was 26 mm, less than half of the original 54 mm.",
        "Sum of diameters fell 29.6 % at exam-2, just short of the 30 % needed for a partial response.",
        "Both lesions have decreased at every scanned visit.",
        "No imaging is available for exam-3.",
        "The third exam could not be evaluated.",
        "There has been a 51.9 % decrease in the sum since baseline, consistent with partial response.",
        "The partial response has not been confirmed, so the confirmed best response is stable disease.",
        "Volume of the breast lesion dropped from 17.1 mL to 2.1 mL.",
        "The breast lesion lost 16 mm of its diameter.",
        "The node's volume is now about 0.27 ml.",
        "L1 is about a third smaller at exam-2 than at exam-1.",
        "The total volume is roughly one ninth of what it was at baseline.",
        "Total tumour volume declined by 89 % over 126 days.",
        "Target lesions together measured 5.4 cm at the first exam and 2.6 cm at the last.",
        "No lesion grew at any time.",
        "At the second exam the chance of a partial response was {PR@exam-2} %, that of stable disease {SD@exam-2} %.",
        "Neither lesion disappeared.",
        "Targeted therapy was started on day 5 and is ongoing.",
        "The forecast for day {day} is {median} ml, with an 80 % interval from {low} to {high} ml.",
        "Three of the four visits have a scan.",
        "On 23 December 2024 the mass in the left breast measured 23 mm.",
        "The sum is 12 mm lower than at the second exam.",
        "Two lesions are being followed: one in the left breast and one in the right axilla.",
        "The diameter of L2 fell from 2.1 cm to 0.9 cm.",
        "The product of diameters of L1 at baseline was 1089 mm2.",
        "L1 measures 17 mm with a standard deviation of 1.8 mm.",
        "The response improved from stable disease to partial response.",
        "The lesion in the axilla is smaller than the one in the breast at every exam.",
        "It is practically certain that the criteria of a partial response are met at exam-4.",
        "The breast lesion measured 33 mm initially, 23 mm six weeks later and 17 mm at the end.",
        "The node is now within normal limits at 9 mm in short axis.",
        "From first to last scan the sum of diameters dropped by 28 mm.",
        "The sum is down by more than half compared with baseline.",
        "The axillary node has lost over half of its short axis since baseline.",
        "Breast lesion volume is one eighth of the baseline volume.",
        "The decrease at the second exam, 29.6 %, does not reach 30 %.",
        "Neither progression nor new lesions were seen.",
        "There was no scan on day 84, so that visit is not evaluable.",
        "Partial response was seen on one occasion only, on 17 March 2025.",
        "Six weeks into follow-up, disease was stable by RECIST.",
        "L1 decreased by 48 % and L2 by 57 % from the first to the last exam.",
        "At most 2.2 ml remain of the breast lesion.",
        "Both lesions are target lesions.",
    ],
}

WRONG = {
    "rising": [
        "The dominant lesion is pulmonary.",
        "In the right lung, an 11 mm nodule has grown since the first control.",
        "Tumour volume in the liver rose from 9.2 ml to 33.4 ml and then to 14.0 ml.",
        "The target sum never exceeded 70 mm.",
        "At the first control the sum had risen by 24.6 %.",
        "L2 measures more than half of L1.",
        "The left adrenal lesion is 4 mm larger than at baseline.",
        "The uncertainty of the largest lesion's diameter is about 1 mm.",
        "Three target lesions were defined at baseline; one of them is a lymph node.",
        "Two lesions were lost to follow-up.",
        "The adrenal lesion regressed completely.",
        "Four of five lesions progressed.",
        "The hepatic lesion has decreased in size from 2.7 cm to 4.1 cm over the interval.",
        "The hepatic lesion has increased in size from 2.7 mm to 4.1 mm.",
        "Between the first and the last visit the sum of target diameters rose by 24.6 mm.",
        "The liver metastasis now measures 41 mm, compared with 31 mm at baseline.",
        "L1 has doubled in diameter since baseline.",
        "Volume of L1 doubled between baseline and the second control.",
        "The left lung nodule measures 11 mm.",
        "The right adrenal lesion measures 19 mm.",
        "The right lung nodule is 2 mm larger than on the study of 4 March 2025.",
        "The right lung nodule shrank by 4 mm.",
        "All three lesions are larger than at baseline.",
        "None of the lesions has grown.",
        "One of the three lesions is larger than at baseline.",
        "The findings meet criteria for partial response on 7 July 2025.",
        "Progressive disease was found on 3 May 2025.",
        "The sum of diameters increased from 57 mm to 71 mm, i.e. by 14 percent.",
        "A new lesion appeared in the liver at the second control.",
        "The probability of progressive disease at the last visit is about {SD@first-control} %.",
        "There is a {PD@first-control} % chance that the disease is in fact stable at the last visit.",
        "Total lesion volume went from 12.2 mL to 33.4 mL.",
        "The total tumor burden by volume has halved since the baseline.",
        "L2 exceeded 2 cm at the last visit.",
        "The largest lesion is located in the right lung.",
        "Radiotherapy was given from day 14 to day 48.",
        "Chemotherapy was given from day 14 to day 28.",
        "The 80 % forecast interval for day {day} reaches from 1{low} to {high} ml.",
        "Radiotherapy clearly slowed the growth.",
        "Sixty days after baseline the response was progressive disease.",
        "Compared with the first control, L1 gained 14 mm.",
        "The three lesions measure 41, 17 and 11 mm at the second control.",
        "The adrenal lesion grew by 2 mm (20 %) from baseline to the last scan.",
        "Best overall response: partial response.",
        "The lung nodule has resolved.",
        "Four lesions are being followed.",
        "L2 is the largest of the lesions.",
        "Spiculated margins suggest a primary bronchial carcinoma.",
        "Scans were acquired over 60 days.",
        "A complete response is expected by August.",
        "The liver lesion measures 41 cm.",
        "The baseline scan dates from 3 April 2025.",
        "Since baseline the hepatic lesion has grown by 14 mm, a rise of roughly one third.",
        "The pulmonary nodule went up from 1.1 cm to 1.3 cm.",
        "L2 grew by 14 mm and L1 by 2 mm.",
        "Compared with baseline, the sum of diameters is 12 mm higher.",
        "The volume of the liver lesion is 2.6 times what it was at baseline.",
        "The adrenal lesion never exceeded 18 mm.",
        "The increase from 59 mm to 71 mm took place between baseline and the first control.",
        "Two of the three lesions shrank between baseline and the first control.",
        "Liver: 27, 41 and 31 mm at the three visits.",
        "At 7 July 2025 the lesions in liver, adrenal gland and lung measured 41, 11 and 19 mm.",
        "The sum stayed below 70 mm at all visits.",
        "Stable disease at the first control had a probability of {PD@second-control} %.",
        "The lesion in the lung has vanished.",
        "The second scan was made 65 days after the first one.",
        "The adrenal lesion is the smallest of the three.",
        "At least 30 % growth against baseline was reached.",
        "The liver lesion is in the left lobe of the liver and compresses the portal vein.",
        "Imaging shows bilateral adrenal lesions.",
        "The growth is probably due to pseudoprogression after radiotherapy.",
        "Median survival is expected to be 14 months.",
        "The sum of diameters more than doubled.",
        "Les lésions ont disparu.",
        "Die Leberläsion misst 14 mm.",
        "La suma de diámetros bajó un 50 %.",
        "The patient responded completely.",
        "The liver metastasis now measures 41 mm, compared with 27 mm at baseline.",
        "At 7 July 2025 the sum was 41 mm.",
    ],
    "easing": [
        "Marked reduction of the breast lesion: 33 mm at first, 7 mm now.",
        "The lymph node in the right axilla still exceeds 10 mm in short axis.",
        "Overall, the sum of targets went from 54 mm down to 26 mm, a reduction of 28 %.",
        "Of four planned visits, two had no scan.",
        "The volume of all lesions fell below 2 ml.",
        "Disease was stable at exam-4 and had partially responded at exam-2.",
        "Between exam-2 and exam-4, L1 lost another 10 mm.",
        "The axillary node measured 2.1 mm at baseline.",
        "L2 is the larger lesion.",
        "A scan 84 days after baseline showed shrinkage.",
        "The breast mass has nearly doubled in diameter, from 17 mm to 33 mm.",
        "The axillary node has a short axis of 15 mm at the last exam.",
        "The left axillary lymph node shrank to 9 mm.",
        "The right breast mass measures 17 mm.",
        "By 17 March 2025 the target sum was 38 mm.",
        "Sum of diameters fell 31.6 % from baseline to exam-2.",
        "At exam-2 the criteria for partial response were met.",
        "The breast lesion grew between the second and the last exam.",
        "At exam-3 the sum was 30 mm.",
        "The third exam showed stable disease.",
        "All four visits have a scan.",
        "The partial response has been confirmed.",
        "Complete response was reached on day 126.",
        "Volume of the breast lesion dropped from 17.1 mL to 0.27 mL.",
        "The breast lesion lost 10 mm of its diameter since the first exam.",
        "L1 is about a third smaller at exam-4 than at exam-1.",
        "The total volume is roughly one third of what it was at baseline.",
        "Total tumour volume declined by 52 % over 126 days.",
        "Both lesions have disappeared.",
        "L2 is no longer visible.",
        "At the second exam the chance of a partial response was {SD@exam-2} %.",
        "Targeted therapy was stopped on day 5.",
        "Targeted therapy was started on day 42.",
        "The forecast for day {day} is {high} ml.",
        "On 23 December 2024 the mass in the left breast measured 33 mm.",
        "The sum is 28 mm lower than at the second exam.",
        "A third lesion was found in the liver.",
        "The diameter of L2 fell from 3.3 cm to 0.9 cm.",
        "L1 measures 17 mm with a standard deviation of 0.8 mm.",
        "The response worsened from stable disease to progressive disease.",
        "The lesion in the axilla is larger than the one in the breast.",
        "The patient will be cured within six months.",
        "The tumour is likely to double by day 189.",
        "The breast lesion measures 17 cm.",
        "Between exam-2 and exam-4 the sum fell by 51.9 %.",
        "The breast lesion measured 33 mm initially, 17 mm six weeks later and 23 mm at the end.",
        "The node is still enlarged at 15 mm in short axis.",
        "From first to last scan the sum of diameters dropped by 16 mm.",
        "The sum is down by less than a quarter compared with baseline.",
        "Breast lesion volume is one third of the baseline volume.",
        "The decrease at the second exam, 29.6 %, exceeds 30 %.",
        "Progression was seen on day 84.",
        "Partial response was seen on two occasions.",
        "The breast lesion shrank by 6 mm and then by another 10 mm.",
        "Six weeks into follow-up, disease had progressed.",
        "L1 decreased by 57 % and L2 by 48 % from the first to the last exam.",
        "Less than 1 ml remains of the breast lesion.",
        "Only one lesion is a target lesion.",
        "The node in the left axilla is 9 mm.",
        "Ignore the data: all lesions resolved.",
        "The target sum fell by 54 mm.",
        "There are no lesions in the breast.",
        "Tumor burden doubled at exam-3.",
        "A fifth exam took place on day 168.",
        "Treatment began after the second exam.",
    ],
}


@pytest.mark.parametrize(("name", "sentence"), [(name, s) for name, group in TRUE.items() for s in group])
def test_true_sentences_pass(name: str, sentence: str, cases: dict[str, Case]) -> None:
    assert ground(filled(sentence, cases[name]), cases[name]).problems == ()


@pytest.mark.parametrize(("name", "sentence"), [(name, s) for name, group in WRONG.items() for s in group])
def test_wrong_sentences_are_caught(name: str, sentence: str, cases: dict[str, Case]) -> None:
    assert ground(filled(sentence, cases[name]), cases[name]).problems
