"""A patient's folder to a case and a report: on the phantom, whose truth is known, and with everything that can be wrong with a folder."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from isocenter.cli import app
from isocenter.core.errors import InputError, IsocenterError, ModelError, UnsupportedError
from isocenter.core.settings import Limits, Settings
from isocenter.core.volume import Volume
from isocenter.demo.patient import DAYS, Truth, write_study
from isocenter.io import door, nifti, visits, visits_dicom, write
from isocenter.service import Service
from isocenter.trackservice import TrackOptions, track

SHAPE = (64, 96, 96)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Truth]]:
    folder = tmp_path_factory.mktemp("study")
    return folder, write_study(folder, shape=SHAPE, masks=True)


@pytest.fixture(scope="module")
def service(home: Path) -> Iterator[Service]:
    made = Service(Settings(home=home))
    yield made
    made.close()


@pytest.fixture(scope="module")
def done(study: tuple[Path, list[Truth]], service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    track(service, study[0], out)
    return out


def test_the_case_is_the_truth(study: tuple[Path, list[Truth]], done: Path) -> None:
    case = json.loads((done / "case.json").read_text())
    assert case["patient_id"] == "phantom"
    assert [t["day"] for t in case["timepoints"]] == list(DAYS)
    by_visit: dict[str, list[float]] = {}
    for lesion in case["lesions"]:
        by_visit.setdefault(lesion["timepoint_id"], []).append(lesion["volume_mm3"])
    for k, truth in enumerate(study[1]):
        assert sorted(by_visit[f"visit-{k + 1}"]) == pytest.approx(sorted(truth.volumes_mm3))
    assert case["graph"]["tracks"]["L1"].keys() == {f"visit-{k + 1}" for k in range(5)}
    assert not case["graph"]["events"]
    categories = [r["category"] for r in case["response"]["recist_1.1"]]
    assert categories[0] == "SD"
    assert "PR" in categories[2:4]
    first = [max(v) for v in by_visit.values()]
    assert first == [by[0] for by in by_visit.values()], "the larger lesion comes first and keeps its name"
    for probabilities in case["response_probabilities"]:
        assert sum(probabilities.values()) == pytest.approx(1)
    names = {s["scenario_name"] for s in case["growth"][0]["scenarios"]}
    assert {"as_given", "natural_history", "combination_therapy"} <= names


def test_every_visit_leaves_its_files(done: Path) -> None:
    from safetensors.numpy import load_file

    folder = done / "processed" / "phantom" / "visit-1"
    names = {p.name for p in folder.iterdir()}
    assert {"scan.nii.gz", "mask.nii.gz", "mask.npy", "measurements.json", "embedding.npy", "preprocessed.safetensors", "state.json"} <= names
    ready = load_file(folder / "preprocessed.safetensors")
    assert set(ready) == {"volume", "spacing", "origin", "direction", "window_center", "window_width"}
    assert ready["volume"].shape[0] == 1
    assert 0 <= ready["volume"].min() < ready["volume"].max() <= 1
    assert len(set(ready["spacing"].tolist())) == 1
    assert np.load(folder / "embedding.npy").shape == (2, 24)
    assert (done / "processed" / "phantom" / "growth.json").is_file()


def test_growth_as_it_could_be_told_at_each_visit(done: Path) -> None:
    home, days = done / "processed" / "phantom", list(DAYS)
    for k in range(len(days)):
        told = json.loads((home / f"visit-{k + 1}" / "growth.json").read_text())
        total = next(g for g in told["growth"] if g["track"] == "total")
        assert total["days"] == days[: k + 1]
        assert (total["forecast"] is None) == (k == 0)
        if total["forecast"]:
            assert total["forecast"]["days"][0] > days[k]
    whole = json.loads((home / "growth.json").read_text())["growth"]
    assert [{**g, "scenarios": []} for g in whole] == told["growth"], "at the last visit it is what is known now"


def test_the_report_stands_alone(done: Path) -> None:
    page = (done / "report.html").read_text()
    assert "Research use only" in page
    assert page.count("data:image/png;base64,") == 10
    assert page.count("<svg") >= 4
    assert not re.search(r'(src|href)="(?!data:|#)', page), "nothing is fetched"
    with (done / "measurements.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 10
    assert float(rows[0]["longest_mm"]) > 20


def test_nothing_is_done_twice(study: tuple[Path, list[Truth]], service: Service, done: Path, tmp_path: Path) -> None:
    folder = done / "processed" / "phantom"
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p != folder / "growth.json"}
    before = (done / "case.json").read_bytes()
    track(service, study[0], done)
    assert (done / "case.json").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in times} == times
    # One visit changes: only that one is made again.
    copy = tmp_path / "study"
    shutil.copytree(study[0], copy)
    told = json.loads((copy / "study.json").read_text())
    told["visits"][2]["mask"] = "visit-2_mask.nii.gz"
    (copy / "study.json").write_text(json.dumps(told))
    out = tmp_path / "out"
    shutil.copytree(done, out)
    track(service, copy, out, options=TrackOptions(registration=None))
    assert (out / "processed/phantom/visit-3/mask.npy").read_bytes() == (out / "processed/phantom/visit-2/mask.npy").read_bytes()
    # A file that broke is noticed.
    (done / "processed/phantom/visit-1/measurements.json").write_text("{")
    track(service, study[0], done)
    assert (done / "case.json").read_bytes() == before


def test_what_changed_is_done_again_and_nothing_else(study: tuple[Path, list[Truth]], service: Service, done: Path, tmp_path: Path) -> None:
    """Another mask at one visit: its scan's files and all registrations stay; other settings of lesions leave them too."""
    import SimpleITK as sitk

    out = shutil.copytree(done, tmp_path / "out")
    home = out / "processed" / "phantom"
    affine = sitk.ReadTransform(str(home / "visit-2" / "registration.tfm"))
    matrix = np.array(json.loads((home / "visit-2" / "registration.json").read_text())["matrix"])
    assert affine.TransformPoint((10.0, -20.0, 30.0)) == pytest.approx((matrix @ (10.0, -20.0, 30.0, 1.0))[:3])
    assert not (home / "visit-1" / "registration.tfm").exists()

    def times(*names: str) -> dict[str, int]:
        return {f"{v}/{n}": (home / v / n).stat().st_mtime_ns for v in ("visit-2", "visit-3") for n in names}

    scans, lesions = ("scan.nii.gz", "preprocessed.safetensors", "registration.json", "registration.tfm"), ("measurements.json", "mask.npy")
    before, measured, grown = times(*scans), times(*lesions), times("growth.json")
    moved = shutil.copytree(study[0], tmp_path / "study")
    shutil.copyfile(moved / "visit-1_mask.nii.gz", moved / "visit-3_mask.nii.gz")
    case = track(service, moved, out)
    assert times(*scans) == before
    now = times(*lesions)
    assert {name.split("/")[0] for name in now if now[name] != measured[name]} == {"visit-3"}
    assert {n for n in grown if times("growth.json")[n] != grown[n]} == {"visit-3/growth.json"}, "what was known before stays as it was"
    assert all(v.carried is not None for v in case.visits[:-1])
    assert not [n for v in case.visits for n in v.notes if "registered" in n]


