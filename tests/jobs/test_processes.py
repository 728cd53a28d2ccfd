"""Server and workers as processes of their own: the in-process worker that stops and goes on, and a small cluster."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from isocenter.core.phantom import phantom
from isocenter.io import nifti
from isocenter.store.tables import WORKERS
from tests.conftest import ROOT
from tests.http.conftest import dicom_series, wait_until_ready, zipped
from tests.jobs import servers
from tests.jobs.balancer import round_robin
from tests.jobs.conftest import new_database
from tests.ports import free_port

_BOUNDARY = "b0undary"


def start(log: Path, *command: str, **env: str) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "isocenter", *command], env={**os.environ, **env}, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=log.parent
        )


def ask(address: str, path: str, body: bytes | None = None, kind: str = "application/json", method: str | None = None) -> Any:
    request = urllib.request.Request(address + path, body, {"Content-Type": kind} if body is not None else {}, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def form(file: bytes, name: str, **fields: str) -> tuple[bytes, str]:
    parts = [f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    parts.append(f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + file + b"\r\n")
    return b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()]), f"multipart/form-data; boundary={_BOUNDARY}"


def until(condition: Callable[[], bool], log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.05)


def test_a_server_that_is_stopped_or_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGTERM: the running job ends, the server answers meanwhile that it takes nothing new, and exits with 0. Then SIGKILL."""
    ct = phantom((48, 96, 96)).volume
    body = nifti.write(ct.array, ct.grid)
    log, port = tmp_path / "log", free_port()
    env = {"ISOCENTER_HOME": str(tmp_path), "ISOCENTER_JOB_LEASE": "2", "ISOCENTER_DECODERS": "0", "ISOCENTER_MIN_FREE_BYTES": "0"}
    address = f"http://127.0.0.1:{port}"

    def statuses() -> list[str]:
        """None while nobody answers, or not yet about jobs."""
        with contextlib.suppress(OSError):
            return [job["status"] for job in ask(address, "/api/v1/jobs")["data"]]
        return []

    def submit(priority: int) -> str:
        job = json.dumps({"prompts": ["lungs", "bones", "liver"], "formats": ["nifti", "obj"], "priority": priority})
        made: str = ask(address, "/api/v1/jobs", *form(body, "a.nii.gz", job=job))["id"]
        return made

    urgent: list[str] = []

    def just_begun() -> bool:
        """An urgent job runs, so there is something to wait for; there is another where it was done before anybody looked."""
        state = ask(address, f"/api/v1/jobs/{urgent[-1]}")["status"] if urgent else "completed"
        if state == "completed":
            urgent.append(submit(9 - len(urgent)))
        return bool(state == "running")

    server = start(log, "serve", "--port", str(port), **env)
    try:
        wait_until_ready(address, server, log)
        for number in range(3):
            submit(number)
        until(just_begun, log)
        server.terminate()
        said = _readiness(address, server)
        assert server.wait() == 0, log.read_text()[-4000:]
        assert "draining" in said
        assert set(said[said.index("draining") :]) == {"draining"}
        server = start(log, "serve", "--port", str(port), **env)
        until(lambda: "running" in (now := statuses()) or set(now) == {"completed"}, log)
        server.kill()
        server.wait()
        server = start(log, "serve", "--port", str(port), **env)
        until(lambda: set(statuses()) == {"completed"}, log)
        for job in ask(address, "/api/v1/jobs")["data"]:
            what = [event["what"] for event in ask(address, f"/api/v1/jobs/{job['id']}/audit")]
            assert (what.count("completed"), what.count("failed")) == (1, 0)
        server.terminate()
        assert server.wait(120) == 0
    finally:
        server.kill()
        server.wait()


def _up(address: str) -> bool:
    try:
        ask(address, "/healthz")
    except OSError:
        return False
    return True


def _readiness(address: str, server: subprocess.Popen[bytes]) -> list[str]:
    """What /readyz says until the server is gone."""
    said = []
    while server.poll() is None:
        try:
            ask(address, "/readyz")
            said.append("ready")
        except urllib.error.HTTPError as error:
            said.append(json.loads(error.read())["status"])
        except OSError:
            pass
        time.sleep(0.01)
    return said


