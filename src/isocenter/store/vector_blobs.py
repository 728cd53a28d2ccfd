"""Vectors as float32 BLOBs in a table of any database, searched in this process."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from isocenter.core.errors import UsageError
from isocenter.store import vector_search
from isocenter.store.database import Database
from isocenter.store.vector_search import Hits, Matrix, Memory, Putting, Ready

#: Rows of a collection that are read at once where it is not held in memory.
_BLOCK = 2000


class BlobVectors(Putting):
    """Float32 BLOBs in a table of any database, searched exactly in this process.

    The matrix of a collection is kept in memory as long as nobody, in whatever process, changes the collection; one that would take
    more than `memory_bytes` is read from the database for every search instead.
    """

    def __init__(self, database: Database, memory_bytes: int = vector_search.MEMORY_BYTES) -> None:
        self._database = database
        self._memory = Memory(memory_bytes)
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

        def prepare(connection: Connection) -> None:
            alone(connection)
            meta.create_all(connection)

        database.write(prepare)

    def _put(self, collection: str, beginning: str | None, ready: Sequence[Ready]) -> None:
        vector_search.checked_name(collection)
        rows = self._rows

        def work(connection: Connection) -> None:
            # First: who changes a collection waits here for whoever else does.
            self._changed(connection, collection)
            going: sa.ColumnElement[bool] = rows.c.key.in_([key for key, _, _ in ready])
            if beginning is not None:
                going = sa.or_(going, _begins(rows.c.key, beginning))
            connection.execute(sa.delete(rows).where(rows.c.collection == collection, going))
            other = connection.execute(sa.select(rows.c.vector).where(rows.c.collection == collection).limit(1)).scalar()
            if other is not None and ready and len(other) != ready[0][2].nbytes:
                raise vector_search.other_length(len(other) // 4, ready[0][2].size)
            values = [{"collection": collection, "key": key, "facts": told, "vector": unit.tobytes()} for key, told, unit in ready]
            if values:
                connection.execute(sa.insert(rows), values)

        self._database.write(work)

    def search(self, collection: str, vector: NDArray[np.floating], k: int = 10) -> Hits:
        vector_search.checked_name(collection)
        unit = vector_search.unit_of(vector)
        matrix = self._matrix(collection)
        return self._scanned(collection, unit, k) if matrix is None else matrix.nearest(unit, k)

    def delete(self, collection: str, key: str | None = None, *, beginning: str | None = None) -> int:
        vector_search.checked_name(collection)
        vector_search.checked_name(key, "a vector's key")
        vector_search.checked_name(beginning, "a vector's key")
        rows = self._rows

        def work(connection: Connection) -> int:
            which = [rows.c.collection == collection, *([rows.c.key == key] if key is not None else [])]
            which += [_begins(rows.c.key, beginning)] if beginning is not None else []
            self._changed(connection, collection)
            return int(connection.execute(sa.delete(rows).where(*which)).rowcount)

        return self._database.write(work)

    def count(self, collection: str) -> int:
        rows = self._rows
        query = sa.select(sa.func.count()).select_from(rows).where(rows.c.collection == collection)
        return int(self._database.read(lambda connection: connection.execute(query).scalar_one()))

    def collections(self) -> Sequence[str]:
        query = sa.select(self._rows.c.collection).distinct()
        return self._database.read(lambda connection: sorted(connection.execute(query).scalars()))

    def _changed(self, connection: Connection, collection: str) -> None:
        if connection.dialect.name == "postgresql":
            from sqlalchemy.dialects.postgresql import insert
        else:
            from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
        changes = self._changes
        first = insert(changes).values(collection=collection, number=1)
        connection.execute(first.on_conflict_do_update(index_elements=["collection"], set_={"number": changes.c.number + 1}))

    def _matrix(self, collection: str) -> Matrix | None:
        """The collection as it is now, None where it is too large to be held."""
        rows, changes = self._rows, self._changes

        def read(connection: Connection) -> Matrix | None:
            # Where something changes between the two, the number is that of before, and the next search reads again.
            number = connection.execute(sa.select(changes.c.number).where(changes.c.collection == collection)).scalar() or 0
            held = self._memory.get(collection)
            if held is not None and held.version == number:
                return held
            mine = rows.c.collection == collection
            one = connection.execute(sa.select(rows.c.vector).where(mine).limit(1)).scalar()
            count = connection.execute(sa.select(sa.func.count()).select_from(rows).where(mine)).scalar_one()
            size = len(one) // 4 if one is not None else 0
            if vector_search.bytes_of(count, size) > self._memory.most:
                return None
            found = connection.execute(sa.select(rows.c.key, rows.c.facts, rows.c.vector).where(mine)).all()
            return Matrix(number, [row.key for row in found], [row.facts for row in found], _stacked([row.vector for row in found]))

        matrix = self._database.read(read)
        if matrix is None:
            self._memory.drop(collection)
        else:
            self._memory.put(collection, matrix)
        return matrix

    def _scanned(self, collection: str, unit: NDArray[np.float32], k: int) -> Hits:
        """The nearest, a block of rows at a time."""
        rows = self._rows
        query = sa.select(rows.c.key, rows.c.facts, rows.c.vector).where(rows.c.collection == collection)

        def work(connection: Connection) -> Hits:
            best = Hits((), vector_search.SCAN)
            for block in connection.execution_options(yield_per=_BLOCK).execute(query).partitions():
                part = Matrix(0, [row.key for row in block], [row.facts for row in block], _stacked([row.vector for row in block]))
                both = [*best, *part.nearest(unit, k)]
                best = Hits(sorted(both, key=lambda hit: (-hit.similarity, hit.key))[:k], vector_search.SCAN)
            return best

        return self._database.read(work)


class IndexedVectors(BlobVectors):
    """The same table, searched through an HNSW graph of the PyPI package `ruvector` in this process.

    The graph proposes, the vectors themselves decide: what it proposes is ranked exactly, but it may miss some (of 10,000 random
    ones of 384 numbers nearly half of the ten nearest, of vectors that have any order few). It is made anew when the
    collection has changed, a few seconds for 10,000. Exact search is as fast until there are some hundred thousand.
    """

    #: Proposals for each wanted vector, and the least that the graph is searched for.
    _PROPOSED, _LEAST = 8, 200

    def __init__(self, database: Database, memory_bytes: int = vector_search.MEMORY_BYTES) -> None:
        import importlib.util

        if importlib.util.find_spec("ruvector") is None:
            raise UsageError("ISOCENTER_VECTOR_INDEX=ruvector needs a package that is not installed: pip install 'isocenter[ruvector]'")
        super().__init__(database, memory_bytes)
        self._graphs: dict[str, tuple[Matrix, Any]] = {}
        self._lock = Lock()

    def search(self, collection: str, vector: NDArray[np.floating], k: int = 10) -> Hits:
        vector_search.checked_name(collection)
        unit = vector_search.unit_of(vector)
        matrix = self._matrix(collection)
        if matrix is None:
            with self._lock:
                self._graphs.pop(collection, None)
            return self._scanned(collection, unit, k)
        wanted = max(k * self._PROPOSED, self._LEAST)
        if len(matrix.keys) <= wanted or matrix.rows.shape[1] != unit.size:
            return matrix.nearest(unit, k)
        graph = self._graph(collection, matrix)
        rows = np.array([int(name) for name, *_ in graph.search(unit, wanted, ef_search=2 * wanted)], dtype=np.int64)
        return matrix.ranked(np.einsum("ij,j->i", matrix.rows[rows], unit), rows, k, vector_search.GRAPH)

    def _graph(self, collection: str, matrix: Matrix) -> Any:
        """The graph over a matrix; another matrix object means that the collection has changed."""
        with self._lock:
            known = self._graphs.get(collection)
        if known is not None and known[0] is matrix:
            return known[1]
        from ruvector import HnswIndex

        graph = HnswIndex.create(matrix.rows.shape[1], metric="cosine", m=16, ef_construction=200, ef_search=self._LEAST)
        graph.insert_batch([str(i) for i in range(len(matrix.rows))], np.ascontiguousarray(matrix.rows))
        with self._lock:
            self._graphs[collection] = (matrix, graph)
        return graph


def alone(connection: Connection) -> None:
    """Until this transaction ends, no other process makes tables of vectors: PostgreSQL refuses two that make the same at once."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:n)"), {"n": _MAKING})


#: PostgreSQL's lock for that; any number that nobody else uses.
_MAKING = 0x15_0C_E8


def _begins(column: sa.Column[str], beginning: str) -> sa.ColumnElement[bool]:
    return sa.func.substr(column, 1, len(beginning)) == beginning


def _stacked(blobs: Sequence[bytes]) -> NDArray[np.float32]:
    return np.frombuffer(b"".join(blobs), np.float32).reshape(len(blobs), -1) if blobs else np.zeros((0, 0), np.float32)
