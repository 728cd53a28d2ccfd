"""MeshNet networks from TensorFlow.js to ONNX, with the configuration that runs them.

For the published brain networks of this architecture (brainchop: `model5_gw_ae`, `model18cls`, `model30chan18cls` and their
like): a chain of dilated 3-D convolutions in Keras's layers format, `model.json` and its weights beside it. Networks whose layers
do more than their names say (group normalisation hidden in a layer's name) are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import ModelError

if TYPE_CHECKING:
    import onnx

#: Keras's activations that have an ONNX operation of the same meaning, and that operation's attributes.
_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "elu": ("Elu", {"alpha": 1.0}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.2}),
    "gelu": ("Gelu", {}),
}
_MOST_BYTES = 1 << 30
OPSET = 20


def convert(source: Path, target: Path) -> Path:
    """Write `source`, a folder of TensorFlow.js files (or its `model.json`), as the ONNX network `target`; returns `target`.

    `config.json` is written beside it unless there is one, with class names from `colormap*.json` or `labels.json` of the
    source where it has them. Raises `ModelError` for files that are missing, cut off or hold another kind of network.
    """
    import onnx

    description = source if source.suffix == ".json" else source / "model.json"
    model = _json(description)
    weights = _weights(model, description.parent)
    network, classes, reach = _network(model, weights)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    onnx.save_model(network, partial)
    partial.replace(target)
    beside = target.parent / "config.json"
    if not beside.exists():
        names = class_names(description.parent, classes)
        beside.write_text(json.dumps(configuration(names, halo=max(reach, 1)), indent=2) + "\n", encoding="utf-8")
    return target


def configuration(names: list[str], *, halo: int = 48, description: str = "") -> dict[str, Any]:
    """`config.json` of a MeshNet for T1 brain MR. names: of all classes, the background first. halo: how far it looks, in voxels.

    The networks were trained on scans of 1 mm in FreeSurfer's axes, read as (left, down, forward), 2nd to 98th percentile to 0..1.
    """
    return {
        "model_type": "meshnet",
        "description": description or f"MeshNet, T1 brain MR, {len(names) - 1} structures",
        "license": "MIT",
        "model_parameters": {
            "spacing": [1.0, 1.0, 1.0],
            "orientation": "AIL",
            "normalization_schemes": ["QuantileNormalization"],
            "normalization_parameters": {"lower": 2, "upper": 98},
            "halo": halo,
        },
        "dataset_parameters": {"modality": "MR", "num_classes": len(names), "class_names": {str(i): name for i, name in enumerate(names)}},
    }


def class_names(folder: Path, classes: int) -> list[str]:
    """Names from a colour map (`{"labels": [...]}`) or `labels.json` (`{"0": ...}`) in a folder that fits; else numbers."""
    for path in (*sorted(folder.glob("colormap*.json")), folder / "labels.json"):
        if path.exists():
            found = _json(path)
            names = found.get("labels", list(found.values()))
            if isinstance(names, list) and len(names) == classes and all(isinstance(name, str) for name in names):
                return names
    return ["background", *(f"class_{i}" for i in range(1, classes))]


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"there is no {path.name} to convert; fetch the model again") from None
    except (OSError, ValueError, RecursionError):
        raise ModelError(f"{path.name} is not readable JSON; fetch the model again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path.name} does not describe a model")
    return found


def _weights(model: Mapping[str, Any], folder: Path) -> dict[str, NDArray[np.float32]]:
    """All weights by name. float32 only: quantised files would need their own scales."""
    found: dict[str, NDArray[np.float32]] = {}
    try:
        for group in model["weightsManifest"]:
            data = b"".join(_bytes(folder, str(name)) for name in group["paths"])
            place = 0
            for tensor in group["weights"]:
                shape = [int(n) for n in tensor["shape"]]
                if tensor["dtype"] != "float32" or "quantization" in tensor:
                    raise ModelError("the model's weights are quantised; only float32 can be converted")
                size = 4 * math.prod(shape)
                if place + size > len(data):
                    raise ModelError("the model's weights are cut off; fetch the model again")
                found[str(tensor["name"])] = np.frombuffer(data, "<f4", math.prod(shape), place).reshape(shape)
                place += size
    except (KeyError, TypeError, ValueError):
        raise ModelError("model.json does not say where its weights are; it is not a layers model of TensorFlow.js") from None
    return found


def _bytes(folder: Path, name: str) -> bytes:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise ModelError(f"the model's weights '{path.name[:80]}' are missing; fetch the model again")
    if path.stat().st_size > _MOST_BYTES:
        raise ModelError(f"the model's weights '{path.name[:80]}' are too large for a MeshNet")
    return path.read_bytes()


def _network(model: Mapping[str, Any], weights: Mapping[str, NDArray[np.float32]]) -> tuple[onnx.ModelProto, int, int]:
    """(network, classes, how far it looks) of a chain of layers."""
    import onnx
    from onnx import helper

    try:
        layers = model["modelTopology"]["model_config"]["config"]["layers"]
        nodes: list[onnx.NodeProto] = []
        tensors: list[onnx.TensorProto] = []
        current, classes, reach = "image", 1, 0
        previous = None
        for layer in layers:
            kind, config = layer["class_name"], layer["config"]
            before = layer.get("inbound_nodes") or []
            if kind == "InputLayer":
                if config["batch_input_shape"][-1] != 1:
                    raise ModelError("the model takes several channels; only one is possible here")
                previous = layer["name"]
                continue
            if len(before) != 1 or len(before[0]) != 1 or before[0][0][0] != previous:
                raise ModelError("the model is not a chain of layers, so it is no MeshNet")
            previous = layer["name"]
            if kind == "Conv3D":
                made, kept, far = _convolution(previous, config, weights, current)
                nodes, tensors, reach, classes = [*nodes, made], [*tensors, *kept], reach + far, int(config["filters"])
                current = made.output[0]
                kind, config = "Activation", {"activation": config.get("activation", "linear")}
            if kind == "Activation" and config["activation"] != "linear":
                if config["activation"] not in _ACTIVATIONS:
                    raise ModelError(f"the model's activation '{str(config['activation'])[:40]}' cannot be converted")
                operation, settings = _ACTIVATIONS[config["activation"]]
                nodes.append(helper.make_node(operation, [current], [f"{current}_{operation.lower()}"], **settings))
                current = nodes[-1].output[0]
            elif kind not in ("Activation", "Dropout", "SpatialDropout3D"):
                raise ModelError(f"the model's layer '{str(kind)[:40]}' cannot be converted; a MeshNet holds convolutions and activations")
    except (KeyError, TypeError, IndexError, ValueError):
        raise ModelError("model.json does not describe a layers model of TensorFlow.js") from None
    if not nodes:
        raise ModelError("the model holds no layers")
    nodes[-1].output[0] = "logits"
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, n, "d", "h", "w"]) for name, n in (("image", 1), ("logits", classes))]
    graph = helper.make_graph(nodes, "meshnet", ports[:1], ports[1:], tensors)
    made_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(made_model)
    return made_model, classes, reach


def _convolution(
    name: str, config: Mapping[str, Any], weights: Mapping[str, NDArray[np.float32]], current: str
) -> tuple[onnx.NodeProto, list[onnx.TensorProto], int]:
    """(node, its tensors, how far it looks) of a Keras Conv3D, whose kernel is (z, y, x, in, out)."""
    from onnx import helper, numpy_helper

    if name.endswith("_gn"):
        raise ModelError("the model normalises inside its convolutions (its layers are called '..._gn'); such networks cannot be converted")
    if config.get("padding") != "same" or config.get("data_format", "channels_last") != "channels_last" or set(config.get("strides", [1])) != {1}:
        raise ModelError("the model's convolutions change the size of their input, so it is no MeshNet")
    kernel = weights[f"{name}/kernel"]
    dilation = [int(d) for d in config.get("dilation_rate", [1, 1, 1])]
    reach = [(k - 1) // 2 * d for k, d in zip(kernel.shape[:3], dilation, strict=True)]
    if any(k % 2 == 0 for k in kernel.shape[:3]):
        raise ModelError("the model's kernels have even sizes, so it is no MeshNet")
    kept = [numpy_helper.from_array(np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2)), f"{name}.weight")]
    if config.get("use_bias", True):
        kept.append(numpy_helper.from_array(np.ascontiguousarray(weights[f"{name}/bias"]), f"{name}.bias"))
    inputs = [current, *(tensor.name for tensor in kept)]
    node = helper.make_node("Conv", inputs, [f"{name}_out"], kernel_shape=kernel.shape[:3], dilations=dilation, pads=[*reach, *reach])
    return node, kept, max(reach)
