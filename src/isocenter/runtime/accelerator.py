"""The device that text models run on: which one, how much memory it has, and how much of it anybody uses."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from isocenter.runtime.environment import version

#: What the drivers of NVIDIA's and AMD's cards leave in the file system.
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")


def likely(wanted: str | None) -> str:
    """`wanted`, or "cuda" where torch and a card's driver are there (ROCm calls itself so too), else "cpu". Loads nothing."""
    if wanted:
        return wanted
    card = any(Path(p).exists() for p in _DRIVERS) or shutil.which("nvidia-smi") is not None
    return "cuda" if card and version("torch") is not None else "cpu"


def device(wanted: str | None) -> str:
    """As `likely`, but asks torch whether the card works, which takes seconds."""
    if wanted or likely(wanted) == "cpu":
        return wanted or "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def present(device: str) -> bool:
    """Whether a device is there: a card that torch can use, or the processor."""
    if device == "cpu":
        return True
    if version("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available() and int(device.partition(":")[2] or 0) < torch.cuda.device_count())


def engine(wanted: str, device: str, precision: str) -> str:
    """The engine that "auto" stands for."""
    if wanted != "auto":
        return wanted
    if device != "cpu":
        return "torch"
    # int8 is far nearer to float32 there than in ONNX Runtime, which serves it where OpenVINO is not installed.
    if precision == "bfloat16" or (precision == "int8" and find_spec("openvino")):
        return "openvino"
    return "torch" if precision == "float16" else "onnxruntime"


def facts(device: str) -> dict[str, Any]:
    """What `/info` tells of a device. Memory is the device's own count, so that of all processes."""
    found: dict[str, Any] = {
        "device": device,
        "device_name": "cpu",
        "vram_total_mb": None,
        "vram_used_mb": None,
        "pytorch_version": version("torch"),
        "cuda_version": None,
    }
    if device == "cpu":
        return found
    if not present(device):
        return {**found, "device_name": "not available"}
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return {
        **found,
        "device_name": torch.cuda.get_device_name(device),
        "vram_total_mb": round(total / 1024**2),
        "vram_used_mb": round((total - free) / 1024**2),
        "cuda_version": torch.version.cuda or getattr(torch.version, "hip", None),
    }