def changed(study: Path, tmp_path: Path, change: object) -> Path:
    told = json.loads((study / "study.json").read_text())
    for visit in told["visits"]:
        for name in ("image", "mask"):
            visit[name] = str(visit[name])
            (tmp_path / visit[name]).exists() or shutil.copy(study / visit[name], tmp_path / visit[name])
    change(told)  # type: ignore[operator]
    (tmp_path / "study.json").write_text(json.dumps(told))
    return tmp_path


def test_a_visit_without_a_scan_is_not_evaluated(study: tuple[Path, list[Truth]], service: Service, tmp_path: Path) -> None:
    def drop(told: dict[str, list[dict[str, object]]]) -> None:
        told["visits"][2]["image"] = None
        told["visits"][2]["mask"] = None

    case = track(service, changed(study[0], tmp_path, drop), tmp_path / "out", options=TrackOptions(registration=None))
    assert [str(r.category) for r in case.responses["recist_1.1"]][1] == "NE"
    assert any("no scan" in note for note in case.notes)
    assert len(case.growth[0].days) == 4


def test_one_visit_has_no_forecast(study: tuple[Path, list[Truth]], service: Service, tmp_path: Path) -> None:
    def keep(told: dict[str, list[object]]) -> None:
        del told["visits"][1:]

    case = track(service, changed(study[0], tmp_path, keep), tmp_path / "out")
    assert case.responses == {}
    assert case.growth[0].forecast is None
    assert any("one visit only" in note for note in case.notes)
    assert "one visit" in (tmp_path / "out" / "report.html").read_text()


