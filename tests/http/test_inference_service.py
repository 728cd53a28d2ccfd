"""The ONNX inference service's protocol, as its own bulk client speaks it, against a server process."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from isocenter.core.phantom import Phantom
from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.http.app import create_app
from isocenter.io import door
from isocenter.io.upload import Upload
from tests.http.conftest import dicom_series, serve, zipped
from tests.models.onnx_networks import config, folder, pointwise

KEY = "correct horse"
JOB_KEYS = [
    "status", "progress", "error_message", "parameters", "result_path", "metrics", "id", "model_id", "study_id", "series_id", "created_at",
    "started_at", "completed_at",
]  # fmt: skip
STUDY_KEYS = {
    "study_instance_uid", "study_date", "study_time", "study_description", "patient_id", "modality", "institution_name", "id", "file_count",
    "created_at", "series",
}  # fmt: skip
SERIES_KEYS = {"series_instance_uid", "series_number", "series_description", "modality", "body_part_examined", "id", "image_count", "created_at"}
MODEL_KEYS = {"name", "model_type", "onnx_path", "config_path", "modality", "description", "is_active", "id", "created_at"}
RESULT_KEYS = {"output_format", "file_path", "source_image_path", "classes", "result_metadata", "id", "job_id", "created_at"}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that holds one: class 2 from 1.5 HU on, class 1 from 0.5 HU on."""
    place = tmp_path_factory.mktemp("networks")
    configuration = config()
    configuration["dataset_parameters"]["class_names"] = {"1": "faint", "2": "dense"}
    folder(place / "stepwise", pointwise(3), configuration)
    return place


@pytest.fixture(scope="module")
def study(ct: Phantom) -> bytes:
    """A zipped CT series of voxels of 6 x 7 x 8 mm."""
    return zipped(dicom_series(ct.volume.array.astype(np.int16), spacing=(6.0, 7.0, 8.0), patient="Doe^Jane"))


def read(data: bytes, name: str) -> Volume:
    with Upload.of(data, name) as upload:
        return door.read_upload(upload, limits=Settings())


def test_the_bulk_clients_sequence(tmp_path: Path, networks: Path, study: bytes, ct: Phantom) -> None:
    started = serve(tmp_path, MODELS_PATH=str(networks), ISOCENTER_API_KEY=KEY, ISOCENTER_DECODERS="0", ISOCENTER_MIN_FREE_BYTES="0")
    with started as (addresses, _), httpx.Client(base_url=f"{addresses[0]}/api/v1", timeout=60, follow_redirects=True) as client:
        wrong = client.post("/login/access-token", data={"username": "admin@example.com", "password": "wrong"})
        assert (wrong.status_code, wrong.json()) == (400, {"detail": "Incorrect email or password"})
        login = client.post("/login/access-token", data={"username": "admin@example.com", "password": KEY})
        assert (login.status_code, login.json()["token_type"]) == (200, "bearer")
        bad = client.get("/inference/jobs", headers={"Authorization": "Bearer other"})
        assert (bad.status_code, bad.json()) == (403, {"detail": "Could not validate credentials"})
        assert client.get("/inference/jobs").status_code == 401
        assert client.get("/utils/health-check/").json() is True
        client.headers["Authorization"] = f"Bearer {login.json()['access_token']}"

        uploaded = client.post("/dicom/upload", files={"file": ("study one.zip", study, "application/zip")})
        assert uploaded.status_code == 200, uploaded.text
        made = uploaded.json()
        assert set(made) == STUDY_KEYS
        assert (made["file_count"], made["modality"], made["patient_id"]) == (48, "CT", None)
        assert "Jane" not in uploaded.text
        (series,) = made["series"]
        assert set(series) == SERIES_KEYS
        assert series["image_count"] == 48

        models = client.get("/inference/models").json()
        assert all(set(m) >= MODEL_KEYS and m["is_active"] for m in models)
        model = next(m for m in models if m["name"] == "stepwise")
        assert models[0]["name"] == "stepwise"  # what takes no words comes before what has words of its own
        assert (model["model_type"], model["onnx_path"]) == ("nnunet", "stepwise/model.onnx")

        asked = {"study_id": made["id"], "model_id": model["id"]}
        sent = [client.post("/inference/submit", json=asked) for _ in range(2)]  # its session retries POST by itself
        assert [s.status_code for s in sent] == [200, 200]
        job = sent[0].json()
        assert sent[1].json()["id"] == job["id"]
        assert list(job) == JOB_KEYS
        assert (str(uuid.UUID(job["id"])), job["model_id"], job["study_id"], job["series_id"]) == (job["id"], model["id"], made["id"], None)
        job = wait(client, job["id"])
        assert (job["status"], job["progress"], job["error_message"]) == ("completed", 1.0, None)

        hu = np.asarray(ct.volume.array, dtype=np.float32)
        truth = np.where(hu >= 1.5, 2, np.where(hu >= 0.5, 1, 0))
        mask = read(client.get(f"/inference/jobs/{job['id']}/download").content, "a.nii.gz")
        image = read(client.get(f"/inference/jobs/{job['id']}/download-ct").content, "a.nii.gz")
        source = read(study, "a.zip")
        assert mask.grid.same_as(source.grid)
        assert image.grid.same_as(source.grid)
        assert np.array_equal(mask.array, truth)
        assert np.array_equal(image.array, ct.volume.array.astype(np.int16))

        result = client.get(f"/inference/jobs/{job['id']}/result").json()
        assert set(result) == RESULT_KEYS
        assert (result["output_format"], result["job_id"]) == ("nifti", job["id"])
        assert result["file_path"] == job["result_path"] == f"inference_results/{job['id']}/{job['id']}_seg.nii.gz"
        dense = result["classes"]["dense"]
        assert dense == job["metrics"]["detected_classes"]["dense"]
        assert (dense["class_id"], dense["voxel_count"]) == (2, int((truth == 2).sum()))
        assert dense["volume_mm3"] == pytest.approx((truth == 2).sum() * 6 * 7 * 8)
        where = np.argwhere(truth == 2)
        assert dense["bounding_box"] == [int(v) for axis in (2, 1, 0) for v in (where[:, axis].min(), where[:, axis].max())]
        assert job["metrics"]["output_shape"] == [48, 64, 64]
        assert job["metrics"]["total_foreground_voxels"] == int((truth > 0).sum())
        assert job["metrics"]["unique_class_ids"] == sorted({0, *(int(v) for v in np.unique(truth))})

        page = client.get("/inference/jobs", params={"limit": 1}).json()
        assert (page["count"], [j["id"] for j in page["data"]]) == (1, [job["id"]])
        refused = client.delete(f"/inference/jobs/{job['id']}")
        assert (refused.status_code, refused.json()) == (400, {"detail": "Cannot cancel job in status: completed"})
        assert client.get("/inference/health").json() == {"status": "healthy", "service": "InferenceService", "workers": 1}


