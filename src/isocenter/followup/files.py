"""The files of one visit: written so that each is there whole or not at all, and read back as long as they are what was asked for.

`state.json` comes last. It holds a key for each step: `scan`, of the scan's bytes; `prepared`, of what networks take; `mask`; `key`, of all
that the visit's figures were made from; and `volume`, of the scan's voxels and their place. `files` are the others' names and sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.case import Found
from isocenter.analysis.lesions import Intensities, LesionSize
from isocenter.analysis.preprocess import plan, preprocessed_slabs
from isocenter.core.geometry import Triple
from isocenter.core.volume import Volume
from isocenter.store.places import whole

SCAN, MASK, MASK_ARRAY, SLICES = "scan.nii.gz", "mask.nii.gz", "mask.npy", "slices.npz"
MEASUREMENTS, EMBEDDING, PREPROCESSED, STATE = "measurements.json", "embedding.npy", "preprocessed.safetensors", "state.json"

#: A visit as its files have it: lesions, spacing (mm), notes.
Kept = tuple[tuple[Found, ...], Triple, tuple[str, ...]]


def key_of(folder: Path, which: str = "key") -> str | None:
    """One of the keys in a visit's `state.json`, None where the visit is not whole."""
    state = read_json(folder / STATE)
    return str(state[which]) if state and which in state else None


def sizes(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """Bytes of those files that are there, for a visit's state."""
    return {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}


def intact(folder: Path, state: Mapping[str, Any], names: Sequence[str] = ()) -> bool:
    """Whether files of a visit are as long as its state says: by default all that it speaks of. One that it does not speak of was not made."""
    known: dict[str, int] = state.get("files", {})
    wanted = names or tuple(known)
    return sizes(folder, wanted) == {name: known[name] for name in wanted if name in known}


def kept(folder: Path, key: str) -> Kept | None:
    """A visit as its files have it, None where they are absent, incomplete or of something else."""
    if key_of(folder) != key:
        return None
    facts = read_json(folder / MEASUREMENTS)
    try:
        vectors = np.load(folder / EMBEDDING, allow_pickle=False)
        if facts is None or len(vectors) != len(facts["lesions"]):
            return None
        found = tuple(found_of(row, vector) for row, vector in zip(facts["lesions"], vectors, strict=True))
        x, y, z = (float(v) for v in facts["spacing_mm"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found, (x, y, z), tuple(facts["notes"])


def found_of(row: Mapping[str, Any], vector: Sequence[float] | NDArray[np.float32]) -> Found:
    """A lesion out of its JSON in measurements.json, and its appearance."""

    def deep(value: Any) -> Any:
        return tuple(deep(v) for v in value) if isinstance(value, list) else value

    size = {k: deep(v) for k, v in row["size"].items()}
    size["intensities"] = Intensities(**size["intensities"]) if size["intensities"] else None
    rest = {f.name: row[f.name] for f in fields(Found) if f.name not in ("size", "appearance")}
    return Found(size=LesionSize(**size), appearance=tuple(float(v) for v in vector), **rest)


def save_preprocessed(file: Path, volume: Volume, *, spacing_mm: float | None = None) -> None:
    """The scan as networks take it, see `preprocess`, as safetensors; written as it is made, so that it is never in memory whole.

    Keys: volume (1, z, y, x) float32 between 0 and 1; spacing, origin (x, y, z), direction (9,), window_center and window_width.
    Raises `GeometryError` and `LimitError`.
    """
    made = plan(volume, spacing_mm=spacing_mm)
    facts = {
        "spacing": np.array(made.grid.spacing),
        "origin": np.array(made.grid.origin),
        "direction": np.array(made.grid.direction).reshape(9),
        "window_center": np.array([made.centre]),
        "window_width": np.array([made.width]),
    }
    # The format: eight bytes of the header's length, the header as JSON, then the tensors' bytes in a row.
    header: dict[str, object] = {}
    at = 0
    for name, array in facts.items():
        header[name] = {"dtype": "F64", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    header["volume"] = {"dtype": "F32", "shape": [1, *made.grid.shape], "data_offsets": [at, at + 4 * made.grid.voxels]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with _whole(file) as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for array in facts.values():
            out.write(array.astype("<f8").tobytes())
        for slab in preprocessed_slabs(volume, made):
            out.write(slab.astype("<f4", copy=False).data)


def save_array(file: Path, array: NDArray[np.generic]) -> None:
    """A `.npy` file."""
    with _whole(file) as out:
        np.save(out, array, allow_pickle=False)


def save_arrays(file: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """A `.npz` file, not compressed."""
    with _whole(file) as out:
        np.savez(out, allow_pickle=False, **arrays)


def save(file: Path, data: bytes | memoryview) -> None:
    """Any file."""
    with _whole(file) as out:
        out.write(data)


@contextmanager
def _whole(file: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its place when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as part, part.open("wb") as out:
        yield out


def json_bytes(data: object) -> bytes:
    """Plain data as JSON; numbers that are none are refused."""
    return json.dumps(data, indent=1, allow_nan=False).encode()


def read_json(file: Path) -> dict[str, Any] | None:
    """A JSON object, None where there is none."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
