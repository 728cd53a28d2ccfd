"""What a client may get wrong with a patient's visits and treatment: refused in words, and nothing that is stored is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from isocenter.core.geometry import Grid
from isocenter.io import nifti
from tests.http.test_patient_judged import GRID, LESIONS, OPTIONS, files_of, study_of
from tests.http.test_patients import BASE, client, ended, get, upload

__all__ = ["client"]

MISFIT = nifti.write(np.ones((5, 6, 7), np.uint8), Grid((5, 6, 7), (1.0, 1.0, 1.0)), header=None, compress=True)
EMPTY = nifti.write(np.zeros(GRID.shape, np.uint8), GRID, header=None, compress=True)


@contextmanager
def patient(client: TestClient, name: str) -> Iterator[str]:
    assert client.post(BASE, json={"patient_id": name, "options": OPTIONS}).status_code == 201
    yield f"{BASE}/{name}"
    assert client.delete(f"{BASE}/{name}").status_code == 204


def send(client: TestClient, one: str, number: int, mask: bytes | None = None, **facts: Any) -> Any:
    scan, own = files_of(number, LESIONS[number - 1]).values()
    files = {"file": ("ct.nii.gz", scan), "mask": ("mask.nii.gz", mask or own)}
    return client.post(f"{one}/timepoints", files=files, data={"timepoint": json.dumps({"modality": "CT", **facts})})


def add(client: TestClient, one: str, number: int, mask: bytes | None = None, **facts: Any) -> tuple[str, str]:
    """How the job of a visit ended."""
    answer = send(client, one, number, mask, **facts)
    assert answer.status_code == 202, answer.text
    job = ended(client, answer.json()["job"])
    return job["status"], job["error"] or ""


def test_a_mask_that_does_not_fit_takes_no_visits_place(client: TestClient) -> None:
    with patient(client, "slips-masks") as one:
        assert add(client, one, 1, timepoint_id="a", day=0)[0] == "completed"
        before = get(client, f"{one}/lesions")
        status, error = add(client, one, 2, MISFIT, timepoint_id="b", day=60)
        assert (status, "does not cover the image's grid" in error) == ("failed", True)
        status, error = add(client, one, 2, MISFIT, timepoint_id="a", day=0, replace=True)
        assert (status, "'a' was not kept" in error) == ("failed", True)
        assert get(client, f"{one}/lesions") == before
        assert [t["timepoint_id"] for t in get(client, f"{one}/timepoints")["data"]] == ["a"]
        assert add(client, one, 2, timepoint_id="a", day=0, replace=True)[0] == "completed", "one that fits does"


def test_a_visit_that_shows_no_lesion_says_so(client: TestClient) -> None:
    with patient(client, "slips-empty") as one:
        assert add(client, one, 1, timepoint_id="a", day=0)[0] == "completed"
        assert add(client, one, 2, EMPTY, timepoint_id="b", day=60)[0] == "completed"
        assert get(client, f"{one}/response")["response"]["recist_1.1"][0]["category"] == "CR"
        assert any(note.startswith("b: no lesion is seen") for note in get(client, one)["notes"])


def test_visits_in_any_order_by_days_and_by_dates(client: TestClient) -> None:
    with patient(client, "slips-days") as one:
        for number, day in ((3, 60), (1, -60), (2, 0)):
            assert add(client, one, number, day=day, timepoint_id=f"v{number}")[0] == "completed"
        assert [t["timepoint_id"] for t in get(client, f"{one}/timepoints")["data"]] == ["v1", "v2", "v3"]
        rows = get(client, f"{one}/response")["response"]["recist_1.1"]
        assert [r["day"] for r in rows] == [0, 60]
        assert rows[0]["sum"] < rows[0]["baseline"], "the earliest is the baseline"
    with patient(client, "slips-dates") as one:
        assert add(client, one, 1, scan_date="2026-03-01", timepoint_id="a")[0] == "completed"
        refused = send(client, one, 2, scan_date="2026-05-01", day=9, timepoint_id="b")
        assert refused.status_code == 400
        assert "is day 61" in refused.json()["detail"]
        assert client.post(f"{one}/timepoints", json={"timepoint_id": "b", "scan_date": "2026-03-01"}).status_code == 409
        assert send(client, one, 2, scan_date="2026-03-01", timepoint_id="b").status_code == 409, "before anything is queued"
        assert client.post(f"{one}/timepoints", json={"timepoint_id": "b"}).status_code == 400
        assert client.post(f"{one}/timepoints", json={"timepoint_id": "b", "scan_date": "2026-02-30"}).status_code == 400


def test_a_visit_that_is_sent_again_with_its_key_is_one(client: TestClient) -> None:
    with patient(client, "slips-again") as one:
        scan, mask = files_of(1, LESIONS[0]).values()
        files = {"file": ("ct.nii.gz", scan), "mask": ("mask.nii.gz", mask)}
        data = {"timepoint": json.dumps({"timepoint_id": "a", "day": 0, "modality": "CT"})}
        first, second = (client.post(f"{one}/timepoints", files=files, data=data, headers={"Idempotency-Key": "k"}) for _ in range(2))
        assert ended(client, first.json()["job"])["status"] == "completed"
        third = client.post(f"{one}/timepoints", files=files, data=data, headers={"Idempotency-Key": "k"})
        assert {answer.json()["job"]["id"] for answer in (first, second, third)} == {first.json()["job"]["id"]}
        assert client.post(f"{one}/timepoints", files=files, data=data).status_code == 409, "without one it is another"
        # With another key the job itself finds the day taken, and what is there stays.
        data = {"timepoint": json.dumps({"timepoint_id": "b", "day": 0, "modality": "CT"})}
        other = ended(client, client.post(f"{one}/timepoints", files=files, data=data, headers={"Idempotency-Key": "l"}).json()["job"])
        assert (other["status"], "on the day of 'a'" in other["error"]) == ("failed", True)
        assert [t["timepoint_id"] for t in get(client, f"{one}/timepoints")["data"]] == ["a"]


def test_what_goes_with_a_scan_does_not_go_without(client: TestClient) -> None:
    with patient(client, "slips-alone") as one:
        mask = {"mask": ("mask.nii.gz", EMPTY)}
        alone = client.post(f"{one}/timepoints", files=mask, data={"timepoint": json.dumps({"timepoint_id": "a", "day": 0})})
        assert alone.status_code == 400
        assert "goes with its scan" in alone.json()["detail"]
        assert client.post(f"{one}/timepoints", json={"timepoint_id": "a", "day": 0, "clicks": [[[1, 1, 1]]]}).status_code == 400
        assert send(client, one, 1, timepoint_id="a", day=0, clicks=[[[1, 1, 1]]]).status_code == 400, "a mask and clicks"
        assert get(client, f"{one}/timepoints")["count"] == 0


def test_absurd_treatment_is_refused(client: TestClient) -> None:
    with patient(client, "slips-treatment") as one:
        course = {"therapy_type": "x", "start_day": 5, "end_day": 50}
        assert client.post(f"{one}/therapies", json=course).status_code == 201
        twice = client.post(f"{one}/therapies", json=course)
        assert (twice.status_code, "twice the dose" in twice.json()["detail"]) == (400, True)
        for wrong, status in (
            ({**course, "end_day": 5}, 400),
            ({**course, "therapy_type": " "}, 400),
            ({**course, "therapy_type": "x\u0000y"}, 400),
            ({**course, "dose": -1}, 422),
            ({**course, "dose": 1000}, 422),
            ({**course, "start_day": 1e9}, 422),
        ):
            assert client.post(f"{one}/therapies", json=wrong).status_code == status, wrong
        for number in (b"NaN", b"Infinity"):
            body = b'{"therapy_type": "x", "start_day": %s}' % number
            assert client.post(f"{one}/therapies", content=body, headers={"content-type": "application/json"}).status_code == 422
        assert [t["therapy_id"] for t in get(client, f"{one}/therapies")["data"]] == ["therapy-1"]


@pytest.mark.parametrize(
    ("therapies", "words"),
    [
        ([{"type": "x", "start": 50, "end": 10}], "must end after it starts"),
        ([{"type": "x", "start": 5, "end": 10}, {"type": "x", "start": 5, "end": 10}], "twice its dose"),
    ],
)
def test_absurd_treatment_in_a_study_is_found_before_anything_is_measured(client: TestClient, therapies: Any, words: str) -> None:
    made = upload(client, study_of(therapies=therapies), options=OPTIONS)
    done = ended(client, made["job"])
    assert (done["status"], words in done["error"]) == ("failed", True), done["error"]
    assert get(client, f"{made['url']}/timepoints")["count"] == 0
    assert client.delete(made["url"]).status_code == 204
