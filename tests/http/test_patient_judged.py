"""By what a patient on record is judged, what people say of a visit, growth as it was known then, and what looks like a slip."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from isocenter.core.geometry import Grid
from isocenter.io import nifti
from tests.http.test_patients import BASE, client, ended, get, upload

__all__ = ["client"]

GRID = Grid((16, 40, 48), (2.0, 2.0, 4.0))
OPTIONS = {"preprocessed": False, "registration": "none"}
#: Middles (z, y, x) and half edges of boxes, a visit a row.
LESIONS = (
    (((8, 12, 12), 6), ((8, 30, 36), 4)),
    (((8, 12, 12), 5), ((8, 30, 36), 4)),
    (((8, 12, 12), 4), ((8, 30, 36), 4)),
)
THERAPIES = [{"type": "chemotherapy", "start": 5, "end": 40}]


def files_of(number: int, lesions: Any) -> dict[str, bytes]:
    """A scan and its mask, by their names."""
    mask = np.zeros(GRID.shape, np.uint8)
    for (z, y, x), half in lesions:
        mask[z - 2 : z + 2, y - half : y + half, x - half : x + half] = 1
    scan = np.where(mask, 120, 40 + number).astype(np.int16)
    return {f"{name}-{number}.nii.gz": nifti.write(a, GRID, header=None, compress=True) for name, a in (("ct", scan), ("mask", mask))}


def study_of(lesions: Any = LESIONS, **more: Any) -> bytes:
    """A study as a ZIP, its lesions by visit, 60 days apart. more: of its study.json, `visits` by number."""
    facts = more.pop("visits", {})
    rows = [
        {"id": f"visit-{k}", "day": 60 * (k - 1), "image": f"ct-{k}.nii.gz", "mask": f"mask-{k}.nii.gz", "modality": "CT", **facts.get(k, {})}
        for k in range(1, len(lesions) + 1)
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for k, boxes in enumerate(lesions, start=1):
            for name, data in files_of(k, boxes).items():
                made.writestr(name, data)
        made.writestr("study.json", json.dumps({"patient_id": "P", "visits": rows, "therapies": THERAPIES, **more}))
    return buffer.getvalue()


def followed(client: TestClient, name: str, archive: bytes, **options: Any) -> str:
    """The address of a patient made from a study."""
    done = ended(client, upload(client, archive, patient_id=name, options={**OPTIONS, **options})["job"])
    assert done["status"] == "completed", done["error"]
    return f"{BASE}/{name}"


@pytest.fixture(scope="module")
def patient(client: TestClient) -> str:
    said = {2: {"assessment": {"non_targets": "PD", "clinical": "worse"}}}
    return followed(client, "judged", study_of(visits=said, names=[["visit-1", "lesion-9", "nobody"]]), criteria=["mrecist"])


def test_criteria_are_those_of_the_options_or_of_the_question(client: TestClient, patient: str) -> None:
    assert set(get(client, f"{patient}/response")["response"]) == {"recist_1.1", "volumetric", "mrecist"}
    every = get(client, f"{patient}/response", criterion=["recist_1.1", "volumetric", "irecist", "mrecist", "rano"])["response"]
    assert set(every) == {"recist_1.1", "volumetric", "irecist", "mrecist", "rano"}
    assert all(len(rows) == 2 for rows in every.values())
    assert set(get(client, f"{patient}/response", criterion="rano")["response"]) == {"rano"}
    refused = client.get(f"{patient}/response", params={"criterion": "percist"})
    assert refused.status_code == 400
    assert "irecist" in refused.json()["detail"]
    assert client.post(BASE, json={"options": {"criteria": ["percist"]}}).status_code == 400
    assert client.post(BASE, json={"options": {"criteria": "rano"}}).status_code == 400


def test_options_may_change_later(client: TestClient) -> None:
    one = followed(client, "later", study_of())
    assert set(get(client, f"{one}/response")["response"]) == {"recist_1.1", "volumetric"}
    changed = client.put(f"{one}/options", json={**OPTIONS, "criteria": ["rano"]})
    assert changed.status_code == 200, changed.text
    assert changed.json()["options"]["criteria"] == ["rano"]
    assert set(get(client, f"{one}/response")["response"]) == {"recist_1.1", "volumetric", "rano"}
    line = get(client, f"{one}/audit", limit=1000)["data"][-1]
    assert (line["action_type"], line["before_state"], line["after_state"]["criteria"]) == ("set_options", OPTIONS, ["rano"])
    assert client.put(f"{one}/options", json={"criteria": ["percist"]}).status_code == 400
    assert client.put(f"{one}/options", json={"colour": "red"}).status_code == 400
    assert client.put(f"{one}/options", json={"least_mm3": 5}).status_code == 409, "it names the lesions that are measured"
    assert client.put(f"{BASE}/nobody/options", json={}).status_code == 404
    assert client.delete(one).status_code == 204


def test_sums_have_their_error(client: TestClient, patient: str) -> None:
    sizes = get(client, f"{patient}/measurements")["data"]
    errors = {v: sum(m["sd_mm"] ** 2 for m in sizes if m["timepoint_id"] == v) ** 0.5 for v in ("visit-1", "visit-2", "visit-3")}
    rows = get(client, f"{patient}/response", criterion=["recist_1.1", "irecist"])["response"]
    for of in rows.values():
        assert [r["sum_sd_mm"] for r in of] == pytest.approx([errors["visit-2"], errors["visit-3"]])
        assert of[0]["baseline_sd_mm"] == pytest.approx(errors["visit-1"])


def test_what_people_say_of_a_visit_counts(client: TestClient, patient: str) -> None:
    """Of a whole study, of one visit that is sent, and of one without a scan."""
    visit = get(client, f"{patient}/timepoints/visit-2")
    assert visit["assessment"] == {"non_targets": "PD", "clinical": "worse"}
    first, second = get(client, f"{patient}/response")["response"]["recist_1.1"]
    assert (first["category"], second["category"]) == ("PD", "SD")
    made = client.post(BASE, json={"patient_id": "said", "options": OPTIONS})
    assert made.status_code == 201
    one = f"{BASE}/said"
    for k, said in ((1, {}), (2, {"non_targets": "PD"})):
        scan, mask = files_of(k, LESIONS[k - 1]).values()
        files = {"file": ("ct.nii.gz", scan), "mask": ("mask.nii.gz", mask)}
        facts = {"timepoint_id": f"visit-{k}", "day": 60 * k, "modality": "CT", "assessment": said}
        job = client.post(f"{one}/timepoints", files=files, data={"timepoint": json.dumps(facts)}).json()["job"]
        assert ended(client, job)["status"] == "completed"
    empty = client.post(f"{one}/timepoints", json={"timepoint_id": "visit-3", "day": 200, "assessment": {"non_targets": "PD"}})
    assert empty.status_code == 201
    assert [r["category"] for r in get(client, f"{one}/response")["response"]["recist_1.1"]] == ["PD", "PD"]
    for wrong in ({"non_targets": "better"}, {"mood": "worse"}):
        refused = client.post(f"{one}/timepoints", json={"timepoint_id": "visit-4", "day": 300, "assessment": wrong})
        assert refused.status_code == 400
        assert "non_targets" in refused.json()["detail"]
    assert client.delete(one).status_code == 204


def test_growth_as_it_could_be_told_at_each_visit(client: TestClient, patient: str) -> None:
    then, now = (get(client, f"{patient}/timepoints/visit-{k}/growth") for k in (2, 3))
    assert (then["visits"], now["visits"]) == (["visit-1", "visit-2"], ["visit-1", "visit-2", "visit-3"])
    assert [g["track"] for g in then["growth"]] == ["total", "L1", "L2"]
    assert then["growth"][0]["days"] == [0, 60]
    assert now["growth"][0] == get(client, f"{patient}/growth")
    assert then["growth"][0]["forecast"] != now["growth"][0]["forecast"]
    (reason,) = get(client, f"{patient}/timepoints/visit-1/growth")["growth"][0]["reasons"]
    assert "two visits or more" in reason
    assert client.get(f"{patient}/timepoints/visit-9/growth").status_code == 404


def test_slips_are_named_in_the_answers(client: TestClient, patient: str) -> None:
    assert "a name was given to lesion-9 at visit-1, which is not there" in get(client, f"{patient}/response")["notes"]
    same = followed(client, "twice", study_of(visits={3: {"image": "ct-2.nii.gz", "mask": "mask-2.nii.gz"}}))
    words = "visit-2 and visit-3 are one and the same scan: no change between them means anything"
    for path in ("", "/lesions", "/measurements", "/response"):
        assert words in get(client, f"{same}{path}")["notes"], path
    assert client.delete(same).status_code == 204


def test_a_what_if_that_changes_nothing_says_why(client: TestClient, patient: str) -> None:
    """The course is over: another regimen from the last visit on is the same."""
    found = {s["scenario_name"]: s for s in get(client, f"{patient}/scenarios")["data"]}
    assert found["as_given"]["reason"] is None
    assert found["natural_history"]["reason"] is None
    assert found["regimen_switch_effect_0.75"]["reason"] == "no course goes on after the last visit (day 120): the last one ended on day 40"
    assert found["regimen_switch_effect_0.75"]["predicted_volumes"] == found["as_given"]["predicted_volumes"]
    told = client.get(f"{patient}/report", params={"format": "json"}).json()
    kept = {s["scenario_name"]: s["reason"] for g in told["growth"] if g["track"] == "total" for s in g["scenarios"]}
    assert kept == {name: s["reason"] for name, s in found.items()}


def test_what_a_lesion_became_is_said_and_taken_back(client: TestClient) -> None:
    """As corrections of a study, and one by one; each a version, refused where it cannot be."""
    three = (*LESIONS[1], ((8, 4, 40), 3))
    split = {"action": "split", "lesion": ["visit-1", "lesion-1"], "others": [["visit-2", "lesion-1"], ["visit-2", "lesion-3"]]}
    coalesce = {"action": "coalesce", "lesion": ["visit-3", "lesion-1"], "others": [["visit-2", "lesion-1"], ["visit-2", "lesion-3"]]}
    one = followed(client, "parts", study_of((LESIONS[0], three, LESIONS[2]), corrections=[split]))

    def events() -> list[tuple[str, str, bool]]:
        return [(e["event"], e["visit"], e["by_user"]) for e in get(client, f"{one}/graph")["events"]]

    assert events() == [("split", "visit-2", True), ("disappeared", "visit-3", False)]
    made = client.post(f"{one}/corrections", json={**coalesce, "reason": "grown together"})
    assert made.status_code == 201, made.text
    assert made.json()["detail"]["others"] == coalesce["others"]
    assert events() == [("split", "visit-2", True), ("merged", "visit-3", True)]
    first, second = get(client, f"{one}/response")["response"]["recist_1.1"]
    sizes = {(m["timepoint_id"], m["lesion_id"]): m["longest_mm"] for m in get(client, f"{one}/measurements")["data"]}
    assert first["sum"] == pytest.approx(sum(size for (visit, _), size in sizes.items() if visit == "visit-2"))
    assert second["sum"] == pytest.approx(sum(size for (visit, _), size in sizes.items() if visit == "visit-3"))
    assert not any("new lesions" in reason for reason in first["reasons"])
    for wrong, status in (
        ({**split, "others": [["visit-2", "lesion-1"]]}, 400),
        ({**split, "others": [["visit-3", "lesion-1"], ["visit-3", "lesion-2"]]}, 400),
        ({**split, "others": [["visit-2", "lesion-1"], ["visit-2", "lesion-7"]]}, 404),
        ({**split, "others": [["visit-2"]]}, 422),
        (split, 409),
        ({"action": "unsplit", "lesion": ["visit-1", "lesion-2"]}, 404),
    ):
        refused = client.post(f"{one}/corrections", json=wrong)
        assert refused.status_code == status, (wrong, refused.text)
    version = get(client, one)["version"]
    assert client.post(f"{one}/corrections", json={"action": "unsplit", "lesion": ["visit-1", "lesion-1"]}).status_code == 201
    assert [e for e in events() if e[2]] == [("merged", "visit-3", True)]
    assert client.post(f"{one}/corrections/{version}/restore", json={}).status_code == 201
    assert events() == [("split", "visit-2", True), ("merged", "visit-3", True)]
    log = get(client, f"{one}/audit", limit=1000)
    assert log["intact"]
    assert [e["action_type"] for e in log["data"]][-3:] == ["coalesce", "unsplit", "go_back"]
    assert client.delete(one).status_code == 204


def test_deleted_and_not_evaluable_are_two_things(client: TestClient) -> None:
    """A lesion that the mask lacks at a visit, or that a reader deletes there, is gone; one that could not be assessed is neither."""
    one = followed(client, "assessed", study_of((LESIONS[0], LESIONS[1][:1], LESIONS[2])))
    absent = get(client, f"{one}/response")["response"]["recist_1.1"]
    assert absent[0]["sum"] is not None
    assert absent[1]["category"] == "PD", "back from nothing"
    said = {"action": "not_evaluable", "lesion": ["visit-1", "lesion-2"], "at": "visit-2", "reason": "hidden by an effusion"}
    assert client.post(f"{one}/corrections", json=said).status_code == 201
    rows = get(client, f"{one}/response")["response"]
    assert [r["category"] for r in rows["recist_1.1"]] == ["NE", "SD"]
    assert rows["recist_1.1"][0]["sum"] is None
    assert [r["sum"] is None for r in rows["volumetric"]] == [True, False]
    assert [(e["event"], e["visit"]) for e in get(client, f"{one}/graph")["events"]] == [("not evaluable", "visit-2")]
    assert get(client, f"{one}/growth")["volumes_mm3"][1] is None
    assert get(client, f"{one}/growth", track="L2")["volumes_mm3"][1] is None
    assert "visit-2: L2 was not evaluable, as a reader said" in get(client, one)["notes"]
    row = next(r for r in client.get(f"{one}/report?format=csv").text.splitlines() if r.startswith("visit-2,60,L2,"))
    assert ",false," in row
    assert client.post(f"{one}/corrections", json=said).status_code == 409, "said already"
    none = {"timepoint_id": "visit-4", "day": 300}
    assert client.post(f"{one}/timepoints", json=none).status_code == 201
    for wrong, status in (
        ({**said, "at": "visit-4"}, 400),
        ({**said, "at": "visit-9"}, 404),
        ({**said, "lesion": ["visit-2", "lesion-2"]}, 404),
        ({"action": "evaluable", "lesion": ["visit-1", "lesion-1"], "at": "visit-2"}, 404),
    ):
        assert client.post(f"{one}/corrections", json=wrong).status_code == status, wrong
    assert client.post(f"{one}/corrections", json={**said, "action": "evaluable"}).status_code == 201
    assert get(client, f"{one}/response")["response"]["recist_1.1"][:2] == absent
    progressed = {"action": "assess", "at": "visit-4", "assessment": {"new_lesions": True}, "reason": "seen on ultrasound"}
    assert client.post(f"{one}/corrections", json=progressed).status_code == 201
    assert get(client, f"{one}/response")["response"]["recist_1.1"][2]["category"] == "PD"
    assert client.post(f"{one}/corrections", json={**progressed, "assessment": {"new_lesions": None}}).status_code == 201
    assert get(client, f"{one}/response")["response"]["recist_1.1"][2]["category"] == "NE"
    assert client.delete(one).status_code == 204