def wait(client: httpx.Client | TestClient, job_id: str, prefix: str = "") -> dict[str, Any]:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        answer: dict[str, Any] = client.get(f"{prefix}/inference/jobs/{job_id}").json()
        if answer["status"] in ("completed", "failed", "cancelled"):
            return answer
        time.sleep(0.05)
    raise AssertionError(answer)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, networks: Path) -> Iterator[TestClient]:
    """An application whose jobs nobody works on, without a key."""
    settings = Settings(home=tmp_path_factory.mktemp("service"), decoders=0, job_workers=0, min_free_bytes=0, models_path=networks)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture(scope="module")
def uploaded(app: TestClient, study: bytes) -> dict[str, Any]:
    answer = app.post("/api/v1/dicom/upload", files={"file": ("a.ZIP", study)})
    assert answer.status_code == 200, answer.text
    study_: dict[str, Any] = answer.json()
    return study_


def test_what_waits_can_be_cancelled_and_has_no_result(app: TestClient, uploaded: dict[str, Any]) -> None:
    job = app.post("/api/v1/inference/submit", json={"study_id": uploaded["id"], "model_id": "stepwise", "parameters": {"use_tta": False}}).json()
    address = f"/api/v1/inference/jobs/{job['id']}"
    assert (job["status"], job["parameters"], job["metrics"], job["result_path"]) == ("pending", {"use_tta": False}, None, None)
    for name in ("result", "download", "download-ct"):
        early = app.get(f"{address}/{name}")
        assert (early.status_code, early.json()) == (400, {"detail": "Job not completed (status: pending)"})
    assert app.delete(address).json() == {"message": "Inference job cancelled successfully"}
    again = app.delete(address)
    assert (again.status_code, again.json()) == (400, {"detail": "Cannot cancel job in status: cancelled"})
    assert app.get(address).json()["status"] == "cancelled"


