"""The registry: folders that are installed, broken, changed and chosen; and the variable that names BiomedParse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import isocenter.models
from isocenter.core.catalog import Entry, File
from isocenter.core.errors import ModelError, UnknownModelError
from isocenter.core.model import Task
from isocenter.core.settings import Settings
from isocenter.models import registry
from isocenter.models._catalog import found
from isocenter.models.registry import Registry
from isocenter.store.weights import RECORD

FAMILY = """
import json
from isocenter.core.errors import ModelError
from isocenter.core.model import ModelSpec, Task
from isocenter.core.segmentation import Label

def offer(folder, entry=None):
    path = folder / "weights.json" if folder.is_dir() else folder
    labels = (Label(1, "liver"), Label(2, "left lung"))
    text = path.read_text()
    if text == "pointer":
        raise ModelError("its weights.json is a pointer of Git LFS; download the file itself")
    facts = json.loads(text)
    return [
        ModelSpec(id=(entry.id if entry else folder.name) + end, version="1", task=Task(task), factory="isocenter.models.toy:Toy",
                  description="", weights=folder, weights_bytes=len(text), labels=labels, modalities=("CT",))
        for end, task in facts.items()
    ]
"""


@pytest.fixture(autouse=True)
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A family of the tests' own, as a module beside the real ones."""
    where = tmp_path / "package"
    where.mkdir()
    (where / "toy.py").write_text(FAMILY)
    monkeypatch.setattr(isocenter.models, "__path__", [*isocenter.models.__path__, str(where)])
    monkeypatch.setattr(registry, "_FRESH", 0.0)
    yield
    sys.modules.pop("isocenter.models.toy", None)


def install(folder: Path, name: str = "", family: str = "toy", facts: Any = None, **record: Any) -> Path:
    folder.mkdir(parents=True)
    entry = Entry(name or folder.name, family, "a toy", "MIT", (File("weights.json"),))
    (folder / RECORD).write_text(json.dumps({"entry": entry.as_dict(), **record}))
    (folder / "weights.json").write_text(json.dumps({"": "segment"} if facts is None else facts))
    return folder


def test_installed_folders_stand_beside_built_in_models(tmp_path: Path) -> None:
    home, more = tmp_path / "home", tmp_path / "more"
    install(home / "models" / "one", name="liver", sha256="ab" * 32)
    install(more / "two", facts={"": "interactive", "-text": "text"})
    here = Registry.of(Settings(home=home, models_path=more))
    assert {"geodesic", "tissue", "liver", "two", "two-text"} <= set(here.specs)
    assert here.broken == {}
    assert here.spec("liver").weights == home / "models" / "one"
    assert here.spec("liver").weights_sha256 == "ab" * 32
    assert here.spec("two-text").task is Task.TEXT
    with pytest.raises(UnknownModelError, match="liver"):
        here.spec("spleen")


def test_the_home_folders_models_win_and_missing_places_are_none(tmp_path: Path) -> None:
    install(tmp_path / "home" / "models" / "liver", facts={"": "segment"})
    install(tmp_path / "more" / "liver", facts={"": "text"})
    places = registry.places(tmp_path / "home", tmp_path / "more")
    assert Registry(places).spec("liver").task is Task.SEGMENT
    assert "geodesic" in Registry([tmp_path / "nowhere"]).specs


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("weights.json", "pointer", "Git LFS"),
        ("weights.json", "{", "JSONDecodeError"),
        ("isocenter.json", "{", "valid JSON"),
        ("isocenter.json", "[]", "not a JSON object"),
        ("isocenter.json", '{"entry": {"id": "x"}}', "no entry"),
        ("isocenter.json", '{"entry": {"id": "bad", "family": "os.path", "description": "", "licence": ""}}', "'os.path'"),
        ("isocenter.json", '{"entry": {"id": "bad", "family": "nonesuch", "description": "", "licence": ""}}', "'nonesuch'"),
    ],
)
def test_a_broken_folder_is_told_and_takes_nothing_down(tmp_path: Path, name: str, content: str, says: str) -> None:
    install(tmp_path / "good")
    (install(tmp_path / "bad") / name).write_text(content)
    here = Registry([tmp_path])
    assert "good" in here.specs
    assert "bad" not in here.specs
    assert says in here.broken["bad"].reason
    with pytest.raises(ModelError, match="'bad' cannot be used") as told:
        here.spec("bad")
    assert says in told.value.message
    assert str(tmp_path) not in told.value.message


