"""Vectors and what is near them: one seam over search in process (exact, or through ruvector's graph), pgvector, and the ruvector extension.

Similarity is the cosine. Each backend has a file of its own: `vector_blobs`, `vector_server`; where an index cannot be used,
the search is exact, which is never wrong. What was found says how.
"""

from __future__ import annotations

import sqlalchemy as sa
import structlog

from isocenter.store.database import Database
from isocenter.store.vector_blobs import BlobVectors, IndexedVectors
from isocenter.store.vector_search import MEMORY_BYTES, Vectors
from isocenter.store.vector_server import PGVECTOR, RUVECTOR, ServerVectors

log = structlog.get_logger("isocenter.vectors")


def open_vectors(database: Database, index: str = "exact", memory_bytes: int = MEMORY_BYTES) -> Vectors:
    """The best that the database has: ruvector, pgvector, or search in this process: exact, or ("ruvector") by an index first.

    memory_bytes: what collections may take in this process. Raises `UsageError` for an index whose package is not installed.
    """
    if database.dialect == "postgresql":
        listed = sa.text(
            "SELECT name FROM pg_available_extensions WHERE name IN ('ruvector', 'vector') "
            "UNION SELECT typname FROM pg_type WHERE typname IN ('ruvector', 'vector')"
        )
        names = set(database.read(lambda connection: connection.execute(listed).scalars().all()))
        for flavour in (RUVECTOR, PGVECTOR):
            if flavour.extension in names:
                try:
                    return ServerVectors(database, flavour, memory_bytes)
                except sa.exc.ProgrammingError:
                    log.warning("the database's user may not create this extension; ask its owner to", extension=flavour.extension)
    return IndexedVectors(database, memory_bytes) if index == "ruvector" else BlobVectors(database, memory_bytes)
