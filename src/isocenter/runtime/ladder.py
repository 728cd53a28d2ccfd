"""What to do when memory runs out all the same, or a card stops working.

Errors are known by what they are: by their type where a library has one, and where it has none by the sentence that its
allocator alone writes. Any other error is the caller's.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from isocenter.core.errors import MemoryLimitError
from isocenter.core.model import Run
from isocenter.runtime.precision import Rung

Trouble = Literal["memory", "lost"]
#: Allocators' own sentences, for libraries that raise a bare RuntimeError (torch on processors and Apple's GPUs, cuBLAS, OpenVINO).
_ALLOCATORS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Failed to allocate memory for requested buffer",
    "CUDA failure 2: out of memory",
    "std::bad_alloc",
)
#: After these a CUDA context is of no use any more; the process lives on without that card.
_LOST = (
    "uncorrectable ECC error",
    "illegal memory access",
    "unspecified launch failure",
    "device-side assert",
    "hardware stack error",
    "illegal instruction",
    "misaligned address",
    "fallen off the bus",
    "GPU is lost",
    "no CUDA-capable device is detected",
    "all CUDA-capable devices are busy or unavailable",
    "CUDA failure 700",
    "CUDA failure 719",
    "CUDA failure 214",
)
_ORT = "onnxruntime.capi.onnxruntime_pybind11_state"
#: Tiles are made smaller down to this part of their edge.
_SMALLEST_TILE = 0.5


def trouble(error: BaseException) -> Trouble | None:
    """Whether an error says that memory ran out or that a device is lost; also one that a model made into its own."""
    seen: BaseException | None = error
    for _ in range(5):
        if seen is None:
            break
        if found := _trouble(seen):
            return found
        # Also with `from None`, which only hides where an error came from.
        seen = seen.__cause__ or seen.__context__
    return None


def _trouble(error: BaseException) -> Trouble | None:
    torch: Any = sys.modules.get("torch")
    # A model that finds out by itself, before it tries, says `MemoryLimitError`.
    if isinstance(error, MemoryError | MemoryLimitError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return "memory"
    accelerator = getattr(torch, "AcceleratorError", None)
    from_library = type(error) is RuntimeError or type(error).__module__ == _ORT or (accelerator is not None and isinstance(error, accelerator))
    if not from_library:
        return None
    words = str(error)
    if any(sentence in words for sentence in _ALLOCATORS):
        return "memory"
    if type(error).__name__ == "DeviceReset" or (("CUDA" in words or "HIP" in words) and any(sentence in words for sentence in _LOST)):
        return "lost"
    return None


def free_caches(device: str) -> None:
    """Give back what the allocators keep for later."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    if device.startswith("cuda") and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()


class AskedRun(Run):
    """A `Run` that notes what the model asks it for: a model that never asks for `tile` is not called again with smaller tiles."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("batch", "tile"):
            object.__getattribute__(self, "__dict__").setdefault("asked", set()).add(name)
        return object.__getattribute__(self, name)

    @property
    def asked(self) -> set[str]:
        """Which of the two it read."""
        found: set[str] = self.__dict__.get("asked", set())
        return found


@dataclass(frozen=True)
class Attempt:
    """One way to try. note: what its reader should know, "" for the way that was meant."""

    rung: Rung
    batch: int = 0
    tile: float = 1.0
    note: str = ""


def attempts(rungs: Sequence[Rung], batch: int) -> Generator[Attempt, set[str] | None, None]:
    """Send the set of what the model asked for ("batch", "tile") after each failure; ends when there is nothing left to try.

    First the same again (caches and idle models are gone by then), then half the batch, and again, then smaller tiles,
    then the next rung that takes less memory or lies on another device.
    """
    meant = Attempt(rungs[0], batch)
    for number, rung in enumerate(rungs):
        if number and not _relieves(rung, rungs[:number]):
            continue
        attempt = replace(meant, rung=rung, note=_note(meant, rung, batch, 1.0) if number else "")
        asked = yield attempt
        if not number:
            asked = (yield attempt) or asked
        while "batch" in (asked or ()) and attempt.batch > 1:
            attempt = replace(attempt, batch=attempt.batch // 2, note=_note(meant, rung, attempt.batch // 2, 1.0))
            asked = (yield attempt) or asked
        while "tile" in (asked or ()) and attempt.tile * 0.75 >= _SMALLEST_TILE:
            tile = attempt.tile * 0.75
            attempt = replace(attempt, tile=tile, note=_note(meant, rung, attempt.batch, tile))
            asked = (yield attempt) or asked


def _relieves(rung: Rung, tried: Sequence[Rung]) -> bool:
    """Whether a rung can help after others failed: less of everything on the devices that they were on."""
    return all(rung.device != t.device or rung.need(rung.device) < t.need(t.device) for t in tried)


def _note(meant: Attempt, rung: Rung, batch: int, tile: float) -> str:
    changes = []
    if rung.device != meant.rung.device or rung.spread != meant.rung.spread:
        changes.append(f"on {' and '.join(rung.shares)} instead of {' and '.join(meant.rung.shares)}")
    if rung.precision != meant.rung.precision:
        changes.append(f"in {rung.precision} instead of {meant.rung.precision}")
    if batch != meant.batch:
        changes.append(f"{batch} at a time instead of {meant.batch}")
    if tile != 1.0:
        changes.append(f"in tiles of {tile:.0%} of their usual edge")
    return f"memory ran out: computed {', '.join(changes)}" if changes else ""