def test_a_cluster_of_real_servers(tmp_path: Path, postgres: servers.Postgres, redis: servers.Server, swift: servers.Swift) -> None:
    """Two servers behind a balancer and a worker, that share nothing but PostgreSQL, Redis and S3: whichever is asked, it is one."""
    shared = {
        "DATABASE_URL": new_database(postgres), "REDIS_URL": f"redis://127.0.0.1:{redis.port}/3", "MINIO_ENDPOINT": f"127.0.0.1:{swift.port}",
        "MINIO_ACCESS_KEY": "test:tester", "MINIO_SECRET_KEY": "testing", "MINIO_BUCKET_NAME": "cluster", "ISOCENTER_DECODERS": "0",
    }  # fmt: skip
    log, ports = tmp_path / "log", [free_port(), free_port()]
    homes = [tmp_path / name for name in ("one", "two", "three")]
    for home in homes:
        home.mkdir()
    both = [start(log, "serve", "--port", str(port), **shared, ISOCENTER_HOME=str(home)) for port, home in zip(ports, homes, strict=False)]
    worker = start(log, "worker", "--device", "cpu", "--concurrency", "1", **shared, ISOCENTER_HOME=str(homes[2]))
    try:
        for port, server in zip(ports, both, strict=True):
            wait_until_ready(f"http://127.0.0.1:{port}", server, log)
        with round_robin(ports) as (address, taken):
            job = _jobs_whichever_is_asked(address, log)
            _clicks_whichever_is_asked(address)
            assert {taken.count(port) >= 4 for port in ports} == {True}
        assert [(home / "objects").exists() for home in homes] == [False] * 3
        for process in (worker, *both):
            process.terminate()
        assert [process.wait(120) for process in (worker, *both)] == [0, 0, 0], log.read_text()[-4000:]
        assert "ONNX providers using: ['CPUExecutionProvider']" in log.read_text()
        told = [line for line in log.read_text().splitlines() if "job ended" in line and f"job={job}" in line]
        assert len(told) == 1, "the worker's log says how each job went"
        assert "how=completed" in told[0]
    finally:
        for process in (worker, *both):
            process.kill()
            process.wait()


def _jobs_whichever_is_asked(address: str, log: Path) -> str:
    """DICOM in, DICOM SEG out; the same submission at either server is one job, whose id is returned."""
    data = zipped(dicom_series(phantom((48, 64, 64)).volume.array.astype(np.int16)))
    studies = [ask(address, "/api/v1/studies", *form(data, "study.zip")) for _ in range(2)]
    assert studies[0]["id"] == studies[1]["id"]
    # The GPU's queue, and no GPU: the overflow goes to the processor.
    asked = {"study_id": studies[0]["id"], "prompts": ["lungs"], "formats": ["dicom_seg", "measurements"], "queue": "gpu", "priority": 9}
    jobs = [ask(address, "/api/v1/jobs", json.dumps(asked).encode()) for _ in range(3)]
    assert len({job["id"] for job in jobs}) == 1
    path = f"/api/v1/jobs/{jobs[0]['id']}"
    until(lambda: ask(address, path)["status"] not in ("pending", "running"), log)
    dones = [ask(address, path) for _ in range(2)]
    assert dones[0] == dones[1]
    assert dones[0]["status"] == "completed", (dones[0], log.read_text()[-4000:])
    files = []
    for _ in range(2):
        with urllib.request.urlopen(address + dones[0]["artifacts"][0]["url"], timeout=60) as answer:
            files.append(answer.read())
    assert files[0] == files[1]
    import pydicom

    seg = pydicom.dcmread(io.BytesIO(files[0]))
    assert (seg.Modality, seg.StudyInstanceUID) == ("SEG", studies[0]["study_uid"])
    return str(jobs[0]["id"])


def _clicks_whichever_is_asked(address: str) -> None:
    """A client that sends all its clicks gets the same mask from the server that saw the first one and from the other."""
    ct = phantom((24, 48, 48)).volume
    scan = nifti.write(ct.array, ct.grid)

    def infer(*points: list[int]) -> bytes:
        params = json.dumps({"nninter": True, "pos_points": list(points), "client_id": "one", "result_extension": ".nii.gz"})
        body, kind = form(scan, "a.nii.gz", params=params)
        request = urllib.request.Request(f"{address}/infer/segmentation?output=image", body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=120) as answer:
            data: bytes = answer.read()
            return data

    infer([24, 24, 12])
    second = [infer([24, 24, 12], [14, 24, 12]) for _ in range(2)]
    assert second[0] == second[1]
    # A result file is handed out by either; a scan that only one holds is asked for again, and the answer says why.
    facts = ask(address, "/api/v1/segment", *form(scan, "a.nii.gz", prompts='["lungs"]', answer="json"))
    for _ in range(2):
        with urllib.request.urlopen(address + facts["mask_url"], timeout=60) as answer:
            assert len(answer.read()) == facts["bytes"]
    key = ask(address, "/api/v1/volumes", *form(scan, "a.nii.gz"))["key"]
    said = []
    for _ in range(2):
        try:
            said.append(ask(address, f"/api/v1/volumes/{key}")["key"])
        except urllib.error.HTTPError as error:
            said.append(f"{error.code} {json.loads(error.read())['detail']}")
    said.remove(key)
    assert said[0].startswith("404 ")
    assert "always to the same one" in said[0]


