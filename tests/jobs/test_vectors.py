"""One suite over every vector store: exact search in process on both databases, pgvector, and ruvector's SQL on a real PostgreSQL.

ruvector itself is not here: its type and operator are made there out of pgvector's functions, without an index, as its users report.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from isocenter.core.errors import UsageError
from isocenter.core.settings import Settings
from isocenter.store.database import Database, url_of
from isocenter.store.vector_blobs import BlobVectors, IndexedVectors
from isocenter.store.vector_search import MEMORY_BYTES, Entry, Memory, Vectors, bytes_of
from isocenter.store.vector_server import PGVECTOR, RUVECTOR, ServerVectors
from isocenter.store.vectors import open_vectors
from tests.jobs import servers
from tests.jobs.conftest import new_database

_RUVECTOR = """
CREATE TYPE ruvector;
CREATE FUNCTION ruvector_in(cstring, oid, integer) RETURNS ruvector AS '$libdir/vector', 'vector_in' LANGUAGE C IMMUTABLE STRICT;
CREATE FUNCTION ruvector_out(ruvector) RETURNS cstring AS '$libdir/vector', 'vector_out' LANGUAGE C IMMUTABLE STRICT;
CREATE FUNCTION ruvector_typmod_in(cstring[]) RETURNS integer AS '$libdir/vector', 'vector_typmod_in' LANGUAGE C IMMUTABLE STRICT;
CREATE TYPE ruvector (INPUT = ruvector_in, OUTPUT = ruvector_out, TYPMOD_IN = ruvector_typmod_in, STORAGE = external);
CREATE FUNCTION ruvector_cosine_distance(ruvector, ruvector) RETURNS float8 AS '$libdir/vector', 'cosine_distance' LANGUAGE C IMMUTABLE STRICT;
CREATE OPERATOR <=> (LEFTARG = ruvector, RIGHTARG = ruvector, PROCEDURE = ruvector_cosine_distance, COMMUTATOR = '<=>');
"""


def database(url: str) -> Database:
    return Database(url_of(Settings(database_url=url)))


#: pgvector as where its index cannot be made: nobody has such operators.
NO_INDEX = replace(PGVECTOR, operators="absent_ops")
#: Memory that no collection fits in.
NONE = 0


@pytest.fixture(
    params=["sqlite", "sqlite scanned", "sqlite by graph", "postgresql blobs", "pgvector", "pgvector no index", "ruvector", "ruvector scanned"]
)
def vectors(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Vectors]:
    most = NONE if request.param.endswith("scanned") else MEMORY_BYTES
    if request.param.startswith("sqlite"):
        made = database(f"sqlite:///{tmp_path}/v.db")
        yield open_vectors(made, "ruvector" if request.param.endswith("graph") else "exact", most)
        made.close()
        return
    server: servers.Postgres = request.getfixturevalue("postgres")
    url = new_database(server)
    if request.param.startswith("ruvector"):
        _install_ruvector(url)
    made = database(url)
    if request.param == "postgresql blobs":
        yield BlobVectors(made)
    elif request.param == "pgvector no index":
        yield ServerVectors(made, NO_INDEX)
    else:
        found = open_vectors(made, memory_bytes=most)
        assert isinstance(found, ServerVectors)
        assert found._flavour.extension == {"pgvector": "vector", "ruvector": "ruvector"}[request.param.split()[0]]
        yield found
    made.close()


@pytest.fixture(params=["pgvector", "ruvector"])
def two(request: pytest.FixtureRequest, postgres: servers.Postgres) -> Iterator[tuple[ServerVectors, ServerVectors]]:
    """Two processes' stores of one database whose server has no index."""
    url = new_database(postgres)
    if request.param == "ruvector":
        _install_ruvector(url)
    one, other = database(url), database(url)
    flavour = RUVECTOR if request.param == "ruvector" else NO_INDEX
    yield ServerVectors(one, flavour), ServerVectors(other, flavour)
    one.close()
    other.close()


