"""ONNX networks in OpenVINO: read by its ONNX reader alone, compiled in a precision that this processor really computes in."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np

_ONE = threading.Lock()
#: Numbers that share a scale in int8, along a product's inner dimension. For MiniLM: 128 are a tenth faster, with twice the error.
_GROUP = 64


def read(network: Path | bytes) -> Any:
    """The network in a file or in memory.

    Raises OpenVINO's own exceptions for one that is damaged. `Core.read_model` would hand such a file to the readers of
    TensorFlow and others in turn, which write their complaints to the process's standard error, past every log.
    """
    from openvino.frontend import FrontEndManager

    reader = FrontEndManager().load_by_framework("onnx")
    return reader.convert(reader.load(network if isinstance(network, Path) else io.BytesIO(network)))


def _prepare() -> None:
    """Have OpenVINO's Python binding make its table of element types, which the first look at a tensor's values does.

    Its maker gives the interpreter lock away for a moment. A second thread that comes just then waits for the table inside of
    C++ with that lock in its hands, and the whole process stands still for good: two texts' batches did that, being the first.
    """
    import openvino

    with _ONE:
        np.asarray(openvino.Tensor(np.zeros(1, np.float32)).data)


def has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor: x86 from AVX-512 on, ARM with bf16 instructions."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _quantize(model: Any) -> None:
    """Give the network's dense layers int8 weights in groups of `_GROUP`, each with its scale (Dettmers et al., 8-bit Optimizers via
    Block-wise Quantization, ICLR 2022). OpenVINO rounds what comes into them in groups of the same size, where the processor
    multiplies such numbers; elsewhere it computes in floating point with the rounded weights.
    """
    from openvino import opset13 as ops

    for product in [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]:
        source = product.input_value(1).get_node()
        if source.get_type_name() != "Constant" or len(source.shape) != 2:
            continue
        matrix = np.asarray(source.data, np.float32)  # (in, out), or (out, in) where it is transposed
        rows = np.ascontiguousarray(matrix if product.get_attributes()["transpose_b"] else matrix.T)
        groups = rows.reshape(len(rows), -1, _GROUP if rows.shape[1] % _GROUP == 0 else rows.shape[1])
        scales = np.maximum(np.abs(groups).max(axis=-1, keepdims=True), 1e-12) / 127
        rounded = ops.convert(ops.constant(np.rint(groups / scales).astype(np.int8)), "f32")
        weights = ops.reshape(ops.multiply(rounded, ops.constant(scales)), ops.constant(np.array(rows.shape, np.int64)), False)
        new = ops.matmul(product.input_value(0), weights, product.get_attributes()["transpose_a"], True)
        product.output(0).replace(new.output(0))


def compiled(model: Any, precision: str, *, threads: int, streams: int = 1) -> tuple[Any, str]:
    """The network for the processor, and the precision that it got: float32 where bfloat16 was asked for and is not to be had.

    precision: "float32", "bfloat16", or "int8" for its dense layers, with the rest in bfloat16 where that is to be had.
    threads: of all streams together; streams: how many calls may compute at once.
    """
    import openvino

    _prepare()
    if precision == "int8":
        _quantize(model)
    wanted = "bf16" if precision != "float32" and has_bfloat16() else "f32"
    hints = {
        "INFERENCE_PRECISION_HINT": wanted,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
        # A thread that is bound to one core waits there for whoever else uses it, with the other cores idle.
        "ENABLE_CPU_PINNING": False,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP if precision == "int8" else 0,
    }
    made = openvino.Core().compile_model(model, "CPU", hints)
    got = made.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return made, precision if precision == "int8" else {"bf16": "bfloat16", "f32": "float32"}.get(got, got)
