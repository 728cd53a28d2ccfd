"""Interactive work in progress: who has said what about which volume, in which order.

Old clients send all their prompts again with each click, sorted by kind and not by time. A session keeps the order in
which prompts first came, so an answer builds on the one before it instead of starting anew; what is no longer sent is
undone. A session belongs to one owner, one model and one volume (by content hash), so two people never share one.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from blake3 import blake3

from isocenter.core.model import Interaction
from isocenter.core.prompts import Box, MaskPrompt, Prompt, union

Key = tuple[Hashable, ...]
#: Sessions that one owner may have on one volume.
PER_OWNER = 4


def identity(prompt: Prompt) -> Hashable:
    """What makes two prompts the same; a mask is known by its content."""
    if isinstance(prompt, MaskPrompt):
        packed = np.packbits(np.asarray(prompt.mask) != 0)
        return ("mask", prompt.positive, prompt.mask.shape, blake3(packed.data).digest())
    return prompt


def changes(history: Sequence[Hashable], wanted: Sequence[Hashable]) -> tuple[int, list[int]]:
    """How to get from what was said (in order) to what is said now (in any order).

    Returns (how many of `history` stay, from the front; which of `wanted` to add, by index). Everything behind the
    first prompt that was taken back is undone and said again, so the result depends on the order of prompts alone.
    """
    missing = Counter(wanted)
    keep = 0
    for said in history:
        if missing[said] == 0:
            break
        missing[said] -= 1
        keep += 1
    kept = Counter(history[:keep])
    add = []
    for index, prompt in enumerate(wanted):
        if kept[prompt]:
            kept[prompt] -= 1
        else:
            add.append(index)
    return keep, add


def recalled(histories: Sequence[Sequence[Hashable]], wanted: Sequence[Hashable]) -> tuple[int | None, int, list[int]]:
    """As whoever saw all that was said would go on with `wanted`: by the history that shares the longest beginning with it.

    Returns (which history, None for none; how many of `wanted` it knows; those in its order and then the others as they were
    sent, by index). Of equals the one with least to undo, of those the last.
    """
    best, rank = None, (0, 0)
    for number, history in enumerate(histories):
        keep, _ = changes(history, wanted)
        if keep and (best is None or (keep, keep - len(history)) >= rank):
            best, rank = number, (keep, keep - len(history))
    if best is None:
        return None, 0, list(range(len(wanted)))
    left = list(range(len(wanted)))
    order = []
    for said in histories[best][: rank[0]]:
        order.append(next(index for index in left if wanted[index] == said))
        left.remove(order[-1])
    return best, rank[0], order + left


@dataclass(eq=False)
class Session:
    """One owner's interaction with one volume. Use it only while holding it (`Sessions.hold`).

    state: what an adapter keeps with it, such as an encoded copy of the mask, by name; dropped with the session.
    told: servers that share a database know of all that was said here.
    """

    interaction: Interaction
    said: list[Hashable] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    told: bool = True
    used: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.interaction.nbytes + sum(getattr(s, "nbytes", 0) for s in self.state.values())

    def follow(self, prompts: Sequence[Prompt], *, ordered: bool = False) -> Box | None:
        """Bring the interaction to exactly these prompts; returns the box outside of which nothing changed.

        ordered: they are known to have come in this order, whatever this session has seen of them.
        """
        identities = [identity(p) for p in prompts]
        if ordered:
            pairs = enumerate(zip(self.said, identities, strict=False))
            keep = next((n for n, (said, wanted) in pairs if said != wanted), min(len(self.said), len(identities)))
            add = list(range(keep, len(identities)))
        else:
            keep, add = changes(self.said, identities)
        changed: Box | None = None
        while len(self.said) > keep:
            changed = union(changed, self.interaction.undo())
            self.said.pop()
        for index in add:
            changed = union(changed, self.interaction.add([prompts[index]]))
            self.said.append(identities[index])
        return changed


class Sessions:
    """All sessions: bounded by bytes (least recently used out first) and by age.

    Several people may look like one owner (behind a proxy, say). So an owner may have several sessions on one volume, and
    a request goes on with the one whose prompts it shares the longest beginning with; one that shares nothing starts anew.
    """

    def __init__(self, capacity: int, ttl: float) -> None:
        self._capacity = capacity
        self._ttl = ttl
        self._sessions: OrderedDict[tuple[Key, int], Session] = OrderedDict()
        self._serial = itertools.count()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._sessions)

    @contextmanager
    def hold(self, key: Key, prompts: Sequence[Prompt], begin: Callable[[], Interaction]) -> Iterator[Session]:
        """The session of `key` that goes best with `prompts`, begun if need be, for one user at a time.

        A failure inside drops it.
        """
        wanted = [identity(p) for p in prompts]
        with self._lock:
            name = self._best(key, wanted)
            session = self._sessions[name] if name else None
        if session is None or name is None:
            session = Session(begin())
            with self._lock:
                name = (key, next(self._serial))
                self._sessions[name] = session
        try:
            with session.lock:
                yield session
        except BaseException:
            with self._lock:
                self._sessions.pop(name, None)
            raise
        with self._lock:
            if name in self._sessions:
                session.used = time.monotonic()
                self._sessions.move_to_end(name)
            self._evict(key)

    def drop(self, which: Callable[[Key], bool]) -> int:
        """Forget the sessions whose key satisfies `which`; returns how many."""
        with self._lock:
            gone = [name for name in self._sessions if which(name[0])]
            for name in gone:
                del self._sessions[name]
        return len(gone)

    def sweep(self) -> int:
        """Forget the sessions that nobody touched for the time to live; returns how many."""
        oldest = time.monotonic() - self._ttl
        with self._lock:
            stale = [name for name, session in self._sessions.items() if session.used < oldest]
            for name in stale:
                del self._sessions[name]
        return len(stale)

    def _best(self, key: Key, wanted: Sequence[Hashable]) -> tuple[Key, int] | None:
        """The session that shares the longest beginning with `wanted`; of equals the one with least to undo."""
        best, rank = None, (0, 0)
        for name, session in self._sessions.items():
            if name[0] == key:
                said = list(session.said)
                keep, _ = changes(said, wanted)
                if (keep or not said) and (best is None or (keep, keep - len(said)) >= rank):
                    best, rank = name, (keep, keep - len(said))
        return best

    def _evict(self, key: Key) -> None:
        mine = [name for name in self._sessions if name[0] == key]
        for name in mine[:-PER_OWNER]:
            del self._sessions[name]
        held = sum(s.nbytes for s in self._sessions.values())
        while held > self._capacity and len(self._sessions) > 1:
            _, session = self._sessions.popitem(last=False)
            held -= session.nbytes
