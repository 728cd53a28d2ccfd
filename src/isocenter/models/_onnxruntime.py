"""ONNX Runtime, told to keep to itself."""

from __future__ import annotations

from typing import Any


def load() -> Any:
    """The module `onnxruntime`, reporting nothing to anybody.

    From 1.29 on its published packages send what they run (names and hashes of networks among it) to their maker, under an
    identifier that they keep in the user's folder. Elsewhere than on Windows `ORT_DISABLE_TELEMETRY`, which `isocenter` sets,
    keeps that from ever beginning; on Windows it is turned off here.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime
