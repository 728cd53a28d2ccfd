"""What a report's reader sees: words that stand out from their ground, and what-ifs that are none."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from isocenter.analysis.case import NO_SCAN, Case, MeasuredVisit, assemble
from isocenter.analysis.narrative.template import write
from isocenter.analysis.report import content, figures, html, pdf
from isocenter.analysis.report.told import Told
from isocenter.core.patient import Patient, TherapyEvent, Timepoint
from tests.analysis.test_case_edits import visit


@pytest.fixture(scope="module")
def case() -> Case:
    """One lesion at five visits, under a course that is over."""
    radii = (9, 10, 8, 7, 7.5)
    visits = [visit(f"visit-{k + 1}", 40.0 * k, (12, 30, 30, radius)) for k, radius in enumerate(radii)]
    therapy = TherapyEvent("t", "chemotherapy", 45, 130)
    return assemble(Patient("P", tuple(v.timepoint for v in visits), (therapy,)), visits)


def test_words_stand_out_from_every_category() -> None:
    for colour in figures.CATEGORY_COLOURS.values():
        light = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        luminance = float(np.dot([0.2126, 0.7152, 0.0722], [((p + 0.055) / 1.055) ** 2.4 for p in light]))
        ratio = (luminance + 0.05) / 0.05 if figures.ink(colour) == "#000000" else 1.05 / (luminance + 0.05)
        assert ratio >= 4.5, colour  # WCAG 2.2, 1.4.3


def test_a_scenario_that_changes_nothing_is_said_to_and_not_drawn(case: Case) -> None:
    """The course is over: from the last visit on, another regimen would change nothing."""
    total = content.scenarios(case)
    assert total is not None
    assert [s.name for s in figures.changes_nothing(total)] == ["regimen_switch_effect_0.75"]
    drawn = {text.get_text() for text in figures.scenarios(case, total).figure.axes[0].get_legend().get_texts()}
    assert drawn == {s.name.replace("_", " ") for s in total.scenarios} - {"regimen switch effect 0.75"} | {"treatment"}
    (note,) = [note for note in content.growth_notes(case) if "regimen switch effect 0.75" in note]
    assert "no course goes on after the last visit (day 160): the last one ended on day 130" in note


def test_bars_say_what_they_are(case: Case) -> None:
    bars = figures.waterfall(case).figure.axes[0]
    (lesion,) = case.targets
    sizes = [k.longest_mm or 0 for k in case.lesions]
    assert [t.get_text() for t in bars.get_xticklabels()] == [lesion]
    assert f"{100 * (min(sizes[1:]) / sizes[0] - 1):+.0f} %" in {t.get_text() for t in bars.texts}


@pytest.fixture(scope="module")
def gappy() -> Case:
    """Two lesions; the second goes and comes back; the fourth visit has no scan; every criterion judges; a partial response is not confirmed."""
    balls = ((12, 10), (8, None), None, (11, 9))
    visits = []
    for k, radii in enumerate(balls):
        when = Timepoint(f"visit-{k + 1}", 40.0 * k)
        if radii is None:
            visits.append(MeasuredVisit(when, None, reason=NO_SCAN))
            continue
        places = [(10, 15, 15, radii[0]), *([(10, 45, 45, radii[1])] if radii[1] else [])]
        visits.append(visit(f"visit-{k + 1}", 40.0 * k, *places))
    made = assemble(Patient("P", tuple(v.timepoint for v in visits)), visits, criteria=("irecist", "rano"))
    return replace(made, names={"L1": "آفة في الكبد", "L2": "x<y & a very long name of a lesion"})


def page_of(case: Case) -> str:
    return html.render(Told(case, write(case), "1", thumbnail=lambda _: b"png"))


def test_a_visit_that_shows_no_lesion_says_why(gappy: Case) -> None:
    first, second = content.tracks(gappy, lambda _: b"png")
    assert [(s.png is not None, s.text) for s in first.shots if s.png is None] == [(False, "no scan")]
    assert [s.text for s in second.shots if s.png is None] == ["not seen", "no scan"]
    assert [s.visit for s in second.shots] == ["visit-1", "visit-2", "visit-3", "visit-4"]


def test_the_lesions_stand_one_after_the_other(gappy: Case) -> None:
    rows = [(row["track"], row["visit"]) for row in content.lesion_rows(gappy)]
    assert rows == [("L1", "visit-1"), ("L1", "visit-2"), ("L1", "visit-4"), ("L2", "visit-1"), ("L2", "visit-4")]


def test_both_best_responses_and_all_criteria_are_told(gappy: Case) -> None:
    page = page_of(gappy)
    assert gappy.best_overall != gappy.best_seen
    assert f"confirmed: {gappy.best_overall}; without confirmation: {gappy.best_seen}" in page
    head, rows = content.others(gappy)
    assert head == ["Visit", "Day", "Volumetric response", "RANO", "iRECIST"]
    assert [row[-1] for row in rows] == [str(r.category) for r in gappy.irecist]
    assert ">iRECIST</th>" in page


def test_the_page_can_be_read_by_who_cannot_see_it_and_fetches_nothing(gappy: Case) -> None:
    page = page_of(gappy)
    assert page.count("<svg ") == page.count('<svg role="img" aria-label="')
    assert page.count("<img ") == page.count('<img alt="L')
    assert "<th>" not in page
    assert page.count("<thead>") == page.count("<table>") == 3
    ids = re.findall(r'<(?!path|clipPath|style)\w+ [^>]*?\bid="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:|//|file:)""", re.sub(r'xmlns(?::\w+)?="[^"]*"', "", page))
    assert "x&lt;y &amp; a very long name" in page
    assert "x<y" not in page


