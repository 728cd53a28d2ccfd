"""A patient with real networks, small and random: MedSigLIP describes the lesions, MedGemma tells the case, and only what is so is passed on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from isocenter.core.settings import Settings
from isocenter.demo.patient import write_study
from isocenter.http.app import create_app
from isocenter.io import picture
from isocenter.service import Service
from isocenter.trackservice import TrackOptions, track
from tests.http.test_patients import BASE, ended
from tests.http.test_together import held, waits_for
from tests.models.test_medgemma import multimodal  # noqa: F401 - a fixture
from tests.models.test_medsiglip import folder as siglip  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, multimodal: Path, siglip: Path) -> Path:  # noqa: F811
    """A home in which both are installed."""
    home = tmp_path_factory.mktemp("home")
    for source in (multimodal, siglip):
        shutil.copytree(source, home / "models" / source.name)
    return home


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two visits of the phantom."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, shape=(40, 56, 56), masks=True)
    told = json.loads((folder / "study.json").read_text())
    del told["visits"][2:]
    (folder / "study.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=models, decoders=0, min_free_bytes=0)), base_url="http://127.0.0.1") as made:
        yield made


@pytest.fixture(scope="module")
def patient(client: TestClient, study: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    archive = shutil.make_archive(str(tmp_path_factory.mktemp("zip") / "study"), "zip", study)
    asked = {"patient": json.dumps({"options": {"preprocessed": False, "registration": "none"}})}
    made = client.post(BASE, files={"file": ("study.zip", Path(archive).read_bytes())}, data=asked).json()
    job = ended(client, made["job"])
    assert job["status"] == "completed", job["error"]
    return str(made["url"])


def test_lesions_are_described_by_the_network_and_found_by_it(client: TestClient, patient: str) -> None:
    name = client.app.state.patients.known(patient.rpartition("/")[2]).rows[0].measured["embeddings"]  # type: ignore[attr-defined]
    (network,) = name
    assert network.startswith("medsiglip-")
    found = client.get(f"{patient}/lesions/visit-1/lesion-1/similar", params={"embedding": network, "same_patient": True}).json()
    assert {(a["timepoint_id"], a["lesion_id"]) for a in found["data"]} == {("visit-1", "lesion-2"), ("visit-2", "lesion-1"), ("visit-2", "lesion-2")}
    assert all(-1 <= a["similarity"] <= 1.000001 for a in found["data"])


def test_a_model_that_talks_nonsense_gives_way_to_the_template(client: TestClient, patient: str) -> None:
    answer = client.post(f"{patient}/narrative", json={"report": False})
    assert answer.status_code == 201, answer.text
    told = answer.json()
    origin: dict[str, Any] = told["provenance"]
    assert origin["model"] == "medgemma-tiny"
    assert origin["pictures"] == 2, "the last scan and the one before"
    assert origin["weights_sha256"]
    assert origin["prompt"].startswith("You describe tumour measurements")
    check = origin["check"]
    assert check["left_out"] == len({p["sentence"] for p in check["problems"]})
    for part in check["by_template"]:
        assert told[part] == client.post(f"{patient}/narrative", json={"model": "template"}).json()[part]
    assert "template" in told["model"], "a random network says nothing in five parts"


def test_a_question_is_answered_or_refused_and_kept(client: TestClient, patient: str) -> None:
    answer = client.post(f"{patient}/ask", json={"question": "Did L1 grow?"})
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert (told["kind"], told["model"], told["question"]) == ("ask", "medgemma-tiny", "Did L1 grow?")
    assert told["refused"] == (told["answer"] == "")
    assert "Question: Did L1 grow?" in told["provenance"]["prompt"]
    assert client.get(f"{patient}/narratives").json()["data"][0]["id"] == told["id"]
    assert client.post(f"{patient}/ask", json={"question": "x", "model": "medsiglip"}).status_code == 400


def test_pictures_are_described_in_their_order(client: TestClient, ct_nifti: bytes) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40, 50), dtype=np.uint8) for _ in range(2)]
    files = [("file", (f"{k}.png", picture.png(p))) for k, p in enumerate(pictures)]
    told = client.post("/api/v1/describe", files=files).json()
    assert (told["model"], told["dimensions"]) == ("medsiglip", 32)
    vectors = np.array(told["vectors"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    again = client.post("/api/v1/describe", files=files[::-1]).json()["vectors"]
    np.testing.assert_allclose(again, vectors[::-1], atol=1e-4)
    scan = {"file": ("ct.nii.gz", ct_nifti)}
    slices = [client.post("/api/v1/describe", files=scan, data={"slice": str(k), "modality": "CT"}).json()["vectors"][0] for k in (5, 24)]
    middle = client.post("/api/v1/describe", files=scan, data={"modality": "CT"}).json()["vectors"][0]
    np.testing.assert_allclose(middle, slices[1], atol=1e-5)
    assert slices[0] != slices[1]
    for data in ({"slice": "48"}, {"slice": "-1"}, {"model": "geodesic"}):
        assert client.post("/api/v1/describe", files=scan, data=data).status_code == 400, data
    assert client.post("/api/v1/describe", files=scan, data={"model": "none"}).status_code == 404
    assert client.post("/api/v1/describe", data={"slice": "1"}).status_code == 422
    assert client.post("/api/v1/describe", files=[("file", ("x.png", b"no"))]).status_code == 415
    assert client.post("/api/v1/describe", files=[("file", (f"{k}.png", b"no")) for k in range(65)]).status_code == 413


def test_pictures_of_several_clients_are_described_in_one_batch(client: TestClient) -> None:
    service = client.app.state.context.service  # type: ignore[attr-defined]
    rng = np.random.default_rng(1)
    sent = [{"file": (f"{k}.png", picture.png(rng.integers(0, 256, (40, 50), dtype=np.uint8)))} for k in range(3)]
    alone = [client.post("/api/v1/describe", files=files).json()["vectors"][0] for files in sent]
    with ThreadPoolExecutor(3) as pool:
        with held(service) as batches:
            before = batches.batches
            waiting = [pool.submit(client.post, "/api/v1/describe", files=files) for files in sent]
            waits_for(batches, 3)
        together = [future.result(120).json()["vectors"][0] for future in waiting]
    assert batches.batches == before + 1
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_command_line_describes_lesions_and_has_the_case_told(models: Path, study: Path, tmp_path: Path) -> None:
    service = Service(Settings(home=models, decoders=0))
    try:
        options = TrackOptions(registration=None, preprocessed=False, formats=("json",))
        track(service, study, tmp_path, options=options)
        (file,) = (tmp_path / "processed" / "phantom" / "visit-1").glob("embedding-medsiglip*.npy")
        vectors = np.load(file)
        assert vectors.shape == (2, 32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        told = tmp_path / "processed" / "phantom" / "narrative.json"
        kept = json.loads(told.read_text())
        assert kept["provenance"]["model"] == "medgemma-tiny"
        assert kept["provenance"]["pictures"] == 2
        story = json.loads((tmp_path / "case.json").read_text())["narrative"]
        assert story == kept["narrative"]
        written = [p.stat().st_mtime_ns for p in (file, told)]
        track(service, study, tmp_path, options=options)
        assert [p.stat().st_mtime_ns for p in (file, told)] == written, "made once"
        track(service, study, tmp_path, options=replace(options, narrator="template"))
        assert json.loads((tmp_path / "case.json").read_text())["narrative"]["model"] == "template 1"
    finally:
        service.close()
