"""An ONNX graph under construction, and the pieces that all encoders are made of.

Built with `onnx.helper` from arrays; no torch, no export. `fused` picks ONNX Runtime's own operators (attention, skip
connection with normalisation, GELU with bias), which do in one pass over memory what the standard ones do in several;
other engines get the standard operators. `int8` quantizes the dense layers: weights once, by column; activations as they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import ModelError

MICROSOFT = "com.microsoft"
OPSET = 20
#: Above this a model's weights lie outside of the protobuf message, which cannot hold more than 2 GiB.
_INLINE_BYTES = 1 << 30


class Graph:
    """Nodes and constants. Every method returns the name of its result."""

    def __init__(self, *, fused: bool, int8: bool = False) -> None:
        self.fused = fused
        self.int8 = int8
        self.constants: dict[str, NDArray[Any]] = {}
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []

    def input(self, name: str, shape: Sequence[str]) -> str:
        """An int64 input with named, free dimensions."""
        from onnx import TensorProto, helper

        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, list(shape)))
        return name

    def constant(self, array: NDArray[Any]) -> str:
        """A constant tensor; small equal ones are shared."""
        if array.size <= 8:
            for name, known in self.constants.items():
                if known.dtype == array.dtype and known.shape == array.shape and np.array_equal(known, array):
                    return name
        name = f"c{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def ints(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """A constant float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node with one result."""
        from onnx import helper

        name = f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], domain=domain, **attributes))
        return name

    def linear(self, x: str, matrix: NDArray[np.float32], bias: NDArray[np.float32] | None = None) -> str:
        """`x @ matrix + bias`."""
        if self.int8:
            scale = np.maximum(np.abs(matrix).max(axis=0), 1e-12) / 127
            rounded = np.round(matrix / scale).astype(np.int8)
            inputs = [x, self.constant(rounded), self.constant(scale.astype(np.float32)), self.constant(np.zeros(scale.shape, np.int8))]
            return self.op("DynamicQuantizeMatMul", *inputs, *([self.constant(bias)] if bias is not None else []), domain=MICROSOFT)
        product = self.op("MatMul", x, self.constant(matrix))
        return product if bias is None else self.op("Add", product, self.constant(bias))

    def normalise(self, x: str, scale: NDArray[np.float32], shift: NDArray[np.float32], epsilon: float) -> str:
        """Layer normalisation over the last axis."""
        return self.op("LayerNormalization", x, self.constant(scale), self.constant(shift), axis=-1, epsilon=epsilon)

    def add_and_normalise(
        self,
        x: str,
        dense: tuple[NDArray[np.float32], NDArray[np.float32]],
        skip: str,
        norm: tuple[NDArray[np.float32], NDArray[np.float32]],
        epsilon: float,
    ) -> str:
        """`norm(dense(x) + skip)`: the end of each half of a transformer layer."""
        matrix, bias = dense
        if not self.fused or self.int8:
            return self.normalise(self.op("Add", self.linear(x, matrix, bias), skip), *norm, epsilon)
        inputs = [self.op("MatMul", x, self.constant(matrix)), skip, *(self.constant(v) for v in (*norm, bias))]
        return self.op("SkipLayerNormalization", *inputs, domain=MICROSOFT, epsilon=epsilon)

    def activate(self, x: str, dense: tuple[NDArray[np.float32], NDArray[np.float32]], activation: str) -> str:
        """`activation(dense(x))`."""
        matrix, bias = dense
        if activation == "gelu" and self.fused and not self.int8:
            return self.op("BiasGelu", self.op("MatMul", x, self.constant(matrix)), self.constant(bias), domain=MICROSOFT)
        return self.activation(self.linear(x, matrix, bias), activation)

    def activation(self, y: str, name: str) -> str:
        """An activation by its name in `config.json`."""
        if name == "gelu":
            return self.op("Gelu", y)
        if name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
            return self.op("Gelu", y, approximate="tanh")
        if name in ("silu", "swish"):
            return self.op("Mul", y, self.op("Sigmoid", y))
        if name in ("relu", "tanh"):
            return self.op(name.capitalize(), y)
        raise ModelError(f"the text model's activation '{name[:40]}' is not supported")

    def heads(self, x: str, count: int) -> str:
        """(batch, tokens, hidden) to (batch, heads, tokens, hidden / heads)."""
        return self.op("Transpose", self.op("Reshape", x, self.ints(0, 0, count, -1)), perm=[0, 2, 1, 3])

    def joined(self, x: str) -> str:
        """The way back from `heads`."""
        return self.op("Reshape", self.op("Transpose", x, perm=[0, 2, 1, 3]), self.ints(0, 0, -1))

    def finish(self, output: str, *, inline: bool = False) -> tuple[bytes, dict[str, NDArray[Any]]]:
        """The serialised model, whose one output is called `states`, and the constants that lie outside of it."""
        from onnx import TensorProto, helper, numpy_helper

        self._nodes.append(helper.make_node("Identity", [output], ["states"]))
        total = sum(a.nbytes for a in self.constants.values())
        outside = {} if inline or total < _INLINE_BYTES else {name: a for name, a in self.constants.items() if a.nbytes >= 4096}
        tensors = []
        for name, array in self.constants.items():
            tensor = numpy_helper.from_array(array[:0] if name in outside else array, name)
            if name in outside:
                tensor.dims[:] = array.shape
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value="memory")
            tensors.append(tensor)
        result = helper.make_tensor_value_info("states", TensorProto.FLOAT, ["batch", "tokens", "hidden"])
        graph = helper.make_graph(self._nodes, "encoder", self._inputs, [result], tensors)
        sets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=sets, ir_version=9)
        return model.SerializeToString(), outside
