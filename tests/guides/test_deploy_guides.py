"""`docs/deploy/`: lines that would work, services that systemd takes, and a notebook whose cells run."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.guides import pages
from tests.ports import free_port

DEPLOY = ROOT / "docs" / "deploy"
PAGES = sorted(path.name for path in DEPLOY.glob("*.md"))
NOTEBOOK = DEPLOY / "isocenter.ipynb"
UNITS = sorted(path.name for path in DEPLOY.glob("*.service"))


@pytest.mark.parametrize("name", PAGES)
def test_lines_would_work(name: str) -> None:
    text = (DEPLOY / name).read_text()
    typed = [line for block in pages.blocks(text, "bash", "powershell") for line in pages.lines(block)]
    for line in typed:
        assert pages.is_command(line), line
    tables = [span for row in text.splitlines() if row.startswith("|") for span in pages.spans(row) if "…" not in span]
    for line in typed:
        pages.check(line.partition(" < ")[0].partition(" > ")[0])
    for span in tables:
        pages.check(span, mention=True)


def test_every_page_can_be_found() -> None:
    index = (DEPLOY / "README.md").read_text()
    for name in PAGES:
        assert name == "README.md" or f"({name})" in index


@pytest.mark.parametrize("name", UNITS)
def test_services(name: str, tmp_path: Path) -> None:
    unit = configparser.ConfigParser(strict=False, delimiters=("=",), interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / name)
    service = unit["Service"]
    program, *words = service["ExecStart"].split()
    assert program == "/opt/isocenter/bin/isocenter"
    pages.check(" ".join(["isocenter", *words]))
    assert int(service["TimeoutStopSec"]) > 25, "longer than running jobs may take"
    assert "MemoryDenyWriteExecute" not in service
    for assignment in service["Environment"].split():
        variable = assignment.partition("=")[0]
        assert variable in pages.variables() | {"HF_HUB_OFFLINE"}
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze for the rest")
    copy = tmp_path / name
    copy.write_text((DEPLOY / name).read_text().replace(program, sys.executable))
    told = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert not re.search(r"Unknown|Invalid|Failed to parse|ignoring", told.stderr), told.stderr


def test_the_notebooks_cells_run(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    book = json.loads(NOTEBOOK.read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in book["cells"] if cell["cell_type"] == "code")
    assert [number for number, cell in enumerate(cells) if "%pip install" in cell] == [0]
    program = "\n".join(cells[1:])
    assert "PORT = 8000" in program
    script = tmp_path / "notebook.py"
    script.write_text(program.replace("PORT = 8000", f"PORT = {free_port()}"))
    env = {**os.environ, "ISOCENTER_HOME": str(tmp_path / "home"), "MPLBACKEND": "agg", "ISOCENTER_MIN_FREE_BYTES": "0"}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "completed ['mask.nii.gz', 'measurements.json']" in done.stdout
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "masks.png").stat().st_size > 5000
