"""`isocenter demo` as a person runs it, and the robot that clicks in it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isocenter.core.settings import settings
from isocenter.demo.robot import deepest, dice, next_click
from isocenter.io import door


def demo(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "isocenter.cli", "demo", "-o", str(folder), *args]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False, env=dict(os.environ))


def test_phantom(tmp_path: Path) -> None:
    """Ends by itself without a terminal, on another port when the wanted one is taken, with masks that are right."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = demo(tmp_path, "--port", str(port))
    assert done.returncode == 0, done.stderr
    assert f"port {port} is taken" in done.stdout
    lungs = re.search(r"lungs\s*\|.*?\|.*?\|\s*([\d.]+)", done.stdout)
    assert lungs is not None
    assert float(lungs[1]) > 0.9
    for name, least in (("lesion_1", 0.0), ("kidney_left", 0.6), ("spleen", 0.6)):
        scores = re.search(name + r"\s*\|\s*([\d.]+)\s*\|\s*([\d.]+)\s*\|\s*([\d.]+)", done.stdout)
        assert scores is not None, done.stdout
        assert float(scores[3]) >= least
    assert "curl -F" in done.stdout
    scan = door.read_path(tmp_path / "scan.nii.gz", limits=settings())
    masks = sorted(p.name for p in tmp_path.glob("*-*.nii.gz"))
    assert {"word-lungs.nii.gz", "word-bone.nii.gz", "click-spleen.nii.gz"} <= set(masks)
    for name in masks:
        mask = door.read_path(tmp_path / name, limits=settings())
        assert mask.grid.same_as(scan.grid)
        assert set(np.unique(mask.array)) <= {0, 1}
    for name in ("words.png", "clicks.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200

    report = tmp_path / "patient" / "report" / "report.html"
    assert "RECIST 1.1" in report.read_text()
    volumes = re.findall(r"day \d+\s*\|\s*([\d.]+) ml\s*\|\s*([\d.]+) ml", done.stdout)
    assert len(volumes) == 5, done.stdout
    assert all(found == true for found, true in volumes), "given masks are measured exactly"


def test_scan_of_ones_own(data: Path, tmp_path: Path) -> None:
    done = demo(tmp_path, "--once", "--port", "1", "--input", str(data / "totalsegmentator" / "example_mr_sm.nii.gz"))
    assert done.returncode == 0, done.stderr
    assert "Dice" not in done.stdout
    assert "tissue" in done.stdout or "CT" in done.stdout, "says that words are for CT"
    assert (tmp_path / "click-middle.nii.gz").exists()


def test_unreadable_scan_ends_the_server_too(tmp_path: Path) -> None:
    done = demo(tmp_path, "--input", str(tmp_path / "absent.nii.gz"))
    assert done.returncode == 3
    assert done.stderr.startswith("Error: ")


def test_what_keeps_the_server_from_starting_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ISOCENTER_HOME", str(tmp_path / "file" / "home"))
    result = demo(tmp_path / "out")
    assert result.returncode == 1
    assert f"the server did not start: {tmp_path / 'file'} is a file" in result.stderr


def test_robot() -> None:
    target = np.zeros((9, 20, 20), bool)
    target[2:7, 3:10, 4:15] = True
    assert deepest(target, (1.0, 1.0, 1.0))[0] == 4
    assert target[deepest(target, (1.0, 1.0, 1.0))]
    mask = np.zeros_like(target)
    assert next_click(target, mask, (1.0, 1.0, 1.0)) == (deepest(target, (1.0, 1.0, 1.0)), True)
    mask[...] = True
    voxel, positive = next_click(target, mask, (1.0, 1.0, 1.0))
    assert not positive
    assert not target[voxel]
    assert dice(target, target) == 1
    assert dice(mask, ~mask) == pytest.approx(0)
