"""Corrections that a study brings along are on record when its job has ended, as versions like any other."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from fastapi.testclient import TestClient

from tests.http.test_patients import BASE, client, ended, get, upload
from tests.test_track_corrections import MERGE, OTHERS, study

__all__ = ["client", "study"]


def test_a_study_brings_its_corrections(client: TestClient, study: Path) -> None:
    told = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps({**told, "corrections": [MERGE, *OTHERS]}))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for file in sorted(study.iterdir()):
            made.write(file, file.name)
    made_of = upload(client, buffer.getvalue(), patient_id="corrected", options={"preprocessed": False, "registration": "none"})
    done = ended(client, made_of["job"])
    assert done["status"] == "completed", done["error"]
    patient = f"{BASE}/corrected"
    first = get(client, f"{patient}/lesions", timepoint_id="day-0")["data"]
    assert [(k["track"], k["lesion_id"], k["is_target"], k["name"]) for k in first] == [
        ("L1", "lesion-1", True, "the cut one"),
        ("L2", "lesion-2", False, None),
    ]
    versions = get(client, f"{patient}/corrections")["data"]
    assert versions[0]["action"] == "import_corrections"
    assert [row["action"] for row in versions[0]["detail"]["corrections"]] == ["merge", "role", "rename", "measurement"]
    client.post(f"{patient}/corrections/0/restore", json={}).raise_for_status()
    assert len(get(client, f"{patient}/lesions", timepoint_id="day-0")["data"]) == 3
