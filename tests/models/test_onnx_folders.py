"""Folders, configurations and networks that cannot be used: each is refused with a sentence that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from isocenter.core.catalog import Entry, File
from isocenter.core.errors import ModelError
from isocenter.core.model import ModelContext, Task
from isocenter.core.volume import Volume
from isocenter.models import onnx_volume
from isocenter.models._onnx import config
from tests.models import onnx_networks as nets


def refused(place: Path, network: bytes, settings: dict[str, Any]) -> str:
    with pytest.raises(ModelError) as caught:
        nets.loaded(place, network, settings)
    assert str(place) not in caught.value.message
    return caught.value.message


def test_a_good_folder_is_a_spec_without_opening_the_network(tmp_path: Path) -> None:
    settings = {
        **nets.config(3, normalization_schemes=["CTNormalization"]),
        "version": "2.1",
        "description": "Two organs",
        "license": "MIT",
        "citation": "Somebody (2026)",
    }
    settings["dataset_parameters"] |= {"class_names": {"1": "Left Kidney", "2": "spleen"}, "synonyms": {"lien": "spleen"}}
    spec = onnx_volume.offer(nets.folder(tmp_path / "organs", nets.unet(), settings))
    assert (spec.id, spec.version, spec.task, spec.modalities) == ("organs", "2.1", Task.SEGMENT, ("CT",))
    assert [(label.value, label.name) for label in spec.labels] == [(1, "left_kidney"), (2, "spleen")]
    assert spec.synonyms == {"lien": "spleen"}
    assert (spec.licence, spec.citation, spec.description) == ("MIT", "Somebody (2026)", "Two organs")
    assert spec.weights == tmp_path / "organs"
    assert len(spec.weights_sha256 or "") == 64
    assert spec.options["step_size"] == 0.5
    entry = Entry("other", "onnx_volume", "From the catalog", "Apache-2.0", (File("model.onnx", sha256="0" * 64),), revision="abcdef")
    known = onnx_volume.offer(tmp_path / "organs", entry)
    assert (known.id, known.description, known.weights_sha256) == ("other", "From the catalog", "0" * 64)


def test_the_network_may_lie_deeper(tmp_path: Path) -> None:
    deep = tmp_path / "nnunet_test" / "3d_fullres" / "fold_0"
    deep.mkdir(parents=True)
    (deep / "checkpoint_final.onnx").write_bytes(nets.unet())
    (tmp_path / "nnunet_test" / "config.json").write_text(json.dumps(nets.config()))
    spec = onnx_volume.offer(tmp_path / "nnunet_test")
    model = onnx_volume.OnnxVolume()
    model.load(ModelContext(spec=spec, engine="onnxruntime"))
    model.close()


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        onnx_volume.offer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(nets.config()))
    with pytest.raises(ModelError, match=r"no \.onnx"):
        onnx_volume.offer(tmp_path)
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(nets.unet())
    with pytest.raises(ModelError, match=r"2 \.onnx files"):
        onnx_volume.offer(tmp_path)
    for name, message in (("c.onnx", "has no file 'c.onnx'"), ("../a.onnx", "inside the model's own folder")):
        (tmp_path / "config.json").write_text(json.dumps({**nets.config(), "network": name}))
        with pytest.raises(ModelError, match=message):
            onnx_volume.offer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**nets.config(), "network": "b.onnx"}))
    assert onnx_volume.offer(tmp_path).weights_bytes > 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut off"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n" + b" " * 80, "Git LFS"),
        (b"PK\x03\x04" + b"\0" * 200, "not an ONNX network"),
    ],
)
def test_files_that_are_no_networks(tmp_path: Path, data: bytes, message: str) -> None:
    nets.folder(tmp_path, data, nets.config())
    with pytest.raises(ModelError, match=message):
        onnx_volume.offer(tmp_path)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("way", ["sliding_window", "fully_convolutional"])
def test_a_network_that_was_cut_off(tmp_path: Path, engine: str, way: str, capfd: pytest.CaptureFixture[str]) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    spec = onnx_volume.offer(nets.folder(tmp_path, nets.chain()[:-3000], nets.config(inference=way, halo=8)))
    with pytest.raises(ModelError, match="not a valid ONNX network"):
        onnx_volume.OnnxVolume().load(ModelContext(spec=spec, engine=engine))
    assert capfd.readouterr() == ("", ""), "a library's parsers complain past every log"


def test_a_file_that_changed_since_it_was_installed(tmp_path: Path) -> None:
    spec = onnx_volume.offer(nets.folder(tmp_path, nets.unet(), nets.config()))
    (tmp_path / "model.onnx").write_bytes(nets.unet(seed=1))
    with pytest.raises(ModelError, match="SHA-256"):
        onnx_volume.OnnxVolume().load(ModelContext(spec=spec))


def test_networks_of_another_shape(tmp_path: Path) -> None:
    point = {"out.w": np.ones((3, 1, 1, 1, 1), np.float32), "out.b": np.zeros(3, np.float32)}
    node = nets.conv("out", "image", "scores", kernel=1)
    two = nets.model([node], point, inputs=[nets.port("second", (1, 1, "d", "h", "w"))])
    last = nets.model([helper.make_node("Identity", ["image"], ["scores"])], {}, image=(1, "d", "h", "w", 1), scores=(1, "d", "h", "w", 1))
    last_fixed = nets.model([helper.make_node("Identity", ["image"], ["scores"])], {}, image=(1, 16, 16, 16, 1), scores=(1, 16, 16, 16, 1))
    flat = nets.model([helper.make_node("Identity", ["image"], ["scores"])], {}, image=(1, 1, "h", "w"), scores=(1, 1, "h", "w"))
    many = nets.model([helper.make_node("Identity", ["image"], ["scores"])], {}, image=(1, 4, "d", "h", "w"), scores=(1, 4, "d", "h", "w"))
    assert "2 inputs" in refused(tmp_path / "two", two, nets.config())
    assert "channels last" in refused(tmp_path / "last", last_fixed, nets.config())
    assert "patch_size must be two numbers [Y, X]" in refused(tmp_path / "flat", flat, nets.config(1))
    assert "patch_size must be three numbers [Z, Y, X]" in refused(tmp_path / "deep", nets.unet(), nets.config(patch_size=[16, 16]))
    slices = nets.unet(image=("n", 1, 16, 16))
    assert "patch_size [32, 32], but the network takes [16, 16]" in refused(tmp_path / "slice", slices, nets.config(patch_size=[32, 32]))
    assert "5 classes, its config.json says 3" in refused(tmp_path / "names", nets.unet(5, image=nets.SLICES), nets.config(patch_size=[8, 8]))
    colours = nets.model([helper.make_node("Identity", ["image"], ["scores"])], {}, image=("n", 3, "h", "w"), scores=("n", 3, "h", "w"))
    assert "3 channels" in refused(tmp_path / "colours", colours, nets.config(patch_size=[8, 8]))
    assert "8 slices at once" in refused(tmp_path / "eight", nets.unet(image=(8, 1, "h", "w")), nets.config(patch_size=[8, 8]))
    tiled = nets.config(inference="fully_convolutional", patch_size=[16, 16])
    assert "one size of input only" in refused(tmp_path / "tiled", slices, tiled)
    assert '"halo"' in refused(tmp_path / "near", nets.unet(image=nets.SLICES), tiled)
    assert "4 channels" in refused(tmp_path / "many", many, nets.config())
    assert "5 classes, its config.json says 3" in refused(tmp_path / "classes", nets.unet(5), nets.config(3))
    fixed = nets.unet(3, image=(1, 1, 16, 16, 16))
    assert "patch_size [32, 32, 32], but the network takes [16, 16, 16]" in refused(tmp_path / "patch", fixed, nets.config(patch_size=[32] * 3))
    assert "one size of input only" in refused(tmp_path / "whole", fixed, nets.config(inference="fully_convolutional"))
    assert '"halo"' in refused(tmp_path / "halo", nets.unet(), nets.config(inference="fully_convolutional"))
    assert "patch_size" in refused(tmp_path / "fixed", nets.unet(), nets.config(inference="fixed", patch_size=None))
    assert "channels last" in refused(tmp_path / "loose", last, nets.config())
    assert "says nothing of a network" in refused(tmp_path / "nothing", nets.unet(), {"architecture": "unet"})


def test_an_input_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    shape: list[int | str] = [1, 1, "d", "h", "w"]
    nodes = [helper.make_node("Cast", ["image"], ["scores"], to=TensorProto.FLOAT)]
    ports = [helper.make_tensor_value_info("image", TensorProto.INT64, shape)], [nets.port("scores", shape)]
    network = helper.make_model(helper.make_graph(nodes, "g", *ports), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    network.doc_string = "small, so that" * 10
    assert "int64" in refused(tmp_path, network.SerializeToString(), nets.config(1))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_answer_that_is_no_number(tmp_path: Path, engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    for way in ("sliding_window", "fully_convolutional"):
        weights = {"out.w": np.full((3, 1, 1, 1, 1), np.nan, np.float32), "out.b": np.zeros(3, np.float32)}
        network = nets.model([nets.conv("out", "image", "scores", kernel=1)], weights, scores=(1, 3, "d", "h", "w"))
        model = nets.loaded(tmp_path / way, network, nets.config(inference=way), engine=engine)
        with pytest.raises(ModelError, match="no numbers"):
            model.segment(Volume(np.ones((20, 20, 20), np.float32)))
        model.close()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_patch_that_the_network_cannot_take(tmp_path: Path, engine: str) -> None:
    """Skip connections need even sizes."""
    if engine == "openvino":
        pytest.importorskip("openvino")
    model = nets.loaded(tmp_path, nets.unet(), nets.config(patch_size=[15, 15, 15]), engine=engine)
    with pytest.raises(ModelError, match="patch_size"):
        model.segment(Volume(np.ones((20, 20, 20), np.float32)))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "multitalent"}, "model_type"),
    ({"model_parameters": []}, "model_parameters"),
    ({"model_parameters": {"patch_size": [1, 2, 3, 4]}}, r"three numbers \[Z, Y, X\], or two \[Y, X\]"),
    ({"model_parameters": {"patch_size": [8]}}, "patch_size"),
    ({"model_parameters": {"patch_size": [8, 0]}}, "patch_size"),
    ({"model_parameters": {"patch_size": [8, 8], "spacing": [1, 1, 1]}}, r"spacing must be two numbers \[Y, X\], as patch_size has two"),
    ({"model_parameters": {"patch_size": [8, 8, 8], "spacing": [1, 1]}}, r"spacing must be three numbers \[Z, Y, X\]"),
    ({"model_parameters": {"patch_size": [8, 8], "spacing": [0, 1]}}, "spacing must be two numbers of"),
    ({"model_parameters": {"patch_size": [8, 8], "halo": [1, 1, 1]}}, "halo"),
    ({"model_parameters": {"patch_size": [8, 8], "mirror_axes": [2]}}, r"0 \(y\) and 1 \(x\)"),
    ({"model_parameters": {"patch_size": [0, 2, 2]}}, "patch_size"),
    ({"model_parameters": {"patch_size": [1.5, 2, 2]}}, "patch_size"),
    ({"model_parameters": {"patch_size": ["a", 2, 2]}}, "patch_size"),
    ({"model_parameters": {"spacing": [1, 1, 0]}}, "spacing"),
    ({"model_parameters": {"spacing": [1, 1, 1e9]}}, "spacing"),
    ({"model_parameters": {"spacing": "1"}}, "spacing"),
    ({"model_parameters": {"normalization_schemes": ["MagicNormalization"]}}, "normalisation"),
    ({"model_parameters": {"orientation": "LPX"}}, "orientation"),
    ({"model_parameters": {"orientation": "LRS"}}, "orientation"),
    ({"model_parameters": {"inference": "guess"}}, "inference"),
    ({"model_parameters": {"step_size": 0}}, "step_size"),
    ({"model_parameters": {"mirror_axes": [3]}}, "mirror_axes"),
    ({"dataset_parameters": {"num_classes": 0}}, "num_classes"),
    ({"dataset_parameters": {"num_classes": 3, "class_names": {"3": "liver"}}}, "class 3"),
    ({"dataset_parameters": {"num_classes": 3, "class_names": {"1": "liver", "2": "liver"}}}, "same name"),
    ({"dataset_parameters": {"class_names": {"one": "liver"}}}, "class_names"),
    ({"dataset_parameters": {"channels": {"0": {}, "1": {}}}}, "2 channels"),
    ({"postprocessing": {"keep_largest": ["heart"]}}, "keep_largest"),
]


@pytest.mark.parametrize(("settings", "word"), BAD)
def test_configurations_that_cannot_be_meant(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        config.parse(settings, "model.onnx")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "nul", '"x"'])
def test_configurations_that_are_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        onnx_volume.offer(tmp_path)


def test_the_documented_example_of_an_nnunet_export_is_understood() -> None:
    plan = config.parse(
        {
            "model_type": "nnunet",
            "model_parameters": {"patch_size": [96, 160, 160], "spacing": [1.5, 0.8, 0.8], "normalization_schemes": ["CTNormalization"]},
            "dataset_parameters": {
                "num_classes": 3,
                "class_names": {"0": "background", "1": "Liver", "2": "liver tumor"},
                "channels": {"0": {"name": "CT", "foreground_properties": {"percentile_00_5": -17, "percentile_99_5": 201, "mean": 99, "std": 39}}},
            },
        },
        "checkpoint_final.onnx",
    )
    assert plan.patch == (96, 160, 160)
    assert plan.spacing == (1.5, 0.8, 0.8)
    assert [label.name for label in plan.labels] == ["liver", "liver_tumor"]
    assert plan.properties["mean"] == 99
    assert (plan.modality, plan.inference, plan.orientation) == ("CT", config.Inference.SLIDING_WINDOW, "LPS")
