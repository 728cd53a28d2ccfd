"""The check against a model that tries: every wrong sentence is caught, every true one passes however it is said.

The case: L1 in the left lung 25.0, 19.0, 15.0 mm; L2 in the liver 19.0, 15.0, 17.0 mm; L3 in the right kidney new at visit-3, 13.0 mm.
Volumes of all 10.11, 4.43, 4.47 ml; sums 44.0, 34.0, 32.0 mm; stable disease on day 56, progressive disease on day 112.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date

import numpy as np
import pytest

from isocenter.analysis.case import Case, Found, MeasuredVisit, assemble
from isocenter.analysis.lesions import lesions
from isocenter.analysis.narrative.ground import check, ground, grounded_template
from isocenter.analysis.narrative.template import write
from isocenter.core.geometry import Grid
from isocenter.core.patient import Patient, TherapyEvent, Timepoint

GRID = Grid((60, 100, 100), (1.0, 1.0, 1.5))
Ball = tuple[tuple[int, int, int], int, str]


def filled(sentence: str, case: Case) -> str:
    """With the case's own figures for `{day}`, `{median}`, `{low}` and `{high}` of the forecast and `{SD@visit-2}`, a probability in percent.

    How these come about is not what is tested here.
    """
    path = next(g.forecast for g in case.growth if g.track == "total")
    if path is not None:
        low, median, high = (f"{curve[-1] / 1000:.2f}" for curve in (path.low_mm3, path.median_mm3, path.high_mm3))
        sentence = sentence.replace("{day}", f"{path.days[-1]:g}").replace("{median}", median).replace("{low}", low).replace("{high}", high)
    days = {v.timepoint.timepoint_id: v.timepoint.day for v in case.visits}
    chances = {r.day: {str(c): p for c, p in told.items()} for r, told in zip(case.responses["recist_1.1"], case.chances, strict=True)}
    return re.sub(r"\{(\w\w)@([\w-]+)\}", lambda m: f"{100 * chances[days[m[2]]].get(m[1], 0.0):.0f}", sentence)


def visit(name: str, day: float, when: date, *balls: Ball) -> MeasuredVisit:
    z, y, x = np.ogrid[: GRID.shape[0], : GRID.shape[1], : GRID.shape[2]]
    found = []
    for k, (centre, radius, organ) in enumerate(balls, start=1):
        mask = (((z - centre[0]) * 1.5) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= radius**2).astype(np.uint8)
        (size,) = lesions(mask, GRID)
        found.append(Found(f"lesion-{k}", size, organ=organ))
    return MeasuredVisit(Timepoint(name, day, scan_date=when), tuple(found), GRID.spacing)


@pytest.fixture(scope="module")
def case() -> Case:
    lung, liver = ((20, 30, 30), "left lung"), ((40, 70, 70), "liver")
    visits = [
        visit("visit-1", 0, date(2026, 1, 10), (lung[0], 12, lung[1]), (liver[0], 9, liver[1])),
        visit("visit-2", 56, date(2026, 3, 7), (lung[0], 9, lung[1]), (liver[0], 7, liver[1])),
        visit("visit-3", 112, date(2026, 5, 2), (lung[0], 7, lung[1]), (liver[0], 8, liver[1]), ((45, 25, 75), 6, "right kidney")),
    ]
    return assemble(Patient("P1", tuple(v.timepoint for v in visits), (TherapyEvent("t", "chemotherapy", 5, 90),)), visits)


def test_the_case_is_what_its_sentences_are_about(case: Case) -> None:
    sizes = {(k.track, k.timepoint_id): k.longest_mm for k in case.lesions}
    assert [round(sizes["L1", f"visit-{n}"] or 0, 1) for n in (1, 2, 3)] == [25.0, 19.0, 15.0]
    assert [round(sizes["L2", f"visit-{n}"] or 0, 1) for n in (1, 2, 3)] == [19.0, 15.0, 17.0]
    assert [str(r.category) for r in case.responses["recist_1.1"]] == ["SD", "PD"]
    assert [r.sum for r in case.responses["recist_1.1"]] == pytest.approx([34.0, 32.0])
    assert grounded_template(case)


WRONG = {
    "numbers in words": [
        "L1 measured twenty-five millimetres at visit-3.",
        "L1 is forty-one millimetres across.",
        "Four lesions were followed.",
        "A dozen lesions were found.",
        "Two new lesions appeared.",
        "There are three target lesions.",
        "The sum fell by twelve percent.",
        "Three lesions shrank since the baseline.",
        "L1 measured one hundred and twelve millimetres.",
    ],
    "digits in disguise": [
        "L1 measured 1.5e3 mm at visit-1.",
        "L1 measured \uff14\uff11 mm at visit-1.",
        "L1 measured \u0664\u0661 mm at visit-1.",
        "L1 measured 25\u00bd mm at visit-1.",
        "The tumour is T1N0M0.",
        "L1 measured **41.0** mm at visit-1.",
        "L1 measured 2,500 mm at visit-1.",
        "L1: 41.",
    ],
    "ranges": [
        "The diameters range from 13.0 mm to 40.0 mm at visit-3.",
        "L1 measured between 10 and 30 mm.",
        "L1 went from 15.0 mm to 25.0 mm.",
        "The sum went from 32.0 mm to 44.0 mm.",
        "L1 measured 20\u201330 mm at visit-1.",
    ],
    "percent and absolute": [
        "The sum decreased by 22.7 mm.",
        "The sum fell by 12 % since the baseline.",
        "The sum fell by 5.9 % since the baseline.",
        "The sum fell by 27.3 % since the nadir.",
        "The sum increased by 22.7 % at visit-2.",
        "The sum changed by +22.7 % at visit-2.",
        "The diameter of L1 decreased by 40 mm.",
        "L1 shrank by 15.0 mm.",
        "L1 is 25.0 mm smaller than at the baseline.",
        "The volume of L1 fell by 40.0 % since the baseline.",
        "The sum fell by 27.3 % at visit-2.",
        "A decrease of 44.0 mm was seen.",
    ],
    "dates and visits": [
        "L1 measured 25.0 mm on 2026-05-02.",
        "On 7 March 2026 L1 measured 25.0 mm.",
        "On March 7th, 2026 L1 measured 25.0 mm.",
        "On 07/03/2026 L1 measured 25.0 mm.",
        "On 8 March 2026 L1 measured 19.0 mm.",
        "In May 2026 the sum was 44.0 mm.",
        "In June 2026 the sum was 32.0 mm.",
        "At day 112 L1 measured 25.0 mm.",
        "At week 8 the sum was 44.0 mm.",
        "After 8 weeks the sum was 44.0 mm.",
        "At baseline L1 measured 15.0 mm.",
        "At baseline the sum was 32.0 mm.",
        "Initially the sum was 34.0 mm.",
        "At the last scan L1 measured 25.0 mm.",
        "L1 currently measures 25.0 mm.",
        "At the 3rd visit L1 measured 25.0 mm.",
        "At visit 3 L1 measured 25.0 mm.",
        "At the second follow-up L1 measured 19.0 mm.",
        "At the penultimate scan L1 measured 25.0 mm.",
        "At the fifth visit all was well.",
        "L1 measured 15.0 mm at visit-1 and 25.0 mm at visit-3.",
        "L1 measured 15.0, 19.0 and 25.0 mm at visit-1, visit-2 and visit-3.",
        "At visit-1 L1 measured 19.0 mm, at visit-2 25.0 mm.",
        "The sum was 44.0 mm at visit-2, 34.0 mm at visit-3.",
    ],
    "lesions": [
        "L1 measured 19.0 mm and L2 25.0 mm at visit-1.",
        "L1 and L2 measured 19.0 and 25.0 mm at visit-1.",
        "L4 measured 13.0 mm at visit-3.",
        "L1 measured 44.0 mm at visit-1.",
        "L1 has a volume of 10.11 ml at visit-1.",
        "The total volume was 7.13 ml at visit-1.",
        "The liver lesion measured 25.0 mm at visit-1.",
        "The new lesion measured 15.0 mm at visit-3.",
        "The largest lesion at visit-3 is L1.",
        "L2 is smaller than L1 at visit-3.",
        "L1 measured 2.2 mm at visit-1.",
    ],
    "sides and organs": [
        "L1 lies in the right lung.",
        "L2 lies in the left lung.",
        "L3 lies in the left kidney.",
        "L1, in the right lung, measured 25.0 mm at visit-1.",
        "The lesion in the spleen is new.",
        "There are lesions in the right lung and the left kidney.",
        "L1 lies in the upper lobe.",
        "The hepatic lesion L3 is new.",
        "Both lungs hold lesions, left and right.",
    ],
    "units": [
        "L1 measured 25.0 cm at visit-1.",
        "L1 measured 0.25 cm at visit-1.",
        "L1 measured 25.0 at visit-1.",
        "L1 measured 25.0 inches at visit-1.",
        "The volume of L1 is 7.13 mm3 at visit-1.",
        "The volume of L1 is 7.13 mm at visit-1.",
        "Visits were 56 weeks apart.",
        "Over 2 years three scans were made.",
        "The dose was 2 Gy.",
    ],
    "sums": [
        "L1 and L2 together measured 40.0 mm at visit-1.",
        "The sum of target diameters was 45.0 mm at visit-3.",
        "All lesions together measure 14.9 ml at visit-3.",
    ],
    "negation": [
        "No new lesions were found.",
        "There are no new lesions at visit-3.",
        "New lesions were not observed.",
        "New lesions are absent.",
        "L3 is not new.",
        "L1 is new.",
        "L2 is a new lesion.",
        "New lesions were seen at visit-2.",
        "There was no progression.",
        "No progressive disease was seen at visit-3.",
        "L1 did not shrink.",
        "L2 has not grown since visit-2.",
        "L1 never decreased.",
        "None of the lesions grew.",
    ],
    "decimal commas": [
        "L1 measured 25,3 mm at visit-1.",
        "The sum was 3,40 mm at visit-2.",
        "The volume of L1 was 71,30 ml at visit-1.",
    ],
    "trends": [
        "L2 shrank steadily.",
        "L1 grew between visit-1 and visit-2.",
        "L2 grew between visit-1 and visit-2.",
        "The tumour burden increased since the baseline.",
        "L1 grew and L2 shrank.",
        "L1 remained stable, L2 increased.",
        "All lesions shrank.",
        "Every lesion decreased since visit-2.",
        "L1 disappeared.",
        "The new lesion resolved.",
        "L1 doubled in size.",
        "L1 quadrupled.",
        "L1 is five times larger than before.",
        "L1 shrank to one third of its diameter.",
        "Growth is accelerating.",
        "The sum increased since visit-2.",
        "The disease burden improved since visit-2 by half.",
        "L1 came back.",
        "The left lung lesion grew.",
    ],
    "categories": [
        "At visit-2 there was progressive disease.",
        "Stable disease was reached at day 112.",
        "A complete response was seen at visit-3.",
        "The best overall response is PR.",
        "PD has a probability of {SD@visit-2} % at visit-2.",
        "Partial response is likely at visit-2.",
        "Currently there is stable disease.",
        "The patient is not evaluable at visit-2.",
    ],
    "judgements": [
        "The patient is cured.",
        "Treatment is 100 % effective.",
        "The chemotherapy should be stopped.",
        "The lesions are metastases.",
        "L1 shrank because of the chemotherapy.",
        "After radiotherapy L1 shrank.",
        "She is a 63-year-old patient.",
        "Chemotherapy began on day 30.",
        "The prognosis is good.",
        "There is necrosis in L1.",
    ],
    "as models write, first lot": [
        "The left lung lesion (L1) decreased from 25.0 mm to 17.0 mm.",
        "L1 shrank by 60 % in diameter since the baseline.",
        "The lesion in the liver decreased from 25.0 mm at visit-1 to 15.0 mm at visit-2.",
        "Target lesions L1 and L2 measured 25.0 mm and 15.0 mm at baseline.",
        "Since the baseline, the sum of diameters has increased by 27.3 %.",
        "The sum of diameters rose to 34.0 mm at visit-2.",
        "L3 was first seen at visit-2.",
        "A new lesion L3 in the left kidney appeared at visit-3.",
        "A new 15.0 mm lesion was found at visit-3.",
        "The overall response at visit-3 is stable disease.",
        "RECIST 1.1 category was PD at both follow-up visits.",
        "The patient remained in stable disease at day 56 and day 112.",
        "At day 56, the response was partial response.",
        "The probability of partial response at visit-2 is {SD@visit-2} %.",
        "The probability of stable disease at visit-2 was {PR@visit-2} %.",
        "The total lesion volume decreased from 10.11 ml to 4.47 ml at visit-2.",
        "Total volume rose by 56 % since baseline.",
        "The volume decreased by 10.11 ml.",
        "The nadir sum was 32.0 mm at visit-2.",
        "L2 is stable since visit-2.",
        "Both target lesions shrank since visit-2.",
        "Neither target lesion changed.",
        "L1, the lesion in the liver, shrank.",
        "The measurement uncertainty is 2.2 mm at visit-3.",
        "The forecast for day 112 is 2.57 ml.",
        "The tumour volume will reach 100 ml by day 300.",
        "Two of three lesions are new.",
        "The scan on 10 January 2026 showed progressive disease.",
        "The baseline scan was on 7 March 2026.",
        "The time between visit-1 and visit-3 was 56 days.",
        "Chemotherapy ended on day 112.",
        "Chemotherapy was given for 12 months.",
        "All lesions are in the lung.",
        "The left kidney lesion is new.",
        "No lesions were seen at visit-2.",
        "L2 increased from 15.0 mm to 17.0 mm between visit-1 and visit-2.",
        "L2 grew by 2.0 mm between visit-1 and visit-2.",
        "L2 grew by 4.0 mm since visit-2.",
        "L1 lost 12 mm.",
        "The new lesion measures 13.0 cm.",
        "The response was confirmed as partial response.",
        "The sum is 32.0 mm, which is 27.3 % above baseline.",
        "Lesion L1 is the smallest, L3 the largest.",
        "L1 measured 25.0 mm; two visits later it measured 19.0 mm.",
        "The change in the sum from visit-2 to visit-3 was -22.7 %.",
        "The sum dropped 10.0 mm from visit-2 to visit-3.",
    ],
    "as models write, third lot": [
        "L1, located in the left lung, decreased from 25.0 mm at baseline to 17.0 mm at day 112.",
        "By day 56, L2 had grown to 15.0 mm.",
        "At visit-2 three lesions were seen.",
        "The sum of diameters reached its nadir of 34.0 mm at visit-1.",
        "Over the three visits the total volume decreased from 10.11 ml to 2.98 ml.",
        "L2 measured 19.0 mm at visit-1, 17.0 mm at visit-2 and 15.0 mm at visit-3.",
        "Two new lesions in the right kidney appeared on 2 May 2026.",
        "The left lung lesion disappeared by visit-3.",
        "Response by RECIST 1.1: CR at visit-2.",
        "Target lesions increased by 22.7 % in sum at visit-2.",
        "A reduction of 34.0 mm in the sum was seen at visit-2.",
        "L1 has the smallest volume at visit-1.",
        "The lung lesion is now larger than the liver lesion.",
        "The patient had stable disease throughout.",
        "The longest diameter of L1 at visit-2 was 15,0 mm.",
        "L1 was 250 mm at baseline.",
        "L1 was 1.5 mm at visit-3.",
        "The chance of progression at visit-2 is 100 %.",
        "L3 grew from 0 mm to 15.0 mm.",
        "The scan interval was 16 weeks between visit-1 and visit-2.",
        "The total volume rose by 5.7 ml since the baseline.",
        "There is no lesion in the kidney.",
        "There is no lesion in the left lung.",
        "Lesions are confined to the lungs.",
        "L1 and L2 increased since the baseline.",
        "Every target lesion shrank between visit-2 and visit-3.",
        "The overall trend is upward.",
        "The disease is in regression.",
        "The sum decreased at each visit by 22.7 %.",
        "Volume of L1: 1.45 ml at visit-2.",
    ],
    "as models write, second lot": [
        "The liver metastasis L2 is growing fast.",
        "L1 is the only lesion in the liver.",
        "The right-sided lesion L1 measured 15.0 mm at visit-3.",
        "Between baseline and the latest scan, L2 shrank from 19.0 mm to 15.0 mm.",
        "The sum of the longest diameters at the most recent visit was 34.0 mm.",
        "Compared with baseline, L2 has increased in diameter.",
        "At the first follow-up the sum had fallen by 27.3 %.",
        "At six months L1 measured 15.0 mm.",
        "L1 (visit-2): 25.0 mm.",
        "L1 had a diameter of 25.0 mm both at visit-1 and visit-2.",
        "Diameters at visit-1: L1 19.0 mm, L2 25.0 mm.",
        "No target lesion grew between visit-2 and visit-3.",
        "The kidney lesion was present at baseline.",
        "L3 was not visible at visit-3.",
        "The combined volume at visit-2 was 10.11 ml.",
        "The response improved from stable disease to partial response.",
        "The probability of PD at the last visit is {PR@visit-2} %.",
        "The patient progressed at visit-2.",
        "All three lesions are targets.",
        "L3 is a target lesion.",
        "The patient has one lesion in the lung, two in the liver.",
        "Only one lesion was seen at visit-1.",
        "The chance of stable disease is 100 %.",
        "The standard deviation of L1 is 25.0 mm.",
        "Visit-2 took place on day 112.",
        "The forecast predicts 100 ml at day 168.",
        "Without treatment the volume would be 55.5 ml.",
        "The follow-up was 3 years.",
        "L1's volume decreased by 5.7 cm at visit-3.",
        "The lesion L2 measured 17.0 mm on the scan of 10 January 2026.",
        "L1 decreased by 6.0 mm between visit-2 and visit-3.",
    ],
}  # fmt: skip
TRUE = [
    "L1 measured 25.0 mm at visit-1.",
    "L1 was 2.5 cm across at visit-1.",
    "L1 measured twenty-five millimetres at visit-1.",
    "L1 measured 25,0 mm at visit-1.",
    "A 25.0-mm lesion (L1) was seen at visit-1.",
    "L1 measured 25 x 25 mm at visit-1.",
    "The volume of L1 was 7,130 mm\u00b3 at visit-1 (rounded from 7129.5 mm\u00b3).",
    "The volume of L1 was 7.13 cc at visit-1.",
    "On 7 March 2026 L1 measured 19.0 mm.",
    "On March 7, 2026, the sum was 34.0 mm.",
    "In May 2026 the sum was 32.0 mm.",
    "At day 112 L1 measured 15.0 mm.",
    "At week 8 the sum was 34.0 mm.",
    "After 8 weeks the sum was 34.0 mm.",
    "At the second follow-up L1 measured 15.0 mm.",
    "At the 2nd visit L2 measured 15.0 mm.",
    "Initially L2 measured 19.0 mm.",
    "L1 now measures 15.0 mm.",
    "L1 measured 25.0 mm at visit-1 and 15.0 mm at visit-3.",
    "L1 measured 25.0, 19.0 and 15.0 mm at visit-1, visit-2 and visit-3.",
    "At visit-1 L1 measured 25.0 mm, at visit-2 19.0 mm.",
    "L1 measured 25.0 mm and L2 19.0 mm at visit-1.",
    "L1 and L2 measured 25.0 and 19.0 mm at visit-1, respectively.",
    "L1 shrank from 25.0 mm at baseline to 15.0 mm.",
    "L1 shrank from 25.0 mm to 15.0 mm between visit-1 and visit-3.",
    "The sum of target diameters fell from 44.0 mm to 32.0 mm.",
    "The sum was 44.0 mm at baseline, 34.0 mm at visit-2 and 32.0 mm at visit-3.",
    "The sum decreased by 22.7 % at visit-2.",
    "The sum decreased by 27.3 % from baseline to visit-3.",
    "The sum fell by 12.0 mm since the baseline.",
    "At visit-3 the sum was 5.9 % below the nadir.",
    "L1 shrank by 40 % in diameter since the baseline.",
    "The volume of L1 fell by 79.7 % since the baseline.",
    "The total volume was 10.11 ml at visit-1.",
    "The liver lesion measured 19.0 mm at visit-1.",
    "L1 lies in the left lung, L2 in the liver and L3 in the right kidney.",
    "The new lesion L3 in the right kidney measured 13.0 mm at visit-3.",
    "Three lesions were followed over three scans.",
    "One new lesion appeared at visit-3.",
    "There are two target lesions.",
    "No new lesions were seen at visit-2.",
    "L3 is new.",
    "L1 is not new.",
    "There was no complete response.",
    "Stable disease was seen at visit-2, progressive disease at visit-3.",
    "The best overall response is stable disease.",
    "At visit-2 stable disease has a probability of {SD@visit-2} %.",
    "The last category is progressive disease with a probability of {PD@visit-3} %.",
    "Progressive disease is likely.",
    "L1 shrank while L2 grew.",
    "L1 shrank steadily.",
    "L2 decreased between visit-1 and visit-2, then increased.",
    "The tumour burden decreased since the baseline.",
    "The tumour burden was unchanged between visit-2 and visit-3.",
    "L2 did not shrink.",
    "The largest lesion at visit-3 is L2.",
    "L1 is smaller than L2 at visit-3.",
    "Visits were 8 weeks apart.",
    "Chemotherapy was given from day 5 to day 90.",
    "The scans span about 16 weeks.",
    "Diameters at the last scan have a standard deviation of up to 1.8 mm.",
    "L1 measured 15.0 mm (standard deviation 1.7 mm) at visit-3.",
    "It is not known why L2 grew.",
    "All three scans could be used.",
    "Two lesions shrank since the baseline and one lesion grew since the baseline.",
    "The patient has two target lesions, L1 in the left lung and L2 in the liver.",
    "L1 decreased from 25.0 mm at visit-1 to 19.0 mm at visit-2 and 15.0 mm at visit-3.",
    "L2 decreased from 19.0 mm at visit-1 to 15.0 mm at visit-2, but increased to 17.0 mm at visit-3.",
    "A new lesion, L3, was detected at visit-3 in the right kidney, measuring 13.0 mm.",
    "A new 13.0 mm lesion (L3) was found in the right kidney at visit-3.",
    "The sum of target lesion diameters decreased from 44.0 mm at baseline to 34.0 mm at day 56 (-22.7 %) and 32.0 mm at day 112 (-27.3 %).",
    "According to RECIST 1.1, the response was stable disease at day 56 and progressive disease at day 112.",
    "Progressive disease at visit-3 follows from the new lesion L3.",
    "The best overall response, confirmed, is stable disease.",
    "Total volume decreased from 10.11 ml at visit-1 to 4.43 ml at visit-2 and was 4.47 ml at visit-3.",
    "The volume of all lesions hardly changed between day 56 and day 112 (+1 %).",
    "The standard deviation of the diameters is between 1.6 mm and 1.8 mm at visit-3.",
    "Measurement errors range from 1.6 mm to 1.8 mm at visit-3.",
    "The probability of progressive disease at the last visit is {PD@visit-3} %.",
    "With measurement errors, stable disease at visit-2 has a probability of {SD@visit-2} % and partial response {PR@visit-2} %.",
    "All visits have a usable scan.",
    "Three scans were acquired on days 0, 56 and 112.",
    "Scans were made on 2026-01-10, 2026-03-07 and 2026-05-02.",
    "L1 shrank at every visit.",
    "L1 and L2 both shrank between visit-1 and visit-2.",
    "The largest lesion at the last scan is L2 with 17.0 mm.",
    "L2 grew by 2.0 mm between visit-2 and visit-3.",
    "The sum dropped by 2.0 mm from visit-2 to visit-3.",
    "The change in the sum from visit-2 to visit-3 was -5.9 %.",
    "L1 lost 10.0 mm in diameter since the baseline.",
    "Chemotherapy started on day 5 and ended on day 90.",
    "One lesion is new and two lesions are targets.",
    "At the last scan, three lesions are seen with a total volume of 4.47 ml.",
    "L3 was not seen before visit-3.",
    "L1 is in the left lung. It shrank from 25.0 mm to 15.0 mm.",
    "The lesion in the left lung shrank, while the liver lesion grew between visit-2 and visit-3.",
    "Lesion sizes carry a standard deviation of up to 1.8 mm at visit-3.",
    "Under natural_history the volume is unknown.",
    "L2: 19.0 mm (visit-1), 15.0 mm (visit-2), 17.0 mm (visit-3).",
    "L1 measured 25.0 mm at baseline (visit-1, 2026-01-10).",
    "The sum of diameters at baseline was 44.0 mm.",
    "By visit-3 the sum was 32.0 mm.",
    "The confidence in the links between visits is high.",
    "Since baseline, L1 has decreased in diameter by 40 %.",
    "L1 has halved in volume since visit-2.",
    "Compared with baseline, L2 has decreased in diameter.",
    "L1 decreased by 4.0 mm between visit-2 and visit-3.",
    "L1 decreased by 6.0 mm between visit-1 and visit-2.",
    "At the first follow-up the sum had fallen by 22.7 %.",
    "The sum of the longest diameters at the most recent visit was 32.0 mm.",
    "L1 (visit-2): 19.0 mm.",
    "Diameters at visit-1: L1 25.0 mm, L2 19.0 mm.",
    "The kidney lesion was not present at baseline.",
    "L3 was visible at visit-3.",
    "The combined volume at visit-2 was 4.43 ml.",
    "L3 is not a target lesion.",
    "Only two lesions were seen at visit-1.",
    "Visit-2 took place on day 56.",
    "Visit-2 took place on 7 March 2026.",
    "L2 measured 17.0 mm on the scan of 2 May 2026.",
    "The disease progressed at visit-3.",
    "There is one lesion in the liver.",
    "A total of 3 lesions was found.",
    "Response went from stable disease at visit-2 to progressive disease at visit-3.",
    "The uncertainty of the diameters is 1.6 to 1.8 mm at visit-3.",
    "In the left lung, L1 measured 15.0 mm at the last scan.",
    "Growth of L2 between visit-2 and visit-3 was 2.0 mm.",
    "The smallest lesion at visit-3 is L3 with 13.0 mm.",
    "Images of all three visits are of good quality.",
    "The new lesion makes this progressive disease under RECIST 1.1.",
    "L1, located in the left lung, decreased from 25.0 mm at baseline to 15.0 mm at day 112.",
    "By day 56, L2 had shrunk to 15.0 mm.",
    "At visit-2 two lesions were seen.",
    "Over the three visits the total volume decreased from 10.11 ml to 4.47 ml.",
    "L2 measured 19.0 mm at visit-1, 15.0 mm at visit-2 and 17.0 mm at visit-3.",
    "A new lesion in the right kidney appeared on 2 May 2026.",
    "Response by RECIST 1.1: SD at visit-2, PD at visit-3.",
    "Target lesions decreased by 22.7 % in sum at visit-2.",
    "A reduction of 10.0 mm in the sum was seen at visit-2.",
    "L1 is the largest lesion at visit-1.",
    "The longest diameter of L1 at visit-2 was 19,0 mm.",
    "The scan interval was 8 weeks between visit-1 and visit-2.",
    "The total volume fell by 5.6 ml since the baseline.",
    "Lesions lie in the left lung, the liver and the right kidney.",
    "L1 and L2 decreased since the baseline.",
    "Volume of L1: 1.45 ml at visit-3.",
    "The lung lesion is now smaller than the liver lesion.",
    "The volume of L2 was 2.98 ml at visit-1 and 1.45 ml at visit-2.",
    "Only L2 grew between visit-2 and visit-3.",
    "Given these errors, the category at visit-3 is certain: progressive disease.",
    "The target lesions show a mixed picture: L1 decreased and L2 increased between visit-2 and visit-3.",
    "The sum of diameters reached its nadir of 34.0 mm at visit-2.",
    "Stable disease on day 56 was followed by progressive disease on day 112.",
    "Sizes at visit-3 are 15.0 mm for L1, 17.0 mm for L2 and 13.0 mm for L3.",
    "The three lesions measure 15.0 mm (L1), 17.0 mm (L2) and 13.0 mm (L3) at visit-3.",
    "Mean attenuation is not known.",
    "All links between visits are confident.",
    "No scan is missing.",
]


@pytest.mark.parametrize("sentence", [s for group in WRONG.values() for s in group])
def test_what_is_wrong_is_caught(sentence: str, case: Case) -> None:
    assert check(filled(sentence, case), case), sentence


@pytest.mark.parametrize("sentence", TRUE)
def test_what_is_true_passes(sentence: str, case: Case) -> None:
    assert not check(filled(sentence, case), case), (sentence, check(filled(sentence, case), case))


def test_it_is_what_was_named_last(case: Case) -> None:
    good = ground("L1 lies in the left lung. It measured 25.0 mm at visit-1.", case)
    assert not good.problems
    bad = ground("L1 lies in the left lung. It measured 17.0 mm at visit-3.", case)
    assert [p.what for p in bad.problems] == ["17.0 mm"]


@pytest.mark.parametrize("word", ["one hundred and ", "L1 measured 25.0 mm and ", "visit-1, ", "not ", "25 "])
def test_a_model_that_repeats_itself_is_refused_at_once(word: str, case: Case) -> None:
    told = ground(word * 5000, case)
    assert told.refused
    assert [p.kind for p in told.problems] == ["claim"]


DAY = date(2026, 1, 10)
LUNG, LIVER = ((20, 30, 30), 12, "left lung"), ((40, 70, 70), 9, "liver")
SMALL = ((20, 30, 30), 9, "left lung")


@pytest.mark.parametrize(
    "study",
    [
        lambda: [visit("visit-1", 0, DAY, LUNG, LIVER)],
        lambda: [visit("visit-1", 0, DAY, LUNG), MeasuredVisit(Timepoint("visit-2", 42), None, reason="no scan"), visit("visit-3", 84, DAY, SMALL)],
        lambda: [visit("visit-1", 0, DAY, LUNG), visit("visit-2", 42, DAY), visit("visit-3", 84, DAY)],
        lambda: [visit("visit-1", 0, DAY), visit("visit-2", 42, DAY, LUNG)],
        lambda: [visit("a1", 0, DAY, SMALL), visit("b2", 42, DAY, LUNG), visit("c3", 84, DAY, LUNG, LIVER)],
        lambda: [visit("v1", 0, DAY, ((1, 3, 3), 12, "spleen")), visit("v2", 10, DAY, ((1, 3, 3), 10, "spleen"))],
        lambda: [visit("baseline", 0, DAY, LUNG, LIVER), visit("week-8", 56, DAY, SMALL, LIVER), visit("week-16", 112, DAY, LUNG)],
        lambda: [visit("2026-01-10", 0, DAY, LUNG), visit("2026-03-07", 56, date(2026, 3, 7), SMALL)],
    ],
    ids=["one", "missing", "gone", "none at first", "growing", "cut off", "names", "dates"],
)
def test_the_template_is_grounded_in_odd_cases_too(study: Callable[[], list[MeasuredVisit]]) -> None:
    visits = study()
    given = (TherapyEvent("t", "radiotherapy", 3, 9, 2.0), TherapyEvent("u", "pembrolizumab 200 mg", 30))
    case = assemble(Patient("P", tuple(v.timepoint for v in visits), given), visits)
    assert grounded_template(case), [p for _, text in write(case).parts for p in ground(text, case).problems]
