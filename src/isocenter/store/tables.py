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
    sa.Column("kept", sa.Boolean, nullable=False, server_default=sa.false()),
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

#: Which files of the object store a job needs. made: a result, not a scan that it was given.
JOB_FILES = sa.Table(
    "job_files",
    METADATA,
    sa.Column("job_id", sa.String(36), primary_key=True),
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("made", sa.Boolean, primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
)
sa.Index("job_files_digest", JOB_FILES.c.digest)

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

#: In which order the prompts of interactive sessions came. whose: digest of model, volume and owner. histories: of digests. See `store/orders.py`.
CLICK_ORDERS = sa.Table(
    "click_orders",
    METADATA,
    sa.Column("whose", sa.String(32), primary_key=True),
    sa.Column("histories", sa.JSON, nullable=False),
    sa.Column("used", sa.Float, nullable=False),
)
sa.Index("click_orders_used", CLICK_ORDERS.c.used)

#: Patients by pseudonym. origin: the date of day 0 where dates are known. identity: a keyed hash of the images' PatientID, so
#: that another patient's scan is noticed. private: what a person chose to keep of who it is; told only when asked for.
#: version: of the corrections. revision: counts every change of visits and corrections.
PATIENTS = sa.Table(
    "patients",
    METADATA,
    sa.Column("number", COUNTED, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("changed", sa.Float, nullable=False),
    sa.Column("origin", sa.String(10)),
    sa.Column("identity", sa.String(64)),
    sa.Column("private", sa.JSON, nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sqlite_autoincrement=True,
)

#: Visits. id: under which `job_files` knows what the visit needs. measured: lesions as they were measured, and what belongs to
#: that. registration: of the visit before, to this one's scan. files: in the object store.
TIMEPOINTS = sa.Table(
    "timepoints",
    METADATA,
    sa.Column("number", COUNTED, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(36), nullable=False, unique=True),
    sa.Column("patient_id", sa.String(64), nullable=False),
    sa.Column("timepoint_id", sa.String(64), nullable=False),
    sa.Column("day", sa.Float, nullable=False),
    sa.Column("scan_date", sa.String(10)),
    sa.Column("modality", sa.String(16)),
    sa.Column("key", sa.String(64)),
    sa.Column("measured", sa.JSON, nullable=False),
    sa.Column("registration", sa.JSON),
    sa.Column("files", sa.JSON, nullable=False),
    sa.Column("job_id", sa.String(36)),
    sa.UniqueConstraint("patient_id", "timepoint_id", name="timepoints_once"),
    sqlite_autoincrement=True,
)

#: Every version of a patient's corrections, whole. Rows are never changed: the database refuses it.
PATIENT_VERSIONS = sa.Table(
    "patient_versions",
    METADATA,
    sa.Column("number", COUNTED, primary_key=True, autoincrement=True),
    sa.Column("patient_id", sa.String(64), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("reason", sa.String(500), nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("edits", sa.JSON, nullable=False),
    sa.UniqueConstraint("patient_id", "version", name="patient_versions_once"),
    sqlite_autoincrement=True,
)

#: What models and templates wrote about a patient, with prompt and check.
NARRATIVES = sa.Table(
    "narratives",
    METADATA,
    sa.Column("number", COUNTED, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(36), nullable=False, unique=True),
    sa.Column("patient_id", sa.String(64), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("answer", sa.JSON, nullable=False),
    sa.Column("provenance", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)
sa.Index("narratives_patient", NARRATIVES.c.patient_id)

#: Who did what to a patient's record, and when. Append-only: the database refuses to change or remove a row. data_hash: of the
#: row and of the patient's row before it, so that a gap shows.
AUDIT = sa.Table(
    "audit_log",
    METADATA,
    sa.Column("number", COUNTED, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.String(36), nullable=False, unique=True),
    sa.Column("timestamp", sa.Float, nullable=False),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("session_id", sa.String(64), nullable=False),
    sa.Column("action_type", sa.String(32), nullable=False),
    sa.Column("component", sa.String(32), nullable=False),
    sa.Column("patient_id", sa.String(64), nullable=False),
    sa.Column("timepoint_id", sa.String(64)),
    sa.Column("lesion_id", sa.String(64)),
    sa.Column("before_state", sa.JSON),
    sa.Column("after_state", sa.JSON),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("data_hash", sa.String(64), nullable=False),
    sqlite_autoincrement=True,
)
sa.Index("audit_log_patient", AUDIT.c.patient_id)
