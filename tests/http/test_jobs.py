"""The native job and study API, on an application with its own worker."""

from __future__ import annotations

import io
import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from isocenter.core.phantom import Phantom
from isocenter.core.settings import Settings
from isocenter.http.app import create_app
from isocenter.io import nifti
from isocenter.io.upload import Upload
from isocenter.service import Service
from tests.http.conftest import dicom_series, zipped


@pytest.fixture(scope="module")
def app_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(home=tmp_path_factory.mktemp("jobs"), decoders=0, job_same_within=0, min_free_bytes=0)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        yield client


def submit(client: TestClient, data: bytes, job: dict[str, Any], *, name: str = "ct.nii.gz", **headers: str) -> dict[str, Any]:
    answer = client.post("/api/v1/jobs", files={"file": (name, data)}, data={"job": json.dumps(job)}, headers=headers)
    assert answer.status_code in (200, 201), answer.text
    return {**answer.json(), "http": answer.status_code}


def finished(client: TestClient, job: dict[str, Any], seconds: float = 180) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer: dict[str, Any] = client.get(f"/api/v1/jobs/{job['id']}").json()
        if answer["status"] in ("completed", "failed", "cancelled"):
            return answer
        time.sleep(0.02)
    raise AssertionError(answer)


def test_every_format_of_an_uploaded_scan(app_client: TestClient, ct: Phantom, ct_nifti: bytes) -> None:
    formats = ["nifti", "npz", "nrrd", "seg_nrrd", "stl", "obj", "measurements", "preview", "image"]
    job = finished(app_client, submit(app_client, ct_nifti, {"prompts": ["lungs", {"text": "bones"}], "formats": formats, "priority": 8}))
    assert (job["status"], job["progress"], job["priority"], job["attempts"]) == ("completed", 1.0, 8, 1)
    files = {a["name"]: app_client.get(a["url"]) for a in job["artifacts"]}
    assert set(files) == {
        "mask.nii.gz", "mask.npz", "mask.nrrd", "mask.seg.nrrd", "surface.stl", "surface.obj", "measurements.json", "preview.png", "image.nii.gz",
    }  # fmt: skip
    assert all(f.status_code == 200 and len(f.content) == int(f.headers["content-length"]) for f in files.values())
    mask = _volume(files["mask.nii.gz"].content, ".nii.gz")
    assert mask.shape == ct.volume.shape
    assert mask.grid.same_as(ct.volume.grid)
    measured = json.loads(files["measurements.json"].content)
    assert [entry["name"] for entry in measured["labels"]] == ["lungs", "bone"]
    for entry in measured["labels"]:
        inside = mask.array == entry["label"]
        assert entry["volume_mm3"] == pytest.approx(inside.sum() * ct.volume.grid.voxel_mm3)
        assert entry["mean_hu"] == pytest.approx(ct.volume.array[inside].mean(), abs=0.01)
        assert entry["longest_mm"] >= entry["short_axis_mm"] > 0
        edges = [inside[0], inside[-1], inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1]]
        assert entry["touches_border"] is any(bool(e.any()) for e in edges)
    assert measured["labels"] == job["result"]["labels"]
    assert {"fetch", "read", "infer", "write", "store", "total"} <= set(job["seconds"])
    assert _volume(files["image.nii.gz"].content, ".nii.gz").key == _volume(ct_nifti, ".nii.gz").key
    _closed_surface(files["surface.stl"].content, sum(e["volume_mm3"] for e in measured["labels"]))
    assert files["surface.obj"].content.count(b"\ng ") == 2


def _volume(data: bytes, suffix: str) -> Any:
    with Upload.of(data, f"a{suffix}") as upload:
        return Service(Settings(decoders=0)).open(upload)


