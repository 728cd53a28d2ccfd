"""A few threads for kernels that hold no lock; numba's own parallel loops cannot be called from several threads at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """`count` threads; with one, everything runs in the caller's."""

    def __init__(self, count: int) -> None:
        self.count = max(1, count)
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="volume") if self.count > 1 else None

    def each(self, work: Callable[[T], object], items: Iterable[T]) -> None:
        """Call `work` with each item and wait for all; the first error is raised."""
        if self._pool is None:
            for item in items:
                work(item)
            return
        for done in [self._pool.submit(work, item) for item in items]:
            done.result()

    def parts(self, length: int) -> list[tuple[int, int]]:
        """`length` items cut into one range a thread."""
        step = -(-length // self.count)
        return [(start, min(start + step, length)) for start in range(0, length, step)]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
