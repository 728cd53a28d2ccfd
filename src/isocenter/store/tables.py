"""The tables of all records, as SQLAlchemy sees them. Their history is in `migrations/`; a test compares the two."""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()
#: A number that the database counts up.
COUNTED = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

#: One row that is written to, to see whether anything can be.
PROBE = sa.Table("probe", METADATA, sa.Column("one", sa.Integer, primary_key=True, autoincrement=False), sa.Column("at", sa.Float, nullable=False))

#: See `jobs/table.py` for the states and for what the fields mean.
JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("number", COUNTED, primary_key=True, autoincrement=True),
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
_PENDING = sa.text("state = 'pending'")
_RUNNING = sa.text("state = 'running'")
_DUE = sa.text("webhook_at IS NOT NULL")
sa.Index("jobs_waiting", JOBS.c.priority.desc(), JOBS.c.number, sqlite_where=_PENDING, postgresql_where=_PENDING)
sa.Index("jobs_leased", JOBS.c.lease_until, sqlite_where=_RUNNING, postgresql_where=_RUNNING)
sa.Index("jobs_webhooks", JOBS.c.webhook_at, sqlite_where=_DUE, postgresql_where=_DUE)
sa.Index("jobs_digest", JOBS.c.digest)
sa.Index("jobs_study", JOBS.c.study_id)

#: What happened to jobs, in order; outlives the job.
EVENTS = sa.Table(
    "job_events",
    METADATA,
    sa.Column("number", COUNTED, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.String(36), nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("what", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("worker", sa.String(128)),
    sa.Column("detail", sa.String(200)),
    sqlite_autoincrement=True,
)

#: Who is there to work: alive while `beat` is recent.
WORKERS = sa.Table(
    "workers",
    METADATA,
    sa.Column("id", sa.String(128), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("device", sa.String(16), nullable=False),
    sa.Column("slots", sa.Integer, nullable=False),
    sa.Column("draining", sa.Boolean, nullable=False),
    sa.Column("started", sa.Float, nullable=False),
    sa.Column("beat", sa.Float, nullable=False),
)

#: Uploaded DICOM studies. The file lies in the object store under `digest`; no name and no number of a patient is kept here.
STUDIES = sa.Table(
    "studies",
    METADATA,
    sa.Column("number", COUNTED, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(36), nullable=False, unique=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("suffix", sa.String(16), nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("files", sa.Integer, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("series", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)
