"""Sessions: the order of prompts is kept, taken back and never shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from isocenter.core.prompts import Box, Point, Prompt, overlap, union
from isocenter.runtime.sessions import PER_OWNER, Session, Sessions, changes, recalled


class Recorder:
    """An interaction that only remembers what it was told."""

    def __init__(self) -> None:
        self.log: list[Prompt] = []
        self.mask = np.zeros((1, 1, 1), np.uint8)
        self.nbytes = 100

    def add(self, prompts: Sequence[Prompt]) -> Box | None:
        self.log += prompts
        return Box((0, 0, 0), (1, 1, 1))

    def undo(self) -> Box | None:
        self.log.pop()
        return Box((0, 0, 0), (1, 1, 1))


prompts = st.lists(st.builds(Point, st.tuples(st.just(0), st.just(0), st.integers(0, 3)), st.booleans()), max_size=6)


@given(said=prompts, wanted=prompts)
def test_changes_lead_to_exactly_what_is_wanted(said: list[Any], wanted: list[Any]) -> None:
    keep, add = changes(said, wanted)
    key = str
    assert sorted([*said[:keep], *(wanted[i] for i in add)], key=key) == sorted(wanted, key=key)
    if sorted(said, key=key) == sorted(wanted, key=key):
        assert (keep, add) == (len(said), []), "the same prompts in another order change nothing"


def ask(sessions: Sessions, key: tuple[str, ...], request: Sequence[Prompt]) -> list[Prompt]:
    """Follow a request in whichever session it gets; returns what that session's interaction was told, in order."""
    with sessions.hold(key, request, Recorder) as session:
        session.follow(request)
        assert isinstance(session.interaction, Recorder)
        return list(session.interaction.log)


ME = ("m", "v", "me")
P, N, Q, R = Point((0, 0, 0)), Point((0, 0, 1), positive=False), Point((0, 0, 2)), Point((0, 0, 3))


def test_the_order_in_which_prompts_came_is_kept() -> None:
    sessions = Sessions(10**6, 60)
    for request in ([P], [P, N]):
        ask(sessions, ME, request)
    assert ask(sessions, ME, [P, Q, N]) == [P, N, Q], "the negative came before the second positive"
    assert ask(sessions, ME, [Q, P]) == [P, Q]
    assert len(sessions) == 1


def test_two_people_who_look_like_one_do_not_undo_each_other() -> None:
    sessions = Sessions(10**6, 60)
    assert ask(sessions, ME, [P]) == [P]
    assert ask(sessions, ME, [Q]) == [Q]
    assert ask(sessions, ME, [P, N]) == [P, N]
    assert ask(sessions, ME, [Q, N]) == [Q, N]
    assert ask(sessions, ME, [P, R, N]) == [P, N, R]
    assert len(sessions) == 2


def test_an_owner_has_a_few_sessions_on_a_volume_at_most() -> None:
    sessions = Sessions(10**6, 60)
    for column in range(20):
        ask(sessions, ME, [Point((0, 1, column))])
    assert len(sessions) == PER_OWNER


def test_owners_and_volumes_do_not_share() -> None:
    sessions = Sessions(10**6, 60)
    for key in (("m", "v", "a"), ("m", "v", "b"), ("m", "w", "a")):
        ask(sessions, key, [P])
    assert len(sessions) == 3
    assert sessions.drop(lambda key: key[2] == "a") == 2
    assert len(sessions) == 1


def test_a_failure_ends_the_session_and_memory_is_bounded() -> None:
    sessions = Sessions(250, 60)
    try:
        with sessions.hold(ME, [], Recorder):
            raise RuntimeError
    except RuntimeError:
        pass
    assert len(sessions) == 0
    for owner in "abcde":
        ask(sessions, ("m", "v", owner), [P])
    assert len(sessions) == 2


def test_old_sessions_are_swept() -> None:
    sessions = Sessions(10**6, 0)
    ask(sessions, ME, [P])
    assert sessions.sweep() == 1


def test_union_and_overlap_of_boxes() -> None:
    assert union(None, None) is None
    assert overlap(Box((0, 0, 0), (3, 3, 3)), Box((2, 1, 0), (9, 9, 9))) == Box((2, 1, 0), (3, 3, 3))
    assert overlap(Box((0, 0, 0), (3, 3, 3)), Box((3, 0, 0), (9, 9, 9))) is None
    assert union(Box((1, 2, 3), (2, 3, 4)), Box((0, 5, 3), (1, 6, 9))) == Box((0, 2, 3), (2, 6, 9))


@given(turns=st.lists(st.tuples(prompts, st.integers(0, 2)), max_size=8))
def test_whoever_goes_on_where_another_was_does_as_that_one_would(turns: list[tuple[list[Any], int]]) -> None:
    """Three sessions, each asked now and then, which share histories, end up as one that was asked all the time."""
    alone, several = Session(Recorder()), [Session(Recorder()) for _ in range(3)]
    histories: list[list[Any]] = []
    for wanted, chosen in turns:
        _, known, order = recalled(histories, wanted)
        assert sorted(order) == list(range(len(wanted)))
        if not known:  # a new session would begin
            alone, several = Session(Recorder()), [Session(Recorder()) for _ in range(3)]
        alone.follow(wanted)
        several[chosen].follow([wanted[index] for index in order], ordered=True)
        assert several[chosen].said == alone.said
        assert several[chosen].interaction.log == alone.interaction.log  # type: ignore[attr-defined]
        histories = [list(alone.said)]


def test_several_people_who_look_like_one_have_histories_of_their_own() -> None:
    a, b, c, d = (Point((0, 0, x)) for x in range(4))
    assert recalled([], [a]) == (None, 0, [0])
    assert recalled([[a, b], [c, d]], [d, c]) == (1, 2, [1, 0])
    assert recalled([[a, b], [a]], [a, c]) == (1, 1, [0, 1]), "with least to undo"
    assert recalled([[a, b, c], [b, a]], [c, b, a]) == (0, 3, [2, 1, 0])
    assert recalled([[a, b]], [c]) == (None, 0, [0])
    assert recalled([[a, a, b]], [b, a, a]) == (0, 3, [1, 2, 0])