def _install_ruvector(url: str) -> None:
    engine = sa.create_engine(url_of(Settings(database_url=url)), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in ("CREATE EXTENSION vector", *_RUVECTOR.strip().split(";\n")):
            connection.execute(sa.text(statement))
    engine.dispose()


def test_the_nearest_come_first(vectors: Vectors) -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((50, 24))
    for i, vector in enumerate(table):
        vectors.add("lesions", f"p{i}@v1", vector, {"organ": "liver" if i % 2 else "lung"})
    asked = table[7] + 0.1 * rng.standard_normal(24)
    similarity = table @ asked / np.linalg.norm(table, axis=1) / np.linalg.norm(asked)
    hits = vectors.search("lesions", asked, 5)
    assert [h.key for h in hits] == [f"p{i}@v1" for i in np.argsort(-similarity)[:5]]
    assert [h.similarity for h in hits] == pytest.approx(sorted(similarity, reverse=True)[:5], abs=1e-5)
    assert hits[0].facts == {"organ": "liver"}
    assert len(vectors.search("lesions", asked, 500)) == 50


def test_replaced_deleted_counted_and_kept_apart(vectors: Vectors) -> None:
    vectors.add("a", "k", np.array([1.0, 0, 0]))
    vectors.add("b", "k", np.array([0, 1.0, 0]))
    assert vectors.search("a", np.array([0, 1.0, 0]))[0].similarity == pytest.approx(0, abs=1e-6)
    vectors.add("a", "k", np.array([0, 2.0, 0]), {"n": 2})
    found = vectors.search("a", np.array([0, 1.0, 0]))
    assert found[0].similarity == pytest.approx(1)
    assert found[0].facts == {"n": 2}
    assert vectors.count("a") == 1
    assert vectors.delete("a", "none") == 0
    assert vectors.delete("a") == 1
    assert vectors.search("a", np.array([0, 1.0, 0])) == []
    assert vectors.count("b") == 1


def test_what_cannot_be_kept_is_refused(vectors: Vectors) -> None:
    for wrong in (np.zeros(3), np.array([np.nan, 1, 1]), np.array([np.inf, 1, 1]), np.zeros(0), np.ones(5000)):
        with pytest.raises(UsageError):
            vectors.add("a", "k", wrong)
    for name in ("", "x" * 201, "a b", "'; drop table"):
        with pytest.raises(UsageError):
            vectors.add(name, "k", np.ones(3))
        with pytest.raises(UsageError):
            vectors.add("a", name, np.ones(3))
    vectors.add("a", "k", np.ones(3))
    with pytest.raises(UsageError, match="3 numbers"):
        vectors.search("a", np.ones(4))
    with pytest.raises(UsageError, match="3 numbers"):
        vectors.add("a", "other", np.ones(4))


def test_those_whose_keys_begin_alike_go_together(vectors: Vectors) -> None:
    for key in ("P1:a", "P1:b", "p1:a", "P10:a", "P_:a"):
        vectors.add("a", key, np.ones(3))
    assert vectors.delete("a", beginning="P1:") == 2
    assert vectors.delete("a", beginning="P_") == 1
    assert {h.key for h in vectors.search("a", np.ones(3))} == {"p1:a", "P10:a"}


def test_a_patients_vectors_are_replaced_at_once(vectors: Vectors) -> None:
    vectors.add("a", "P1:a", np.array([1.0, 0]))
    vectors.add("a", "P10:a", np.array([1.0, 0]))
    vectors.add("b", "P1:a", np.array([1.0, 0, 0]))
    vectors.replace("a", "P1:", [Entry("P1:b", np.array([1.0, 0]), {"n": 1}), Entry("P1:c", np.array([0, 1.0]))])
    assert [(h.key, h.facts) for h in vectors.search("a", np.array([1.0, 0]))] == [("P10:a", {}), ("P1:b", {"n": 1}), ("P1:c", {})]
    assert list(vectors.collections()) == ["a", "b"]
    with pytest.raises(UsageError, match="2 numbers"):
        vectors.replace("a", "P1:", [Entry("P1:b", np.ones(3))])
    with pytest.raises(UsageError, match="numbers"):
        vectors.replace("b", "P1:", [Entry("P1:b", np.ones(2)), Entry("P1:c", np.ones(4))])
    assert vectors.count("a") == 3, "what is refused changes nothing"
    vectors.replace("b", "P1:", [Entry("P1:b", np.ones(4))])
    assert vectors.count("b") == 1, "alone in its collection, it may have another length"
    vectors.replace("a", "P1", [])
    assert list(vectors.collections()) == ["b"]


def test_equal_ones_go_by_their_keys_however_many_there_are(vectors: Vectors) -> None:
    rng = np.random.default_rng(0)
    one, far = rng.standard_normal(25), rng.standard_normal((20, 25))
    vectors.replace("a", "s", [Entry(f"s{i:02}", one * (i + 1)) for i in rng.permutation(9)])
    vectors.replace("a", "f", [Entry(f"f{i:02}", v) for i, v in enumerate(far)])
    assert [h.key for h in vectors.search("a", one, 5)] == [f"s{i:02}" for i in range(5)]


def test_the_graph_proposes_and_the_vectors_decide(tmp_path: Path) -> None:
    made = database(f"sqlite:///{tmp_path}/v.db")
    exact, graph = BlobVectors(made), IndexedVectors(made)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 32))
    table = np.repeat(centres, 20, axis=0) + 0.3 * rng.standard_normal((800, 32))
    table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
    graph.add("a", "first", table[0])
    rows = [{"collection": "a", "key": f"k{i}", "facts": "{}", "vector": v.tobytes()} for i, v in enumerate(table)]
    made.write(lambda connection: connection.execute(sa.insert(exact._rows), rows))
    graph.delete("a", "first")
    found = [({h.key for h in graph.search("a", q)}, {h.key for h in exact.search("a", q)}) for q in centres]
    assert np.mean([len(a & b) / len(b) for a, b in found]) > 0.8
    graph.add("a", "new", centres[0])
    assert graph.search("a", centres[0], 1)[0].key == "new", "made anew when the collection changes"
    made.close()


