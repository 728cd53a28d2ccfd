"""The order of prompts where several servers share a database: looked up before a click, told to the others after it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from isocenter.core.prompts import Box, Prompt
from isocenter.runtime.sessions import Session, changes, identity, recalled
from isocenter.store.orders import History, Orders, digest


@dataclass(frozen=True)
class SharedOrder:
    """What the servers know of an owner's prompts.

    prompts: those of the request, what any server saw before first and in its order. orders: None where no other server is told.
    whose: digest of the session's key. history: what `prompts` goes on with, None for nothing. known: how many of `prompts` it knows.
    """

    prompts: Sequence[Prompt]
    orders: Orders | None = None
    whose: str = ""
    history: History | None = None
    known: int = 0

    @classmethod
    def of(cls, orders: Orders | None, key: Hashable, prompts: Sequence[Prompt]) -> SharedOrder:
        """What `orders` knows; the order of the request, where it is None or nobody can be asked."""
        histories = None if orders is None else orders.recall(whose := digest(key))
        if histories is None:
            return cls(prompts)
        number, known, order = recalled(histories, [digest(identity(p)) for p in prompts])
        return cls([prompts[index] for index in order], orders, whose, None if number is None else histories[number], known)

    def follow(self, session: Session) -> Box | None:
        """Have a session that is held say the prompts, and the other servers know what was said; returns the box that changed."""
        # After a time without their database, what this server saw itself counts where the others know less.
        ordered = self.orders is not None and (session.told or self.known >= changes(session.said, [identity(p) for p in self.prompts])[0])
        changed = session.follow(self.prompts, ordered=ordered)
        session.told = self.orders is not None and self.orders.note(self.whose, self.history, [digest(said) for said in session.said])
        return changed
