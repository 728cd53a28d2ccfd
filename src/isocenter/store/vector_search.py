"""What every store of vectors shares: the seam, what may be kept, exact search in memory, and how much memory that may take."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9._@:-]{1,200}")
_MOST_DIMENSIONS = 4096
#: Bytes of collections that are held in memory, unless the settings say otherwise.
MEMORY_BYTES = 512 * 2**20
#: About what a row's key and facts take beside its numbers.
_BESIDE = 512

#: How a search was made: exactly in memory, exactly out of the database, by the database's index, by ruvector's graph in this process.
#: The last two may miss some.
MEMORY, SCAN, INDEX, GRAPH = "memory", "scan", "index", "graph"


#: (key, facts as JSON, vector at length one).
Ready = tuple[str, str, NDArray[np.float32]]


@dataclass(frozen=True)
class Entry:
    """A vector to keep, and facts of it: small JSON, never patients' names."""

    key: str
    vector: NDArray[np.floating]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hit:
    """A vector found. similarity: cosine, 1 for the same direction. facts: what was kept with it."""

    key: str
    similarity: float
    facts: Mapping[str, Any]


class Hits(list[Hit]):
    """What was found, nearest first, equal ones by key. how: `MEMORY`, `SCAN`, `INDEX` or `GRAPH`."""

    def __init__(self, hits: Iterable[Hit], how: str) -> None:
        super().__init__(hits)
        self.how = how


class Vectors(Protocol):
    """Where vectors are kept, by collection and key; all of a collection have one length."""

    def add(self, collection: str, key: str, vector: NDArray[np.floating], facts: Mapping[str, Any] | None = None) -> None:
        """Keep a vector; one of the same key is replaced. Raises `UsageError` for one that is empty, zero or not finite."""

    def replace(self, collection: str, beginning: str, entries: Sequence[Entry]) -> None:
        """Have `entries` stand in the place of all whose keys begin so, at once: nobody sees some of them. Raises as `add`."""

    def search(self, collection: str, vector: NDArray[np.floating], k: int = 10) -> Hits:
        """The `k` nearest, as the collection is now, whoever changed it."""

    def delete(self, collection: str, key: str | None = None, *, beginning: str | None = None) -> int:
        """Forget one vector, those whose keys begin with `beginning`, or a whole collection; how many there were."""

    def count(self, collection: str) -> int:
        """How many a collection holds."""

    def collections(self) -> Sequence[str]:
        """Names of the collections that hold anything."""


class Putting(ABC):
    """`add` and `replace` of `Vectors`, by a store's one way to put vectors in."""

    def add(self, collection: str, key: str, vector: NDArray[np.floating], facts: Mapping[str, Any] | None = None) -> None:
        self._put(collection, None, checked_entries((Entry(key, vector, facts or {}),)))

    def replace(self, collection: str, beginning: str, entries: Sequence[Entry]) -> None:
        checked_name(beginning, "a vector's key")
        self._put(collection, beginning, checked_entries(entries))

    @abstractmethod
    def _put(self, collection: str, beginning: str | None, ready: Sequence[Ready]) -> None:
        """Keep what is ready, in the place of those of the same keys, and of all whose keys begin with `beginning`."""


def checked_name(name: str | None, what: str = "a collection's name") -> None:
    """Raises `UsageError` for a name that cannot be kept."""
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError(f"{what} has 1 to 200 letters, digits or . _ @ : -")


def unit_of(vector: NDArray[np.floating]) -> NDArray[np.float32]:
    """A vector at length one. Raises `UsageError` for one that is empty, too long, zero or not finite."""
    flat = np.asarray(vector, dtype=np.float64).reshape(-1)
    norm = float(np.linalg.norm(flat))
    if not 0 < flat.size <= _MOST_DIMENSIONS or not np.isfinite(norm) or norm == 0:
        raise UsageError(f"a vector has 1 to {_MOST_DIMENSIONS} finite numbers, not all of them 0")
    return np.asarray(flat / norm, dtype=np.float32)


def checked_entries(entries: Sequence[Entry]) -> list[Ready]:
    """Each as it is kept. Raises `UsageError` for what cannot be kept, and for two lengths."""
    ready = []
    for entry in entries:
        checked_name(entry.key, "a vector's key")
        ready.append((entry.key, json.dumps(dict(entry.facts), allow_nan=False), unit_of(entry.vector)))
    sizes = sorted({unit.size for _, _, unit in ready})
    if len(sizes) > 1:
        raise other_length(sizes[0], sizes[1])
    return ready


def other_length(known: int, given: int) -> UsageError:
    """What to say of a vector that is as long as no other of its collection."""
    return UsageError(f"this collection's vectors have {known} numbers, not {given}")


@dataclass(frozen=True, eq=False)
class Matrix:
    """A collection in memory. version: which of its states; facts: JSON; rows: (count, size), each of length one. Never changed."""

    version: int
    keys: list[str]
    facts: list[str]
    rows: NDArray[np.float32]

    @property
    def bytes(self) -> int:
        """What it takes, about."""
        return bytes_of(*self.rows.shape)

    def nearest(self, unit: NDArray[np.float32], k: int, *, how: str = MEMORY) -> Hits:
        """The `k` nearest to a vector of length one, none missed. Raises `UsageError` for one of another length."""
        if not self.keys:
            return Hits((), how)
        if self.rows.shape[1] != unit.size:
            raise other_length(self.rows.shape[1], unit.size)
        # Not a product of matrices: a linear algebra library would wake its threads for it, which costs more than it saves.
        near = np.einsum("ij,j->i", self.rows, unit)
        return self.ranked(near, np.arange(len(near)), k, how)

    def ranked(self, near: NDArray[np.float32], rows: NDArray[np.int64], k: int, how: str) -> Hits:
        """The best `k` of `rows`, whose similarities are `near`."""
        if k < len(near):
            # All that are as near as the last of them: which of these are named is decided by their keys.
            some = near >= np.partition(near, len(near) - k)[len(near) - k]
            near, rows = near[some], rows[some]
        order = sorted(range(len(rows)), key=lambda i: (-float(near[i]), self.keys[rows[i]]))[:k]
        return Hits((Hit(self.keys[rows[i]], float(near[i]), json.loads(self.facts[rows[i]])) for i in order), how)


def bytes_of(count: int, size: int) -> int:
    """What `count` vectors of a length take in memory, about."""
    return count * (4 * size + _BESIDE)


class Memory:
    """The collections that were searched last, as long as they take no more than `most` bytes together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = Lock()
        self._held: OrderedDict[str, Matrix] = OrderedDict()

    def get(self, collection: str) -> Matrix | None:
        """A collection as it was when it was read; whether it is so still, only the database knows."""
        with self._lock:
            if collection in self._held:
                self._held.move_to_end(collection)
            return self._held.get(collection)

    def put(self, collection: str, matrix: Matrix) -> None:
        """Hold a collection that fits; others go for it."""
        with self._lock:
            self._held[collection] = matrix
            self._held.move_to_end(collection)
            while sum(m.bytes for m in self._held.values()) > self.most:
                self._held.popitem(last=False)

    def drop(self, collection: str) -> None:
        """Let go of a collection, as of one that has become too large."""
        with self._lock:
            self._held.pop(collection, None)