def test_a_database_that_is_away_at_the_start_is_waited_for(tmp_path: Path, postgres: servers.Postgres) -> None:
    """Meanwhile the server lives, is not ready, and says why; one that may not wait ends with a sentence and 1."""
    env = {"DATABASE_URL": new_database(postgres), "ISOCENTER_HOME": str(tmp_path), "ISOCENTER_DECODERS": "0", "ISOCENTER_MIN_FREE_BYTES": "0"}
    logs, port = [tmp_path / "patient", tmp_path / "impatient", tmp_path / "worker"], free_port()
    address = f"http://127.0.0.1:{port}"
    postgres.kill()
    try:
        patient = start(logs[0], "serve", "--port", str(port), **env, ISOCENTER_DATABASE_WAIT="600")
        try:
            impatient = start(logs[1], "serve", "--port", str(free_port()), **env, ISOCENTER_DATABASE_WAIT="0.1")
            worker = start(logs[2], "worker", "--concurrency", "1", **env, ISOCENTER_DATABASE_WAIT="0.1")
            for process, log in ((impatient, logs[1]), (worker, logs[2])):
                assert process.wait(120) == 1, log.read_text()
                assert log.read_text().splitlines()[-1].startswith("Error: the database cannot be reached"), log.read_text()
                assert "Traceback" not in log.read_text()
            until(lambda: _up(address), logs[0])
            for path in ("/readyz", "/api/v1/jobs", "/api/v1/studies"):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    ask(address, path)
                assert refused.value.code == 503
                assert b"database" in refused.value.read()
        finally:
            postgres.start()
        wait_until_ready(address, patient, logs[0])
        assert ask(address, "/api/v1/jobs")["count"] == 0
        patient.terminate()
        assert patient.wait(120) == 0, logs[0].read_text()
        assert "Traceback" not in logs[0].read_text()
        assert "alembic" not in logs[0].read_text()
    finally:
        patient.kill()
        patient.wait()
    wrong = start(logs[1], "serve", "--port", "1", **{**env, "DATABASE_URL": "mysql://somebody:secret@nowhere/x"})
    assert wrong.wait(120) == 2
    assert "DATABASE_URL must begin" in logs[1].read_text()
    assert "secret" not in logs[1].read_text()


def test_two_processes_under_one_parent(tmp_path: Path) -> None:
    """A child that is killed is started again; a stop reaches all, and ends with 0."""
    from isocenter.core.settings import Settings
    from isocenter.jobs.backend import Backend

    log = tmp_path / "log"
    script = "import sys\nfrom isocenter.jobs.processes import supervise\nsys.exit(supervise([sys.executable, '-m', 'benchmarks._jobs_worker'], 2))"
    env = {"ISOCENTER_HOME": str(tmp_path), "ISOCENTER_JOB_LEASE": "2", "ISOCENTER_MIN_FREE_BYTES": "0", "PYTHONPATH": str(ROOT)}
    with log.open("ab") as out:
        parent = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, **env}, stdout=out, stderr=out)
    backend = Backend(Settings(home=tmp_path, job_lease=2))
    try:
        until(lambda: backend.queue.standing().workers == {"cpu": 2}, log)
        child = int(subprocess.check_output(["pgrep", "-P", str(parent.pid)]).split()[0])
        os.kill(child, signal.SIGKILL)

        def others() -> int:
            names = backend.database.read(lambda c: c.scalars(sa.select(WORKERS.c.id)).all())
            return sum(f":{child}:" not in name for name in names)

        until(lambda: others() == 2, log)
        assert "started again" in log.read_text()
        until(lambda: backend.queue.standing().workers == {"cpu": 2}, log)
        parent.terminate()
        assert parent.wait(120) == 0, log.read_text()[-4000:]
        assert backend.queue.standing().workers == {}
    finally:
        parent.kill()
        parent.wait()
        backend.close()
