"""Decoded volumes, kept under their content hash so that nothing is decoded twice.

A volume is found again by the digest of the bytes that it came in (never by a file or folder name: two patients may
share those). What an engine prepared from a volume is kept, and forgotten, with it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from isocenter.core.volume import Volume

T = TypeVar("T")


@dataclass(eq=False)
class _Entry:
    volume: Volume
    aliases: set[Hashable] = field(default_factory=set)
    derived: dict[str, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def nbytes(self) -> int:
        return self.volume.array.nbytes + sum(int(d.nbytes) for d in self.derived.values())


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

    def get(self, key: str) -> Volume | None:
        """The volume of this content hash, if it is still here."""
        with self._lock:
            return self._touch(key)

    def find(self, alias: Hashable) -> Volume | None:
        """The volume that was read from what `alias` stands for, if it is still here."""
        with self._lock:
            return self._touch(self._aliases.get(alias))

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
        """Keep a volume; returns the one kept, which is an equal, earlier one where there is one."""
        with self._lock:
            entry = self._entries.get(volume.key)
            if entry is None:
                entry = self._entries[volume.key] = _Entry(volume)
            elif entry.volume.modality != volume.modality or entry.volume.source != volume.source:
                # Equal voxels that came another way (other headers or modality): the newer description is the one asked for.
                entry.volume = volume
            if alias is not None:
                entry.aliases.add(alias)
                self._aliases[alias] = volume.key
            self._entries.move_to_end(volume.key)
            self._evict()
            return entry.volume

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

    def _touch(self, key: str | None) -> Volume | None:
        if key is None or key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key].volume

    def _evict(self) -> None:
        """Drop the least recently used, but never the last one: it is in use."""
        held = sum(e.nbytes for e in self._entries.values())
        while held > self._capacity and len(self._entries) > 1:
            _, entry = self._entries.popitem(last=False)
            held -= entry.nbytes
            for alias in entry.aliases:
                self._aliases.pop(alias, None)