@pytest.mark.parametrize(
    ("change", "status", "detail"),
    [
        ({"study_id": str(uuid.uuid4())}, 400, "Study not found or access denied"),
        ({"series_id": str(uuid.uuid4())}, 400, "Series not found in study"),
        ({"model_id": str(uuid.uuid4())}, 400, "Model not found or inactive"),
        ({"model_id": "geodesic"}, 400, "Model not found or inactive"),
        ({"parameters": {"output_format": "gif"}}, 400, "output_format must be one of nifti, dicom-seg"),
        ({"parameters": {"step_sise": 0.5}}, 400, "the model 'stepwise' has no parameter 'step_sise'"),
        ({"study_id": "x"}, 422, None),
        ({"parameters": [1]}, 422, None),
    ],
)
def test_what_cannot_be_submitted(app: TestClient, uploaded: dict[str, Any], change: dict[str, Any], status: int, detail: str | None) -> None:
    answer = app.post("/api/v1/inference/submit", json={"study_id": uploaded["id"], "model_id": "stepwise", **change})
    assert answer.status_code == status
    assert detail is None or answer.json()["detail"].startswith(detail)


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("dicom/studies/none", "Study not found"),
        ("dicom/series/none/metadata", "Series not found"),
        ("dicom/metadata/none", "DICOM metadata not found"),
        ("inference/jobs/none", "Job not found"),
        ("inference/jobs/none/result", "Job not found"),
    ],
)
def test_what_is_not_there(app: TestClient, path: str, detail: str) -> None:
    answer = app.get(f"/api/v1/{path}")
    assert (answer.status_code, answer.json()) == (404, {"detail": detail})


@pytest.mark.parametrize(
    ("name", "data", "detail"),
    [
        ("a.nii", b"x", "File must be a ZIP archive"),
        ("a.zip", zipped([b"not an image"]), "No DICOM files found in ZIP archive"),
        ("a.zip", b"PK\x03\x04 but no archive", "Failed to process DICOM ZIP: "),
    ],
)
def test_uploads_that_are_no_study(app: TestClient, name: str, data: bytes, detail: str) -> None:
    answer = app.post("/api/v1/dicom/upload", files={"file": (name, data)})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(detail)


def test_an_upload_over_the_limit_says_how_large_it_was(tmp_path: Path, study: bytes) -> None:
    with TestClient(create_app(Settings(home=tmp_path, decoders=0, job_workers=0, max_upload_bytes=1000)), base_url="http://127.0.0.1") as client:
        answer = client.post("/api/v1/dicom/upload", files={"file": ("a.zip", study)})
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith("ZIP file too large: ")
        assert client.post("/api/v1/login/access-token", data={"username": "a", "password": "b"}).json()["token_type"] == "bearer"


def test_studies_and_their_metadata(app: TestClient, uploaded: dict[str, Any], ct: Phantom) -> None:
    assert app.get("/api/v1/dicom/studies").json() == [uploaded]
    assert app.get(f"/api/v1/dicom/studies/{uploaded['id']}").json() == uploaded
    (series,) = uploaded["series"]
    metadata = app.get(f"/api/v1/dicom/series/{series['id']}/metadata").json()
    assert metadata["study_id"] == uploaded["id"]
    assert metadata["metadata"]["PixelSpacing"] == [7.0, 6.0]
    assert app.get(f"/api/v1/dicom/metadata/{series['id']}").json() == metadata
    assert app.get("/api/v1/dicom/health").json()["status"] == "healthy"
    other = zipped(dicom_series(ct.volume.array[:4].astype(np.int16), uid="1.2.3.4"))
    made = app.post("/api/v1/dicom/upload", files={"file": ("b.zip", other)}).json()
    assert app.delete(f"/api/v1/dicom/studies/{made['id']}").json() == {"message": "Study deleted successfully"}
    assert app.get("/api/v1/dicom/studies").json() == [uploaded]


def test_dicom_seg_of_a_model_with_words_of_its_own(tmp_path: Path, study: bytes) -> None:
    """The weight-free stand-in finds all that it knows; the answer is a DICOM SEG of the same study."""
    import io

    import pydicom

    with TestClient(create_app(Settings(home=tmp_path, decoders=0, min_free_bytes=0)), base_url="http://127.0.0.1") as client:
        made = client.post("/api/v1/dicom/upload", files={"file": ("a.zip", study)}).json()
        model = next(m for m in client.get("/api/v1/inference/models").json() if m["name"] == "tissue")
        assert model["fallback"] is True
        body = {"study_id": made["id"], "series_id": made["series"][0]["id"], "model_id": model["id"], "parameters": {"output_format": "dicom-seg"}}
        job = wait(client, client.post("/api/v1/inference/submit", json=body).json()["id"], "/api/v1")
        assert (job["status"], job["error_message"]) == ("completed", None)
        assert (job["parameters"], job["series_id"]) == ({"output_format": "dicom-seg"}, body["series_id"])
        assert job["result_path"].endswith("_seg.dcm")
        answer = client.get(f"/api/v1/inference/jobs/{job['id']}/download")
        seg = pydicom.dcmread(io.BytesIO(answer.content))
        assert (seg.Modality, seg.StudyInstanceUID) == ("SEG", made["study_instance_uid"])
        names = {s.SegmentLabel for s in seg.SegmentSequence}
        assert names >= {"lung_left", "lung_right", "liver", "bone"}  # parts, each with its voxels, and not the wholes that would hide them
        assert not names & {"body", "lungs"}
        assert client.get(f"/api/v1/inference/jobs/{job['id']}/result").json()["output_format"] == "dicom-seg"