def test_another_process_sees_it(tmp_path: Path) -> None:
    one, two = database(f"sqlite:///{tmp_path}/v.db"), database(f"sqlite:///{tmp_path}/v.db")
    first, second = BlobVectors(one), BlobVectors(two)
    first.add("a", "x", np.array([1.0, 0]))
    assert [h.key for h in second.search("a", np.array([1.0, 0]))] == ["x"]
    first.add("a", "y", np.array([1.0, 0.1]))
    assert [h.key for h in second.search("a", np.array([1.0, 0]))] == ["x", "y"]
    one.close()
    two.close()


def test_memory_and_the_servers_own_scan_give_the_same(two: tuple[ServerVectors, ServerVectors]) -> None:
    """Also where many are equal, and after every kind of change; the two differ in the last bits of a similarity at most."""
    held, scans = two
    scans._memory = Memory(NONE)
    rng = np.random.default_rng(1)
    table = rng.standard_normal((120, 24))
    for change in range(4):
        rows = [Entry(f"p{change}:{i}", table[rng.integers(0, 120)]) for i in range(200)]
        held.replace("a", f"p{change}:" if change < 3 else "p0:", rows)
        for k in (1, 7, 40, 1000):
            asked = table[k % 120] + 0.3 * rng.standard_normal(24)
            mine, theirs = held.search("a", asked, k), scans.search("a", asked, k)
            assert (mine.how, theirs.how) == ("memory", "scan")
            assert [h.key for h in mine] == [h.key for h in theirs]
            assert [h.similarity for h in mine] == pytest.approx([h.similarity for h in theirs], abs=1e-6)


def test_what_another_process_changes_is_seen_at_once(two: tuple[ServerVectors, ServerVectors]) -> None:
    one, other = two
    asked = np.array([1.0, 0, 0])

    def seen() -> list[str]:
        return [h.key for h in other.search("a", asked)]

    assert seen() == []
    one.add("a", "x", np.array([1.0, 0, 0]))
    assert seen() == ["x"]
    one.add("a", "y", np.array([1.0, 0.1, 0]))
    one.add("b", "z", np.array([1.0, 0.1, 0]))
    assert seen() == ["x", "y"]
    one.add("a", "x", np.array([0, 1.0, 0]))
    assert seen() == ["y", "x"]
    one.delete("a", "y")
    assert seen() == ["x"]
    one.delete("a", "x")
    one.add("a", "w", asked)
    assert seen() == ["w"], "as many as before, another one"
    one.replace("a", "w", [Entry("v", asked)])
    assert seen() == ["v"]
    one.delete("a")
    assert seen() == []
    one.add("a", "u", np.ones(4))
    with pytest.raises(UsageError, match="4 numbers"):
        seen()


