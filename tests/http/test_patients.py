"""Patients over HTTP: from an uploaded study to its report, on the phantom, whose truth is known; corrections, and everything that can be wrong."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from isocenter.core.phantom import Phantom
from isocenter.core.settings import Settings
from isocenter.demo.patient import DAYS, Truth, write_study
from isocenter.http.app import create_app
from tests.http.conftest import dicom_series, zipped

BASE = "/api/v1/patients"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(home=tmp_path_factory.mktemp("patients"), decoders=0, job_same_within=0, min_free_bytes=0)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as made:
        yield made


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Truth]]:
    folder = tmp_path_factory.mktemp("study")
    return folder, write_study(folder, shape=(48, 64, 64), masks=True)


@pytest.fixture(scope="module")
def archive(study: tuple[Path, list[Truth]]) -> bytes:
    """The study as a ZIP whose one folder holds it all."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for file in sorted(study[0].iterdir()):
            made.write(file, f"a study/{file.name}")
    return buffer.getvalue()


def ended(client: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        answer: dict[str, Any] = client.get(job["url"]).json()
        if answer["status"] in ("completed", "failed", "cancelled"):
            return answer
        time.sleep(0.02)
    raise AssertionError(answer)


def upload(client: TestClient, archive: bytes, **asked: Any) -> dict[str, Any]:
    answer = client.post(BASE, files={"file": ("study.zip", archive)}, data={"patient": json.dumps(asked)})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


@pytest.fixture(scope="module")
def patient(client: TestClient, archive: bytes) -> str:
    """The address of the phantom, followed over five visits."""
    made = upload(client, archive, patient_id="phantom-1", options={"preprocessed": False}, patient_fields={"name": "Jane Doe"})
    with client.stream("GET", made["job"]["events_url"]) as stream:
        told = [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]
    assert told[-1]["status"] == "completed", told[-1]["error"]
    assert told[-1]["progress"] == 1.0
    return f"{BASE}/phantom-1"


def get(client: TestClient, path: str, **parameters: Any) -> Any:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def correct(client: TestClient, patient: str, **asked: Any) -> dict[str, Any]:
    answer = client.post(f"{patient}/corrections", json=asked)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def test_a_study_becomes_a_case(client: TestClient, patient: str, study: tuple[Path, list[Truth]]) -> None:
    facts = get(client, patient)
    assert facts["patient_id"] == "phantom-1"
    assert [t["day"] for t in facts["timepoints"]] == list(DAYS)
    assert "Jane" not in json.dumps(facts)
    assert get(client, BASE)["count"] >= 1
    assert get(client, f"{patient}/timepoints", skip=3)["count"] == 5
    for k, truth in enumerate(study[1]):
        lesions = get(client, f"{patient}/lesions", timepoint_id=f"visit-{k + 1}")["data"]
        assert sorted(lesion["volume_mm3"] for lesion in lesions) == pytest.approx(sorted(truth.volumes_mm3))
    first = get(client, f"{patient}/lesions", track="L1", limit=2)
    assert (len(first["data"]), first["count"]) == (2, 5)
    assert {m["method"] for m in get(client, f"{patient}/measurements")["data"]} == {"auto"}
    assert get(client, f"{patient}/therapies")["data"][0]["therapy_type"] == "chemotherapy"
    response = get(client, f"{patient}/response")
    assert len(response["response"]["recist_1.1"]) == 4
    assert response["targets"]
    growth = get(client, f"{patient}/growth")
    assert growth["forecast"] is not None
    assert get(client, f"{patient}/growth", track="L2")["track"] == "L2"
    assert client.get(f"{patient}/growth?track=L9").status_code == 404
    assert get(client, f"{patient}/graph")["tracks"].keys() == {"L1", "L2"}


def test_a_visits_files(client: TestClient, patient: str) -> None:
    files = {f["name"]: f for f in get(client, f"{patient}/timepoints/visit-1")["files"]}
    assert {"scan.nii.gz", "mask.nii.gz", "mask.npy", "measurements.json", "embedding.npy", "slices.npz"} == set(files)
    mask = np.load(io.BytesIO(client.get(files["mask.npy"]["url"]).content))
    assert set(np.unique(mask)) == {0, 1, 2}
    assert client.get(f"{patient}/timepoints/visit-1/files/nothing").status_code == 404
    assert client.get(f"{patient}/timepoints/visit-9").status_code == 404


def test_what_if_follows_the_treatment(client: TestClient, patient: str) -> None:
    def curve(name: str) -> list[float]:
        (found,) = get(client, f"{patient}/scenarios", name=name)["data"]
        assert len(found["time_points"]) == len(found["predicted_volumes"]) == len(found["lower_bound"])
        return list(found["predicted_volumes"])

    given, none = curve("as_given"), curve("natural_history")
    assert none[-1] > given[-1], "without treatment it is larger"
    assert get(client, f"{patient}/scenarios")["count"] == 9
    assert client.get(f"{patient}/scenarios?name=cure").status_code == 400
    added = client.post(f"{patient}/therapies", json={"therapy_type": "surgery of the future", "start_day": 150})
    assert added.status_code == 201
    name = added.json()["therapy_id"]
    assert curve("as_given") != given
    assert client.put(f"{patient}/therapies/{name}", json={"therapy_type": "other", "start_day": 150, "end_day": 140}).status_code == 400
    assert client.put(f"{patient}/therapies/{name}", json={"therapy_type": "other", "start_day": 150, "dose": 0.5}).status_code == 200
    assert client.post(f"{patient}/therapies", json={"therapy_id": name, "therapy_type": "x", "start_day": 1}).status_code == 400
    assert client.delete(f"{patient}/therapies/{name}").status_code == 200
    assert client.delete(f"{patient}/therapies/{name}").status_code == 404
    assert curve("as_given") == given, "as if it had never been"
    assert client.post(f"{patient}/therapies", json={"therapy_type": "x", "start_day": 1e9}).status_code == 422


def test_corrections_are_versions_and_the_case_follows(client: TestClient, patient: str) -> None:
    start = get(client, patient)["version"]
    before = get(client, f"{patient}/response")["response"]["recist_1.1"]
    one = correct(client, patient, action="measurement", lesion=["visit-2", "lesion-1"], figures={"longest_mm": 80.0}, reason="edge", version=start)
    assert (one["version"], one["reason"], one["user_id"]) == (start + 1, "edge", "local")
    assert get(client, f"{patient}/response")["response"]["recist_1.1"][0]["category"] == "PD"
    lesion = get(client, f"{patient}/lesions/visit-2/lesion-1")
    assert (lesion["longest_mm"], lesion["method"], lesion["set_by_reader"]) == (80.0, "drawn", ["longest_mm"])
    correct(client, patient, action="delete", lesion=["visit-3", "lesion-2"])
    assert get(client, f"{patient}/lesions", timepoint_id="visit-3")["count"] == 1
    correct(client, patient, action="rename", lesion=["visit-1", "lesion-1"], name="liver dome")
    assert get(client, f"{patient}/graph")["names"] == {"L1": "liver dome"}
    assert get(client, f"{patient}/lesions/visit-2/lesion-1")["name"] == "liver dome"
    correct(client, patient, action="role", lesion=["visit-1", "lesion-2"], target=False)
    response = get(client, f"{patient}/response")
    assert (response["targets"], response["non_targets"]) == (["L1"], ["L2"])
    correct(client, patient, action="unlink", lesion=["visit-4", "lesion-1"], other=["visit-5", "lesion-1"])
    assert len(get(client, f"{patient}/graph")["tracks"]) > 2
    back = client.post(f"{patient}/corrections/{start}/restore", json={"reason": "all wrong"}).json()
    assert back["version"] == start + 6
    assert get(client, f"{patient}/response")["response"]["recist_1.1"] == before
    found = get(client, f"{patient}/corrections", limit=6)
    assert [v["action"] for v in found["data"]] == ["go_back", "unlink", "role", "rename", "delete", "measurement"]
    assert found["count"] == start + 7
    log = get(client, f"{patient}/audit", limit=1000)
    assert log["intact"]
    assert [e["action_type"] for e in log["data"]][:2] == ["create_patient", "submit_scan"]
    assert log["data"][-1]["metadata"]["to"] == start
    assert client.put(f"{patient}/audit", json=[]).status_code == 405
    assert client.delete(f"{patient}/audit").status_code == 405


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"action": "burn", "lesion": ["visit-1", "lesion-1"]}, 400),
        ({"action": "delete", "lesion": ["visit-1", "lesion-99"]}, 404),
        ({"action": "delete", "lesion": ["visit-99", "lesion-1"]}, 404),
        ({"action": "link", "lesion": ["visit-1", "lesion-1"]}, 400),
        ({"action": "link", "lesion": ["visit-1", "lesion-1"], "other": ["visit-1", "lesion-2"]}, 400),
        ({"action": "link", "lesion": ["visit-1", "lesion-1"], "other": ["visit-3", "lesion-2"]}, 400),
        ({"action": "measurement", "lesion": ["visit-1", "lesion-1"], "figures": {"longest_mm": -1}}, 400),
        ({"action": "measurement", "lesion": ["visit-1", "lesion-1"], "figures": {"longest_mm": 1, "short_axis_mm": 50}}, 400),
        ({"action": "measurement", "lesion": ["visit-1", "lesion-1"], "figures": {"weight": 1}}, 400),
        ({"action": "delete", "lesion": ["visit-1", "lesion-1"], "version": 0}, 409),
        ({"action": "undelete", "lesion": ["visit-1", "lesion-1"]}, 409),
        ({"action": "delete"}, 400),
        ({"action": "delete", "lesion": ["visit-1", "lesion-1"], "also": 1}, 422),
    ],
)
def test_a_correction_that_cannot_be_is_refused_and_not_kept(client: TestClient, patient: str, asked: dict[str, Any], status: int) -> None:
    before = get(client, patient)
    answer = client.post(f"{patient}/corrections", json=asked)
    assert answer.status_code == status, answer.text
    assert get(client, patient) == before


