"""Small random ONNX networks and the folders that hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from isocenter.core.model import ModelContext, ModelSpec
from isocenter.models import onnx_volume

Weights = dict[str, NDArray[np.float32]]
#: The input of a network of slices.
SLICES = ("n", 1, "h", "w")


def port(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def model(
    nodes: list[onnx.NodeProto],
    weights: Weights,
    *,
    image: Sequence[int | str] = (1, 1, "d", "h", "w"),
    scores: Sequence[int | str] = (1, "c", "d", "h", "w"),
    inputs: Sequence[onnx.ValueInfoProto] = (),
) -> bytes:
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "test", [port("image", image), *inputs], [port("scores", scores)], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = made.SerializeToString()
    return data


def conv(name: str, source: str, target: str, *, dilation: int = 1, stride: int = 1, kernel: int = 3, axes: int = 3) -> onnx.NodeProto:
    pad = (kernel - 1) // 2 * dilation
    sizes = {"kernel_shape": [kernel] * axes, "dilations": [dilation] * axes, "strides": [stride] * axes, "pads": [pad] * 2 * axes}
    return helper.make_node("Conv", [source, f"{name}.w", f"{name}.b"], [target], **sizes)


def random(rng: np.random.Generator, name: str, before: int, after: int, kernel: int = 3, scale: float = 1.0, axes: int = 3) -> Weights:
    size = (after, before, *(kernel,) * axes)
    weight = rng.normal(0, scale / np.sqrt(before * kernel**axes), size).astype(np.float32)
    return {f"{name}.w": weight, f"{name}.b": rng.normal(0, 0.1, after).astype(np.float32)}


def chain(classes: int = 3, channels: int = 4, dilations: Sequence[int] = (1, 2, 3, 1), seed: int = 0, activation: str = "Elu") -> bytes:
    """A MeshNet in small: dilated convolutions that keep the size, a 1 x 1 x 1 at the end."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: Weights = {}
    current, before = "image", 1
    for i, dilation in enumerate(dilations):
        weights |= random(rng, f"c{i}", before, channels, scale=1.7)
        nodes += [conv(f"c{i}", current, f"x{i}", dilation=dilation), helper.make_node(activation, [f"x{i}"], [f"y{i}"])]
        current, before = f"y{i}", channels
    weights |= random(rng, "out", channels, classes, kernel=1, scale=3)
    return model([*nodes, conv("out", current, "scores", kernel=1)], weights, scores=(1, classes, "d", "h", "w"))


def unet(classes: int = 3, seed: int = 0, image: Sequence[int | str] = (1, 1, "d", "h", "w"), sigmoid: bool = False) -> bytes:
    """One step down and up with a skip connection; sizes must be even. Of slices where `image` has four axes."""
    rng = np.random.default_rng(seed)
    axes = len(image) - 2
    weights = random(rng, "a", 1, 4, axes=axes) | random(rng, "down", 4, 6, axes=axes) | random(rng, "out", 8, classes, kernel=1, scale=3, axes=axes)
    weights |= {"up.w": rng.normal(0, 0.4, (6, 4, *(2,) * axes)).astype(np.float32), "up.b": np.zeros(4, np.float32)}
    nodes = [
        conv("a", "image", "a", axes=axes),
        helper.make_node("Relu", ["a"], ["skip"]),
        conv("down", "skip", "b", stride=2, axes=axes),
        helper.make_node("Relu", ["b"], ["low"]),
        helper.make_node("ConvTranspose", ["low", "up.w", "up.b"], ["high"], kernel_shape=[2] * axes, strides=[2] * axes),
        helper.make_node("Concat", ["skip", "high"], ["both"], axis=1),
        conv("out", "both", "logits" if sigmoid else "scores", kernel=1, axes=axes),
    ]
    if sigmoid:
        nodes.append(helper.make_node("Sigmoid", ["logits"], ["scores"]))
    return model(nodes, weights, image=image, scores=(image[0], classes, *image[2:]))


def pointwise(classes: int, image: Sequence[int | str] = (1, 1, "d", "h", "w")) -> bytes:
    """Class k scores k v - k²/2, so that the best class is the value v rounded."""
    values: NDArray[np.float32] = np.arange(classes, dtype=np.float32)
    axes = len(image) - 2
    weights: Weights = {"out.w": values.reshape(-1, 1, *(1,) * axes), "out.b": (-np.square(values) / 2).astype(np.float32)}
    return model([conv("out", "image", "scores", kernel=1, axes=axes)], weights, image=image, scores=(image[0], classes, *image[2:]))


def config(classes: int = 3, **parameters: Any) -> dict[str, Any]:
    """A configuration for any scan, values as they are."""
    defaults = {"normalization_schemes": ["NoNormalization"], "spacing": None, "crop_to_nonzero": False, "patch_size": [16, 16, 16]}
    return {"model_type": "nnunet", "model_parameters": {**defaults, **parameters}, "dataset_parameters": {"num_classes": classes}}


def folder(place: Path, network: bytes, configuration: dict[str, Any]) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "model.onnx").write_bytes(network)
    (place / "config.json").write_text(json.dumps(configuration))
    return place


def loaded(place: Path, network: bytes, configuration: dict[str, Any], **context: Any) -> onnx_volume.OnnxVolume:
    spec: ModelSpec = onnx_volume.offer(folder(place, network, configuration))
    made = onnx_volume.OnnxVolume()
    made.load(ModelContext(spec=spec, **{"threads": 2, "engine": "onnxruntime", **context}))
    return made