def test_folders_that_come_go_and_change_are_noticed(tmp_path: Path) -> None:
    here = Registry([tmp_path])
    assert "liver" not in here.specs
    folder = install(tmp_path / "liver")
    assert here.spec("liver").task is Task.SEGMENT
    same = here.spec("liver")
    assert here.spec("liver") is same  # not asked again while nothing has changed
    (folder / "weights.json").write_text('{"": "text"}')
    assert here.spec("liver").task is Task.TEXT
    folder.rename(tmp_path / ".liver")
    assert "liver" not in here.specs


@pytest.mark.parametrize(
    ("files", "family"),
    [
        ({"model.onnx": "", "config.json": '{"model_type": "nnunet"}'}, "onnx_volume"),
        ({"model.onnx": ""}, "onnx_volume"),
        ({"dataset.json": "{}", "plans.json": "{}", "fold_0/checkpoint_final.pth": ""}, "nnunet"),
        ({"dataset.json": "{}", "plans.json": "{}", "inference_session_class.json": "{}"}, "nninteractive"),
        ({"config.json": '{"model_type": "sam"}', "model.safetensors": ""}, "sam"),
        ({"config.json": '{"model_type": "sam2_video"}', "model.safetensors": ""}, "sam2"),
        ({"config.json": '{"model_type": "sam3_video"}', "tokenizer.json": ""}, "sam3"),
        ({"config.json": '{"model_type": "siglip"}', "tokenizer.json": ""}, "medsiglip"),
        ({"config.json": '{"model_type": "gemma3"}', "tokenizer.json": ""}, "medgemma"),
        ({"config.json": '{"model_type": "gemma3_text"}', "tokenizer.json": ""}, "medgemma"),
        ({"config.json": '{"model_type": "bert"}', "vocab.txt": ""}, "text"),
    ],
)
def test_a_folder_without_a_record_is_known_by_what_lies_in_it(tmp_path: Path, files: dict[str, str], family: str) -> None:
    for name, content in files.items():
        path = tmp_path / "it" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (folder,) = found.folders(tmp_path)
    assert (folder.id, folder.family, folder.path) == ("it", family, tmp_path / "it")


def test_networks_deep_below_are_found_and_named_after_their_way(tmp_path: Path) -> None:
    for place in ("one/3d_fullres/fold_0", "two/a", "two/b", "empty/x", ".unfinished/a"):
        (tmp_path / place).mkdir(parents=True)
        if "empty" not in place:
            (tmp_path / place / "checkpoint_final.onnx").touch()
    assert [folder.id for folder in found.folders(tmp_path)] == ["one", "two-a", "two-b"]


def test_who_answers_where_nobody_was_asked_for(tmp_path: Path) -> None:
    assert Registry().first(Task.INTERACTIVE).id == "geodesic"
    assert Registry().first(Task.TEXT).id == "tissue"
    install(tmp_path / "a", facts={"": "text", "-clicks": "interactive"})
    here = Registry([tmp_path])
    assert here.first(Task.TEXT).id == "a"  # any network before a stand-in
    assert here.first(Task.INTERACTIVE).id == "geodesic"
    assert Registry([tmp_path], defaults=["text=tissue", "interactive=a-clicks"]).first(Task.INTERACTIVE).id == "a-clicks"
    assert Registry([tmp_path], defaults=["text=tissue"]).first(Task.TEXT).id == "tissue"
    with pytest.raises(ModelError, match="no model for the task 'narrate'"):
        here.first(Task.NARRATE)
    with pytest.raises(ModelError, match="default_models"):
        Registry(defaults=["text=geodesic"]).first(Task.TEXT)


