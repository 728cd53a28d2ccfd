"""Jobs, what happened to them, and who works on them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_COUNTED = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table("probe", sa.Column("one", sa.Integer, primary_key=True, autoincrement=False), sa.Column("at", sa.Float, nullable=False))
    op.execute("INSERT INTO probe (one, at) VALUES (1, 0)")
    op.create_table(
        "jobs",
        sa.Column("number", _COUNTED, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(36), nullable=False, unique=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("queue", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("releases", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("worker", sa.String(128)),
        sa.Column("lease_until", sa.Float),
        sa.Column("heartbeat", sa.Float),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("started", sa.Float),
        sa.Column("finished", sa.Float),
        sa.Column("progress", sa.Float, nullable=False),
        sa.Column("message", sa.String(200), nullable=False),
        sa.Column("model", sa.String(128)),
        sa.Column("owner", sa.String(64)),
        sa.Column("study_id", sa.String(36)),
        sa.Column("series_id", sa.String(36)),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("inputs", sa.JSON, nullable=False),
        sa.Column("artifacts", sa.JSON, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("seconds", sa.JSON, nullable=False),
        sa.Column("error_code", sa.String(32)),
        sa.Column("error", sa.String(500)),
        sa.Column("idempotency_key", sa.String(128), unique=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("webhook_at", sa.Float),
        sa.Column("webhook_tries", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    partial: list[tuple[str, list[str | sa.TextClause], str]] = [
        ("jobs_waiting", [sa.text("priority DESC"), "number"], "state = 'pending'"),
        ("jobs_leased", ["lease_until"], "state = 'running'"),
        ("jobs_webhooks", ["webhook_at"], "webhook_at IS NOT NULL"),
    ]
    for name, columns, where in partial:
        op.create_index(name, "jobs", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
    op.create_index("jobs_digest", "jobs", ["digest"])
    op.create_index("jobs_study", "jobs", ["study_id"])
    op.create_table(
        "job_events",
        sa.Column("number", _COUNTED, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("what", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("worker", sa.String(128)),
        sa.Column("detail", sa.String(200)),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_events_job_id", "job_events", ["job_id"])
    op.create_table(
        "workers",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("device", sa.String(16), nullable=False),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("draining", sa.Boolean, nullable=False),
        sa.Column("started", sa.Float, nullable=False),
        sa.Column("beat", sa.Float, nullable=False),
    )
