"""What changed between two scans, as its users ask for it: the command, and the patients' API."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from isocenter.cli import app
from isocenter.core.phantom import phantom
from isocenter.core.settings import Limits, Settings
from isocenter.core.volume import Volume
from isocenter.http.app import create_app
from isocenter.io import door, nifti, write
from tests.analysis.test_change import COMES, GOES, GRID, INSIDE, STAYS, ball, head

GROWS = ball(14, 40, 48, 5.5)
GROWN = ball(14, 40, 48, 7.5)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans of one head on the scanner's dark ground, masks of the lesions that a reader knows (none), and the brain."""
    folder = tmp_path_factory.mktemp("scans")
    for name, lesions, seed in (("earlier", [STAYS, GOES, GROWS], 2), ("later", [STAYS, COMES, GROWN], 1)):
        array = np.where(INSIDE, head(lesions, seed), np.random.default_rng(seed).normal(5, 2, GRID.shape)).astype(np.float32)
        (folder / f"{name}.nii.gz").write_bytes(write.encode_image(Volume.on_grid(array, GRID, modality="MR"), ".nii.gz"))
    for name, mask in (("brain", INSIDE), ("none", np.zeros(GRID.shape, bool))):
        (folder / f"{name}.nii.gz").write_bytes(nifti.write(mask.astype(np.uint8), GRID, header=None, compress=True))
    return folder


def kinds_in(mask: NDArray[Any]) -> dict[str, int]:
    """The commonest value in each place where something happened."""
    return {
        name: int(np.bincount(mask[where & (mask > 0)], minlength=5).argmax()) for name, where in (("comes", COMES), ("goes", GOES), ("grows", GROWN))
    }


def test_the_command(scans: Path, tmp_path: Path) -> None:
    asked = [
        "changes",
        str(scans / "earlier.nii.gz"),
        str(scans / "later.nii.gz"),
        "-o",
        str(tmp_path),
        "--region",
        str(scans / "brain.nii.gz"),
        "--json",
    ]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "changes.json").read_text())
    mask = door.read_path(tmp_path / "changes.nii.gz", limits=Limits()).array
    assert kinds_in(mask) == {"comes": 1, "goes": 4, "grows": 2}
    assert not mask[STAYS].any()
    by_kind = {kind: [p for p in told["parts"] if p["kind"] == kind] for kind in told["kinds"]}
    assert {kind: len(found) for kind, found in by_kind.items()} == {"new": 1, "grown": 1, "shrunk": 0, "gone": 1}
    (new,) = by_kind["new"]
    assert new["size"]["volume_mm3"] == pytest.approx(COMES.sum() * 3, rel=0.35)
    assert new["difference"] > 0 > by_kind["gone"][0]["difference"]
    with Image.open(tmp_path / "changes.png") as picture:
        assert picture.width > 500
    table = CliRunner().invoke(app, [part for part in asked if part != "--json"])
    assert "change-1" in table.stdout
    assert "grown" in table.stdout


def test_without_a_region_the_surface_is_left_out(scans: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["changes", str(scans / "earlier.nii.gz"), str(scans / "later.nii.gz"), "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "5 mm below the surface" in done.stderr
    assert kinds_in(door.read_path(tmp_path / "changes.nii.gz", limits=Limits()).array) == {"comes": 1, "goes": 4, "grows": 2}


@pytest.mark.parametrize(
    ("earlier", "later", "more", "code", "words"),
    [
        ("earlier", "earlier", [], 2, "one and the same"),
        ("earlier", "missing", [], 3, "no such file"),
        ("earlier", "later", ["--region", "small"], 2, "fits neither"),
        ("ct", "later", [], 3, "isocenter track"),
    ],
)
def test_what_cannot_be_compared(scans: Path, tmp_path: Path, earlier: str, later: str, more: list[str], code: int, words: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("earlier", "later"):
        (folder / f"{name}.nii.gz").symlink_to(scans / f"{name}.nii.gz")
    ct = phantom((32, 32, 32)).volume
    (folder / "ct.nii.gz").write_bytes(write.encode_image(ct, ".nii.gz"))
    (folder / "small.nii.gz").write_bytes(
        nifti.write(np.ones((4, 4, 4), np.uint8), Volume(np.zeros((4, 4, 4), np.uint8)).grid, header=None, compress=True)
    )
    rest = [str(folder / f"{m}.nii.gz") if m == "small" else m for m in more]
    done = CliRunner().invoke(app, ["changes", str(folder / f"{earlier}.nii.gz"), str(folder / f"{later}.nii.gz"), "-o", str(tmp_path), *rest])
    assert (done.exit_code, words in done.stderr.replace("\n", " ")) == (code, True), done.stderr
    assert not (tmp_path / "changes.json").exists()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(home=tmp_path_factory.mktemp("changes"), decoders=0, job_same_within=0, min_free_bytes=0)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as made:
        yield made


def test_between_two_visits_on_record(client: TestClient, scans: Path) -> None:
    base = "/api/v1/patients/head"
    options = {"preprocessed": False, "registration": "none"}
    assert client.post("/api/v1/patients", json={"patient_id": "head", "options": options}).status_code == 201
    for day, name in ((0, "earlier"), (200, "later")):
        files = {"file": ("x.nii.gz", (scans / f"{name}.nii.gz").read_bytes()), "mask": ("m.nii.gz", (scans / "none.nii.gz").read_bytes())}
        facts = {"timepoint_id": name, "day": day, "modality": "MR"}
        job = client.post(f"{base}/timepoints", files=files, data={"timepoint": json.dumps(facts)}).json()["job"]
        deadline = time.monotonic() + 300
        while (state := client.get(job["url"]).json())["status"] not in ("completed", "failed", "cancelled") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert state["status"] == "completed", state
    asked = {"earlier": "earlier", "later": "later"}
    region = {"region": ("brain.nii.gz", (scans / "brain.nii.gz").read_bytes())}
    told = client.post(f"{base}/changes", files=region, data={"changes": json.dumps(asked)})
    assert told.status_code == 200, told.text
    assert sorted(p["kind"] for p in told.json()["parts"]) == ["gone", "grown", "new"]
    mask = client.post(f"{base}/changes?format=mask", json=asked)
    assert kinds_in(nifti.read(io.BytesIO(mask.content), len(mask.content), limits=Limits()).array) == {"comes": 1, "goes": 4, "grows": 2}
    picture = client.post(f"{base}/changes?format=png", json=asked)
    assert (picture.headers["content-type"], picture.content[:4]) == ("image/png", b"\x89PNG")
    assert client.post(f"{base}/changes", json={"earlier": "later", "later": "earlier"}).status_code == 400
    assert client.post(f"{base}/changes", json={"earlier": "earlier", "later": "nothing"}).status_code == 404
    assert client.post("/api/v1/patients/nobody/changes", json=asked).status_code == 404
    assert client.post(f"{base}/changes", json={"earlier": "earlier"}).status_code == 400
    assert [e["action_type"] for e in client.get(f"{base}/audit").json()["data"]].count("changes") == 3