def test_what_plots_and_pdf_cannot_write_is_left_out_and_never_turned_around(gappy: Case) -> None:
    assert figures.writable("Leber S8 é σ Ж") == "Leber S8 é σ Ж"
    assert figures.writable("L1 (آفة في الكبد)") == "L1 ([…])"
    assert figures.writable("肝S8の病変") == "[…]S8[…]"
    labels = {t.get_text() for t in figures.spider(gappy).figure.axes[0].get_legend().get_texts()}
    assert labels >= {"L1", "L2"}
    assert "آفة في الكبد" in page_of(gappy)
    told = Told(gappy, write(gappy), "1")
    assert pdf.render(told).startswith(b"%PDF-")


def test_nothing_found_is_said(gappy: Case) -> None:
    visits = [replace(v, found=() if v.found is not None else None) for v in gappy.visits]
    none = assemble(gappy.patient, visits)
    page = page_of(none)
    assert "No lesion was found at any visit." in page
    assert "There is nothing to draw" in page
    assert content.rows(none)[0]["sum"] == ""
    assert pdf.render(Told(none, write(none), "1")).startswith(b"%PDF-")


def test_of_two_lesions_on_a_slice_the_measured_one_is_outlined(case: Case) -> None:
    import io

    from PIL import Image

    from isocenter.analysis.report.thumbnails import thumbnail
    from isocenter.analysis.slices import Slice
    from isocenter.core.geometry import Grid

    mask = np.zeros((60, 60), np.uint8)
    mask[20:30, 20:30] = mask[34:40, 20:30] = 1
    own = replace(case.lesions[0], plane=0, slice_index=3, longest_ends=((19.5, 25, 3), (29.5, 25, 3)), short_ends=((25, 19.5, 3), (25, 29.5, 3)))
    png = thumbnail(Slice(np.zeros((60, 60), np.int16), mask, Grid((8, 60, 60)), 0), own, unit="HU")
    assert png
    drawn = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    yellow = (np.abs(drawn - (255, 200, 0)).sum(axis=2) == 0).any(axis=1)
    grey = (np.abs(drawn - (150, 150, 190)).sum(axis=2) == 0).any(axis=1)
    assert yellow.any()
    assert grey.any()
    assert np.flatnonzero(yellow).max() < np.flatnonzero(grey).min(), "the other lies below"
    # A centimetre is as long as the lesion's own ten pixels of a millimetre.
    white = (drawn == 255).all(axis=2).sum(axis=1).max()
    columns = (np.abs(drawn - (255, 200, 0)).sum(axis=2) == 0).any(axis=0)
    assert white == pytest.approx(np.ptp(np.flatnonzero(columns)), abs=4)
