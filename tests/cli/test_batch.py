"""`isocenter batch` on real inputs: what it writes, what it says, and where it goes on when it is started again."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from typer.testing import CliRunner

from isocenter.cli import app
from isocenter.cli._report import STUDY_COLUMNS, write_csv, write_xlsx
from isocenter.core.phantom import Phantom, phantom
from isocenter.core.settings import settings
from isocenter.core.volume import Volume
from isocenter.io import door, write
from tests.http.conftest import dicom_series, zipped
from tests.models.onnx_networks import config, folder, pointwise

#: The inference service's bulk client's, in its order.
ORIGINAL = [
    "path_to_study", "study_uid", "series_uid", "probability_of_pathology", "pathology", "processing_status", "time_of_processing",
    "pathology_localization",
]  # fmt: skip


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One network: class 1 from 0.5 HU on, class 2 from 1.5 HU on."""
    configuration = config()
    configuration["dataset_parameters"]["class_names"] = {"1": "faint", "2": "dense"}
    folder(tmp_path / "models" / "stepwise", pointwise(3), configuration)
    monkeypatch.setenv("MODELS_PATH", str(tmp_path / "models"))
    monkeypatch.setenv("ISOCENTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ISOCENTER_ONNX_ENGINE", "onnxruntime")


@pytest.fixture(scope="module")
def torso() -> Phantom:
    return phantom((24, 32, 32), orientation="RAS")


@pytest.fixture
def studies(tmp_path: Path, torso: Phantom) -> Path:
    """A NIfTI file, a folder of DICOM files, a ZIP, and a folder that holds no scan."""
    place = tmp_path / "studies"
    series = dicom_series(np.asarray(torso.volume.array, dtype=np.int16), spacing=(6.0, 7.0, 8.0))
    for number, data in enumerate(series):
        (place / "c dicom" / "series").mkdir(parents=True, exist_ok=True)
        (place / "c dicom" / "series" / f"IM{number:03d}").write_bytes(data)
    (place / "a.nii.gz").write_bytes(write.encode_image(torso.volume, ".nii.gz"))
    (place / "=b.zip").write_bytes(zipped(series))
    (place / "broken").mkdir()
    (place / "broken" / "notes.txt").write_text("no scan")
    (place / "readme.txt").write_text("not a study")
    return place


