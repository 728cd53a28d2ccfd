"""One suite over every vector store: exact search in process on both databases, pgvector, and ruvector's SQL on a real PostgreSQL.

ruvector itself is not here: its type and operator are made there out of pgvector's functions, without an index, as its users report.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from isocenter.core.errors import UsageError
from isocenter.core.settings import Settings
from isocenter.store.database import Database, url_of
from isocenter.store.vectors import PGVECTOR, BlobVectors, IndexedVectors, ServerVectors, Vectors, open_vectors
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


@pytest.fixture(params=["sqlite", "sqlite by graph", "postgresql blobs", "pgvector", "ruvector"])
def vectors(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Vectors]:
    if request.param.startswith("sqlite"):
        made = database(f"sqlite:///{tmp_path}/v.db")
        yield open_vectors(made, "ruvector" if request.param.endswith("graph") else "exact")
        made.close()
        return
    server: servers.Postgres = request.getfixturevalue("postgres")
    url = new_database(server)
    if request.param == "ruvector":
        _install_ruvector(url)
    made = database(url)
    if request.param == "postgresql blobs":
        yield BlobVectors(made)
    else:
        found = open_vectors(made)
        assert isinstance(found, ServerVectors)
        assert found._flavour.extension == {"pgvector": "vector", "ruvector": "ruvector"}[request.param]
        yield found
    made.close()


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


def test_the_index_is_used_and_finds_a_collection_among_others(postgres: servers.Postgres) -> None:
    made = database(new_database(postgres))
    found = ServerVectors(made, PGVECTOR)
    found.add("a", "k", np.ones(8))
    assert found.indexed
    rng = np.random.default_rng(0)
    rows = [{"c": f"c{i % 50}", "k": f"k{i}", "v": str(rng.standard_normal(8).round(4).tolist())} for i in range(3000)]
    insert = sa.text(f"INSERT INTO {found._table(8)} (collection, key, facts, v) VALUES (:c, :k, '{{}}', CAST(:v AS vector))")
    made.write(lambda c: c.execute(insert, rows))
    vectors = {r["k"]: np.array(json.loads(str(r["v"]))) for r in rows if r["c"] == "c7"}

    def plan(connection: sa.Connection) -> str:
        connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
        connection.execute(sa.text("SET LOCAL enable_sort = off"))
        near = "v <=> '[1,1,1,1,1,1,1,1]'"
        told = sa.text(f"EXPLAIN SELECT key, {near} FROM {found._table(8)} WHERE collection = 'c7' ORDER BY {near} LIMIT 10")
        return str(connection.execute(told).all())

    assert f"{found._table(8)}_near" in made.read(plan)
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
