"""What models really take: peaks measured while one works alone, which correct the sizes that their descriptions declare."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from isocenter.core.model import ModelSpec
from isocenter.runtime import precision
from isocenter.runtime.devices import Device

#: Peaks that are remembered of a model; the largest counts, so one small scan does not make it look small.
_REMEMBERED = 8
#: From so many peaks on, a model that was declared too large counts as what it takes.
_ENOUGH = 3
#: What is added to a measured peak: the next scan may be larger.
_MARGIN = 1.1


class Peaks:
    """Measured weights and scratch of models, by precision and kind of device. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._weights: dict[Hashable, int] = {}
        self._scratch: dict[Hashable, deque[int]] = {}
        self._least: dict[Hashable, int] = {}

    def sizes(self, spec: ModelSpec, name: str, kind: str) -> tuple[int, int]:
        """(resident, scratch) as far as measured, else as declared.

        A processor's memory is shared with everything else that runs, so there a peak only ever raises what was declared.
        """
        weights, scratch = precision.declared(spec, name, kind)
        key = (spec.id, name, kind)
        with self._lock:
            weights = max(weights, self._weights.get(key, 0)) if kind == "cpu" else self._weights.get(key, weights)
            peaks = self._scratch.get(key, ())
            measured = int(max(peaks, default=0) * _MARGIN)
            scratch = measured if kind != "cpu" and len(peaks) >= _ENOUGH else max(scratch, measured)
            return weights, max(scratch, self._least.get(key, 0))

    def loaded(self, spec: ModelSpec, name: str, kind: str, count: int) -> None:
        """A model's weights were seen to take so much."""
        with self._lock:
            self._weights[spec.id, name, kind] = count

    def worked(self, spec: ModelSpec, name: str, kind: str, count: int) -> None:
        """One answer was seen to take so much beside the weights."""
        with self._lock:
            self._scratch.setdefault((spec.id, name, kind), deque(maxlen=_REMEMBERED)).append(count)

    def ran_out(self, spec: ModelSpec, name: str, kind: str, most: int) -> None:
        """Memory ran out beside others: from now on it asks for twice as much scratch, up to `most`, and so waits for more room."""
        _, scratch = self.sizes(spec, name, kind)
        with self._lock:
            self._least[spec.id, name, kind] = max(0, min(2 * scratch, most))


def meter(device: Device) -> Callable[[], tuple[int, int]] | None:
    """Start measuring: the function returns (bytes taken now, bytes taken at most) since, both less what was taken before.

    None where nobody counts. On a card it counts torch's allocations, to the byte; on a processor the memory of the whole
    process, so it is only right for what works alone.
    """
    torch: Any = sys.modules.get("torch")
    if device.kind in ("cuda", "rocm"):
        if torch is None or not torch.cuda.is_initialized():
            return None
        torch.cuda.reset_peak_memory_stats(device.id)
        before = int(torch.cuda.memory_allocated(device.id))

        def allocated() -> tuple[int, int]:
            return int(torch.cuda.memory_allocated(device.id)) - before, int(torch.cuda.max_memory_allocated(device.id)) - before

        return allocated
    if device.kind == "cpu" and (start := _process()) is not None:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # makes the peak the present size
        except OSError:
            return None
        resident = start[0]

        def of_process() -> tuple[int, int]:
            now, most = _process() or (resident, resident)
            return now - resident, most - resident

        return of_process
    return None


def allocated(device: Device) -> int:
    """Bytes that this process holds on a card through torch, caches included; 0 where nobody counts."""
    torch: Any = sys.modules.get("torch")
    if device.kind not in ("cuda", "rocm") or torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.memory_reserved(device.id))


def _process() -> tuple[int, int] | None:
    """(bytes resident, most bytes resident) of this process."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmRSS"].split()[0]) << 10, int(fields["VmHWM"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None
