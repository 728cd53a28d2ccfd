"""What runs an ONNX file: ONNX Runtime's execution providers, those asked for that are there, and OpenVINO on a processor.

ONNX Runtime is asked when something is about to run (its import takes a seventh of a second and 20 MB).
"""

from __future__ import annotations

import ctypes.util
import importlib.util
from collections.abc import Sequence

import structlog

from isocenter.models import _onnxruntime
from isocenter.runtime.environment import ONNX_RUNTIMES, version

log = structlog.get_logger("isocenter.runtime")

#: Asked for when nobody says: TensorRT and Core ML are used where they are, NVIDIA's and AMD's cards, and a processor.
PREFERRED = (
    "TensorrtExecutionProvider",
    "CUDAExecutionProvider",
    "MIGraphXExecutionProvider",
    "ROCMExecutionProvider",
    "CoreMLExecutionProvider",
    "CPUExecutionProvider",
)
#: Those that compute on a card that torch calls "cuda".
ON_CARDS = frozenset(PREFERRED[:4])


#: What was logged already.
_SAID: set[tuple[str, ...]] = set()


def available() -> list[str]:
    """The providers that the installed ONNX Runtime offers. A GPU build lists TensorRT even where TensorRT itself is missing."""
    onnxruntime = _onnxruntime.load()

    return [name for name in onnxruntime.get_available_providers() if name != "TensorrtExecutionProvider" or _tensorrt()]


def effective(requested: Sequence[str] | None, offered: Sequence[str] | None = None) -> list[str]:
    """Those requested that are offered, in the order requested; the processor's when there is none."""
    offered = available() if offered is None else offered
    found = [name for name in dict.fromkeys(requested or PREFERRED) if name in offered]
    return found or ["CPUExecutionProvider"]


def announce(requested: Sequence[str] | None) -> list[str]:
    """The providers in use; the first time in a process, the three lines that operators look for are logged."""
    offered = available()
    using = effective(requested, offered)
    if tuple(using) in _SAID:
        return using
    _SAID.add(tuple(using))
    log.info(f"ONNX providers requested: {list(requested or PREFERRED)}")
    log.info(f"ONNX providers available: {offered}")
    log.info(f"ONNX providers using: {using}")
    return using


def engine(wanted: str, device: str, using: Sequence[str]) -> str:
    """What "auto" stands for: OpenVINO on a processor where it is installed (twice to seven times as fast), else ONNX Runtime."""
    if wanted != "auto":
        return wanted
    on_processor = device == "cpu" and not set(using) - {"CPUExecutionProvider"}
    return "openvino" if on_processor and version("openvino") is not None else "onnxruntime"


def conflicts() -> list[str]:
    """Installed packages that overwrite each other's ONNX Runtime; empty with one or none."""
    found = [name for name in ONNX_RUNTIMES if version(name) is not None]
    return found if len(found) > 1 else []


def _tensorrt() -> bool:
    return any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_libs")) or ctypes.util.find_library("nvinfer") is not None
