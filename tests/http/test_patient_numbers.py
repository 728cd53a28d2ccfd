"""A lesion is the same one in every format and at every visit, also after a reader took another away: nobody may take one for the other."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from fastapi.testclient import TestClient

from tests.dicom_study import write_dicom_study
from tests.http.test_patients import BASE, client, correct, ended, get, upload

__all__ = ["client"]

VISITS = ("visit-1", "visit-2", "visit-3")
#: By visit and tracking UID: the lesion's name and its volume, mm³.
Said = dict[tuple[str, str], tuple[str, float]]


@pytest.fixture(scope="module")
def patient(client: TestClient, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = write_dicom_study(tmp_path_factory.mktemp("alice") / "study")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for file in sorted(folder.rglob("*")):
            made.write(file, file.relative_to(folder))
    job = upload(client, buffer.getvalue(), patient_id="alice", options={"preprocessed": False, "registration": "none"})["job"]
    done = ended(client, job)
    assert done["status"] == "completed", done["error"]
    return f"{BASE}/alice"


def report(client: TestClient, patient: str, name: str) -> bytes:
    answer = client.get(f"{patient}/report", params={"format": name})
    assert answer.status_code == 200, answer.text
    return answer.content


def told(client: TestClient, patient: str) -> dict[str, Said]:
    """What each format says of the lesions."""
    plain = json.loads(report(client, patient, "json"))
    uids = plain["tracking_uids"]
    said: dict[str, Said] = {"json": {(k["timepoint_id"], uids[k["track"]]): (k["track"], k["volume_mm3"]) for k in plain["lesions"]}}
    rows = csv.DictReader(io.StringIO(report(client, patient, "csv").decode()))
    said["csv"] = {(r["timepoint_id"], r["tracking_uid"]): (r["track"], float(r["volume_mm3"])) for r in rows}
    said["fhir"] = dict(_fhir(json.loads(report(client, patient, "fhir"))))
    said["seg"], said["sr"] = {}, {}
    with zipfile.ZipFile(io.BytesIO(report(client, patient, "sr"))) as archive:
        for file in archive.namelist():
            data, visit = pydicom.dcmread(io.BytesIO(archive.read(file))), file.rsplit("_", 1)[0]
            if file.endswith("_seg.dcm"):
                said["seg"].update(_seg(data, visit))
            else:
                said["sr"].update(_sr(data, visit))
    return said


def _fhir(bundle: dict[str, Any]) -> Iterator[tuple[tuple[str, str], tuple[str, float]]]:
    for resource in (entry["resource"] for entry in bundle["entry"]):
        if resource["resourceType"] != "Observation" or "identifier" not in resource:
            continue
        uid, track = (i["value"] for i in resource["identifier"])
        visit = resource["note"][0]["text"].split()[1].rstrip(",")
        (volume,) = (c["valueQuantity"]["value"] for c in resource["component"] if c["code"]["text"] == "Volume")
        yield (visit, uid.removeprefix("urn:oid:")), (track, volume)


def _seg(data: Any, visit: str) -> Iterator[tuple[tuple[str, str], tuple[str, float]]]:
    whole = highdicom.seg.Segmentation.from_dataset(data).get_volume(combine_segments=True, allow_missing_positions=True)
    voxel = float(np.prod(whole.spacing))
    for segment in data.SegmentSequence:
        yield (visit, segment.TrackingUID), (segment.TrackingID, float((whole.array == segment.SegmentNumber).sum()) * voxel)


def _sr(data: Any, visit: str) -> Iterator[tuple[tuple[str, str], tuple[str, float]]]:
    content = highdicom.sr.MeasurementReport.from_sequence([highdicom.sr.Comprehensive3DSR.from_dataset(data)])
    for group in content.get_volumetric_roi_measurement_groups():
        (volume,) = group.get_measurements(name=pydicom.sr.codedict.codes.SCT.Volume)
        yield (visit, str(group.tracking_uid)), (str(group.tracking_identifier), volume.value)


def agreed(client: TestClient, patient: str) -> Said:
    """What all formats say, once they say the same."""
    said = told(client, patient)
    for name, other in said.items():
        assert other.keys() == said["json"].keys(), name
        for key, (track, volume) in other.items():
            assert track == said["json"][key][0], (name, key)
            assert volume == pytest.approx(said["json"][key][1], rel=1e-4), (name, key)
    return said["json"]


def test_every_format_means_the_same_lesion_also_after_one_was_taken_out(client: TestClient, patient: str) -> None:
    first = agreed(client, patient)
    uids = {track: uid for (_, uid), (track, _) in first.items()}
    assert {visit for visit, _ in first} == set(VISITS)
    assert len(uids) == 2
    assert len(first) == 6, "each lesion has one UID at all visits"
    one = get(client, f"{patient}/lesions", track="L1")["data"]
    at = {k["timepoint_id"]: k["lesion_id"] for k in one}
    # At one visit it is none: the other keeps its place in the mask, its name and its UID.
    correct(client, patient, action="delete", lesion=["visit-2", at["visit-2"]])
    second = agreed(client, patient)
    assert {key: said for key, said in second.items() if key[1] == uids["L2"]} == {key: said for key, said in first.items() if key[1] == uids["L2"]}
    assert [key for key in second if key[0] == "visit-2"] == [("visit-2", uids["L2"])]
    assert second["visit-1", uids["L1"]] == first["visit-1", uids["L1"]]
    # At no visit is it one: the other keeps its name all the same.
    for visit in ("visit-1", "visit-3"):
        correct(client, patient, action="delete", lesion=[visit, at[visit]])
    third = agreed(client, patient)
    assert {uid for _, uid in third} == {uids["L2"]}
    assert {track for track, _ in third.values()} == {"L2"}
    assert {key: volume for key, (_, volume) in third.items()} == {key: volume for key, (_, volume) in first.items() if key[1] == uids["L2"]}
    client.post(f"{patient}/corrections/0/restore", json={"reason": "all as it was"}).raise_for_status()
    assert agreed(client, patient) == first


def test_a_merged_lesion_is_one_in_every_format(client: TestClient, patient: str) -> None:
    before = get(client, f"{patient}/lesions", timepoint_id="visit-1")["data"]
    version = correct(client, patient, action="merge", lesion=["visit-1", "lesion-1"], other=["visit-1", "lesion-2"], reason="one lesion")
    assert (version["action"], version["detail"]["other"]) == ("merge", ["visit-1", "lesion-2"])
    said = agreed(client, patient)
    (one,) = [value for key, value in said.items() if key[0] == "visit-1"]
    assert one[0] == "L1"
    assert one[1] == pytest.approx(sum(k["volume_mm3"] for k in before))
    alike = client.get(f"{patient}/lesions/visit-1/lesion-2/similar")
    assert alike.status_code == 404, "a part is no lesion of its own"
    refused = client.post(f"{patient}/corrections", json={"action": "rename", "lesion": ["visit-1", "lesion-2"], "name": "x"})
    assert refused.status_code == 400
    assert "merged into lesion-1" in refused.json()["detail"]
    correct(client, patient, action="unmerge", lesion=["visit-1", "lesion-1"])
    assert [k["lesion_id"] for k in get(client, f"{patient}/lesions", timepoint_id="visit-1")["data"]] == ["lesion-1", "lesion-2"]


def test_a_lesion_that_could_not_be_assessed_has_no_figures_in_any_format(client: TestClient, patient: str) -> None:
    before = get(client, patient)["version"]
    (one,) = [k for k in get(client, f"{patient}/lesions", timepoint_id="visit-2")["data"] if k["track"] == "L1"]
    assert one["is_target"]
    correct(client, patient, action="not_evaluable", lesion=["visit-2", one["lesion_id"]], reason="motion")
    response = get(client, f"{patient}/response")
    assert response["response"]["recist_1.1"][0]["category"] == "NE"
    assert response["not_evaluable"] == [{"timepoint_id": "visit-2", "track": "L1", "lesion_id": one["lesion_id"]}]
    plain = json.loads(report(client, patient, "json"))
    uid = plain["tracking_uids"]["L1"]
    (row,) = [k for k in plain["lesions"] if (k["timepoint_id"], k["track"]) == ("visit-2", "L1")]
    assert (row["evaluable"], row["longest_mm"], row["volume_mm3"]) == (False, None, None)
    (row,) = [
        r
        for r in csv.DictReader(io.StringIO(report(client, patient, "csv").decode()))
        if (r["timepoint_id"], r["track"]) == ("visit-2", "L1") and r.get("lesion_id")
    ]
    assert (row["evaluable"], row["longest_mm"], row["volume_mm3"]) == ("false", "", "")
    resources = [entry["resource"] for entry in json.loads(report(client, patient, "fhir"))["entry"]]
    observations = [r for r in resources if r["resourceType"] == "Observation" and f"urn:oid:{uid}" in json.dumps(r.get("identifier", []))]
    (there,) = [r for r in observations if "visit visit-2," in r["note"][0]["text"]]
    assert all("valueQuantity" not in c for c in there["component"])
    assert {c["dataAbsentReason"]["text"] for c in there["component"] if "text" in c["dataAbsentReason"]} == {
        "not evaluable at this visit, as a reader said"
    }
    with zipfile.ZipFile(io.BytesIO(report(client, patient, "sr"))) as archive:
        data = pydicom.dcmread(io.BytesIO(archive.read("visit-2_sr.dcm")))
        content = highdicom.sr.MeasurementReport.from_sequence([highdicom.sr.Comprehensive3DSR.from_dataset(data)])
        groups = {str(g.tracking_uid): g for g in content.get_volumetric_roi_measurement_groups()}
        volumes = {uid_: len(g.get_measurements(name=pydicom.sr.codedict.codes.SCT.Volume)) for uid_, g in groups.items()}
        assert volumes == {uid_: int(uid_ != uid) for uid_ in groups}
        assert len(groups) == 2
        said = [e[0].value.meaning for e in groups[uid].get_qualitative_evaluations()]
        assert said[-1] == "Response not evaluable"
        _seg(pydicom.dcmread(io.BytesIO(archive.read("visit-2_seg.dcm"))), "visit-2")
    page = report(client, patient, "html").decode()
    assert "L1 was not evaluable, as a reader said" in page
    assert report(client, patient, "pdf").startswith(b"%PDF")
    correct(client, patient, action="evaluable", lesion=["visit-1", one["lesion_id"]], at="visit-2")
    assert get(client, f"{patient}/response")["not_evaluable"] == []
    assert get(client, patient)["version"] == before + 2