def test_who_the_patient_is_is_told_only_when_asked(client: TestClient, patient: str) -> None:
    assert get(client, patient, patient_fields=True)["patient_fields"] == {"name": "Jane Doe"}
    assert get(client, f"{patient}/audit", limit=1000)["data"][-1]["action_type"] == "read_patient_fields"
    assert b"Jane" not in client.get(f"{patient}/report?format=json").content
    assert b"Jane Doe" in client.get(f"{patient}/report?format=json&patient_fields=true").content
    assert get(client, f"{patient}/audit", limit=1000)["data"][-1]["metadata"]["patient_fields"] is True
    assert client.put(f"{patient}/patient-fields", json={"shoe size": "44"}).status_code == 400
    assert client.put(f"{patient}/patient-fields", json={"name": "Jane Doe", "sex": "F"}).status_code == 200
    assert "Jane" not in json.dumps(get(client, f"{patient}/audit", limit=1000))


def test_reports(client: TestClient, patient: str) -> None:
    page = client.get(f"{patient}/report")
    assert page.headers["content-type"].startswith("text/html")
    assert "Research use only" in page.text
    assert page.text.count("data:image/png;base64,") == 10, "each lesion at each visit"
    assert client.get(f"{patient}/report?format=csv").text.count("\n") == 11
    assert client.get(f"{patient}/report?format=doc").status_code == 400
    assert client.get(f"{patient}/report?format=seg").status_code == 400, "nothing came as DICOM"


