"""ONNX networks in OpenVINO: read by its ONNX reader alone, compiled in a precision that this processor really computes in."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np

_ONE = threading.Lock()


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


def compiled(model: Any, precision: str, *, threads: int, streams: int = 1) -> tuple[Any, str]:
    """The network for the processor, and the precision that it got: float32 where bfloat16 was asked for and is not to be had.

    precision: "float32" or "bfloat16". threads: of all streams together; streams: how many calls may compute at once.
    """
    import openvino

    _prepare()
    wanted = "bf16" if precision == "bfloat16" and has_bfloat16() else "f32"
    hints = {
        "INFERENCE_PRECISION_HINT": wanted,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
        # A thread that is bound to one core waits there for whoever else uses it, with the other cores idle.
        "ENABLE_CPU_PINNING": False,
    }
    made = openvino.Core().compile_model(model, "CPU", hints)
    got = made.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return made, {"bf16": "bfloat16", "f32": "float32"}.get(got, got)
