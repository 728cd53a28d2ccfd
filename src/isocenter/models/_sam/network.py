"""A loaded network: built from its folder, run in its precision, found again by sessions that outlive it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from isocenter.core.errors import ModelError
from isocenter.core.model import ModelContext
from isocenter.models import _hf

_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
#: Networks that are loaded, by the model's id. A click session lives longer than a network that has to make room for
#: another; it goes on with the one that was loaded since.
_loaded: dict[str, weakref.WeakSet[Network]] = {}
_lock = threading.Lock()


class Network:
    """One network on its device. `lock` is held for every forward pass."""

    def __init__(self, module: Any, context: ModelContext) -> None:
        self.module = module
        self.device = torch.device(context.device)
        self.half = _HALF.get(context.precision)
        self.precision = context.precision
        self.id = context.spec.id if context.spec else ""
        self.fingerprint = f"{context.spec.weights_sha256 if context.spec else None} {context.precision}"
        self.lock = threading.RLock()
        with _lock:
            _loaded.setdefault(self.id, weakref.WeakSet()).add(self)

    @contextmanager
    def running(self) -> Iterator[Any]:
        """The module, for forward passes in its precision."""
        with self.lock, torch.inference_mode():
            if self.module is None:
                raise ModelError("the model was unloaded while it was at work; ask again")
            if self.half is None:
                yield self.module
            else:
                with torch.autocast(self.device.type, self.half):
                    yield self.module

    def close(self) -> None:
        """Give the memory back."""
        with _lock:
            _loaded.get(self.id, weakref.WeakSet()).discard(self)
        with self.lock:
            self.module = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def current(network: Network) -> Network:
    """The network itself while it is loaded, else the one that took its place. Raises `ModelError` when there is none."""
    if network.module is not None:
        return network
    with _lock:
        found = next(iter(_loaded.get(network.id, ())), None)
    if found is None:
        raise ModelError("the model is not loaded any more; ask again")
    return found


def configured(kind: Any, folder: Path) -> Any:
    """A transformers configuration from the folder's `config.json`. Raises `ModelError` for one that is not of this kind."""
    with _hf.library():
        try:
            return kind.from_pretrained(folder, local_files_only=True)
        except ImportError:
            raise
        except Exception as error:  # strict configurations raise errors of many kinds
            raise ModelError(f"the model's config.json is not what its type needs ({type(error).__name__}); download it again") from None


def build(kind: Any, config: Any, folder: Path, context: ModelContext) -> Network:
    """A transformers model from its folder, all of its tensors read, on its device. Raises `ModelError`."""
    torch_threads(context)
    try:
        with _hf.library():
            module, report = kind.from_pretrained(
                folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (torch.OutOfMemoryError, MemoryError, ModelError):
        raise
    except Exception as error:  # the library names its own, and what it says names paths
        raise ModelError(f"the model cannot be built from its folder ({type(error).__name__}): config.json and weights do not fit") from None
    absent = [*report.get("missing_keys", ()), *(entry[0] for entry in report.get("mismatched_keys", ()))]
    if absent:
        raise ModelError(f"config.json and weights do not fit: {len(absent)} tensors are missing or of another shape, such as '{absent[0]}'")
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"the weights hold numbers that are none (NaN or infinite), in '{name}'; download the model again")
    return Network(module.eval().requires_grad_(False).to(context.device), context)


def torch_threads(context: ModelContext) -> None:
    """Let torch use as many cores as the runtime gives this model; the pool is the process's."""
    if context.device == "cpu":
        torch.set_num_threads(max(1, context.threads))


def finite(tensor: Any) -> Any:
    """The tensor. Raises `ModelError` for one that holds NaN: a mask made of it would be a plausible wrong one."""
    if not bool(torch.isfinite(tensor).all()):
        raise ModelError("the model answered with numbers that are none (NaN); run it in float32, or download its weights again")
    return tensor