def run(*args: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["batch", *(str(a) for a in args)], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def read(path: Path) -> Volume:
    return door.read_path(path, limits=settings())


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {Path(line["path_to_study"].removeprefix("'")).name: line for line in csv.DictReader(file)}


def test_many_studies_are_measured_and_the_rest_is_done_when_started_again(tmp_path: Path, studies: Path, torso: Phantom) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = run(studies, "-m", "stepwise", "-o", out)
    assert code == 8
    assert "1 of 4 studies could not be done" in stderr
    assert "4/4 c dicom: completed in" in stderr
    assert str(out / "report.xlsx") in stdout

    report = rows(out / "report.csv")
    assert list(report) == ["=b.zip", "a.nii.gz", "broken", "c dicom"]
    assert list(report["a.nii.gz"])[:8] == ORIGINAL
    failed = report["broken"]
    assert (failed["processing_status"], failed["pathology"], failed["volume_mm3"]) == ("Failure", "", "")
    assert failed["error"]

    hu = np.asarray(torso.volume.array, dtype=np.float32)
    truth = np.where(hu >= 1.5, 2, np.where(hu >= 0.5, 1, 0))
    for name, stem, voxel_mm3 in (("=b.zip", "=b", 6 * 7 * 8.0), ("a.nii.gz", "a", torso.volume.grid.voxel_mm3), ("c dicom", "c dicom", 6 * 7 * 8.0)):
        source, mask = read(studies / name), read(out / stem / "mask.nii.gz")
        assert mask.grid.same_as(source.grid)
        assert np.array_equal(mask.array, truth)
        line = report[name]
        assert (line["processing_status"], line["pathology"], line["probability_of_pathology"]) == ("Success", "1", "")
        assert float(line["volume_mm3"]) == pytest.approx((truth > 0).sum() * voxel_mm3, abs=0.01)
        where = np.argwhere(truth > 0)
        assert line["pathology_localization"] == ",".join(str(v) for a in (2, 1, 0) for v in (where[:, a].min(), where[:, a].max()))
        assert (out / stem / "preview.png").read_bytes().startswith(b"\x89PNG")
    assert report["c dicom"]["study_uid"] == "1.2.826.0.1.3680043.8.498.1.1000"
    assert report["c dicom"]["series_uid"] == "1.2.826.0.1.3680043.8.498.1.1001"

    # The broken one is mended, another's scan is another now, a third lost its mask: these three again, and no other.
    shutil.rmtree(studies / "broken")
    shutil.copytree(studies / "c dicom", studies / "broken")
    (studies / "a.nii.gz").write_bytes((studies / "a.nii.gz").read_bytes() + b"\0")
    (out / "c dicom" / "mask.nii.gz").unlink()
    kept = (out / "=b" / "mask.nii.gz").stat().st_mtime_ns
    code, _, stderr = run(studies, "-m", "stepwise", "-o", out)
    assert code == 0
    assert [line.partition(": ")[2].startswith("done before") for line in stderr.splitlines()] == [True, False, False, False]
    assert (out / "=b" / "mask.nii.gz").stat().st_mtime_ns == kept
    assert {line["processing_status"] for line in rows(out / "report.csv").values()} == {"Success"}
    assert "done before" not in run(studies, "-m", "stepwise", "-o", out, "--label", "dense")[2]
    found = json.loads((out / "a" / "measurements.json").read_text())
    assert [entry["name"] for entry in found["labels"]] == ["dense"]


def test_the_workbook_says_the_same(tmp_path: Path, studies: Path) -> None:
    out = studies / "out"  # inside the studies: it is none of them
    assert run(studies, "-m", "stepwise", "-o", out)[0] == 8
    assert run(studies, "-m", "stepwise", "-o", out)[2].count("done before") == 3
    book = openpyxl.load_workbook(out / "report.xlsx")
    assert book.sheetnames == ["CT Pathology Classification", "Structures"]
    lines = list(book.worksheets[0].iter_rows(values_only=True))
    assert lines[0] == STUDY_COLUMNS
    assert [Path(str(line[0])).name for line in lines[1:]] == ["=b.zip", "a.nii.gz", "broken", "c dicom"]
    structures = list(book.worksheets[1].iter_rows(values_only=True))
    named = [dict(zip([str(c) for c in structures[0]], line, strict=True)) for line in structures[1:]]
    assert len(named) == 3 * 2
    dense = next(entry for entry in named if entry["name"] == "dense")
    assert dense["voxels"] > 0
    assert 0 <= dense["x_min"] <= dense["x_max"] < 32
    assert dense["longest_mm"] >= dense["short_axis_mm"] > 0
    total = sum(entry["volume_mm3"] or 0 for entry in named if entry["path_to_study"] == named[0]["path_to_study"])
    assert total == pytest.approx(lines[1][STUDY_COLUMNS.index("volume_mm3")], abs=0.01)


def test_names_are_no_formulas(tmp_path: Path) -> None:
    record = {"study": "=1+1", "status": "failed", "error": "\x07@cmd", "seconds": 1.5, "batch": {"model": "-m"}}
    write_csv(tmp_path, [record])
    write_xlsx(tmp_path, [record])
    assert rows(tmp_path / "report.csv")["=1+1"]["path_to_study"] == "'=1+1"
    sheet = openpyxl.load_workbook(tmp_path / "report.xlsx").worksheets[0]
    assert (sheet["A2"].value, sheet["A2"].data_type, sheet["L2"].value) == ("=1+1", "s", "@cmd")


def test_a_model_with_words_of_its_own_writes_dicom_seg(tmp_path: Path, studies: Path) -> None:
    code, stdout, stderr = run(studies / "c dicom" / "series", "-m", "tissue", "--label", "lungs", "--format", "dicom-seg", "-o", tmp_path / "out")
    assert code == 0, stderr
    assert (tmp_path / "out" / "series" / "mask.dcm").read_bytes()[128:132] == b"DICM"
    assert "series" in stdout


def test_parts_are_not_hidden_by_wholes(tmp_path: Path, studies: Path) -> None:
    """Without --label, a model with words of its own is asked for structures that can stand side by side."""
    assert run(studies / "c dicom" / "series", "-m", "tissue", "-o", tmp_path / "out")[0] == 0
    facts = json.loads((tmp_path / "out" / "series" / "measurements.json").read_text())
    found = {entry["name"]: entry["voxels"] for entry in facts["labels"]}
    assert {"body", "lungs"}.isdisjoint(found)
    assert min(found["lung_left"], found["lung_right"], found["bone"]) > 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-m", "nothing"], 4, "no model is called"),
        (["-m", "geodesic"], 2, "needs to be told where to look"),
        (["-m", "stepwise", "--label", "spleen"], 2, "spleen"),
        (["-m", "stepwise", "--option", "step_sise=1"], 2, "has no option 'step_sise'"),
        (["-m", "tissue", "--option", "threshold=2"], 2, "threshold"),
        (["-m", "stepwise", "--option", "step_size=7"], 2, "step_size"),
    ],
)
def test_what_is_wrong_for_every_study_is_said_once(tmp_path: Path, studies: Path, arguments: list[str], code: int, words: str) -> None:
    got, _, stderr = run(studies, *arguments, "-o", tmp_path / "out")
    assert got == code
    assert words in stderr
    assert stderr.count("Error:") == 1


def test_folders_that_are_no_studies(tmp_path: Path, studies: Path) -> None:
    assert run(tmp_path / "none", "-m", "stepwise")[0] == 3
    assert run(studies / "broken", "-m", "stepwise")[0] == 3
    shutil.copy(studies / "c dicom" / "series" / "IM000", studies)
    code, _, stderr = run(studies, "-m", "stepwise", "-o", tmp_path / "out")
    assert (code, "each study into a folder of its own" in stderr) == (2, True)
