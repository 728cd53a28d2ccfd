"""Which job needs which file, to be looked up and not searched for; and jobs that are kept for good."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, and fill it from the jobs that are there."""
    op.add_column("jobs", sa.Column("kept", sa.Boolean, nullable=False, server_default=sa.false()))
    files = op.create_table(
        "job_files",
        sa.Column("job_id", sa.String(36), primary_key=True),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("made", sa.Boolean, primary_key=True),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("job_files_digest", "job_files", ["digest"])
    connection = op.get_bind()
    for job_id, inputs, artifacts in connection.execute(sa.text("SELECT id, inputs, artifacts FROM jobs")).all():
        rows = {(job_id, f["digest"], made): f["bytes"] for made, given in ((False, inputs), (True, artifacts)) for f in _list(given)}
        if rows:
            values = [{"job_id": job, "digest": digest, "made": made, "bytes": size} for (job, digest, made), size in rows.items()]
            connection.execute(sa.insert(files), values)


def _list(given: str | list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """JSON as SQLite gives it out, or as PostgreSQL's driver has read it."""
    return json.loads(given) if isinstance(given, str) else given
