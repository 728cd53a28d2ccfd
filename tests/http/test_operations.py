"""Health, readiness, metrics, docs, logs and stopping, on a real server process."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient

from isocenter.core.phantom import phantom
from isocenter.io import nifti
from tests.http.conftest import serve


def test_pages(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    page = client.get("/", headers={"Accept": "text/html"})
    assert "Research use only" in page.text
    docs = client.get("/docs").text
    assert "https://" not in docs, "/docs must work without the internet"
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/docs/assets/{asset}" in docs
        assert client.get(f"/docs/assets/{asset}").status_code == 200
    schema = client.get("/openapi.json").json()
    assert "/api/biomedparse/v1/predict-3d-nifti" in schema["paths"]
    assert not any(path.startswith("/monai") for path in schema["paths"]), "documented once"


def test_metrics_name_routes_and_not_paths(client: TestClient) -> None:
    client.get("/files/seg_PatientX.npz")
    client.get("/Patient-Name-in-a-path")
    text = client.get("/metrics").text
    assert 'route="/files/{name}"' in text
    assert "Patient" not in text


def test_answers_while_it_computes(server: str) -> None:
    """`/healthz` is asked all the while that an inference runs; it must not wait for it."""
    made = phantom((96, 128, 128))
    array = np.repeat(np.repeat(made.volume.array, 2, 1), 2, 2)
    body = nifti.write(array, type(made.volume.grid)(array.shape, (1.5, 1.5, 4.0)))
    form = b'--b\r\nContent-Disposition: form-data; name="prompts"\r\n\r\nliver\r\n'
    form += b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.nii.gz"\r\n\r\n'
    request = urllib.request.Request(
        f"{server}/api/biomedparse/v1/predict-3d-nifti", form + body + b"\r\n--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}
    )
    worker = threading.Thread(target=lambda: urllib.request.urlopen(request, timeout=300).read())
    worker.start()
    asked = 0
    while worker.is_alive():
        assert json.loads(urllib.request.urlopen(f"{server}/healthz", timeout=60).read()) == {"status": "ok"}
        asked += 1
        time.sleep(0.01)
    assert asked > 3


def test_several_ports_log_lines_and_a_clean_end(home: Path) -> None:
    with serve(home, "--log-format", "json", ports=2) as (addresses, stop):
        for address in addresses:
            assert json.loads(urllib.request.urlopen(f"{address}/").read()) == {"status": "UP"}
        urllib.request.urlopen(f"{addresses[0]}/healthz?patient=Jane").close()
        log = stop()
    lines = [json.loads(line) for line in log.splitlines()]
    events = [line["event"] for line in lines]
    assert any(e.startswith("Using Models: ['segmentation'") for e in events)
    assert any("Application startup complete" in e for e in events)
    assert "Jane" not in log
    assert not any(line["level"] in ("error", "critical") for line in lines)