def test_without_weights_the_template_tells_it_and_says_so(client: TestClient, patient: str) -> None:
    told = client.post(f"{patient}/narrative", json={}).json()
    assert told["model"] == "template 1"
    assert "models pull" in told["provenance"]["notes"][0]
    assert {"key_findings", "uncertainty_statement", "recist_trajectory", "trend", "data_quality"} <= told.keys()
    assert get(client, f"{patient}/narrative")["id"] == told["id"], "kept as long as the case is the same"
    assert get(client, f"{patient}/narratives")["count"] >= 1
    answer = client.post(f"{patient}/ask", json={"question": "How large is L1?"})
    assert answer.status_code == 503
    assert "isocenter models pull" in answer.json()["detail"]
    assert client.post(f"{patient}/ask", json={"question": ""}).status_code == 422
    assert client.post(f"{patient}/narrative", json={"model": "no such model"}).status_code == 404
    assert client.post(f"{patient}/narrative", json={"model": "geodesic"}).status_code == 400


def test_visits_one_by_one_and_what_is_alike(client: TestClient, patient: str, study: tuple[Path, list[Truth]]) -> None:
    made = client.post(BASE, json={"patient_id": "one-by-one", "options": {"preprocessed": False, "registration": "none"}})
    assert made.status_code == 201
    one = f"{BASE}/one-by-one"
    assert client.post(BASE, json={"patient_id": "one-by-one"}).status_code == 409
    assert client.get(f"{one}/response").status_code == 409, "nothing is measured yet"

    def add(k: int, **facts: Any) -> Any:
        files = {
            name: (f"x{name}.nii.gz", (study[0] / f"visit-{k}{suffix}.nii.gz").read_bytes()) for name, suffix in (("file", ""), ("mask", "_mask"))
        }
        return client.post(f"{one}/timepoints", files=files, data={"timepoint": json.dumps({"modality": "CT", **facts})})

    jobs = [add(1, timepoint_id="a", day=0), add(2, timepoint_id="b", day=42)]
    assert [j.status_code for j in jobs] == [202, 202]
    assert all(ended(client, j.json()["job"])["status"] == "completed" for j in jobs)
    assert client.post(f"{one}/timepoints", json={"timepoint_id": "c", "day": 60}).status_code == 201
    assert client.post(f"{one}/timepoints", json={"timepoint_id": "c", "day": 61}).status_code == 409
    assert client.post(f"{one}/timepoints", json={"timepoint_id": "d"}).status_code == 400
    assert add(3, timepoint_id="a", day=9).status_code == 409
    clash = add(3, timepoint_id="d", day=42)
    assert (clash.status_code, "'b' is on this day" in clash.json()["detail"]) == (409, True)
    assert [t["timepoint_id"] for t in get(client, f"{one}/timepoints")["data"]] == ["a", "b", "c"]
    assert get(client, f"{one}/response")["response"]["recist_1.1"][-1]["category"] == "NE"
    # The same lesions are on record for both patients.
    (like, *_) = get(client, f"{one}/lesions/a/lesion-1/similar", rank="vector")["data"]
    assert (like["patient_id"], like["timepoint_id"], like["lesion_id"]) == ("phantom-1", "visit-1", "lesion-1")
    assert like["similarity"] == pytest.approx(1, abs=1e-5)
    assert get(client, f"{one}/lesions/a/lesion-1/similar", k=3)["count"] == 3
    own = get(client, f"{one}/lesions/a/lesion-1/similar", same_patient=True, k=20)["data"]
    assert {a["patient_id"] for a in own} == {"one-by-one", "phantom-1"}
    assert get(client, f"{one}/similar")["data"][0]["patient_id"] == "phantom-1"
    assert client.get(f"{one}/lesions/a/lesion-9/similar").status_code == 404
    assert client.get(f"{one}/lesions/a/lesion-1/similar?embedding=other").status_code == 404
    assert get(client, f"{one}/similar")["search"] == get(client, f"{one}/lesions/a/lesion-1/similar")["search"] == "memory"
    # A deleted lesion and a deleted visit are found no more, nor what a network made of them that no visit speaks of any more.
    vectors = client.app.state.patients.similar.vectors  # type: ignore[attr-defined]
    for collection in ("lesions:network-0", "lesion-graph:network-0", "cases:network-0", "somebody-elses"):
        for key in ("one-by-one:b:lesion-1", "phantom-1:b:lesion-1"):
            vectors.add(collection, key, np.ones(8))
    correct(client, one, action="delete", lesion=["a", "lesion-1"])
    assert [vectors.count(f"{name}:network-0") for name in ("lesions", "lesion-graph", "cases")] == [1, 1, 1]
    assert vectors.count("somebody-elses") == 2
    assert client.delete(f"{one}/timepoints/b").status_code == 204
    found = get(client, f"{patient}/lesions/visit-1/lesion-1/similar", k=50)["data"]
    assert {(a["patient_id"], a["timepoint_id"], a["lesion_id"]) for a in found} == {("one-by-one", "a", "lesion-2")}
    assert client.delete(one).status_code == 204
    assert get(client, f"{patient}/lesions/visit-1/lesion-1/similar")["count"] == 0
    assert get(client, f"{one}/audit")["data"][-1]["action_type"] == "delete_patient"
    assert client.get(one).status_code == 404


