"""The command line: help, exit codes, facts as JSON, and prompts as typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from isocenter.cli import app
from isocenter.cli.prompts import Typed
from isocenter.core.errors import BusyError, MemoryLimitError, ModelError, UsageError
from isocenter.core.prompts import Box, Lasso, Point, Scribble, Text
from isocenter.core.settings import Settings

COMMANDS = ("demo", "serve", "segment", "convert", "models", "doctor")


def run(*args: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    result = CliRunner().invoke(app, list(args), catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def test_help_names_every_command_and_is_quick() -> None:
    code = "import sys; from isocenter.cli import main; sys.argv[1:] = ['--help']\ntry: main()\nfinally: print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(command in shown for command in COMMANDS)
    loaded = set(shown.splitlines()[-1].split())
    assert not loaded & {"numpy", "pydantic", "fastapi", "numba", "SimpleITK", "isocenter.service"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples(command: str) -> None:
    code, shown, _ = run(command, "--help")
    assert code == 0
    assert f"isocenter {command}" in shown.split("Examples")[1]


def test_version() -> None:
    code, shown, _ = run("--version")
    assert code == 0
    assert shown.startswith("isocenter 0.")


def test_serve_has_a_flag_for_every_setting() -> None:
    _, shown, _ = run("serve", "--help")
    joined = "".join(shown.split())
    for name in Settings.model_fields:
        assert f"ISOCENTER_{name.upper()}" in joined
    for flag in ("--port", "--host", "--api-key", "--insecure", "--log-level", "--log-format", "--no-validate-heatmap"):
        assert flag in shown


def test_serve_passes_flags_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from isocenter.http import server

    seen: list[Settings] = []
    monkeypatch.setattr(server, "run", seen.append)
    monkeypatch.setenv("ISOCENTER_WORKERS", "3")
    code, _, _ = run("serve", "--port", "8000", "--port", "8002", "--insecure", "--log-format", "json", "--no-validate-heatmap", "--workers", "2")
    assert code == 0
    (settings,) = seen
    assert settings.ports == (8000, 8002)
    assert (settings.insecure, settings.log_format, settings.validate_heatmap, settings.workers) == (True, "json", False, 2)
    assert (settings.host, settings.container) == ("127.0.0.1", False)


def test_serve_refuses_what_is_no_setting() -> None:
    code, _, shown = run("serve", "--workers", "0")
    assert code == 2
    assert "workers" in shown
    code, _, shown = run("serve", "--host", "0.0.0.0", "--port", "0")
    assert code == 2
    assert "--insecure" in shown


def test_a_setting_that_makes_no_sense_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_QUEUE_SIZE", "confidential")
    typed = ("doctor", "serve", "clean", "worker", "models", "models info tissue", "convert -i a.nii -o b.nii", "segment -i a.nii --point 1,1,1")
    for command in typed:
        code, shown, said = run(*command.split())
        assert (code, shown) == (2, "")
        assert "queue" in said.lower()
        assert "confidential" not in said


@pytest.mark.parametrize("command", ["clean", "worker", "serve --port 0"])
def test_a_home_that_cannot_be_written_is_told_at_once(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ISOCENTER_HOME", str(tmp_path / "file" / "home"))
    code, _, said = run(*command.split())
    assert code == 2
    assert f"{tmp_path / 'file'} is a file" in said
    assert "set ISOCENTER_HOME" in said


def test_models() -> None:
    code, shown, _ = run("models", "--json")
    assert code == 0
    models = {entry["id"]: entry for entry in json.loads(shown)}
    assert {"geodesic", "tissue", "Histogram+GraphCut", "GMM+GraphCut"} <= set(models)
    assert "lungs" in models["tissue"]["labels"]
    assert run("models", "list", "--json")[1] == shown
    code, shown, _ = run("models", "info", "tissue", "--json")
    assert json.loads(shown) == models["tissue"]
    assert "geodesic" in run("models")[1]
    assert "lungs" in run("models", "info", "tissue")[1]
    code, shown, complaint = run("models", "info", "nonesuch")
    assert (code, shown) == (4, "")
    assert "geodesic" in complaint


def test_doctor() -> None:
    code, shown, _ = run("doctor", "--json")
    facts = json.loads(shown)
    assert code == (0 if facts["healthy"] else 1)
    assert {"Python", "Memory", "GPU", "Disk", "Models", "Port 8000"} <= {fact["name"] for fact in facts["facts"]}
    assert "Memory" in run("doctor")[1]


def test_doctor_shows_what_is_broken_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from isocenter.runtime import environment

    monkeypatch.setattr(environment, "memory", lambda: environment.Fact("Memory", "0.1 GiB", environment.State.BROKEN, "buy some"))
    code, shown, _ = run("doctor")
    assert code == 1
    assert "broken" in shown
    assert "buy some" in shown


@pytest.mark.parametrize(
    ("error", "code"),
    [(UsageError("u"), 2), (ModelError("m"), 4), (MemoryLimitError("x"), 5), (BusyError("b"), 1), (MemoryError(), 5), (OSError(28, "full"), 1)],
)
def test_errors_become_exit_codes(error: Exception, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from isocenter.models import registry

    def fail() -> None:
        raise error

    monkeypatch.setattr(registry, "default", fail)
    found, shown, complaint = run("models")
    assert (found, shown) == (code, "")
    assert complaint.startswith("Error: ")
    assert "Traceback" not in complaint


@pytest.mark.parametrize("args", [["segment"], ["segment", "-i", "x.nii", "--threshold", "2"], ["nonesuch"], ["convert", "-i", "x", "-o", "y.txt"]])
def test_usage(args: list[str]) -> None:
    assert run(*args)[0] == 2


def test_prompts_as_typed() -> None:
    typed = Typed(
        texts=["liver", " "], points=["1,2,3"], negatives=["4, 5, 6"], boxes=["9,8,7,1,2,3"], scribbles=["1,1,1 2,2,2"], lassos=["0,0,5;4,0,5;4,4,5"]
    )
    assert typed.parse() == [
        Text("liver"),
        Box((3, 2, 1), (8, 9, 10)),
        Lasso(((5, 0, 0), (5, 0, 4), (5, 4, 4))),
        Scribble(((1, 1, 1), (2, 2, 2))),
        Point((3, 2, 1)),
        Point((6, 5, 4), positive=False),
    ]


@pytest.mark.parametrize(
    "typed", [Typed(points=["1,2"]), Typed(points=["a,b,c"]), Typed(boxes=["1,2,3"]), Typed(scribbles=[""]), Typed(points=["nan,1,1"])]
)
def test_prompts_that_cannot_be_read(typed: Typed) -> None:
    with pytest.raises(UsageError, match="is written"):
        typed.parse()


def test_nothing_to_segment_by(tmp_path: Path) -> None:
    code, _, complaint = run("segment", "-i", str(tmp_path))
    assert code == 2
    assert "--text" in complaint


def test_unreadable_input(tmp_path: Path) -> None:
    junk = tmp_path / "junk.nii"
    junk.write_bytes(np.random.default_rng(0).bytes(2000))
    for path in (junk, tmp_path / "absent.nii.gz"):
        code, _, complaint = run("segment", "-i", str(path), "--point", "1,1,1", "-o", str(tmp_path / "out"))
        assert code == 3
        assert complaint.startswith("Error: ")
    assert not (tmp_path / "out").exists()