def test_a_mask_of_another_scan_and_a_scan_without_scale_are_refused(study: tuple[Path, list[Truth]], service: Service, tmp_path: Path) -> None:
    from isocenter.core.geometry import Grid
    from isocenter.io import nifti

    (tmp_path / "wrong.nii.gz").write_bytes(nifti.write(np.ones((8, 8, 8), np.uint8), Grid((8, 8, 8)), compress=True, header=None))

    (tmp_path / "unscaled.nrrd").write_bytes(b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 8 8 8\nencoding: raw\n\n" + bytes(512))

    def swap(told: dict[str, list[dict[str, object]]]) -> None:
        told["visits"][1]["mask"] = "wrong.nii.gz"
        told["visits"][3]["image"] = "unscaled.nrrd"
        del told["visits"][4:]

    case = track(service, changed(study[0], tmp_path, swap), tmp_path / "out", options=TrackOptions(registration=None))
    assert case.visits[1].found is None
    assert "grid" in (case.visits[1].reason or "")
    assert case.visits[2].found
    assert (case.visits[3].found, "how large its voxels are" in (case.visits[3].reason or "")) == (None, True)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        pytest.param("[1", "no JSON", id="no JSON"),
        pytest.param({"patient_id": "x"}, "visits", id="no visits"),
        pytest.param({"patient_id": "x", "visits": []}, "between 1", id="none"),
        pytest.param({"patient_id": "../x", "visits": [{"day": 0}]}, "letters", id="a patient's id that is a path"),
        pytest.param({"patient_id": "x", "visits": [{"day": 0, "image": "../../etc/passwd"}]}, "leads out", id="a path that leads out"),
        pytest.param({"patient_id": "x", "visits": [{"day": 0, "image": "none.nii"}]}, "not there", id="a file that is not there"),
        pytest.param({"patient_id": "x", "visits": [{"day": 0}, {"day": 0}]}, "one day", id="two on one day"),
        pytest.param({"patient_id": "x", "visits": [{"id": "a", "day": 0}, {"id": "a", "day": 1}]}, "one id", id="two of one id"),
        pytest.param({"patient_id": "x", "visits": [{"day": 0}, {}]}, "needs a date", id="no day"),
        pytest.param({"patient_id": "x", "visits": [{"date": "yesterday"}]}, "YYYY-MM-DD", id="a date that is none"),
        pytest.param({"patient_id": "x", "visits": [{"day": "soon"}]}, "wrong kind", id="a day that is none"),
        pytest.param({"patient_id": "x", "visits": [{"day": 0}], "therapies": [{"type": "a"}]}, "start", id="a therapy without a start"),
        pytest.param({"patient_id": "x", "visits": [{"day": 0, "clicks": [[1]]}]}, "wrong kind", id="clicks of the wrong kind"),
        pytest.param({"patient_id": "x", "visits": [{"day": 0, "boxes": [[1, 2, 3]]}]}, "wrong kind", id="a box of three"),
        pytest.param({"patient_id": "x", "visits": [{"day": 0, "assessment": {"flair": "so-so"}}]}, "assessment", id="an assessment that is none"),
        pytest.param({"patient_id": "x", "visits": [{"day": 0, "boxes": [[5, 5, 5, 4, 9, 9]]}]}, "first and its last", id="a box inside out"),
        pytest.param({"patient_id": "x", "visits": [{"day": 0}, {"day": 1e300}]}, "100,000", id="a day after the end of time"),
        pytest.param({"patient_id": "x", "visits": [{"day": 0}], "therapies": [{"type": "a", "start": 1e12}]}, "100,000", id="a therapy then"),
        pytest.param({"patient_id": "x", "visits": [{"day": 0}], "names": [["b", "c", "d"]]}, "not listed", id="a name of no visit"),
        pytest.param({"patient_id": "x", "visits": [{"id": "b", "day": 0}], "names": [["b", "c", " "]]}, "printable", id="an empty name"),
        pytest.param({"patient_id": "x", "visits": [{"id": "b", "day": 0}], "names": [["b"]]}, "wrong kind", id="a name of nothing"),
    ],
)
def test_a_study_file_that_is_wrong_is_refused_in_words(told: object, words: str, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(told if isinstance(told, str) else json.dumps(told))
    with pytest.raises(IsocenterError, match=words):
        visits.read(tmp_path, Limits())


def test_a_lesion_by_a_click_and_one_by_a_box(service: Service, tmp_path: Path) -> None:
    z, y, x = np.ogrid[:40, :48, :56]
    scan = np.full((40, 48, 56), 40, np.int16)
    for centre in ((12, 14, 16), (26, 32, 40)):
        scan[(z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= 36] = 160
    volume = Volume(scan, modality="CT", unit="HU")
    (tmp_path / "ct.nii.gz").write_bytes(write.encode_image(volume, ".nii.gz"))
    # In the file's own axes, which are those of the volume read from it.
    row = {"day": 0, "image": "ct.nii.gz", "modality": "CT", "clicks": [[[16, 14, 12]]], "boxes": [[33, 25, 19, 47, 39, 33]]}
    (tmp_path / "study.json").write_text(json.dumps({"patient_id": "x", "visits": [row]}))
    case = track(service, tmp_path, tmp_path / "out", options=TrackOptions(registration=None, preprocessed=False, formats=("json",)))
    assert [lesion.method for lesion in case.lesions] == ["clicks", "clicks"]
    for lesion in case.lesions:
        assert lesion.longest_mm == pytest.approx(13, abs=1.5)
    assert [round(lesion.centroid_lps_mm[0]) for lesion in case.lesions if lesion.centroid_lps_mm] == [16, 40]


def test_of_what_a_click_or_a_box_found_only_the_lesion_counts(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer in several parts is one lesion: the part that was clicked on, or the largest in the box; the others are named, not measured."""
    answer = np.zeros((40, 48, 56), np.uint8)
    answer[10:14, 12:16, 14:18] = answer[30:38, 30:38, 30:38] = answer[30:32, 5:7, 5:7] = 1
    volume = Volume(np.zeros(answer.shape, np.int16), modality="CT", unit="HU")
    (tmp_path / "ct.nii.gz").write_bytes(write.encode_image(volume, ".nii.gz"))
    row = {"day": 0, "image": "ct.nii.gz", "modality": "CT", "clicks": [[[16, 14, 12]]], "boxes": [[1, 1, 1, 50, 40, 39]]}
    (tmp_path / "study.json").write_text(json.dumps({"patient_id": "x", "visits": [row]}))
    monkeypatch.setattr(service, "segment", lambda scan, prompts, run: SimpleNamespace(mask=answer))
    case = track(service, tmp_path, tmp_path / "out", options=TrackOptions(registration=None, preprocessed=False, formats=("json",)))
    assert [lesion.volume_mm3 for lesion in case.lesions] == [64.0, 512.0]
    left_out = [note for note in case.visits[0].notes if "left out" in note]
    assert [("clicks" in note, "largest" in note) for note in left_out] == [(True, False), (False, True)]
    assert all("2 parts" in note for note in left_out)


def one_visit(folder: Path, values: np.ndarray, **more: object) -> Path:
    """A study of one small scan whose mask holds `values`."""
    volume = Volume(np.random.default_rng(3).integers(0, 100, values.shape, dtype=np.int16), spacing=(1.0, 1.0, 1.0), unit="HU", key="-")
    (folder / "scan.nii.gz").write_bytes(write.encode_image(volume, ".nii.gz"))
    (folder / "mask.nii.gz").write_bytes(nifti.write(values, volume.grid, header=None, compress=True))
    told = {"patient_id": "one", "visits": [{"day": 0, "image": "scan.nii.gz", "mask": "mask.nii.gz", "modality": "CT", **more}]}
    (folder / "study.json").write_text(json.dumps(told))
    return folder


def test_labels_that_touch_are_named(service: Service, tmp_path: Path) -> None:
    """Parts of one tumour under labels of their own would count as so many lesions: who drew them so is told."""
    values = np.zeros((20, 24, 24), np.uint8)
    values[5:12, 5:12, 5:12] = 1
    values[5:12, 5:12, 12:15] = 4
    values[15:19, 18:22, 18:22] = 2
    options = TrackOptions(registration=None, preprocessed=False, formats=("json",))
    (visit,) = track(service, one_visit(tmp_path, values), tmp_path / "out", options=options).visits
    assert [f.label for f in visit.found or ()] == [1, 2, 4]
    assert [note for note in visit.notes if "touch" in note] == [
        "labels 1 and 4 of the mask touch, and count as lesions of their own; give the parts of one lesion one label"
    ]
    values[values == 4] = 1
    (visit,) = track(service, one_visit(tmp_path, values), tmp_path / "out", options=options).visits
    assert ([f.label for f in visit.found or ()], [note for note in visit.notes if "touch" in note]) == ([1, 2], [])


def test_visits_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    rows = [{"id": "b", "date": "2026-03-01"}, {"id": "a", "date": "2026-01-01"}]
    therapy = {"type": "x", "start": "2026-01-11", "end": "2026-02-01"}
    (tmp_path / "study.json").write_text(json.dumps({"patient_id": "x", "visits": rows, "therapies": [therapy]}))
    found = visits.read(tmp_path, Limits())
    assert [(v.id, v.day) for v in found.visits] == [("a", 0.0), ("b", 59.0)]
    assert (found.therapies[0].start_day, found.therapies[0].end_day) == (10.0, 31.0)


def test_a_bids_subject(study: tuple[Path, list[Truth]], tmp_path: Path) -> None:
    subject = tmp_path / "sub-01"
    for k, session in enumerate(("ses-a", "ses-b")):
        (subject / session / "ct").mkdir(parents=True)
        shutil.copy(study[0] / f"visit-{k + 1}.nii.gz", subject / session / "ct" / f"sub-01_{session}_ct.nii.gz")
    (subject / "sub-01_sessions.tsv").write_text("session_id\tacq_time\nses-a\t2026-01-01T10:00:00\nses-b\t2026-02-12T09:00:00\n")
    found = visits.read(tmp_path, Limits())
    assert found.patient_id == "sub-01"
    assert [(v.day, v.modality) for v in found.visits] == [(0.0, "CT"), (42.0, "CT")]
    image = subject / "ses-b" / "ct" / "sub-01_ses-b_ct.nii.gz"
    for name, modality in (("sub-01_ses-b_FLAIR.nii.gz", "MR"), ("sub-01_ses-b_acq-x_pet.nii.gz", "PT"), ("scan.nii.gz", None)):
        image = image.rename(image.with_name(name))
        assert visits.read(tmp_path, Limits()).visits[1].modality == modality
    (tmp_path / "sub-02").mkdir()
    with pytest.raises(UnsupportedError, match="2 subjects"):
        visits.read(tmp_path, Limits())


def dicom(data: Path, folder: Path, day: str, **said: Any) -> Path:
    """Two slices of a real CT as a series of their own, of a day, with attributes as they are said."""
    import pydicom
    from pydicom.uid import generate_uid

    folder.mkdir(parents=True)
    series, study = (generate_uid(entropy_srcs=[str(folder), what]) for what in ("series", "study"))
    for k, file in enumerate(sorted(p for p in (data / "totalsegmentator" / "example_ct_dicom").rglob("*") if p.is_file())[:2]):
        made = pydicom.dcmread(file)
        made.StudyDate, made.SeriesInstanceUID, made.StudyInstanceUID = day, series, study
        made.PatientID, made.PatientName, made.PatientBirthDate = "A", "Doe^Jane", ""
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(k)])
        for name, value in said.items():
            setattr(made, name, value)
        made.save_as(folder / f"{k}.dcm")
    return folder


def test_dicom_of_two_patients_is_not_mixed(data: Path, tmp_path: Path) -> None:
    for k, (patient, day) in enumerate((("A", "20260101"), ("A", "20260301"), ("B", "20260501"))):
        dicom(data, tmp_path / ("both" if patient == "B" else "one") / f"{k}", day, PatientID=patient, SeriesInstanceUID=f"1.2.3.{k + 1}")
    found = visits.read(tmp_path / "one", Limits())
    assert [(v.day, v.series_uid) for v in found.visits] == [(0.0, "1.2.3.1"), (59.0, "1.2.3.2")]
    assert found.patient_id.startswith("P-")
    assert found.patient_id == visits_dicom.pseudonym("A")
    with pytest.raises(UnsupportedError, match=r"more than one patient.*1\.2\.3\.3 and 1\.2\.3\.1 differ in PatientID"):
        visits.read(tmp_path, Limits())


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        pytest.param({}, {"PatientID": "B"}, "differ in PatientID", id="another number"),
        pytest.param({"PatientBirthDate": "19500101"}, {"PatientBirthDate": "19991231"}, "differ in PatientBirthDate", id="one number, two births"),
        pytest.param({"IssuerOfPatientID": "a"}, {"IssuerOfPatientID": "b"}, "differ in IssuerOfPatientID", id="a number of another house"),
        pytest.param({"PatientID": ""}, {"PatientID": "", "PatientName": "Roe^Rick"}, "differ in PatientName", id="no number, two names"),
        pytest.param({"PatientID": "", "PatientName": ""}, {"PatientID": "", "PatientName": ""}, "nothing says whose", id="neither"),
        pytest.param({"PatientID": "", "PatientName": ""}, {}, "nothing says whose", id="one has neither"),
        pytest.param({"PatientBirthDate": "19500101"}, {"PatientName": "DOE-ROE^JANE^^"}, None, id="another name and no birth"),
        pytest.param({"PatientID": ""}, {"PatientID": "", "PatientName": "DOE^JANE^^^"}, None, id="no number, one name"),
        pytest.param({"PatientID": ""}, {}, None, id="one has a number, one name"),
    ],
)
def test_who_is_one_patient(one: dict[str, str], other: dict[str, str], words: str | None, data: Path, tmp_path: Path) -> None:
    """A folder whose headers contradict, or say nothing, is stopped; one that a person listed only where they contradict."""
    dicom(data, tmp_path / "dicom" / "a", "20260101", **one)
    dicom(data, tmp_path / "dicom" / "b", "20260301", **other)
    told: dict[str, Any] = {"patient_id": "x", "visits": [{"day": day, "image": f"dicom/{name}"} for day, name in ((0, "a"), (9, "b"))]}
    (tmp_path / "study.json").write_text(json.dumps(told))
    if words is None:
        assert [v.day for v in visits.read(tmp_path / "dicom", Limits()).visits] == [0, 59]
        assert len(visits.read(tmp_path, Limits()).visits) == 2
        return
    with pytest.raises(UnsupportedError, match=words):
        visits.read(tmp_path / "dicom", Limits())
    if "differ" not in words:
        assert len(visits.read(tmp_path, Limits()).visits) == 2, "somebody listed them"
        return
    with pytest.raises(UnsupportedError, match=words):
        visits.read(tmp_path, Limits())
    (tmp_path / "study.json").write_text(json.dumps({**told, "one_patient": True}))
    assert len(visits.read(tmp_path, Limits()).visits) == 2


def test_the_third_may_contradict_the_second_alone(data: Path, tmp_path: Path) -> None:
    for name, birth in (("a", ""), ("b", "19500101"), ("c", "19991231")):
        dicom(data, tmp_path / "dicom" / name, "", PatientBirthDate=birth)  # without dates, which are not asked for before
    with pytest.raises(UnsupportedError, match="differ in PatientBirthDate"):
        visits.read(tmp_path / "dicom", Limits())


def test_dicom_without_dates_by_days_from_an_event(data: Path, tmp_path: Path) -> None:
    for name, offset in (("a", -14.0), ("b", 42.0)):
        dicom(data, tmp_path / "one" / name, "", LongitudinalTemporalOffsetFromEvent=offset)
    found = visits.read(tmp_path / "one", Limits())
    assert [(v.id, v.day, v.scan_date) for v in found.visits] == [("day-0", 0.0, None), ("day-56", 56.0, None)]
    assert any("days from an event" in note for note in found.notes)
    dicom(data, tmp_path / "one" / "c", "20260301")
    with pytest.raises(InputError, match="some series have a study date"):
        visits.read(tmp_path / "one", Limits())
    dicom(data, tmp_path / "none" / "a", "")
    with pytest.raises(InputError, match="no study date"):
        visits.read(tmp_path / "none", Limits())


def test_another_visit_in_a_flat_folder_leaves_the_others(data: Path, service: Service, tmp_path: Path) -> None:
    """All files of all visits in one folder, as some archives send them."""
    place, out = tmp_path / "flat", tmp_path / "out"
    place.mkdir()

    def add(name: str, day: str) -> None:
        for file in dicom(data, tmp_path / name, day).iterdir():
            shutil.copy(file, place / f"{name}-{file.name}")

    def follow() -> dict[str, int]:
        options = TrackOptions(model="tissue", labels=("bone",), registration=None, preprocessed=False, formats=("json",))
        case = track(service, place, out, options=options)
        assert all(visit.found is not None for visit in case.visits)
        said = [note for visit in case.visits for note in visit.notes if "specks" not in note]
        assert said == ["segmented by tissue 1.0"] * len(case.visits), "CT by its own header"
        return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.rglob("state.json")}

    add("a", "20260101")
    one = follow()
    add("b", "20260301")
    two = follow()
    assert len(two) == 2
    assert one.items() <= two.items()


def test_only_what_changed_is_made_again(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step: the scan, what networks take, masks, figures."""
    scan = np.full((30, 36, 40), 40, np.int16)
    scan[10:20, 12:22, 14:24] = 160
    volume = Volume(scan, modality="CT", unit="HU")
    (tmp_path / "ct.nii.gz").write_bytes(write.encode_image(volume, ".nii.gz"))
    told = {"patient_id": "x", "visits": [{"id": "v", "day": 0, "image": "ct.nii.gz", "modality": "CT", "clicks": [[[18, 16, 14]]]}]}
    (tmp_path / "study.json").write_text(json.dumps(told))
    home = tmp_path / "out" / "processed" / "x" / "v"
    segment, asked = service.segment, []

    def counted(*given: Any, **more: Any) -> Any:
        asked.append(1)
        return segment(*given, **more)

    monkeypatch.setattr(service, "segment", counted)

    def made(**options: Any) -> set[str]:
        """What was written, growth aside."""
        before = {p.name: p.stat().st_mtime_ns for p in home.glob("*")}
        case = track(service, tmp_path, tmp_path / "out", options=TrackOptions(registration=None, formats=("json",), **options))
        assert len(case.lesions) == 1
        return {p.name for p in home.glob("*") if p.stat().st_mtime_ns != before.get(p.name)} - {"growth.json", "state.json"}

    masks, figures = {"mask.nii.gz", "mask.npy"}, {"measurements.json", "embedding.npy", "slices.npz"}
    assert made() == {"scan.nii.gz", "preprocessed.safetensors", *masks, *figures}
    assert made() == set()
    assert made(least_mm3=50.0) == figures
    assert made(least_mm3=50.0, spacing_mm=2.0) == {"preprocessed.safetensors"}
    assert made(least_mm3=50.0, preprocessed=False) == set()
    assert len(asked) == 1, "nothing of that segments again"
    (home / "preprocessed.safetensors").unlink()
    assert made(least_mm3=50.0, preprocessed=False) == set()
    assert made(least_mm3=50.0) == {"preprocessed.safetensors"}
    (home / "mask.npy").write_bytes(b"cut off")
    assert made(least_mm3=50.0) >= masks
    assert len(asked) == 2
    (home / "scan.nii.gz").unlink()
    assert made(least_mm3=50.0) == {"scan.nii.gz"}
    told["visits"][0]["clicks"] = [[[19, 17, 15]]]  # type: ignore[index]
    (tmp_path / "study.json").write_text(json.dumps(told))
    assert made(least_mm3=50.0) == masks | figures
    assert len(asked) == 3


def test_nothing_to_find_lesions_with(study: tuple[Path, list[Truth]], service: Service, tmp_path: Path) -> None:
    def bare(told: dict[str, list[dict[str, object]]]) -> None:
        for visit in told["visits"]:
            visit["mask"] = None

    with pytest.raises(ModelError, match="--model"):
        track(service, changed(study[0], tmp_path, bare), tmp_path / "out")
    with pytest.raises(InputError):
        visits.read(tmp_path / "nowhere", Limits())


def test_lesions_that_return_are_the_same_ones(study: tuple[Path, list[Truth]], service: Service, tmp_path: Path) -> None:
    """An empty mask is a visit at which nothing was left; what is there again at the next is no new lesion, but progression all the same."""
    named = changed(study[0], tmp_path, lambda told: told.update(visits=told["visits"][:3]))
    given = door.read_path(named / "visit-2_mask.nii.gz", limits=Limits())
    (named / "visit-2_mask.nii.gz").write_bytes(nifti.write(np.zeros(given.shape, np.uint8), given.grid, header=None, compress=True))
    case = track(service, named, tmp_path / "out", options=TrackOptions(preprocessed=False))
    assert {name: list(seen) for name, seen in case.graph.tracks.items()} == {"L1": ["visit-1", "visit-3"], "L2": ["visit-1", "visit-3"]}
    assert not any(lesion.is_new for lesion in case.lesions)
    assert [str(r.category) for r in case.responses["recist_1.1"]] == ["CR", "PD"]
    assert case.visits[0].carried is not None
    assert case.visits[1].carried == ()


def test_names_that_a_reader_gave(study: tuple[Path, list[Truth]], tmp_path: Path) -> None:
    """One lesion is named at one visit: its track is called so wherever it is told."""

    def change(told: dict[str, Any]) -> None:
        told["visits"] = told["visits"][:2]
        told["names"] = [["visit-2", "lesion-1", "dome of the  liver"]]

    named = changed(study[0], tmp_path, change)
    done = CliRunner().invoke(app, ["track", str(named), "-o", str(tmp_path / "out"), "--registration", "none"])
    assert done.exit_code == 0, done.output
    assert "L1 (dome of the liver)" in done.stdout
    assert json.loads((tmp_path / "out" / "case.json").read_text())["names"] == {"L1": "dome of the liver"}
    with (tmp_path / "out" / "measurements.csv").open() as lines:
        assert {(row["track"], row["name"]) for row in csv.DictReader(lines)} == {("L1", "dome of the liver"), ("L2", "")}
    assert "L1 (dome of the liver)" in (tmp_path / "out" / "report.html").read_text()


def test_the_command(study: tuple[Path, list[Truth]], tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["track", str(study[0]), "-o", str(tmp_path / "out"), "--registration", "none", "--least-mm3", "100"])
    assert run.exit_code == 0, run.output
    assert "RECIST 1.1" in run.stdout
    assert "report.html" in run.stdout
    as_json = CliRunner().invoke(app, ["track", str(study[0]), "-o", str(tmp_path / "out"), "--registration", "none", "--least-mm3", "100", "--json"])
    assert json.loads(as_json.stdout)["patient_id"] == "phantom"
    assert CliRunner().invoke(app, ["track", str(tmp_path / "none"), "-o", str(tmp_path / "out")]).exit_code == 3