def test_an_uploaded_dicom_study_and_another_patients(client: TestClient, ct: Phantom) -> None:
    array = ct.volume.array.astype(np.int16)
    z, y, x = np.unravel_index(int(np.argmax(array > 20)), array.shape)
    archives = [zipped([_dated(f, day) for f in dicom_series(array, patient=who, uid=f"1.2.{k}")]) for k, (who, day) in enumerate(_SCANS)]
    uploaded = client.post("/api/v1/studies", files={"file": ("s.zip", archives[0])}).json()
    made = client.post(BASE, json={"options": {"preprocessed": False, "registration": "none"}}).json()
    assert made["patient_id"].startswith("P-")
    one = made["url"]
    clicks = [[[int(x), int(y), int(z)]]]
    first = client.post(f"{one}/timepoints", json={"study_id": uploaded["id"], "clicks": clicks})
    assert first.status_code == 202, first.text
    job = ended(client, first.json()["job"])
    assert job["status"] == "completed", job["error"]
    jobs = [
        ended(
            client, client.post(f"{one}/timepoints", files={"file": ("s.zip", a)}, data={"timepoint": json.dumps({"clicks": clicks})}).json()["job"]
        )
        for a in archives[1:]
    ]
    assert jobs[0]["status"] == "completed", jobs[0]["error"]
    assert jobs[1]["status"] == "failed"
    assert "another patient" in jobs[1]["error"]
    visits = get(client, f"{one}/timepoints")["data"]
    assert [(v["timepoint_id"], v["day"], v["scan_date"]) for v in visits] == [("day-0", 0.0, "2026-01-10"), ("day-59", 59.0, "2026-03-10")]
    segmentation = client.get(f"{one}/report?format=seg")
    assert segmentation.status_code == 200, segmentation.text
    assert len(zipfile.ZipFile(io.BytesIO(segmentation.content)).namelist()) == 2
    assert client.delete(one).status_code == 204


