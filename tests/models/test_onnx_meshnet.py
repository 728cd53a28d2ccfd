"""MeshNet: TensorFlow.js files to ONNX, and the published networks on a real scan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from isocenter.core.errors import ModelError
from isocenter.core.model import QUIET, ModelContext
from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.io import door
from isocenter.models import onnx_volume
from isocenter.models._onnx import chain, meshnet
from isocenter.models._onnx.engine import make
from tests.models import onnx_networks as nets

DILATIONS = (1, 2, 4, 2, 1)


def layers_model(place: Path, network: onnx.ModelProto, activation: str, **changes: Any) -> Path:
    """The TensorFlow.js files of a chain of ONNX convolutions, as Keras and its converter write them."""
    weights = {t.name: numpy_helper.to_array(t) for t in network.graph.initializer}
    layers: list[dict[str, Any]] = [{"class_name": "InputLayer", "name": "input", "config": {"batch_input_shape": [None, 256, 256, 256, 1]}}]
    manifest, data, before = [], b"", "input"

    def inbound(name: str) -> list[Any]:
        return [[[name, 0, 0, {}]]]

    convolutions = [node for node in network.graph.node if node.op_type == "Conv"]
    for i, node in enumerate(convolutions):
        name = f"conv3d_{i}" if node is not convolutions[-1] else "output"
        kernel, bias = weights[node.input[1]].transpose(2, 3, 4, 1, 0), weights[node.input[2]]
        dilation = next(list(a.ints) for a in node.attribute if a.name == "dilations")
        config = {"name": name, "filters": len(bias), "kernel_size": list(kernel.shape[:3]), "strides": [1, 1, 1], "dilation_rate": dilation}
        config |= {"padding": "same", "data_format": "channels_last", "activation": "linear", "use_bias": True, "dtype": "float32", **changes}
        layers.append({"class_name": "Conv3D", "name": name, "config": config, "inbound_nodes": inbound(before)})
        before = name
        for part, array in (("kernel", kernel), ("bias", bias)):
            manifest.append({"name": f"{name}/{part}", "shape": list(array.shape), "dtype": "float32"})
            data += np.ascontiguousarray(array, "<f4").tobytes()
        if node is not convolutions[-1]:
            layers.append({"class_name": "Activation", "name": f"a{i}", "config": {"activation": activation}, "inbound_nodes": inbound(before)})
            before = f"a{i}"
    place.mkdir(parents=True, exist_ok=True)
    half = len(data) // 2
    (place / "group1-shard1of2.bin").write_bytes(data[:half])
    (place / "group1-shard2of2.bin").write_bytes(data[half:])
    groups = [{"paths": ["group1-shard1of2.bin", "group1-shard2of2.bin"], "weights": manifest}]
    model = {"format": "layers-model", "modelTopology": {"model_config": {"class_name": "Functional", "config": {"layers": layers}}}}
    (place / "model.json").write_text(json.dumps({**model, "weightsManifest": groups}))
    return place


@pytest.mark.parametrize(("activation", "operation"), [("elu", "Elu"), ("relu", "Relu")])
def test_converted_networks_answer_as_before(tmp_path: Path, activation: str, operation: str) -> None:
    network = onnx.load_model_from_string(nets.chain(classes=4, channels=5, dilations=DILATIONS, activation=operation))
    source = layers_model(tmp_path / "tfjs", network, activation)
    (source / "colormap.json").write_text(json.dumps({"R": [0, 1, 2, 3], "labels": ["Unknown", "White-Matter", "Grey Matter", "CSF"]}))
    target = meshnet.convert(source, tmp_path / "installed" / "model.onnx")
    context = ModelContext(threads=2, engine="onnxruntime")
    image = np.random.default_rng(0).random((1, 1, 14, 22, 18), dtype=np.float32)
    theirs = tmp_path / "theirs.onnx"
    onnx.save_model(network, theirs)
    assert np.abs(make(target, context).run(image) - make(theirs, context).run(image)).max() < 1e-5
    spec = onnx_volume.offer(target.parent)
    assert [label.name for label in spec.labels] == ["white_matter", "grey_matter", "csf"]
    assert spec.modalities == ("MR",)
    model = onnx_volume.OnnxVolume()
    model.load(ModelContext(spec=spec, engine="onnxruntime"))
    assert model._halo == (10, 10, 10)
    assert model.segment(Volume(np.random.default_rng(1).integers(0, 255, (20, 20, 20)).astype(np.uint8), modality="MR")).mask.shape == (20, 20, 20)


def test_a_configuration_that_is_there_stays(tmp_path: Path) -> None:
    source = layers_model(tmp_path, onnx.load_model_from_string(nets.chain()), "elu")
    (tmp_path / "config.json").write_text("{}")
    meshnet.convert(source, tmp_path / "model.onnx")
    assert (tmp_path / "config.json").read_text() == "{}"


def test_files_that_cannot_be_converted(tmp_path: Path) -> None:
    network = onnx.load_model_from_string(nets.chain())
    target = tmp_path / "model.onnx"

    def refused(source: Path) -> str:
        with pytest.raises(ModelError) as caught:
            meshnet.convert(source, target)
        assert str(tmp_path) not in caught.value.message
        assert not target.exists()
        return caught.value.message

    assert "no model.json" in refused(tmp_path / "nothing")
    good = layers_model(tmp_path / "good", network, "elu")
    text = (good / "model.json").read_text()
    changes: list[tuple[Callable[[str], str], str]] = [
        (lambda t: t[:100], "not readable"),
        (lambda t: t.replace("Conv3D", "Dense"), "Dense"),
        (lambda t: t.replace('"elu"', '"softmax"'), "softmax"),
        (lambda t: t.replace('"same"', '"valid"'), "size"),
        (lambda t: t.replace("conv3d_0", "conv3d_0_gn"), "_gn"),
        (lambda t: t.replace("group1-shard1of2.bin", "../../secret.bin"), "missing"),
        (lambda t: t.replace('"float32"}, {"name": "output/bias"', '"uint8"}, {"name": "output/bias"'), "quantised"),
        (lambda t: t.replace('"weightsManifest"', '"nothing"'), "where its weights"),
        (lambda t: t.replace('[[["a0"', '[[["a1"'), "not a chain"),
        (lambda t: t.replace("null, 256, 256, 256, 1", "null, 256, 256, 256, 3"), "several channels"),
    ]
    for change, word in changes:
        (good / "model.json").write_text(change(text))
        assert word in refused(good)
    (good / "model.json").write_text(text)
    (good / "group1-shard2of2.bin").write_bytes(b"\0" * 16)
    assert "cut off" in refused(good)


@pytest.fixture(scope="module")
def t1(data: Path) -> Volume:
    return door.read_path(data / "brainchop_mit" / "t1_crop.nii.gz", limits=Settings(), modality="MR")


def installed(place: Path, data: Path, name: str, colours: str) -> onnx_volume.OnnxVolume:
    shutil.copy(data / "brainchop_mit" / "onnx" / f"{name}.onnx", place / "model.onnx")
    names = json.loads((data / "brainchop_mit" / colours).read_text())["labels"]
    (place / "config.json").write_text(json.dumps(meshnet.configuration(names)))
    model = onnx_volume.OnnxVolume()
    model.load(ModelContext(spec=onnx_volume.offer(place), threads=2, engine="onnxruntime"))
    return model


def test_the_real_network_agrees_with_its_published_answer(tmp_path: Path, data: Path, t1: Volume) -> None:
    """model5_gw_ae on a T1 of 256 x 256 x 256; the two larger ones take minutes and are in `benchmarks/volumes.py`."""
    model = installed(tmp_path, data, "model5_gw_ae", "model5_gw_ae/colormap3.json")
    answer = model.segment(t1)
    expected = np.asarray(nib.load(data / "brainchop_mit" / "reference_outputs" / "model5_gw_ae_t1_crop_argmax.nii.gz").dataobj).T
    assert (answer.mask == expected).mean() >= 0.999
    assert [label.name for label in answer.labels] == ["white_matter", "grey_matter"]
    assert model._halo == (48, 48, 48)


@pytest.mark.parametrize("name", ["model18cls", "subcortical"])
def test_the_larger_real_networks_stream_as_they_answer_at_once(data: Path, t1: Volume, name: str) -> None:
    """Scores of a block from the middle of the brain: slice by slice, and in one piece."""
    path = data / "brainchop_mit" / "onnx" / f"{name}.onnx"
    block = (t1.array[110:142, 120:150, 100:132].astype(np.float32) / 127).astype(np.float32)
    context = ModelContext(threads=2, engine="onnxruntime")
    found = chain.find(path)
    assert found is not None
    assert found.halo == (46, 46, 46)
    whole = make(path, context).run(block[None, None])
    streamed = np.concatenate([piece.copy() for piece in chain.Stream(found, context).run(block, QUIET)], 2)
    assert np.abs(streamed - whole).max() < 1e-3
    assert (streamed.argmax(1) == whole.argmax(1)).mean() > 0.9999


def test_deepbrain_finds_a_brain_of_one_and_a_half_litres(tmp_path: Path, data: Path, t1: Volume) -> None:
    shutil.copy(data / "onnx_deepbrain" / "deepbrain_v2_fixed128.onnx", tmp_path / "model.onnx")
    settings = {
        "model_type": "fixed",
        "model_parameters": {"patch_size": [128, 128, 128], "normalization_schemes": ["RescaleTo01Normalization"], "threshold": 0.5},
        "postprocessing": {"keep_largest": True},
        "dataset_parameters": {"modality": "MR", "num_classes": 2, "class_names": {"1": "brain"}},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    model = onnx_volume.OnnxVolume()
    model.load(ModelContext(spec=onnx_volume.offer(tmp_path), threads=2, engine="onnxruntime"))
    brain = model.segment(t1).mask != 0
    assert 1.4e6 < brain.sum() * t1.grid.voxel_mm3 < 1.6e6
    path = data / "brainchop_mit" / "reference_outputs" / "model5_gw_ae_t1_crop_argmax.nii.gz"
    other = np.asarray(nib.load(path).dataobj).T != 0
    assert 2 * (brain & other).sum() / (brain.sum() + other.sum()) > 0.88