def test_changes_by_hand_and_those_that_are_taken_back(two: tuple[ServerVectors, ServerVectors]) -> None:
    one, other = two
    name = one._name(3)
    for key in ("x", "y"):
        one.add("a", key, np.array([1.0, 0, 0]))
    one.add("b", "x", np.array([1.0, 0, 0]))

    def seen(collection: str = "a") -> list[str]:
        return [h.key for h in other.search(collection, np.array([1.0, 0, 0]))]

    assert (seen(), seen("b")) == (["x", "y"], ["x"])
    with one._database._engine.connect() as connection:
        connection.execute(sa.text(f"UPDATE {name} SET key = 'z' WHERE key = 'x' AND collection = 'a'"))
        assert seen() == ["x", "y"], "not committed"
        connection.rollback()
        assert seen() == ["x", "y"]
        connection.execute(sa.text(f"UPDATE {name} SET collection = 'b', key = 'z' WHERE key = 'x' AND collection = 'a'"))
        connection.commit()
        assert (seen(), seen("b")) == (["y"], ["x", "z"])
        connection.execute(sa.text(f"TRUNCATE {name}"))
        connection.commit()
    assert (seen(), seen("b")) == ([], [])


def test_a_change_that_is_committed_late_is_not_missed(two: tuple[ServerVectors, ServerVectors]) -> None:
    """Of two transactions at once, the second to change a collection waits for the first: numbers are seen in their order."""
    one, other = two
    asked = np.array([1.0, 0, 0])
    one.add("a", "x", asked)
    other.search("a", asked)
    slow = one._database._engine.connect()
    slow.execute(sa.text(f"UPDATE {one._name(3)} SET key = 'late' WHERE key = 'x'"))
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(other.add, "a", "y", asked)
        until = time.monotonic() + 60
        waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
        while not one._database.read(lambda c: c.execute(waiting).scalar_one()):
            assert time.monotonic() < until
        assert [h.key for h in other.search("a", asked)] == ["x"]
        slow.commit()
        waits.result(60)
    slow.close()
    assert [h.key for h in other.search("a", asked)] == ["late", "y"]
    assert [h.key for h in one.search("a", asked)] == ["late", "y"]


@pytest.mark.parametrize("kind", ["blobs", "pgvector"])
def test_several_that_begin_at_once(kind: str, postgres: servers.Postgres) -> None:
    """Servers that start together make the same tables, and their first vectors are all kept."""
    url = new_database(postgres)

    def begin(n: int) -> None:
        made = database(url)
        store = BlobVectors(made) if kind == "blobs" else ServerVectors(made, PGVECTOR)
        for i in range(5):
            store.add("a", f"{n}:{i}", np.ones(3))
            store.add("a", "same", np.ones(3))
        made.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(begin, range(4)))
    made = database(url)
    assert (BlobVectors(made) if kind == "blobs" else ServerVectors(made, PGVECTOR)).count("a") == 21
    made.close()


def test_a_user_who_may_not_make_an_extension(postgres: servers.Postgres) -> None:
    """ruvector's is none that anybody may make; what the database has by then is used."""
    url = new_database(postgres)
    made = database(url)
    with made._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("DROP ROLE IF EXISTS humble"))
        connection.execute(sa.text("CREATE ROLE humble LOGIN"))
        connection.execute(sa.text("GRANT ALL ON SCHEMA public TO humble"))
    made.close()
    made = database(url.replace("postgres@", "humble@"))
    vectors = open_vectors(made)
    vectors.add("a", "x", np.ones(3))
    assert [h.key for h in vectors.search("a", np.ones(3))] == ["x"]
    made.close()