def _closed_surface(data: bytes, volume_mm3: float) -> None:
    """Triangles look outside, and hold the volume that the voxels have."""
    assert data.startswith(b"SPACE=LPS")
    (count,) = struct.unpack_from("<L", data, 80)
    assert len(data) == 84 + 50 * count
    corners = np.frombuffer(data, np.dtype([("n", "<f4", 3), ("c", "<f4", (3, 3)), ("a", "<u2")]), offset=84)["c"].astype(float)
    a, b, c = (corners[:, k] - corners.reshape(-1, 3).mean(0) for k in range(3))
    assert np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6 == pytest.approx(volume_mm3, rel=0.2)


def test_a_study_is_uploaded_once_and_answered_as_dicom(app_client: TestClient, ct: Phantom) -> None:
    data = zipped(dicom_series(ct.volume.array.astype(np.int16), patient="Jane^Doe"))
    made = app_client.post("/api/v1/studies", files={"file": ("Jane Doe.zip", data)})
    assert made.status_code == 201
    study = made.json()
    assert (study["files"], study["modality"], len(study["series"])) == (48, "CT", 1)
    assert "Jane" not in made.text
    again = app_client.post("/api/v1/studies", files={"file": ("b.zip", data)}).json()
    assert again["id"] == study["id"]
    assert app_client.get("/api/v1/studies").json()["count"] == 1
    (series,) = app_client.get(f"/api/v1/studies/{study['id']}/series").json()
    metadata = app_client.get(f"/api/v1/studies/{study['id']}/series/{series['id']}/metadata").json()
    assert metadata["Modality"] == "CT"
    assert metadata["PixelSpacing"] == [6.0, 6.0]
    answer = app_client.post(
        "/api/v1/jobs", json={"study_id": study["id"], "series_id": series["id"], "prompts": ["lungs"], "formats": ["dicom_seg"]}
    )
    job = finished(app_client, answer.json())
    assert job["status"] == "completed", job
    assert (job["study_id"], job["series_id"]) == (study["id"], series["id"])
    import pydicom

    seg = pydicom.dcmread(io.BytesIO(app_client.get(job["artifacts"][0]["url"]).content))
    assert (seg.Modality, seg.SegmentSequence[0].SegmentLabel) == ("SEG", "lungs")
    assert seg.StudyInstanceUID == study["study_uid"]
    assert app_client.get("/api/v1/jobs", params={"study_id": study["id"]}).json()["count"] == 1
    assert app_client.delete(f"/api/v1/studies/{study['id']}").status_code == 204
    assert app_client.get(f"/api/v1/studies/{study['id']}").status_code == 404
    assert app_client.post("/api/v1/jobs", json={"study_id": study["id"], "prompts": ["lungs"]}).status_code == 404


def test_a_study_whose_uids_an_anonymiser_emptied(app_client: TestClient, ct: Phantom) -> None:
    """Taken as a study just as it is taken with a job; the inference service's clients are told what they were always told."""
    import pydicom

    def emptied(file: bytes, *names: str) -> bytes:
        dataset = pydicom.dcmread(io.BytesIO(file))
        for name in names:
            setattr(dataset, name, "")
        out = io.BytesIO()
        dataset.save_as(out, enforce_file_format=True)
        return out.getvalue()

    array = ct.volume.array.astype(np.int16)
    whole = [emptied(file, "StudyInstanceUID") for file in dicom_series(array)]
    part = [emptied(file, "StudyInstanceUID", "SeriesInstanceUID") for file in dicom_series(array[:20], uid="1.2.3")]
    data = zipped([*whole, *part])
    refused = app_client.post("/api/v1/dicom/upload", files={"file": ("a.zip", data)})
    assert (refused.status_code, refused.json()["detail"]) == (400, "DICOM file missing StudyInstanceUID")
    made = app_client.post("/api/v1/studies", files={"file": ("a.zip", data)})
    assert made.status_code == 201, made.text
    study = made.json()
    assert (study["study_uid"], study["files"]) == ("", 68)
    assert [(s["series_uid"] == "", s["images"]) for s in study["series"]] == [(True, 20), (False, 48)]
    small = study["series"][0]["id"]
    asked = {"study_id": study["id"], "series_id": small, "prompts": ["body"], "formats": ["dicom_seg", "nifti"]}
    job = finished(app_client, app_client.post("/api/v1/jobs", json=asked).json())
    assert job["status"] == "completed", job
    assert job["result"]["image"]["voxels"][2] == 20, "the series that was asked for, not the largest"
    with_scan = submit(app_client, data, {"prompts": ["body"], "formats": ["nifti"]}, name="a.zip")
    assert finished(app_client, with_scan)["status"] == "completed"
    # Two studies are two, even where neither name is a UID.
    both = [emptied(f, "SeriesInstanceUID") for f in dicom_series(array[:2])] + [emptied(f) for f in dicom_series(array[:2], uid="1.2.4")]
    refused = app_client.post("/api/v1/studies", files={"file": ("b.zip", zipped(both))})
    assert (refused.status_code, refused.json()["detail"][:25]) == (415, "the archive holds 2 studi")


