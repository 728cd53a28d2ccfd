"""Isocenter: one self-hosted server, command line and viewer for medical-imaging AI.

    import isocenter
    ct = isocenter.load("ct.nii.gz")
    lungs = isocenter.segment(ct, "lungs")
    isocenter.save(lungs, "lungs.nii.gz", ct)

Names are imported when they are first used, so that `import isocenter` costs next to nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isocenter.api import list_models, load, save, segment
    from isocenter.core.errors import IsocenterError
    from isocenter.core.prompts import Box, Lasso, MaskPrompt, Point, Scribble, Text
    from isocenter.core.segmentation import Segmentation
    from isocenter.core.volume import Volume

__version__ = "0.1.0"
# ONNX Runtime looks at it once, when it is first imported, by whomever; see `models/_onnxruntime.py`.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
_HOME = {
    "list_models": "api",
    "load": "api",
    "save": "api",
    "segment": "api",
    "IsocenterError": "core.errors",
    "Box": "core.prompts",
    "Lasso": "core.prompts",
    "MaskPrompt": "core.prompts",
    "Point": "core.prompts",
    "Scribble": "core.prompts",
    "Text": "core.prompts",
    "Segmentation": "core.segmentation",
    "Volume": "core.volume",
}
__all__ = [
    "Box",
    "IsocenterError",
    "Lasso",
    "MaskPrompt",
    "Point",
    "Scribble",
    "Segmentation",
    "Text",
    "Volume",
    "list_models",
    "load",
    "save",
    "segment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'isocenter' has no attribute '{name}'")
    return getattr(importlib.import_module(f"isocenter.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
