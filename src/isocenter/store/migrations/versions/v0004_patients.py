"""Patients over time: visits, versioned corrections, narratives, and an audit log that the database itself keeps from being changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _number() -> sa.Column[int]:
    return sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True)


def upgrade() -> None:
    """Make the tables, and the triggers that refuse changes."""
    op.create_table(
        "patients",
        _number(),
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
    op.create_table(
        "timepoints",
        _number(),
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
    op.create_table(
        "patient_versions",
        _number(),
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
    op.create_table(
        "narratives",
        _number(),
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
    op.create_index("narratives_patient", "narratives", ["patient_id"])
    op.create_table(
        "audit_log",
        _number(),
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
    op.create_index("audit_log_patient", "audit_log", ["patient_id"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION isocenter_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_log_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log "
            "FOR EACH STATEMENT EXECUTE FUNCTION isocenter_append_only()"
        )
        # Versions go with their patient, and are otherwise as final.
        op.execute(
            "CREATE TRIGGER patient_versions_stay BEFORE UPDATE ON patient_versions FOR EACH STATEMENT EXECUTE FUNCTION isocenter_append_only()"
        )
        return
    for table, change in (("audit_log", "UPDATE"), ("audit_log", "DELETE"), ("patient_versions", "UPDATE")):
        op.execute(f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END")
    # "INSERT OR REPLACE" removes rows without asking the trigger above.
    op.execute(
        "CREATE TRIGGER audit_log_no_replace BEFORE INSERT ON audit_log "
        "WHEN EXISTS (SELECT 1 FROM audit_log WHERE event_id = NEW.event_id OR number = NEW.number) "
        "BEGIN SELECT RAISE(ABORT, 'audit_log is append-only'); END"
    )
