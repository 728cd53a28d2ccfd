"""Vectors and what is near them: one seam over search in process (exact, or through ruvector's graph), pgvector, and the ruvector extension.

Similarity is the cosine. The two extensions have the same operators and literals and differ in names only; where an index
cannot be made, the search is exact, which is never wrong. Facts are small JSON beside each vector, never patients' names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from isocenter.core.errors import UsageError
from isocenter.store.database import Database

_NAME = re.compile(r"[A-Za-z0-9._@:-]{1,200}")
_MOST_DIMENSIONS = 4096
#: So many more are looked at than are wanted, since equal ones go by their keys.
_TIES = 10
#: Bytes of a vector that fits a database page with its row.
_IN_ROW = 7000


@dataclass(frozen=True)
class Hit:
    """A vector found. similarity: cosine, 1 for the same direction. facts: what was kept with it."""

    key: str
    similarity: float
    facts: Mapping[str, Any]


class Vectors(Protocol):
    """Where vectors are kept, by collection and key; all of a collection have one length."""

    def add(self, collection: str, key: str, vector: NDArray[np.floating], facts: Mapping[str, Any] | None = None) -> None:
        """Keep a vector; one of the same key is replaced. Raises `UsageError` for one that is empty, zero or not finite."""

    def search(self, collection: str, vector: NDArray[np.floating], k: int = 10) -> list[Hit]:
        """The `k` nearest, nearest first; equal ones by key."""

    def delete(self, collection: str, key: str | None = None, *, beginning: str | None = None) -> int:
        """Forget one vector, those whose keys begin with `beginning`, or a whole collection; how many there were."""

    def count(self, collection: str) -> int:
        """How many a collection holds."""


def open_vectors(database: Database, index: str = "exact") -> Vectors:
    """The best that the database has: ruvector, pgvector, or search in this process: exact, or ("ruvector") by an index first.

    Raises `UsageError` for an index whose package is not installed.
    """
    if database.dialect == "postgresql":
        listed = sa.text(
            "SELECT name FROM pg_available_extensions WHERE name IN ('ruvector', 'vector') "
            "UNION SELECT typname FROM pg_type WHERE typname IN ('ruvector', 'vector')"
        )
        names = set(database.read(lambda connection: connection.execute(listed).scalars().all()))
        for flavour in (RUVECTOR, PGVECTOR):
            if flavour.extension in names:
                return ServerVectors(database, flavour)
    return IndexedVectors(database) if index == "ruvector" else BlobVectors(database)


def _checked(collection: str, key: str | None, vector: NDArray[np.floating] | None) -> NDArray[np.float32]:
    """The vector at length one. Raises `UsageError` for names and vectors that cannot be kept."""
    for name, what in ((collection, "a collection's name"), (key, "a vector's key")):
        if name is not None and not _NAME.fullmatch(name):
            raise UsageError(f"{what} has 1 to 200 letters, digits or . _ @ : -")
    if vector is None:
        return np.zeros(0, np.float32)
    flat = np.asarray(vector, dtype=np.float64).reshape(-1)
    norm = float(np.linalg.norm(flat))
    if not 0 < flat.size <= _MOST_DIMENSIONS or not np.isfinite(norm) or norm == 0:
        raise UsageError(f"a vector has 1 to {_MOST_DIMENSIONS} finite numbers, not all of them 0")
    return np.asarray(flat / norm, dtype=np.float32)


class BlobVectors:
    """Float32 BLOBs in a table of any database, searched exactly in this process (0.7 ms for 20,000 x 384).

    The matrix of a collection is kept in memory as long as nobody, in whatever process, changes the collection.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = Lock()
        self._kept: dict[str, tuple[int, list[str], list[str], NDArray[np.float32]]] = {}
        meta = sa.MetaData()
        self._rows = sa.Table(
            "isocenter_vectors",
            meta,
            sa.Column("collection", sa.Text, primary_key=True),
            sa.Column("key", sa.Text, primary_key=True),
            sa.Column("facts", sa.Text, nullable=False),
            sa.Column("vector", sa.LargeBinary, nullable=False),
        )
        self._changes = sa.Table(
            "isocenter_vector_changes", meta, sa.Column("collection", sa.Text, primary_key=True), sa.Column("number", sa.Integer, nullable=False)
        )
        database.write(lambda connection: meta.create_all(connection))

    def add(self, collection: str, key: str, vector: NDArray[np.floating], facts: Mapping[str, Any] | None = None) -> None:
        unit = _checked(collection, key, vector)
        rows = self._rows

        def work(connection: Connection) -> None:
            other = connection.execute(sa.select(rows.c.vector).where(rows.c.collection == collection).limit(1)).scalar()
            if other is not None and len(other) != unit.nbytes:
                raise UsageError(f"this collection's vectors have {len(other) // 4} numbers, not {unit.size}")
            connection.execute(sa.delete(rows).where(rows.c.collection == collection, rows.c.key == key))
            told = json.dumps(dict(facts or {}), allow_nan=False)
            connection.execute(sa.insert(rows).values(collection=collection, key=key, facts=told, vector=unit.tobytes()))
            self._changed(connection, collection)

        self._database.write(work)

    def search(self, collection: str, vector: NDArray[np.floating], k: int = 10) -> list[Hit]:
        unit = _checked(collection, None, vector)
        keys, facts, matrix = self._matrix(collection)
        if not keys:
            return []
        if matrix.shape[1] != unit.size:
            raise UsageError(f"this collection's vectors have {matrix.shape[1]} numbers, not {unit.size}")
        # Not a product of matrices: a linear algebra library would wake its threads for it, which costs more than it saves.
        near = np.einsum("ij,j->i", matrix, unit)
        some = np.argpartition(-near, min(k, len(keys)) - 1)[:k] if k < len(keys) else np.arange(len(keys))
        order = sorted(some.tolist(), key=lambda i: (-float(near[i]), keys[i]))
        return [Hit(keys[i], float(near[i]), json.loads(facts[i])) for i in order[:k]]

    def delete(self, collection: str, key: str | None = None, *, beginning: str | None = None) -> int:
        _checked(collection, key, None)
        _checked(collection, beginning, None)
        rows = self._rows

        def work(connection: Connection) -> int:
            which = [rows.c.collection == collection, *([rows.c.key == key] if key is not None else [])]
            which += [sa.func.substr(rows.c.key, 1, len(beginning)) == beginning] if beginning is not None else []
            gone = connection.execute(sa.delete(rows).where(*which)).rowcount
            self._changed(connection, collection)
            return int(gone)

        return self._database.write(work)

    def count(self, collection: str) -> int:
        rows = self._rows
        query = sa.select(sa.func.count()).select_from(rows).where(rows.c.collection == collection)
        return int(self._database.read(lambda connection: connection.execute(query).scalar_one()))

    def _changed(self, connection: Connection, collection: str) -> None:
        changes = self._changes
        counted = connection.execute(sa.update(changes).where(changes.c.collection == collection).values(number=changes.c.number + 1)).rowcount
        if not counted:
            connection.execute(sa.insert(changes).values(collection=collection, number=1))

    def _matrix(self, collection: str) -> tuple[list[str], list[str], NDArray[np.float32]]:
        rows, changes = self._rows, self._changes

        def read(connection: Connection) -> tuple[int, list[str], list[str], NDArray[np.float32]]:
            number = connection.execute(sa.select(changes.c.number).where(changes.c.collection == collection)).scalar() or 0
            with self._lock:
                kept = self._kept.get(collection)
            if kept is not None and kept[0] == number:
                return kept
            found = connection.execute(sa.select(rows.c.key, rows.c.facts, rows.c.vector).where(rows.c.collection == collection)).all()
            matrix = (
                np.frombuffer(b"".join(row.vector for row in found), np.float32).reshape(len(found), -1) if found else np.zeros((0, 0), np.float32)
            )
            return number, [row.key for row in found], [row.facts for row in found], matrix

        kept = self._database.read(read)
        with self._lock:
            self._kept[collection] = kept
        return kept[1:]


