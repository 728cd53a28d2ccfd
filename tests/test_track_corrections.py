"""Readers' corrections for `isocenter track`: in a study.json, or in a file of their own; the same in the patients' API."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from isocenter.cli import app
from isocenter.core.errors import IsocenterError
from isocenter.core.geometry import Grid
from isocenter.core.settings import Limits
from isocenter.io import nifti, visits

GRID = Grid((16, 40, 48), (2.0, 2.0, 4.0))
#: Centres (z, y, x) and half edges of boxes: a lesion that its mask cut in two, and another one.
FIRST = (((8, 12, 12), 4), ((8, 12, 22), 3), ((8, 30, 36), 4))
SECOND = (((8, 12, 14), 6), ((8, 30, 36), 4))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    rows = []
    for day, lesions in ((0, FIRST), (60, SECOND)):
        mask = np.zeros(GRID.shape, np.uint8)
        for (z, y, x), half in lesions:
            mask[z - 2 : z + 2, y - half : y + half, x - half : x + half] = 1
        scan = np.where(mask, 120, 40).astype(np.int16)
        for name, array in (("ct", scan), ("mask", mask)):
            (tmp_path / f"{name}-{day}.nii.gz").write_bytes(nifti.write(array, GRID, header=None, compress=True))
        rows.append({"id": f"day-{day}", "day": day, "image": f"ct-{day}.nii.gz", "mask": f"mask-{day}.nii.gz", "modality": "CT"})
    (tmp_path / "study.json").write_text(json.dumps({"patient_id": "P", "visits": rows}))
    return tmp_path


def follow(study: Path, *more: str) -> tuple[int, str, dict[str, Any]]:
    arguments = ["track", str(study), "-o", str(study / "out"), "--registration", "none", "-f", "json", "-f", "csv", *more]
    done = CliRunner().invoke(app, arguments)
    file = study / "out" / "case.json"
    return done.exit_code, done.output, json.loads(file.read_text()) if file.is_file() else {}


MERGE = {"action": "merge", "lesion": ["day-0", "lesion-1"], "other": ["day-0", "lesion-3"], "reason": "one lesion"}
OTHERS = [
    {"action": "role", "lesion": ["day-0", "lesion-2"], "target": False},
    {"action": "rename", "lesion": ["day-60", "lesion-1"], "name": "the cut one"},
    {"action": "measurement", "lesion": ["day-60", "lesion-1"], "figures": {"longest_mm": 40}},
]


def test_corrections_of_a_file_and_of_the_study(study: Path) -> None:
    code, _, plain = follow(study)
    assert code == 0
    assert [(k["track"], k["lesion_id"]) for k in plain["lesions"] if k["timepoint_id"] == "day-0"] == [
        ("L1", "lesion-1"),
        ("L2", "lesion-2"),
        ("L3", "lesion-3"),
    ]
    (study / "corrections.json").write_text(json.dumps([MERGE, *OTHERS]))
    code, output, case = follow(study, "--corrections", str(study / "corrections.json"))
    assert code == 0, output
    first = [k for k in case["lesions"] if k["timepoint_id"] == "day-0"]
    assert [(k["track"], k["lesion_id"], k["is_target"]) for k in first] == [("L1", "lesion-1", True), ("L2", "lesion-2", False)]
    volumes = {k["lesion_id"]: k["volume_mm3"] for k in plain["lesions"] if k["timepoint_id"] == "day-0"}
    assert first[0]["volume_mm3"] == volumes["lesion-1"] + volumes["lesion-3"]
    assert first[0]["longest_mm"] > 30, "from one end to the other"
    assert case["names"] == {"L1": "the cut one"}
    last = next(k for k in case["lesions"] if (k["timepoint_id"], k["lesion_id"]) == ("day-60", "lesion-1"))
    assert (last["longest_mm"], last["reasons"]["longest_mm"]) == (40, "set by a reader")
    with (study / "out" / "measurements.csv").open() as lines:
        assert [row["lesion_id"] for row in csv.DictReader(lines)] == ["lesion-1", "lesion-2", "lesion-1", "lesion-2"]
    # The same, said in the study itself; without it all is as it was.
    told = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps({**told, "corrections": [MERGE, *OTHERS]}))
    assert follow(study)[2] == case
    (study / "study.json").write_text(json.dumps(told))
    assert follow(study)[2] == plain


@pytest.mark.parametrize(
    ("said", "words"),
    [
        pytest.param([{**MERGE, "other": ["day-0", "lesion-9"]}], "correction 1 .merge.: there is no such lesion", id="a lesion that is not there"),
        pytest.param([{**MERGE, "other": ["day-60", "lesion-1"]}], "only lesions of one visit are merged", id="over two visits"),
        pytest.param([*OTHERS, {"action": "link", "lesion": ["day-0", "lesion-1"]}], "correction 4 .link.: say with which", id="half a link"),
        pytest.param([{"action": "bless", "lesion": ["day-0", "lesion-1"]}], "there are: link, unlink, split", id="another action"),
    ],
)
def test_what_cannot_be_meant_is_named_by_its_place(study: Path, said: list[dict[str, Any]], words: str) -> None:
    import re

    (study / "corrections.json").write_text(json.dumps({"corrections": said}))
    code, output, case = follow(study, "--corrections", str(study / "corrections.json"))
    assert code in (1, 2)
    assert re.search(words, " ".join(output.split())), output
    assert case == {}, "nothing is written that was not asked for"


@pytest.mark.parametrize(
    "said",
    [
        "[",
        "3",
        [3],
        [{}],
        [{"action": "link", "lesion": "lesion-1"}],
        [{"action": "link", "lesion": ["a"]}],
        [{"action": "role", "lesion": ["a", "b"], "target": "yes"}],
        [{"action": "measurement", "lesion": ["a", "b"], "figures": {"longest_mm": "9"}}],
        [{"action": "delete", "lesion": ["a", "b"], "all": True}],
        {"corrections": {"action": "delete"}},
    ],
    ids=str,
)
def test_a_file_of_corrections_that_is_wrong(said: object, tmp_path: Path) -> None:
    file = tmp_path / "corrections.json"
    file.write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(IsocenterError, match="correction"):
        visits.read_corrections(file)
    with pytest.raises(IsocenterError):
        visits.read_corrections(tmp_path / "none.json")
    if isinstance(said, list):
        (tmp_path / "study.json").write_text(json.dumps({"patient_id": "P", "visits": [{"day": 0}], "corrections": said}))
        with pytest.raises(IsocenterError):
            visits.read(tmp_path, Limits())
