"""Scans that were cached ready for networks: safetensors, or a torch file of the same keys, back to a volume.

Keys: volume (1, z, y, x), spacing (3), origin (3), direction (9) as ITK has them, window_center and window_width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import InputError, IsocenterError, LimitError, MemoryLimitError, UsageError
from isocenter.core.geometry import Grid
from isocenter.core.settings import Limits
from isocenter.core.volume import Source, Volume

SUFFIXES = (".safetensors", ".pt")
_FACTS = {"spacing": 3, "origin": 3, "direction": 9, "window_center": 1, "window_width": 1}


def read(path: Path, limits: Limits, modality: str | None = None) -> Volume:
    """The volume in a `.safetensors` or `.pt` file (the latter needs torch, and is read with `weights_only=True`).

    Values from 0 to 1 become those of the window again, in Hounsfield units where `modality` is CT; what lay outside of the window
    was cut off when the file was made, which the volume's notes say. Raises `InputError`, `LimitError`, and `ModelError` for a torch
    file that holds more than tensors, or without torch.
    """
    if not path.is_file():
        raise InputError("there is no such file or folder")
    if path.stat().st_size > limits.max_upload_bytes:
        raise LimitError("the file is too large", limit="max_upload_bytes", value=limits.max_upload_bytes)
    try:
        return _volume(_torch(path, limits) if path.suffix == ".pt" else _safetensors(path, limits), modality)
    except IsocenterError:
        raise
    except MemoryError:
        raise MemoryLimitError("there is not enough memory to read this input") from None
    except Exception:  # a parser's own fault must not reach the client with its words
        raise InputError("the cached scan is damaged or written in an unusual way; it cannot be read") from None


def _safetensors(path: Path, limits: Limits) -> dict[str, NDArray[Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        _check(set(file.keys()), lambda name: file.get_slice(name).get_shape(), limits)
        return {name: file.get_tensor(name) for name in ("volume", *_FACTS)}


def _torch(path: Path, limits: Limits) -> dict[str, NDArray[Any]]:
    from isocenter.models._catalog.convert import read_pickled

    held = read_pickled(path)
    if not isinstance(held, dict):
        raise InputError("the torch file holds no cached scan: it has none of its keys")
    _check(set(held), lambda name: np.shape(held[name]), limits)
    return {name: np.asarray(held[name]) for name in ("volume", *_FACTS)}


def _check(names: set[Any], shape_of: Any, limits: Limits) -> None:
    """Whether keys and shapes are those of a cached scan, before anything is read."""
    if missing := sorted({"volume", *_FACTS} - names):
        raise InputError(f"the file is no cached scan: it lacks {', '.join(missing)}")
    shape = tuple(int(n) for n in shape_of("volume"))
    if len(shape) != 4 or shape[0] != 1 or min(shape) < 1:
        raise InputError(f"the cached scan's volume has the shape {shape}, not (1, z, y, x)")
    if int(np.prod(shape, dtype=object)) > limits.max_voxels:
        raise LimitError(f"the file declares {shape[3]} x {shape[2]} x {shape[1]} voxels", limit="max_voxels", value=limits.max_voxels)
    for name, count in _FACTS.items():
        if int(np.prod(shape_of(name), dtype=object)) != count:
            raise InputError(f"the cached scan's {name} does not hold {count} number{'s' if count > 1 else ''}")


def _volume(held: Mapping[str, NDArray[Any]], modality: str | None) -> Volume:
    array = np.array(held["volume"][0], dtype=np.float32)
    facts = {name: np.asarray(held[name], dtype=np.float64).reshape(-1) for name in _FACTS}
    (centre,), (width,) = facts["window_center"], facts["window_width"]
    if not (np.isfinite(array).all() and np.isfinite(centre) and np.isfinite(width) and width > 0):
        raise InputError("the cached scan holds values that are no numbers, or a window without a width")
    notes = ["read from a scan cached for networks, on its isotropic grid"]
    if array.min() >= -1e-4 and array.max() <= 1 + 1e-4:
        array *= np.float32(width)
        array += np.float32(centre - width / 2)
        notes.append(f"values outside of the window, {centre - width / 2:g} to {centre + width / 2:g}, were cut off when it was cached")
    z, y, x = array.shape
    turn = facts["direction"].reshape(3, 3)
    spacing, origin = (tuple(float(v) for v in facts[name]) for name in ("spacing", "origin"))
    grid = Grid((z, y, x), spacing, origin, tuple(tuple(float(v) for v in row) for row in turn))  # type: ignore[arg-type]
    kind = modality.strip().upper() if modality else None
    if kind is not None and not (kind.isascii() and kind.isalnum() and len(kind) <= 16):
        raise UsageError("the modality must be one of DICOM's, such as CT, MR, US or OT")
    return Volume.on_grid(array, grid, modality=kind, unit="HU" if kind == "CT" else "a.u.", source=Source("array", tuple(notes)))