class IndexedVectors(BlobVectors):
    """The same table, searched through an HNSW graph of the PyPI package `ruvector` in this process.

    The graph proposes, the vectors themselves decide: what it proposes is ranked exactly, but it may miss some (of 10,000 random
    ones of 384 numbers nearly half of the ten nearest, of vectors that have any order few). It is made anew when the
    collection has changed, a few seconds for 10,000. Exact search is as fast until there are some hundred thousand.
    """

    #: Proposals for each wanted vector, and the least that the graph is searched for.
    _PROPOSED, _LEAST = 8, 200

    def __init__(self, database: Database) -> None:
        import importlib.util

        if importlib.util.find_spec("ruvector") is None:
            raise UsageError("ISOCENTER_VECTOR_INDEX=ruvector needs a package that is not installed: pip install 'isocenter[ruvector]'")
        super().__init__(database)
        self._graphs: dict[str, tuple[NDArray[np.float32], Any]] = {}

    def search(self, collection: str, vector: NDArray[np.floating], k: int = 10) -> list[Hit]:
        unit = _checked(collection, None, vector)
        keys, facts, matrix = self._matrix(collection)
        wanted = max(k * self._PROPOSED, self._LEAST)
        if len(keys) <= wanted or matrix.shape[1] != unit.size:
            return super().search(collection, vector, k)
        graph = self._graph(collection, matrix)
        rows = np.array([int(name) for name, *_ in graph.search(unit, wanted, ef_search=2 * wanted)], dtype=np.int64)
        near = matrix[rows] @ unit
        order = sorted(range(len(rows)), key=lambda i: (-float(near[i]), keys[rows[i]]))
        return [Hit(keys[rows[i]], float(near[i]), json.loads(facts[rows[i]])) for i in order[:k]]

    def _graph(self, collection: str, matrix: NDArray[np.float32]) -> Any:
        """The graph over a matrix; another matrix object means that the collection has changed."""
        with self._lock:
            known = self._graphs.get(collection)
        if known is not None and known[0] is matrix:
            return known[1]
        from ruvector import HnswIndex

        graph = HnswIndex.create(matrix.shape[1], metric="cosine", m=16, ef_construction=200, ef_search=self._LEAST)
        graph.insert_batch([str(i) for i in range(len(matrix))], np.ascontiguousarray(matrix))
        with self._lock:
            self._graphs[collection] = (matrix, graph)
        return graph


