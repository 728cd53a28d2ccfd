"""What a report's reader sees: words that stand out from their ground, and what-ifs that are none."""

from __future__ import annotations

import numpy as np
import pytest

from isocenter.analysis.case import Case, assemble
from isocenter.analysis.report import content, figures
from isocenter.core.patient import Patient, TherapyEvent
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


def test_of_two_lesions_on_a_slice_the_measured_one_is_outlined(case: Case) -> None:
    import io
    from dataclasses import replace

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