def test_words_go_to_a_network_that_knows_them_all_before_a_stand_in(tmp_path: Path) -> None:
    install(tmp_path / "a", facts={"": "segment"})
    here = Registry([tmp_path])
    assert here.first_for(["liver", "lung, left"], "CT").id == "a"
    assert here.first_for(["liver"]).id == "a"
    assert here.first_for(["liver"], "MR").id == "tissue"
    assert here.first_for(["liver", "spleen"], "CT").id == "tissue"
    assert Registry([tmp_path], defaults=["text=tissue"]).first_for(["liver"], "CT").id == "tissue"
    install(tmp_path / "b", facts={"": "text"})
    here.refresh()
    assert here.first_for(["liver"], "CT").id == "b"


def test_a_missing_checkpoint_of_biomedparse_is_named_and_nothing_stands_in_for_it(tmp_path: Path) -> None:
    here = Registry.of(Settings(home=tmp_path, biomedparse_checkpoint=tmp_path / "absent.ckpt"))
    assert "BP3D_CKPT" in here.broken["biomedparse"].reason
    with pytest.raises(ModelError, match="BP3D_CKPT"):
        here.first(Task.TEXT)
    with pytest.raises(ModelError, match="BP3D_CKPT"):
        here.first_for(["liver"], "CT")
    assert here.first(Task.INTERACTIVE).id == "geodesic"
    assert here.spec("tissue").fallback


def test_a_checkpoint_of_biomedparse_without_its_code_says_where_that_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BP3D_CODE", raising=False)
    with zipfile.ZipFile(tmp_path / "weights.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    here = Registry(checkpoint=tmp_path / "weights.ckpt")
    for said in (here.broken["biomedparse"].reason, _refusal(here)):
        assert "BP3D_CKPT" in said
        assert "BP3D_CODE" in said
    (tmp_path / "weights.ckpt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS" in _refusal(here)


def _refusal(here: Registry) -> str:
    with pytest.raises(ModelError) as told:
        here.first(Task.TEXT)
    return told.value.message


def test_this_process_environment_is_read_as_the_settings_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("MODELS_PATH=more\nBP3D_CKPT=absent.ckpt\nISOCENTER_HOME=elsewhere\n")
    monkeypatch.setenv("ISOCENTER_HOME", "home")
    monkeypatch.setenv("ISOCENTER_DEFAULT_MODELS", "text=tissue, segment=liver")
    read, told = registry.default(), Registry.of(Settings())
    assert read.places == told.places == (Path("more"), Path("home/models"))
    assert vars(read)["_checkpoint"] == vars(told)["_checkpoint"] == Path("absent.ckpt")
    assert vars(read)["_defaults"] == vars(told)["_defaults"] == {"text": "tissue", "segment": "liver"}


def test_listing_installed_models_imports_no_library_that_runs_them(tmp_path: Path) -> None:
    code = "import sys; from isocenter.models import registry; registry.specs(); registry.default().broken; print(*sys.modules)"
    for name, files in {
        "a": {"model.onnx": b"x"},
        "b": {"dataset.json": b"{}", "plans.json": b"{}"},
        "c": {"config.json": b'{"model_type": "sam"}'},
    }.items():
        (tmp_path / "models" / name).mkdir(parents=True)
        for file, content in files.items():
            (tmp_path / "models" / name / file).write_bytes(content)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "ISOCENTER_HOME": str(tmp_path)}
    )
    assert not set(run.stdout.split()) & {"torch", "transformers", "onnxruntime", "nnunetv2", "nnInteractive", "scipy", "pydantic", "numba"}
