"""What is done with published files before they are installed, so that nothing is unpickled while serving.

`CONVERSIONS` are what an entry's `convert` may name. They need the libraries of the file's own format, and say so.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from isocenter.core.errors import ModelError

#: Ends of the names of files that may hold a pickle.
PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def is_pickled(path: Path) -> bool:
    """Whether a file is of a kind that unpickling reads: torch's ZIP archives and plain pickles."""
    if not path.name.endswith(PICKLED):
        return False
    with path.open("rb") as file:
        head = file.read(4)
    return head.startswith((_ZIP, _PICKLE)) or not path.name.endswith(".bin")


def read_pickled(path: Path) -> Any:
    """What a torch file holds, read with `weights_only=True`: tensors, numbers, containers, and numpy's scalars, which nnU-Net writes.

    Raises `ModelError` for anything else, and where torch is not installed. The tensors are mapped, not read.
    """
    if importlib.util.find_spec("torch") is None:
        raise ModelError(f"{path.name} is a torch file, which only torch can read safely: pip install 'isocenter[torch]'")
    import numpy as np
    import torch

    core = np._core.multiarray  # type: ignore[attr-defined, unused-ignore]
    allowed: list[Any] = [(core.scalar, "numpy.core.multiarray.scalar"), core.scalar, np.dtype, np.ndarray]
    allowed += [core._reconstruct, (core._reconstruct, "numpy.core.multiarray._reconstruct")]
    allowed += [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "u1", "?")]
    try:
        with torch.serialization.safe_globals(allowed):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format of before 2020 cannot be mapped
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch has many words for it, and none is for users
        raise ModelError(
            f"{path.name} is refused: it is damaged, or it holds more than weights (loading it would run code of whoever made it)"
        ) from None


def check_pickles(folder: Path) -> None:
    """Raise `ModelError` for a file that is unpickled by its family and holds more than weights."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and is_pickled(path):
            read_pickled(path)


def to_safetensors(folder: Path) -> None:
    """`pytorch_model.bin` (or the only torch file) to `model.safetensors`; the torch file is removed."""
    pickled = sorted(p for p in folder.iterdir() if p.is_file() and is_pickled(p))
    if not pickled or (folder / "model.safetensors").is_file():
        return
    if len(pickled) > 1:
        raise ModelError("there are several torch files, and it is not known which one holds the weights")
    from safetensors.torch import save_file

    state = read_pickled(pickled[0])
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors: dict[str, Any] = {}
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...], int]] = set()
    for name, tensor in state.items():
        if not hasattr(tensor, "untyped_storage"):
            continue
        place = (tensor.untyped_storage().data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset())
        # safetensors has no two names for one storage: the second becomes a copy.
        tensors[name] = tensor.clone() if place in seen else tensor.contiguous()
        seen.add(place)
    if not tensors:
        raise ModelError(f"{pickled[0].name} holds no tensors by name")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    pickled[0].unlink()


def meshnet(folder: Path) -> None:
    """A MeshNet of TensorFlow.js (`model.json` and the weights that it names) to `model.onnx`; the sources are removed."""
    if not (folder / "model.json").is_file():
        return
    from isocenter.models._onnx import meshnet as meshnets

    meshnets.convert(folder, folder / "model.onnx")
    for path in (folder / "model.json", *folder.glob("*.bin")):
        path.unlink()


CONVERSIONS: Mapping[str, Callable[[Path], None]] = {"safetensors": to_safetensors, "meshnet": meshnet}


def run(conversion: str, folder: Path) -> None:
    """Do what an entry's `convert` names. Raises `ModelError`."""
    step = CONVERSIONS.get(conversion)
    if step is None:
        raise ModelError(f"this version does not know the conversion '{conversion}'; install a newer one")
    step(folder)