@dataclass(frozen=True)
class Flavour:
    """An extension's names."""

    extension: str
    type: str
    operators: str


PGVECTOR = Flavour("vector", "vector", "vector_cosine_ops")
RUVECTOR = Flavour("ruvector", "ruvector", "ruvector_cosine_ops")


class ServerVectors:
    """Vectors in PostgreSQL, searched by the server; a table for each length. indexed: whether an HNSW index could be made."""

    def __init__(self, database: Database, flavour: Flavour = PGVECTOR) -> None:
        self._database = database
        self._flavour = flavour
        self._sizes: set[int] = set()
        self.indexed = True

        def prepare(connection: Connection) -> bool:
            # Whoever runs this may use an extension that is there without being allowed to create one.
            if not connection.execute(sa.text("SELECT 1 FROM pg_type WHERE typname = :t"), {"t": flavour.type}).scalar():
                connection.execute(sa.text(f"CREATE EXTENSION IF NOT EXISTS {flavour.extension}"))
            # pgvector 0.8 and later; its library must be loaded before its settings are known.
            connection.execute(sa.text(f"SELECT CAST('[1]' AS {flavour.type})"))
            return bool(connection.scalar(sa.text("SELECT count(*) FROM pg_settings WHERE name = 'hnsw.iterative_scan'")))

        self._iterative = database.write(prepare)

    def add(self, collection: str, key: str, vector: NDArray[np.floating], facts: Mapping[str, Any] | None = None) -> None:
        unit = _checked(collection, key, vector)
        table = self._table(unit.size)
        other = next((size for size in self._known() if size != unit.size and self._count(size, collection)), None)
        if other is not None:
            raise UsageError(f"this collection's vectors have {other} numbers, not {unit.size}")
        told = {"c": collection, "k": key, "f": json.dumps(dict(facts or {}), allow_nan=False), "v": _literal(unit)}
        insert = sa.text(
            f"INSERT INTO {table} (collection, key, facts, v) VALUES (:c, :k, :f, CAST(:v AS {self._flavour.type})) "  # noqa: S608 - our own names
            "ON CONFLICT (collection, key) DO UPDATE SET facts = EXCLUDED.facts, v = EXCLUDED.v"
        )
        self._database.write(lambda connection: connection.execute(insert, told))

    def search(self, collection: str, vector: NDArray[np.floating], k: int = 10) -> list[Hit]:
        unit = _checked(collection, None, vector)
        table, kind = self._table(unit.size), self._flavour.type
        near = f"v <=> CAST(:v AS {kind})"
        # The index gives the nearest in the order of their distance alone; which of two equal ones comes first is decided after.
        inner = f"SELECT key, facts, {near} AS far FROM {table} WHERE collection = :c ORDER BY {near} LIMIT :n"  # noqa: S608 - our own names
        query = sa.text(f"SELECT key, facts, far FROM ({inner}) AS nearest ORDER BY far, key LIMIT :k")  # noqa: S608 - our own names
        told = {"c": collection, "v": _literal(unit), "k": k, "n": k + _TIES}

        def look(connection: Connection) -> Sequence[sa.Row[Any]]:
            if self.indexed and self._iterative:
                # Where other collections lie in between, the index goes on until there are enough.
                connection.execute(sa.text("SET LOCAL hnsw.iterative_scan = strict_order"))
                connection.execute(sa.text(f"SET LOCAL hnsw.ef_search = {min(max(100, 2 * (k + _TIES)), 1000)}"))
            return connection.execute(query, told).all()

        rows = self._database.read(look)
        if not rows:
            known = [size for size in self._known() if self._count(size, collection)]
            if known:
                raise UsageError(f"this collection's vectors have {known[0]} numbers, not {unit.size}")
        return [Hit(row.key, 1.0 - float(row.far), json.loads(row.facts)) for row in rows]

    def delete(self, collection: str, key: str | None = None, *, beginning: str | None = None) -> int:
        _checked(collection, key, None)
        _checked(collection, beginning, None)
        which = "collection = :c" + (" AND key = :k" if key is not None else "") + (" AND starts_with(key, :b)" if beginning is not None else "")
        told = {"c": collection, **({"k": key} if key is not None else {}), **({"b": beginning} if beginning is not None else {})}

        def work(connection: Connection) -> int:
            return sum(
                connection.execute(sa.text(f"DELETE FROM {self._name(size)} WHERE {which}"), told).rowcount  # noqa: S608 - our own names
                for size in self._known()
            )

        return self._database.write(work)

    def count(self, collection: str) -> int:
        return sum(self._count(size, collection) for size in self._known())

    def _count(self, size: int, collection: str) -> int:
        query = sa.text(f"SELECT count(*) FROM {self._name(size)} WHERE collection = :c")  # noqa: S608 - our own names
        return int(self._database.read(lambda connection: connection.execute(query, {"c": collection}).scalar_one()))

    def _name(self, size: int) -> str:
        return f"isocenter_{self._flavour.type}_{size}"

    def _known(self) -> Sequence[int]:
        """Lengths for which there are tables, also those that other processes made."""
        query = sa.text("SELECT tablename FROM pg_tables WHERE tablename LIKE :p AND schemaname = current_schema()")
        pattern = f"isocenter\\_{self._flavour.type}\\_%"
        names = self._database.read(lambda connection: connection.execute(query, {"p": pattern}).scalars().all())
        return sorted(int(name.rsplit("_", 1)[1]) for name in names)

    def _table(self, size: int) -> str:
        """The table of a length, made when it is first needed; without the index where the server cannot make it."""
        name = self._name(size)
        if size in self._sizes:
            return name
        kind, operators = self._flavour.type, self._flavour.operators

        def make(connection: Connection) -> bool:
            connection.execute(
                sa.text(
                    f"CREATE TABLE IF NOT EXISTS {name} (collection text NOT NULL, key text NOT NULL, facts text NOT NULL, "
                    f"v {kind}({size}) NOT NULL, PRIMARY KEY (collection, key))"
                )
            )
            if 4 * size < _IN_ROW:
                # Beside the row and packed, each would be fetched and unpacked for every comparison.
                connection.execute(sa.text(f"ALTER TABLE {name} ALTER COLUMN v SET STORAGE PLAIN"))
            try:
                with connection.begin_nested():
                    connection.execute(sa.text(f"CREATE INDEX IF NOT EXISTS {name}_near ON {name} USING hnsw (v {operators})"))
            except sa.exc.DBAPIError:
                return False
            return True

        self.indexed = self._database.write(make)
        self._sizes.add(size)
        return name


def _literal(unit: NDArray[np.float32]) -> str:
    return "[" + ",".join(f"{float(v):.9g}" for v in unit) + "]"
