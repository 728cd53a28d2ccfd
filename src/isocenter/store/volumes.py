"""Decoded volumes, kept under their content hash so that nothing is decoded twice.

A volume is found again by the digest of the bytes that it came in (never by a file or folder name: two patients may
share those). What an engine prepared from a volume is kept, and forgotten, with it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from isocenter.core.volume import Volume

T = TypeVar("T")


@dataclass(eq=False)
class _Entry:
    """Voxels, and each way in which they came: headers, slice numbers and modality may differ where voxels do not."""

    volume: Volume
    known_as: dict[Hashable, Volume] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def nbytes(self) -> int:
        return self.volume.nbytes + sum(int(d.nbytes) for d in self.derived.values())


class VolumeStore:
    """A cache of volumes, least recently used out first, bounded by bytes; safe to use from several threads."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._aliases: dict[Hashable, str] = {}
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory held."""
        with self._lock:
            return sum(e.nbytes for e in self._entries.values())

    def find(self, alias: Hashable) -> Volume | None:
        """The volume that was read from what `alias` stands for, if it is still here."""
        with self._lock:
            key = self._aliases.get(alias)
            if key is None:
                return None
            self._entries.move_to_end(key)
            return self._entries[key].known_as[alias]

    def read(self, alias: Hashable, make: Callable[[], Volume]) -> Volume:
        """The volume of `alias`, made by `make` if need be; equal requests at the same time make it once."""
        with self._lock:
            making = self._making.setdefault(alias, threading.Lock())
        try:
            with making:
                volume = self.find(alias)
                return volume if volume is not None else self.put(make(), alias)
        finally:
            with self._lock:
                self._making.pop(alias, None)

    def put(self, volume: Volume, alias: Hashable | None = None) -> Volume:
        """Keep a volume; the one returned shares its voxels with an equal, earlier one where there is one."""
        with self._lock:
            entry = self._entries.setdefault(volume.key, _Entry(volume))
            volume = replace(volume, voxels=entry.volume.voxels)
            if alias is not None:
                entry.known_as[alias] = volume
                self._aliases[alias] = volume.key
            self._entries.move_to_end(volume.key)
            self._evict()
            return volume

    def derive(self, volume: Volume, name: str, make: Callable[[], T]) -> T:
        """What `make` prepares from a volume, made once while the volume is kept."""
        with self._lock:
            entry = self._entries.get(volume.key)
        if entry is None:
            return make()
        with entry.lock:
            if name not in entry.derived:
                entry.derived[name] = make()
            result: T = entry.derived[name]
        with self._lock:
            self._evict()
        return result

    def _evict(self) -> None:
        """Drop the least recently used, but never the last one: it is in use."""
        held = sum(e.nbytes for e in self._entries.values())
        while held > self._capacity and len(self._entries) > 1:
            _, entry = self._entries.popitem(last=False)
            held -= entry.nbytes
            for alias in entry.known_as:
                self._aliases.pop(alias, None)
