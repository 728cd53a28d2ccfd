"""Who computes, where and when: loaded models, the inference threads and their queue.

Today there is one device, the processor. A `Lease` is the seam at which memory budgets and several devices come in:
whoever wants a model asks for a lease, and holds the model only as long as the lease.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from isocenter.core.errors import BusyError
from isocenter.core.model import Model, ModelContext, ModelSpec
from isocenter.models import registry

T = TypeVar("T")


@dataclass(frozen=True)
class Lease:
    """The right to use a model on a device. bytes: weights and scratch, granted in one step."""

    spec: ModelSpec
    model: Any
    device: str = "cpu"
    precision: str = "float32"
    bytes: int = 0


@dataclass(eq=False)
class _Resident:
    """A model in memory and the lock of its one user."""

    model: Model
    loaded: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Runtime:
    """The models in memory and the threads that run them. Safe to use from several threads."""

    def __init__(self, *, workers: int = 1, queue_size: int = 64) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="inference")
        self._room = threading.Semaphore(workers + queue_size)
        self._lock = threading.Lock()
        self._models: dict[str, _Resident] = {}
        self.waiting = 0

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices that models run on here."""
        return ("cpu",)

    @contextmanager
    def lease(self, spec: ModelSpec) -> Iterator[Lease]:
        """A loaded model, for one user at a time. It is loaded on first use; one that fails to load is tried again."""
        with self._lock:
            resident = self._models.setdefault(spec.id, _Resident(registry.create(spec)))
        with resident.lock:
            if not resident.loaded:
                resident.model.load(ModelContext(device="cpu"))
                resident.loaded = True
            yield Lease(spec, resident.model, bytes=spec.resident_bytes.get("float32", 0) + spec.scratch_bytes.get("float32", 0))

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` on an inference thread. Raises `BusyError` when too many wait already."""
        if not self._room.acquire(blocking=False):
            raise BusyError("the server has too much work waiting; try again shortly")
        self.waiting += 1

        def done(_: Future[T]) -> None:
            self.waiting -= 1
            self._room.release()

        future = self._pool.submit(work)
        future.add_done_callback(done)
        return future

    def close(self) -> None:
        """Finish what runs, drop what waits, and give the models' memory back."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for resident in self._models.values():
                if resident.loaded:
                    resident.model.close()
            self._models.clear()