_SCANS = (("one", "20260110"), ("one", "20260310"), ("two", "20260510"))


def _dated(file: bytes, day: str) -> bytes:
    import pydicom

    made = pydicom.dcmread(io.BytesIO(file))
    made.StudyDate = day
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_what_is_sent_twice_is_one(client: TestClient, archive: bytes) -> None:
    def send() -> dict[str, Any]:
        asked = {"patient": json.dumps({"options": {"preprocessed": False, "registration": "none"}})}
        answer = client.post(BASE, files={"file": ("s.zip", archive)}, data=asked, headers={"Idempotency-Key": "once"})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    one, two = send(), send()
    assert (one["patient_id"], one["job"]["id"]) == (two["patient_id"], two["job"]["id"])
    assert ended(client, one["job"])["status"] == "completed"
    assert client.delete(one["url"]).status_code == 204


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("study.zip", b"", "empty"),
        ("study.zip", b"no archive", "no study.json"),
        ("scan.nii.gz", b"\x1f\x8b\x08\x00broken", "no study.json"),
    ],
)
def test_what_is_no_study_fails_in_words(client: TestClient, name: str, data: bytes, words: str) -> None:
    answer = client.post(BASE, files={"file": (name, data)})
    if answer.status_code == 400:
        assert words in answer.json()["detail"]
        return
    job = ended(client, answer.json()["job"])
    assert job["status"] == "failed"
    assert words in job["error"]


def test_what_cannot_be_asked_is_refused(client: TestClient) -> None:
    for asked in (
        {"patient_id": "Jane Doe"},
        {"options": {"colour": "red"}},
        {"options": {"least_mm3": "x"}},
        {"options": {"model": 5}},
        {"options": {"labels": [1]}},
        {"options": {"registration": "wild"}},
        {"patient_fields": {"x": "y"}},
    ):
        assert client.post(BASE, json=asked).status_code == 400, asked
    assert client.post(BASE, json={"options": {"model": "no such model"}}).status_code == 404
    assert client.post(BASE, json={"options": {"model": "geodesic"}}).status_code == 400
    assert client.post(BASE, content=b"[", headers={"content-type": "application/json"}).status_code == 400
    assert client.post(BASE, json={"study_id": "none"}).status_code == 404
    for path in ("", "/lesions", "/response", "/growth", "/report", "/audit", "/corrections", "/similar", "/therapies"):
        assert client.get(f"{BASE}/nobody{path}").status_code == 404, path
    assert client.get(f"{BASE}?limit=0").status_code == 422
