"""Vectors in PostgreSQL with pgvector or the `ruvector` extension: by the server's index, or, where there is none, exactly in memory.

The two extensions have the same operators and literals and differ in names only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from isocenter.store import vector_search, vector_versions
from isocenter.store.database import Database
from isocenter.store.vector_blobs import alone
from isocenter.store.vector_search import Hit, Hits, Matrix, Memory, Putting, Ready

#: So many more are looked at than are wanted, since equal ones go by their keys.
_TIES = 10
#: Bytes of a vector that fits a database page with its row.
_IN_ROW = 7000


@dataclass(frozen=True)
class Flavour:
    """An extension's names. sends: its function that gives a vector as bytes, where that is known: a number of four bytes, then float32."""

    extension: str
    type: str
    operators: str
    sends: str | None = None


PGVECTOR = Flavour("vector", "vector", "vector_cosine_ops", "vector_send")
RUVECTOR = Flavour("ruvector", "ruvector", "ruvector_cosine_ops")


class ServerVectors(Putting):
    """Vectors in PostgreSQL; a table for each length.

    Where an HNSW index could be made, the server searches by it. Where it could not (ruvector without its access methods, more
    numbers than an index takes), and where it finds too few, the collection is searched exactly in this process, which holds
    it in memory and asks with every search what has changed; one that would take more than `memory_bytes` is scanned by the server.
    """

    def __init__(self, database: Database, flavour: Flavour = PGVECTOR, memory_bytes: int = vector_search.MEMORY_BYTES) -> None:
        self._database = database
        self._flavour = flavour
        self._memory = Memory(memory_bytes)
        self._reading = Lock()
        #: Lengths whose tables are known to be there, and whether they have an index.
        self._indexed: dict[int, bool] = {}

        def prepare(connection: Connection) -> bool:
            alone(connection)
            # Whoever runs this may use an extension that is there without being allowed to create one.
            if not connection.execute(sa.text("SELECT 1 FROM pg_type WHERE typname = :t"), {"t": flavour.type}).scalar():
                connection.execute(sa.text(f"CREATE EXTENSION IF NOT EXISTS {flavour.extension}"))
            # pgvector 0.8 and later; its library must be loaded before its settings are known.
            connection.execute(sa.text(f"SELECT CAST('[1]' AS {flavour.type})"))
            vector_versions.prepare(connection)
            return bool(connection.scalar(sa.text("SELECT count(*) FROM pg_settings WHERE name = 'hnsw.iterative_scan'")))

        self._iterative = database.write(prepare)

    def _put(self, collection: str, beginning: str | None, ready: Sequence[Ready]) -> None:
        vector_search.checked_name(collection)
        size = ready[0][2].size if ready else None
        if size is not None:
            self._table(size)

        def work(connection: Connection) -> None:
            vector_versions.changed(connection, collection)  # first: who changes a collection waits here for whoever else does
            if beginning is not None:
                for known in self._known(connection):
                    which = "collection = :c AND starts_with(key, :b)"
                    connection.execute(sa.text(f"DELETE FROM {self._name(known)} WHERE {which}"), {"c": collection, "b": beginning})  # noqa: S608 - our own names
            if size is None:
                return
            other = next((n for n in self._known(connection) if n != size and self._holds(connection, n, collection)), None)
            if other is not None:
                raise vector_search.other_length(other, size)
            insert = sa.text(
                f"INSERT INTO {self._name(size)} (collection, key, facts, v) VALUES (:c, :k, :f, CAST(:v AS {self._flavour.type})) "  # noqa: S608 - our own names
                "ON CONFLICT (collection, key) DO UPDATE SET facts = EXCLUDED.facts, v = EXCLUDED.v"
            )
            connection.execute(insert, [{"c": collection, "k": key, "f": told, "v": _literal(unit)} for key, told, unit in ready])

        self._database.write(work)

    def search(self, collection: str, vector: NDArray[np.floating], k: int = 10) -> Hits:
        vector_search.checked_name(collection)
        unit = vector_search.unit_of(vector)
        if unit.size not in self._indexed and unit.size not in self._database.read(self._known):
            return self._nothing(collection, unit.size)
        if self.indexed(unit.size):
            hits = self._by_index(collection, unit, k)
            # An index that goes by distance alone may meet too few of this collection; or there are no more.
            if len(hits) >= k:
                return hits
        matrix = self._matrix(collection, unit.size)
        hits = self._scanned(collection, unit, k) if matrix is None else matrix.nearest(unit, k)
        return hits if hits else self._nothing(collection, unit.size)

    def indexed(self, size: int) -> bool:
        """Whether the server searches vectors of this length by an index."""
        self._table(size)
        return self._indexed[size]

    def delete(self, collection: str, key: str | None = None, *, beginning: str | None = None) -> int:
        vector_search.checked_name(collection)
        vector_search.checked_name(key, "a vector's key")
        vector_search.checked_name(beginning, "a vector's key")
        which = "collection = :c" + (" AND key = :k" if key is not None else "") + (" AND starts_with(key, :b)" if beginning is not None else "")
        told = {"c": collection, **({"k": key} if key is not None else {}), **({"b": beginning} if beginning is not None else {})}

        def work(connection: Connection) -> int:
            vector_versions.changed(connection, collection)
            return sum(
                connection.execute(sa.text(f"DELETE FROM {self._name(size)} WHERE {which}"), told).rowcount  # noqa: S608 - our own names
                for size in self._known(connection)
            )

        return self._database.write(work)

    def count(self, collection: str) -> int:
        def look(connection: Connection) -> int:
            queries = [f"SELECT count(*) FROM {self._name(size)} WHERE collection = :c" for size in self._known(connection)]  # noqa: S608 - our own names
            return sum(int(connection.execute(sa.text(query), {"c": collection}).scalar_one()) for query in queries)

        return self._database.read(look)

    def collections(self) -> Sequence[str]:
        def look(connection: Connection) -> Sequence[str]:
            queries = [f"SELECT DISTINCT collection FROM {self._name(size)}" for size in self._known(connection)]  # noqa: S608 - our own names
            return sorted({name for query in queries for name in connection.execute(sa.text(query)).scalars()})

        return self._database.read(look)

    # The ways to search

    def _by_index(self, collection: str, unit: NDArray[np.float32], k: int) -> Hits:
        near = f"v <=> CAST(:v AS {self._flavour.type})"
        # The index gives the nearest in the order of their distance alone; which of two equal ones comes first is decided after.
        inner = f"SELECT key, facts, {near} AS far FROM {self._name(unit.size)} WHERE collection = :c ORDER BY {near} LIMIT :n"  # noqa: S608 - our own names
        query = sa.text(f'SELECT key, facts, far FROM ({inner}) AS nearest ORDER BY far, key COLLATE "C" LIMIT :k')  # noqa: S608 - our own names
        told = {"c": collection, "v": _literal(unit), "k": k, "n": k + _TIES}

        def look(connection: Connection) -> Sequence[sa.Row[Any]]:
            if self._iterative:
                # Where other collections lie in between, the index goes on until there are enough.
                connection.execute(sa.text("SET LOCAL hnsw.iterative_scan = strict_order"))
                connection.execute(sa.text(f"SET LOCAL hnsw.ef_search = {min(max(100, 2 * (k + _TIES)), 1000)}"))
            return connection.execute(query, told).all()

        return _hits(self._database.read(look), vector_search.INDEX)

    def _scanned(self, collection: str, unit: NDArray[np.float32], k: int) -> Hits:
        far = f"v <=> CAST(:v AS {self._flavour.type})"
        # A common table that is materialised: no index may answer in its place.
        all_of = f"SELECT key, {far} AS far FROM {self._name(unit.size)} WHERE collection = :c"  # noqa: S608 - our own names
        best = f'WITH every AS MATERIALIZED ({all_of}), best AS (SELECT key, far FROM every ORDER BY far, key COLLATE "C" LIMIT :k)'  # noqa: S608 - our own names
        facts = f"SELECT key, facts, far FROM best JOIN {self._name(unit.size)} USING (key)"  # noqa: S608 - our own names
        query = f'{best} {facts} WHERE collection = :c ORDER BY far, key COLLATE "C"'
        told = {"c": collection, "v": _literal(unit), "k": k}
        return _hits(self._database.read(lambda connection: connection.execute(sa.text(query), told).all()), vector_search.SCAN)

    def _matrix(self, collection: str, size: int) -> Matrix | None:
        """The collection as it is now, None where it is too large to be held."""

        def held(connection: Connection) -> Matrix | None:
            found, version = self._memory.get(collection), vector_versions.version(connection, collection)
            return found if found is not None and found.version == version and found.rows.shape[1] == size else None

        now = self._database.read(held)
        if now is not None:
            return now
        with self._reading:  # several that find it changed need not all read it
            now = self._database.read(held) or self._database.read(lambda connection: self._read(connection, collection, size))
            if now is None:
                self._memory.drop(collection)
            else:
                self._memory.put(collection, now)
        return now

    def _read(self, connection: Connection, collection: str, size: int) -> Matrix | None:
        """What changed since it was read last, put in its place. None where it is too large."""
        connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))  # all of it as of one moment
        version, name = vector_versions.version(connection, collection), self._name(size)
        base = self._memory.get(collection)
        if base is None or base.version > version or base.rows.shape[1] != size:
            base = Matrix(vector_versions.NONE, [], [], np.zeros((0, size), np.float32))
        told = {"c": collection, "n": base.version}
        count = int(connection.execute(sa.text(f"SELECT count(*) FROM {name} WHERE collection = :c"), told).scalar_one())  # noqa: S608 - our own names
        if vector_search.bytes_of(count, size) > self._memory.most:
            return None
        sent = f"{self._flavour.sends}(v)" if self._flavour.sends else "CAST(v AS text)"
        query = f"SELECT key, facts, {sent} AS v FROM {name} WHERE collection = :c AND changed > :n"  # noqa: S608 - our own names
        fresh = connection.execute(sa.text(query), told).all()
        rows = np.empty((len(fresh), size), np.float32)
        for i, row in enumerate(fresh):
            rows[i] = np.frombuffer(row.v, ">f4", offset=4) if self._flavour.sends else np.fromstring(row.v[1:-1], sep=",")
        replaced = {row.key for row in fresh}
        stays = [i for i, key in enumerate(base.keys) if key not in replaced]
        if len(stays) + len(fresh) != count:
            # Those that are gone left nothing behind that says so.
            there = set(connection.execute(sa.text(f"SELECT key FROM {name} WHERE collection = :c"), told).scalars())  # noqa: S608 - our own names
            stays = [i for i in stays if base.keys[i] in there]
        keys = [*(base.keys[i] for i in stays), *(row.key for row in fresh)]
        facts = [*(base.facts[i] for i in stays), *(row.facts for row in fresh)]
        return Matrix(version, keys, facts, np.concatenate([base.rows[stays], rows]) if stays else rows)

    def _nothing(self, collection: str, size: int) -> Hits:
        """No hits. Raises `UsageError` where the collection holds vectors of another length."""

        def look(connection: Connection) -> int | None:
            return next((known for known in self._known(connection) if known != size and self._holds(connection, known, collection)), None)

        other = self._database.read(look)
        if other is not None:
            raise vector_search.other_length(other, size)
        return Hits((), vector_search.MEMORY)

    # Tables

    def _holds(self, connection: Connection, size: int, collection: str) -> bool:
        query = sa.text(f"SELECT EXISTS (SELECT 1 FROM {self._name(size)} WHERE collection = :c)")  # noqa: S608 - our own names
        return bool(connection.execute(query, {"c": collection}).scalar_one())

    def _name(self, size: int) -> str:
        return f"isocenter_{self._flavour.type}_{size}"

    def _known(self, connection: Connection) -> Sequence[int]:
        """Lengths for which there are tables, also those that other processes made."""
        query = sa.text("SELECT tablename FROM pg_tables WHERE tablename ~ :p AND schemaname = current_schema()")
        names = connection.execute(query, {"p": f"^{self._name(0)[:-1]}[0-9]+$"}).scalars()
        return sorted(int(name.rsplit("_", 1)[1]) for name in names)

    def _table(self, size: int) -> None:
        """Make the table of a length where it is not there; without the index where the server cannot make it."""
        if size in self._indexed:
            return
        name, kind, operators = self._name(size), self._flavour.type, self._flavour.operators

        def make(connection: Connection) -> bool:
            alone(connection)
            connection.execute(
                sa.text(
                    f"CREATE TABLE IF NOT EXISTS {name} (collection text NOT NULL, key text NOT NULL, facts text NOT NULL, "
                    f"v {kind}({size}) NOT NULL, PRIMARY KEY (collection, key))"
                )
            )
            if 4 * size < _IN_ROW:
                # Beside the row and packed, each would be fetched and unpacked for every comparison.
                connection.execute(sa.text(f"ALTER TABLE {name} ALTER COLUMN v SET STORAGE PLAIN"))
            vector_versions.watch(connection, name)
            try:
                with connection.begin_nested():
                    connection.execute(sa.text(f"CREATE INDEX IF NOT EXISTS {name}_near ON {name} USING hnsw (v {operators})"))
            except sa.exc.DBAPIError:
                return False
            return True

        self._indexed[size] = self._database.write(make)


def _hits(rows: Sequence[sa.Row[Any]], how: str) -> Hits:
    return Hits((Hit(row.key, 1.0 - float(row.far), json.loads(row.facts)) for row in rows), how)


def _literal(unit: NDArray[np.float32]) -> str:
    return "[" + ",".join(f"{float(v):.9g}" for v in unit) + "]"
