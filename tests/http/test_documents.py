"""The reference documents' own scripts and curl lines, run as they stand against a real server."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from isocenter.core.phantom import phantom
from isocenter.io import nifti
from tests.conftest import DATA
from tests.http.conftest import dicom_series, serve, zipped

REFERENCE = DATA.parent / "reference"
SAMPLE = "sample-data/2.000000-PRE LIVER-76970.zip"


def document(number: str) -> str:
    found = sorted(REFERENCE.glob(f"{number}_*.txt"))
    if not found:
        pytest.skip("needs the reference documents")
    return found[0].read_text()


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.fixture(scope="module")
def documented(home: Path) -> Iterator[Path]:
    """One server on the documents' two ports, and a folder with the sample they name: 43 slices of 512 x 512."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    made = phantom((43, 128, 128))
    large = np.repeat(np.repeat(made.volume.array, 4, 1), 4, 2).astype(np.int16)
    (home / "sample-data").mkdir(exist_ok=True)
    (home / SAMPLE).write_bytes(zipped(dicom_series(large, spacing=(0.75, 0.75, 9.0)), folder="2.000000-PRE LIVER-76970"))
    (home / "volume.nii.gz").write_bytes(nifti.write(made.volume.array, made.volume.grid))
    # Where tests run in several processes, each may be here: one after the other has the ports.
    with (Path(tempfile.gettempdir()) / f"isocenter-ports-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (is_free(8000) and is_free(8002)):
            pytest.skip("the documents' ports 8000 and 8002 are taken on this machine")
        with serve(home, "--port", "8000", "--port", "8002"):
            yield home


def run(script: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, timeout=300, check=False)


def test_the_test_script_passes(documented: Path) -> None:
    """`test_server.sh`, steps 1-4; step 5 asks Docker for an NVIDIA card."""
    script = re.search(r"```bash\n(#!/bin/bash\n.*?)```", document("001"), re.DOTALL)
    assert script
    steps = script[1].split("# Test 5")[0]
    assert "Test 4" in steps
    done = run(steps, documented)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert done.stdout.decode().count("✓") == 4


def test_step_6_of_the_guide(documented: Path) -> None:
    text = document("001").split("### Step 6")[1]
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert block
    commands = re.findall(r"^curl -X POST.*?(?:[^\\]\n)", block[1], re.DOTALL | re.MULTILINE)
    assert len(commands) == 2
    assert run(commands[0], documented).stdout == b"{}"
    out = documented / "seg_result.dat"
    done = run(commands[1].replace("/tmp/seg_result.dat", str(out)), documented)
    assert done.returncode == 0
    assert b'{"prompt_info": {"pos_points": [[256, 256, 40]]}' in out.read_bytes()[:500]


def test_curl_lines_of_the_segmentation_guide(documented: Path) -> None:
    """Only the example's paths are filled in; `jq` prints and is left out."""
    smoke = document("000").split("## Endpoints (Smoke Tests)")[1].split("## Environment")[0]
    commands = [c.replace("<VM_IP>", "localhost").replace(" | jq .", "") for c in re.findall(r"^curl.*?[^\\]\n", smoke, re.DOTALL | re.MULTILINE)]
    health = json.loads(run(commands[0], documented).stdout)
    assert health == {"status": "healthy", "gpu_available": False}
    volume = next(c for c in commands if "volume.nii.gz" in c).replace("/path/to/volume.nii.gz", "volume.nii.gz")
    result = json.loads(run(volume, documented).stdout)["results"][0]
    fetch = [c for c in commands if "fetch-npz" in c]
    for command, url, key in zip(fetch, (result["mask_url"], result["heatmap_url"]), ("seg", "prob"), strict=True):
        filled = re.sub(rf"{key}_[XY]+\.npz", url.removeprefix("/files/"), command)
        assert json.loads(run(filled, documented).stdout)["shape"] == result["mask_shape"]


def test_up_and_info_on_every_port(documented: Path) -> None:
    for port in (8000, 8002):
        assert json.loads(run(f"curl -s http://localhost:{port}/", documented).stdout) == {"status": "UP"}
        assert b'"models"' in run(f"curl -s http://localhost:{port}/info/ | grep -o '\"models\"'", documented).stdout


def test_the_sample_is_what_the_documents_say(documented: Path) -> None:
    """Otherwise the click at [256, 256, 40] would test nothing."""
    form = f"-F 'file=@{SAMPLE}' -F 'params={{\"nninter\":true,\"pos_points\":[[256,256,40]]}}'"
    done = run(f"curl -s 'http://localhost:8002/infer/segmentation?output=image' {form}", documented)
    raw = gzip.decompress(done.stdout)
    assert np.frombuffer(raw, "<i2", 4, 40).tolist() == [3, 43, 512, 512]
