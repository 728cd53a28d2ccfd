"""`isocenter segment --queue`: through the table of this machine, and through a server with a key."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from typer.testing import CliRunner

from isocenter import jobservice
from isocenter.cli import app
from isocenter.core.phantom import Phantom, phantom
from isocenter.core.plain_prompts import parse_prompts, plain_prompts
from isocenter.core.prompts import Box, Lasso, Point, Prompt, Scribble, Text
from isocenter.core.settings import Settings
from isocenter.io import door, nifti
from isocenter.jobs.backend import Backend
from isocenter.service import Service
from tests.http.conftest import dicom_series, serve


def run(*args: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def ct() -> Phantom:
    return phantom((24, 48, 48))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The worker of this very process writes its log elsewhere than among the answers."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """The job table of the settings, with a worker."""
    monkeypatch.setenv("ISOCENTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ISOCENTER_MIN_FREE_BYTES", "0")
    settings = Settings(decoders=0)
    service, backend = Service(settings), Backend(settings)
    worker = backend.worker(jobservice.handler(service))
    worker.start()
    yield backend
    worker.stop()
    backend.close()
    service.close()


@pytest.fixture
def scan(tmp_path: Path, ct: Phantom) -> Path:
    path = tmp_path / "Jane Doe.nii.gz"
    path.write_bytes(nifti.write(ct.volume.array, ct.volume.grid))
    return path


@pytest.fixture
def series(tmp_path: Path, ct: Phantom) -> Path:
    folder = tmp_path / "Jane Doe"
    folder.mkdir()
    for number, data in enumerate(dicom_series(ct.volume.array.astype(np.int16))):
        (folder / f"Doe{number}").write_bytes(data)
    return folder


def labels(facts: dict[str, Any]) -> dict[str, int]:
    return {entry["name"]: entry["voxels"] for entry in facts["labels"]}


def test_the_same_answer_as_without_a_queue(table: Backend, scan: Path, tmp_path: Path) -> None:
    here = run("segment", "-i", scan, "-o", tmp_path / "here", "--text", "lungs", "--text", "bones", "--json")
    code, out, err = run(
        "segment", "--queue", "-i", scan, "-o", tmp_path / "there", "--text", "lungs", "--text", "bones", "--priority", "7", "--json"
    )
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert labels(facts) == labels(json.loads(here[1]))
    a, b = (door.read_path(tmp_path / place / "mask.nii.gz", limits=Settings()) for place in ("here", "there"))
    assert np.array_equal(a.array, b.array)
    assert a.grid.same_as(b.grid)
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == ["mask.nii.gz", "measurements.json", "preview.png"]
    job = table.queue.get(facts["job"])
    assert (job.priority, job.model) == (7, "tissue")
    assert "Jane" not in repr(job)
    # The same job's results, fetched once more, under another name.
    code, out, _ = run("segment", "--queue", "--job", job.id, "-o", tmp_path / "again" / "lungs.nii.gz")
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["lungs.nii.gz", "lungs_measurements.json", "lungs_preview.png"]
    assert run("segment", "--queue", "--job", job.id, "-o", tmp_path / "again", "--format", "nrrd")[0] == 2
    assert run("segment", "--queue", "--job", "no-such-job")[0] == 1


def test_what_goes_wrong_has_the_same_exit_code(table: Backend, scan: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"not a scan")
    for code, words, args in (
        (3, "", ("-i", broken, "--text", "lungs")),
        (2, "format", ("-i", scan, "--text", "lungs", "--format", "png")),
        (2, "--mask", ("-i", scan, "--mask", scan)),
        (2, "no structure|understand|known|none", ("-i", scan, "--text", "flux capacitor")),
        (3, "no file", ("-i", tmp_path / "none.nii.gz", "--text", "lungs")),
        (2, "not both", ("-i", scan, "--text", "lungs", "--point", "1,2,3")),
        (4, "nosuch", ("-i", scan, "-m", "nosuch")),
    ):
        done = run("segment", "--queue", "-o", tmp_path / "out", *args)
        assert done[0] == code, (args, done)
        assert any(word in done[2] for word in words.split("|")), done
    assert run("segment", "-i", scan, "--text", "lungs", "--server", "http://127.0.0.1:1")[0] == 2
    assert run("segment", "--queue", "--text", "lungs")[0] == 2


def test_nobody_works_yet_and_somebody_stops_waiting(tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that no worker is there; after Ctrl-C the job is still in the table, and its results can be had later."""
    monkeypatch.setenv("ISOCENTER_HOME", str(tmp_path / "home"))

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("isocenter.cli._queued._pause", interrupted)
        code, _, err = run("segment", "--queue", "-i", scan, "--text", "lungs", "-o", tmp_path / "out")
    assert code == 130
    assert "no worker is there yet" in err
    settings = Settings(decoders=0, min_free_bytes=0)
    backend, service = Backend(settings), Service(settings)
    (job,) = backend.queue.page()[0]
    assert f"--job {job.id}" in err
    worker = backend.worker(jobservice.handler(service))
    late = threading.Thread(target=worker.work_once)
    late.start()
    assert run("segment", "--queue", "--job", job.id, "-o", tmp_path / "out")[0] == 0
    late.join()
    assert (tmp_path / "out" / "mask.nii.gz").exists()
    backend.close()
    service.close()


def test_through_a_server_with_a_key(tmp_path: Path, series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of DICOM files goes as an archive without their names, and comes back as DICOM SEG."""
    home = tmp_path / "server"
    home.mkdir()
    with serve(home, "--decoders", "0", ISOCENTER_API_KEY="secret", ISOCENTER_MIN_FREE_BYTES="0") as (addresses, _):
        asked: list[str | Path] = [
            "segment",
            "--queue",
            "--server",
            addresses[0],
            "-i",
            series,
            "--text",
            "lungs",
            "--format",
            "dicom-seg",
            "-o",
            tmp_path / "out",
        ]
        code, _, err = run(*asked)
        assert (code, "ISOCENTER_API_KEY" in err) == (2, True)
        monkeypatch.setenv("ISOCENTER_API_KEY", "secret")
        code, out, err = run(*asked)
        assert code == 0, err
        assert "queued as" in err
        assert "lungs" in out
        import pydicom

        seg = pydicom.dcmread(tmp_path / "out" / "mask.dcm")
        assert (seg.Modality, seg.SegmentSequence[0].SegmentLabel) == ("SEG", "lungs")
        code, _, err = run(*asked[:-2], "-m", "nosuch")
        assert (code, "nosuch" in err) == (1, True)
    code, _, err = run(*asked)
    assert (code, "cannot be reached" in err) == (1, True)


def test_prompts_as_plain_data_and_back() -> None:
    prompts: list[Prompt] = [
        Text("liver"), Point((1, 2, 3)), Point((1, 2, 3), positive=False), Box((1, 2, 3), (4, 5, 6)),
        Scribble(((1, 2, 3), (2, 3, 4)), positive=False), Lasso(((1, 2, 3), (1, 3, 4), (1, 4, 2))),
    ]  # fmt: skip
    assert parse_prompts(plain_prompts(prompts)) == prompts
