"""The README's own lines, run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import isocenter
from isocenter.core.phantom import phantom
from isocenter.io import nifti
from tests.http.conftest import dicom_series, serve

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory that holds what the README's examples name: a NIfTI and a folder of DICOM."""
    place = tmp_path_factory.mktemp("readme")
    made = phantom((64, 96, 96), (4.0, 4.0, 6.0))
    for name in ("ct.nii.gz", "scan.nii.gz"):
        (place / name).write_bytes(nifti.write(made.volume.array, made.volume.grid))
    (place / "scan").mkdir()
    for index, data in enumerate(dicom_series(made.volume.array.astype(np.int16), spacing=(4.0, 4.0, 6.0))):
        (place / "scan" / f"{index}.dcm").write_bytes(data)
    return place


def block(language: str, containing: str) -> str:
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(b for b in blocks if containing in b)


def test_the_python_lines(folder: Path) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", block("python", "import isocenter")], cwd=folder, check=True)
    mask = isocenter.load(folder / "lungs.nii.gz")
    scan = isocenter.load(folder / "ct.nii.gz")
    assert mask.grid.same_as(scan.grid)
    assert mask.array.any()


def test_the_command_lines(folder: Path) -> None:
    lines = [line.split("  #")[0].strip() for line in block("bash", "isocenter segment").splitlines()]
    commands = [line for line in lines if line.startswith("isocenter segment")]
    assert len(commands) == 2
    for command in commands:
        # The click of the example lies in an image of its author's; here it goes to the middle.
        arguments = [re.sub(r"^\d+,\d+,\d+$", "48,48,20", word) for word in shlex.split(command)[1:]]
        done = subprocess.run([sys.executable, "-m", "isocenter", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert {"preview.png", "measurements.json"} <= set(os.listdir(folder / "out"))


def test_the_curl_line(folder: Path, home: Path) -> None:
    line = next(line for line in block("bash", "isocenter segment").splitlines() if line.startswith("curl"))
    with serve(home) as (addresses, _):
        done = subprocess.run(shlex.split(line.replace("http://127.0.0.1:8000", addresses[0])), cwd=folder, capture_output=True, check=True)
        assert b'"status":"success"' in done.stdout
        assert urllib.request.urlopen(f"{addresses[0]}/docs").status == 200


def test_the_public_names() -> None:
    assert len(isocenter.__all__) <= 15
    for name in isocenter.__all__:
        assert getattr(isocenter, name) is not None
    with pytest.raises(AttributeError):
        isocenter.nothing  # noqa: B018
