"""What servers tell each other of the order of prompts, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
import time

import pytest

from isocenter.core.model import Task
from isocenter.core.phantom import phantom
from isocenter.core.prompts import Point
from isocenter.core.settings import Settings
from isocenter.service import Service
from isocenter.store.database import Database, url_of
from isocenter.store.orders import Orders, digest
from tests.ports import free_port


def test_histories_are_kept_replaced_and_forgotten(database: Database) -> None:
    one, other = Orders(database, 60, 3), Orders(database, 60, 3)
    assert one.recall("a") == []
    assert one.note("a", None, ["p"])
    assert other.recall("a") == [["p"]]
    other.note("a", ["p"], ["p", "q"])
    one.note("a", None, ["x"])
    assert one.recall("a") == [["p", "q"], ["x"]]
    one.note("a", ["p", "q"], ["q"])
    assert one.recall("a") == [["x"], ["q"]], "the one that was last added to is at the end"
    for name in ("y", "z"):
        one.note("a", None, [name])
    assert one.recall("a") == [["q"], ["y"], ["z"]], "three at the most"
    one.note("a", None, ["y"])
    assert one.recall("a") == [["q"], ["z"], ["y"]], "the same twice is one"
    assert one.recall("b") == []
    assert Orders(database, -60, 3).recall("a") == [], "too old"


def test_several_at_once(database: Database) -> None:
    def work(number: int) -> None:
        mine = Orders(database, 60, 8)
        for turn in range(6):
            mine.note("a", [f"{number}"] * turn or None, [f"{number}"] * (turn + 1))

    Orders(database, 60, 8).note("a", None, ["first"])
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(Orders(database, 60, 8).recall("a") or []) == [*([f"{n}"] * 6 for n in range(4)), ["first"]]


def test_a_database_that_is_away_is_not_asked_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(url_of(Settings(database_url=f"postgresql://nobody@127.0.0.1:{free_port()}/none")))
    shared = Orders(database, 60, 4)
    assert shared.recall("a") is None

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(database, "_patiently", fail)
    assert shared.recall("a") is None
    assert not shared.note("a", None, ["p"])
    shared._silent_until = 0.0
    with pytest.raises(AssertionError, match="asked again"):
        shared.recall("a")
    database.close()


def test_what_a_server_saw_while_the_database_was_away_still_counts(service: Service, database: Database) -> None:
    scan, shared = phantom((24, 48, 48)).volume, Orders(database, 60, 4)
    first, second, third, away = Point((12, 24, 24)), Point((12, 24, 20)), Point((12, 30, 24)), Point((12, 24, 18), positive=False)
    truth = [first, away, second, third]

    def click(*prompts: Point) -> list[object]:
        """What was said so far, in its order, to a client that sends what takes away last."""
        with service.click(scan, sorted(prompts, key=lambda p: not p.positive), owner="one") as clicked:
            return list(clicked.session.said)

    service.orders = shared
    try:
        click(first)
        assert click(first, away) == truth[:2]
        shared._silent_until = time.monotonic() + 1e6
        assert click(first, away, second) == truth[:3]
        shared._silent_until = 0.0
        assert click(first, away, second, third) == truth
        assert shared.recall(digest((service.registry.first(Task.INTERACTIVE).id, scan.key, "one"))) == [[digest(p) for p in truth]]
        service.forget("one")  # as another server, which saw none of it
        assert click(first, away, second, third) == truth
    finally:
        service.orders = None


def test_digests_say_nothing_and_are_the_same_everywhere() -> None:
    assert digest(Point((1, 2, 3))) == digest(Point((1, 2, 3))) != digest(Point((1, 2, 3), positive=False))
    assert len(digest(("geodesic", "key", "who"))) == 32
