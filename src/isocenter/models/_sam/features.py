"""What a volume's slices look like to a network, kept in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from isocenter.core.volume import Volume
from isocenter.models._sam.windows import Window

#: The most that the features of one volume's slices may hold; the least recently used go first.
CAPACITY = 1 << 30
#: Slice, window and network.
Key = tuple[int, Window, str]
Encode = Callable[[list[int]], list[tuple[Any, ...]]]


class Prepared:
    """A volume and its slices' features, computed when they are first wanted. Safe to share between sessions and threads.

    Slices are those of the array's first axis (z): the plane in which the scan was acquired.
    """

    def __init__(self, volume: Volume, capacity: int = CAPACITY) -> None:
        self.volume = volume
        self._capacity = capacity
        self._kept: OrderedDict[Key, tuple[Any, ...]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory held beside the volume."""
        return self._bytes

    @property
    def plane(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self.volume.shape[1], self.volume.shape[2]

    @property
    def spacing(self) -> tuple[float, float]:
        """Millimetres between rows and between columns."""
        return self.volume.spacing_zyx[1], self.volume.spacing_zyx[2]

    def features(self, slices: Sequence[int], window: Window, encode: Encode, batch: int, network: str = "") -> list[tuple[Any, ...]]:
        """The features (tensors in host memory) of these slices, in order; `encode` makes those not kept, `batch` at once.

        network: which one sees them; a volume outlives a model that is installed anew under its old name.
        """
        found: dict[int, tuple[Any, ...]] = {z: kept for z in slices if (kept := self._find((z, window, network))) is not None}
        missing = [z for z in dict.fromkeys(slices) if z not in found]
        for start in range(0, len(missing), batch):
            part = missing[start : start + batch]
            for z, made in zip(part, encode(part), strict=True):
                found[z] = made
                self.keep((z, window, network), made)
        return [found[z] for z in slices]

    def _find(self, key: Key) -> tuple[Any, ...] | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def saw(self, z: int, network: str) -> bool:
        """Whether this network saw slice z, through whatever window."""
        with self._lock:
            return any(key[0] == z and key[2] == network for key in self._kept)

    def keep(self, key: Key, tensors: tuple[Any, ...]) -> None:
        """Keep the features of one slice."""
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = tensors
            self._bytes += size(tensors)
            while self._bytes > self._capacity and len(self._kept) > 1:
                self._bytes -= size(self._kept.popitem(last=False)[1])


def size(tensors: tuple[Any, ...]) -> int:
    """Bytes of some tensors."""
    return sum(t.element_size() * t.nelement() for t in tensors)