def test_collections_that_take_too_much_memory_go_in_turn(tmp_path: Path) -> None:
    made = database(f"sqlite:///{tmp_path}/v.db")
    store = BlobVectors(made, memory_bytes=2 * bytes_of(10, 8))
    rng = np.random.default_rng(0)
    for name, count in (("a", 10), ("b", 10), ("c", 10), ("large", 21)):
        store.replace(name, "k", [Entry(f"k{i}", v) for i, v in enumerate(rng.standard_normal((count, 8)))])
    assert [store.search(name, np.ones(8)).how for name in ("a", "b", "a", "c", "large")] == ["memory"] * 4 + ["scan"]
    assert list(store._memory._held) == ["a", "c"]
    store.replace("c", "x", [Entry(f"x{i}", v) for i, v in enumerate(rng.standard_normal((11, 8)))])
    assert store.search("c", np.ones(8)).how == "scan"
    assert list(store._memory._held) == ["a"]
    made.close()


def test_an_index_that_meets_too_few_is_not_relied_upon(postgres: servers.Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without iterative scans, pgvector's index gives what is near in other collections, and the filter drops it."""
    made = database(new_database(postgres))
    store = ServerVectors(made, PGVECTOR)
    rng = np.random.default_rng(0)
    store.replace("many", "k", [Entry(f"k{i}", v) for i, v in enumerate(rng.normal(1, 0.1, (3000, 8)))])
    store.replace("few", "k", [Entry(f"k{i}", v) for i, v in enumerate(rng.normal(-1, 0.1, (20, 8)))])
    made.write(lambda c: c.execute(sa.text(f"ANALYZE {store._name(8)}")))
    store._iterative = False
    found = store.search("few", np.ones(8), 12)
    assert len(found) == 12
    assert store.search("many", np.ones(8), 12).how == "index"
    made.close()


def test_the_index_is_used_and_finds_a_collection_among_others(postgres: servers.Postgres) -> None:
    made = database(new_database(postgres))
    found = ServerVectors(made, PGVECTOR)
    found.add("a", "k", np.ones(8))
    assert found.indexed(8)
    rng = np.random.default_rng(0)
    rows = [{"c": f"c{i % 50}", "k": f"k{i}", "v": str(rng.standard_normal(8).round(4).tolist())} for i in range(3000)]
    insert = sa.text(f"INSERT INTO {found._name(8)} (collection, key, facts, v) VALUES (:c, :k, '{{}}', CAST(:v AS vector))")
    made.write(lambda c: c.execute(insert, rows))
    vectors = {r["k"]: np.array(json.loads(str(r["v"]))) for r in rows if r["c"] == "c7"}

    def plan(connection: sa.Connection) -> str:
        connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
        connection.execute(sa.text("SET LOCAL enable_sort = off"))
        near = "v <=> '[1,1,1,1,1,1,1,1]'"
        told = sa.text(f"EXPLAIN SELECT key, {near} FROM {found._name(8)} WHERE collection = 'c7' ORDER BY {near} LIMIT 10")
        return str(connection.execute(told).all())

    assert f"{found._name(8)}_near" in made.read(plan)
    for _ in range(5):
        q = rng.standard_normal(8)
        true = sorted(vectors, key=lambda k: -(vectors[k] @ q) / float(np.linalg.norm(vectors[k])))
        hits = [h.key for h in found.search("c7", q, 20)]
        assert len(hits) == 20
        assert len(set(hits) & set(true[:20])) >= 15
    made.close()


def test_ten_thousand_are_searched_at_once(tmp_path: Path) -> None:
    """Says how long it takes; nothing is asserted of it."""
    made = database(f"sqlite:///{tmp_path}/v.db")
    store = BlobVectors(made)
    rng = np.random.default_rng(0)
    store.add("a", "first", rng.standard_normal(384))
    table = rng.standard_normal((10_000, 384)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    rows = [{"collection": "a", "key": f"k{i}", "facts": "{}", "vector": v.tobytes()} for i, v in enumerate(table)]
    made.write(lambda connection: connection.execute(sa.insert(store._rows), rows))
    store.delete("a", "first")
    store.search("a", table[0])
    started = time.perf_counter()
    for i in range(20):
        assert store.search("a", table[i])[0].key == f"k{i}"
    print(f"10,000 x 384: {(time.perf_counter() - started) / 20 * 1000:.2f} ms a search")
    made.close()
