"""Slips of whoever describes a study: refused in words, or named in the notes; never a plausible wrong number in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from isocenter.cli import app
from isocenter.io import nifti
from tests.test_track_corrections import GRID, follow, study

__all__ = ["study"]
Told = dict[str, Any]


def changed(study: Path, change: Callable[[Told], object]) -> None:
    told = json.loads((study / "study.json").read_text())
    change(told)
    (study / "study.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("therapies", "words"),
    [
        pytest.param([{"type": "a", "start": 5, "end": float("inf")}], "100,000 days", id="for ever"),
        pytest.param([{"type": "a", "start": 5, "end": 1e7}], "100,000 days", id="beyond all reason"),
        pytest.param([{"type": "a", "start": 50, "end": 10}], "must end after it starts", id="backwards"),
        pytest.param([{"type": "a", "start": 5, "dose": -2}], "dose", id="less than nothing"),
        pytest.param([{"type": "a", "start": float("nan")}], "must be numbers|100,000", id="at no time"),
        pytest.param([{"id": "x", "type": "a", "start": 5}, {"id": "x", "type": "b", "start": 9}], "two therapies have one id", id="of one id"),
    ],
)
def test_absurd_therapies_are_refused(study: Path, therapies: list[Told], words: str) -> None:
    import re

    changed(study, lambda told: told.update(therapies=therapies))
    code, output, case = follow(study)
    assert code in (2, 3)
    assert re.search(words, " ".join(output.split())), output
    assert case == {}


def test_one_scan_at_two_visits_and_a_name_of_nothing_are_named(study: Path) -> None:
    def change(told: Told) -> None:
        told["visits"][1].update(image="ct-0.nii.gz", mask="mask-0.nii.gz")
        told["names"] = [["day-0", "lesion-77", "Aunt Mary's"]]

    changed(study, change)
    code, _, case = follow(study)
    assert code == 0
    assert any("day-0 and day-60 are one and the same scan" in note for note in case["notes"])
    (named,) = [note for note in case["notes"] if "lesion-77" in note]
    assert "Mary" not in named


def test_two_marks_in_one_lesion_are_named(study: Path) -> None:
    def change(told: Told) -> None:
        del told["visits"][1]["mask"]
        told["visits"][1]["clicks"] = [[[14, 12, 8]], [[15, 12, 8]]]

    changed(study, change)
    code, _, case = follow(study)
    assert code == 0
    assert len([k for k in case["lesions"] if k["timepoint_id"] == "day-60"]) == 1
    assert any("day-60: 2 lesions were marked, 1 found" in note for note in case["notes"])


def test_a_scan_that_cannot_be_used_is_not_called_none_and_the_command_says_partly(study: Path) -> None:
    (study / "mask-60.nii.gz").write_bytes(nifti.write(np.full(GRID.shape, 0.5, np.float32), GRID, header=None, compress=True))
    done = CliRunner().invoke(app, ["track", str(study), "-o", str(study / "out"), "--registration", "none", "-f", "html"])
    assert done.exit_code == 8, done.output
    assert "not usable" in done.output
    assert "no labels" in done.output
    assert "not usable" in (study / "out" / "report.html").read_text()
    changed(study, lambda told: told["visits"][1].update(image=None, mask=None))
    done = CliRunner().invoke(app, ["track", str(study), "-o", str(study / "out"), "--registration", "none", "-f", "json"])
    assert done.exit_code == 0, done.output
    assert "no scan" in done.output


def test_specks_that_are_no_lesions_are_told(study: Path) -> None:
    """What shrank below the least size counts as gone, which a reader must know."""
    mask = np.zeros(GRID.shape, np.uint8)
    mask[8, 30, 36] = mask[6:10, 8:20, 8:20] = 1
    (study / "mask-60.nii.gz").write_bytes(nifti.write(mask, GRID, header=None, compress=True))
    code, _, case = follow(study)
    assert code == 0
    (last,) = [v["notes"] for v in case["timepoints"] if v["timepoint_id"] == "day-60"]
    assert any("specks below 30 mm³ (16 mm³ in all) are no lesions" in note for note in last)
    (first,) = [v["notes"] for v in case["timepoints"] if v["timepoint_id"] == "day-0"]
    assert not any("specks" in note for note in first)


def test_a_mask_and_clicks_are_one_too_many(study: Path) -> None:
    changed(study, lambda told: told["visits"][1].update(clicks=[[[14, 12, 8]]]))
    code, output, case = follow(study)
    assert code == 3
    assert "give its lesions in one way" in output
    assert case == {}