def test_a_job_can_be_kept(app_client: TestClient, ct_nifti: bytes) -> None:
    job = finished(app_client, submit(app_client, ct_nifti, {"prompts": ["lungs"], "formats": ["measurements"]}))
    assert not job["kept"]
    assert app_client.put(f"/api/v1/jobs/{job['id']}/keep").json()["kept"]
    assert not app_client.delete(f"/api/v1/jobs/{job['id']}/keep").json()["kept"]
    assert app_client.put("/api/v1/jobs/none/keep").status_code == 404
    assert app_client.put(f"/api/v1/jobs/{job['id']}/keep").status_code == 200
    assert app_client.delete(f"/api/v1/jobs/{job['id']}").status_code == 204, "who names it means it"


def test_five_equal_posts_make_one_job(app_client: TestClient, ct_nifti: bytes) -> None:
    before = app_client.get("/api/v1/jobs").json()["count"]
    answers: list[dict[str, Any]] = []

    def post() -> None:
        answers.append(submit(app_client, ct_nifti, {"prompts": ["liver"]}, **{"Idempotency-Key": "once"}))

    threads = [threading.Thread(target=post) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({a["id"] for a in answers}) == 1
    assert sorted(a["http"] for a in answers) == [200, 200, 200, 200, 201]
    assert app_client.get("/api/v1/jobs").json()["count"] == before + 1
    other = app_client.post("/api/v1/jobs", files={"file": ("a.nii.gz", ct_nifti)}, data={"prompts": "bones"}, headers={"Idempotency-Key": "once"})
    assert other.status_code == 409


def test_progress_as_events_and_the_end_of_a_broken_scan(app_client: TestClient, ct_nifti: bytes) -> None:
    job = submit(app_client, ct_nifti, {"prompts": ["airways"]})
    with app_client.stream("GET", f"/api/v1/jobs/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in stream.iter_lines() if line]
    assert lines[-1].startswith(("id:", "data:", "event:"))
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event:")]
    assert events[-1] == "end"
    assert set(events[:-1]) <= {"progress"}
    last = json.loads([line for line in lines if line.startswith("data:")][-1].removeprefix("data: "))
    assert (last["status"], last["progress"]) == ("completed", 1.0)
    broken = finished(app_client, submit(app_client, b"no scan at all", {"prompts": ["liver"]}))
    assert (broken["status"], broken["error_code"], broken["attempts"]) == ("failed", "unsupported", 1)
    assert "DICOM" in broken["error"]
    assert app_client.post(f"/api/v1/jobs/{broken['id']}/cancel").json() == {"detail": "Cannot cancel job in status: failed"}
    assert app_client.post(f"/api/v1/jobs/{broken['id']}/retry").status_code == 200
    assert finished(app_client, broken)["status"] == "failed"
    what = [e["what"] for e in app_client.get(f"/api/v1/jobs/{broken['id']}/audit").json()]
    assert what == ["submitted", "claimed", "failed", "retried", "claimed", "failed"]
    assert app_client.delete(f"/api/v1/jobs/{broken['id']}").status_code == 204
    assert app_client.get(f"/api/v1/jobs/{broken['id']}").status_code == 404
    assert app_client.get(f"/api/v1/jobs/{broken['id']}/events").status_code == 404


@pytest.mark.parametrize(
    ("job", "status", "words"),
    [
        ({}, 400, "say what to segment"),
        ({"prompts": ["liver"], "formats": ["gif"]}, 400, "no format 'gif'"),
        ({"prompts": [{"point": [1, 2]}]}, 400, "three voxel indices"),
        ({"prompts": ["liver", {"point": [1, 2, 3]}]}, 400, "not both"),
        ({"prompts": ["liver"], "model": "no-such"}, 404, "no model is called"),
        ({"prompts": ["liver"], "priority": 10}, 400, "priority"),
        ({"prompts": ["liver"], "parameters": {"threshold": 2}}, 400, "threshold"),
        ({"prompts": ["liver"], "surprise": 1}, 400, "surprise"),
        ({"prompts": ["liver"], "parameters": {"treshold": 0.4}}, 400, "no parameter 'treshold'; it has: threshold"),
        ({"prompts": ["liver"], "study_id": "some"}, 400, "of a study that is here already"),
        ({"prompts": ["liver"], "series_id": "some"}, 400, "says series_uid"),
        ({"prompts": ["lungs"], "window": "wide"}, 400, "window must be width/level"),
        ({"prompts": ["lungs"], "window": "400/40", "modality": "MR"}, 400, "goes with modality=CT"),
        ({"prompts": ["lungs"], "window": "400/40"}, 415, "only the grey levels of a PNG or JPEG"),
        ({"prompts": ["lungs"], "formats": ["dicom_seg"]}, 400, "a DICOM SEG needs a scan that came as DICOM"),
        ({"prompts": ["lungs"], "formats": ["dicom_sr"]}, 400, "a DICOM report needs a scan that came as DICOM"),
        ({"prompts": ["lungs"], "model": "geodesic"}, 400, "takes point, box, scribble, lasso, mask; no words"),
        ({"prompts": [{"point": [1, 2, 3]}], "model": "tissue"}, 400, "takes text; no places"),
        ({"prompts": [{"box": [1, 2, 3, 4, 5, 6]}] * 2, "model": "GMM+GraphCut"}, 400, "one box at most"),
        ({"prompts": [{"point": [1, 2, -3]}]}, 400, "outside the image"),
        ({"prompts": [{"text": "lungs", "positive": False}]}, 400, "a text says what is meant"),
    ],
)
def test_what_cannot_work_is_refused_at_once(app_client: TestClient, ct_nifti: bytes, job: dict[str, Any], status: int, words: str) -> None:
    answer = app_client.post("/api/v1/jobs", files={"file": ("a.nii.gz", ct_nifti)}, data={"job": json.dumps(job)})
    assert answer.status_code == status
    assert words in answer.json()["detail"]


def test_a_place_outside_a_scan_that_is_known(app_client: TestClient, ct: Phantom, ct_nifti: bytes) -> None:
    """Refused at once where the scan is decoded already; else by the job, in the same words."""
    z, y, x = ct.volume.shape
    inside, outside = {"prompts": [{"point": [x - 1, y - 1, z - 1]}], "formats": ["measurements"]}, {"prompts": [{"point": [x, 1, 1]}]}
    words = f"lies outside the image, which has {x} x {y} x {z} voxels"
    fresh = nifti.write(np.ascontiguousarray(ct.volume.array[:, ::-1]), ct.volume.grid)
    failed = finished(app_client, submit(app_client, fresh, outside))
    assert (failed["status"], failed["error_code"], words in failed["error"]) == ("failed", "prompt", True)
    refused = app_client.post("/api/v1/jobs", files={"file": ("ct.nii.gz", fresh)}, data={"job": json.dumps(outside)})
    assert (refused.status_code, words in refused.json()["detail"]) == (400, True)
    assert finished(app_client, submit(app_client, fresh, inside))["status"] == "completed"


def test_nothing_that_was_sent_is_passed_over(app_client: TestClient, ct_nifti: bytes) -> None:
    """A typing error in a field's name, a second file, a field beside the whole request: each would have given another result than was meant."""
    one = ("file", ("a.nii.gz", ct_nifti))
    before = app_client.get("/api/v1/jobs").json()["count"]
    for files, fields, words in (
        ([one], {"prompts": "lungs", "format": "obj"}, "no field 'format'; there are: file, job, "),
        ([one, one], {"prompts": "lungs"}, "send one file"),
        ([one], {"job": '{"prompts": ["lungs"]}', "priority": "9"}, "holds the whole request"),
    ):
        answer = app_client.post("/api/v1/jobs", files=files, data=fields)
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["detail"]
    assert app_client.get("/api/v1/jobs").json()["count"] == before
    slices = [("file", (f"{k}.dcm", data)) for k, data in enumerate(dicom_series(np.zeros((3, 16, 16), np.int16)))]
    assert "ZIP" in app_client.post("/api/v1/studies", files=slices).json()["detail"]
    made = app_client.post("/api/v1/jobs", files=[one], data={"prompts": ["lungs"], "formats": ["measurements"] * 3, "priority": "9"})
    assert (made.status_code, made.json()["priority"]) == (201, 9)
    done = finished(app_client, made.json())
    assert (done["status"], [a["name"] for a in done["artifacts"]]) == ("completed", ["measurements.json"])
    typed = {"prompts": '[{"point": [30, 30, 20]}, {"point": [1, 1, 1], "positive": false}]', "formats": "measurements"}
    done = finished(app_client, app_client.post("/api/v1/jobs", files=[one], data=typed).json())
    assert (done["status"], done["model"]) == ("completed", "geodesic")


def test_pages_and_metrics(app_client: TestClient, ct_nifti: bytes) -> None:
    for word in ("lungs", "bones", "liver"):
        finished(app_client, submit(app_client, ct_nifti, {"prompts": [word], "formats": ["npz"]}))
    every = app_client.get("/api/v1/jobs", params={"limit": 1000}).json()
    assert every["count"] == len(every["data"]) > 2
    assert app_client.get("/api/v1/jobs", params={"limit": 1}).json()["count"] == every["count"]
    done = app_client.get("/api/v1/jobs", params={"status": ["completed"], "limit": 1000}).json()
    assert {j["status"] for j in done["data"]} == {"completed"}
    text = app_client.get("/metrics").text
    assert 'isocenter_jobs{queue="cpu",state="pending"} 0.0' in text
    assert 'isocenter_workers{role="cpu"} 1.0' in text
    assert 'isocenter_job_stage_seconds_count{stage="infer"}' in text
    assert "isocenter_jobs_oldest_waiting_seconds" in text
    assert "process_resident_memory_bytes" in text


def test_not_ready_while_nothing_can_be_written(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, decoders=0, min_free_bytes=2**60, job_workers=0)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        deadline = time.monotonic() + 180
        while (answer := client.get("/readyz")).json()["status"] == "warming up" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert answer.status_code == 503
        assert "disk is full" in answer.json()["status"]


def test_nifti_of_a_job_repeats_the_header(app_client: TestClient, ct: Phantom) -> None:
    """Axes turned round and swapped: the mask's file has the scan's own affine, bit by bit."""
    turned = nifti.write(ct.volume.array[::-1].copy(), ct.volume.grid)
    job = finished(app_client, submit(app_client, turned, {"prompts": [{"point": [32, 32, 24]}], "formats": ["nifti"]}))
    assert job["status"] == "completed", job
    data = app_client.get(job["artifacts"][0]["url"]).content
    assert _volume(data, ".nii.gz").source.header[252:328] == _volume(turned, ".nii.gz").source.header[252:328]
