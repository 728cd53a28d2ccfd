"""Patients in SQLite and in PostgreSQL: nothing is lost or mixed up, every version stays, and the audit log cannot be changed."""

from __future__ import annotations

from datetime import date

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from isocenter.core.errors import ConflictError, NotFoundError, UsageError
from isocenter.jobs.queue import Queue
from isocenter.jobs.table import NewJob, Stored
from isocenter.patients import audit
from isocenter.patients.audit import Who
from isocenter.patients.records import NewVisit, Records
from isocenter.store.database import Database
from isocenter.store.tables import AUDIT, JOB_FILES, PATIENT_VERSIONS

WHO = Who("key-1", "session")
SCAN = Stored("scan.nii.gz", "a" * 64, 10)


@pytest.fixture
def records(database: Database) -> Records:
    return Records(database)


def visit(name: str, day: float | None = None, when: date | None = None, *, key: str = "k", identity: str | None = None) -> NewVisit:
    measured = {"lesions": [], "spacing_mm": [1, 1, 1], "reason": None, "notes": []}
    return NewVisit(name, day, when, "CT", key, measured, (SCAN,), identity)


def test_patients_come_page_by_page_and_once(records: Records) -> None:
    for name in ("A", "B", "C"):
        records.create(name, WHO, private={"name": "Jane"}, options={"least_mm3": 10})
    with pytest.raises(ConflictError):
        records.create("A", WHO)
    with pytest.raises(UsageError):
        records.create("Jane Doe", WHO)
    found, count = records.page(skip=1, limit=1)
    assert ([p.id for p in found], count) == (["B"], 3)
    assert records.get("A").private == {"name": "Jane"}
    with pytest.raises(NotFoundError):
        records.get("D")
    said = [e for e in audit.page(records.database, "A")[0] if "Jane" in str(e)]
    assert not said, "who a patient is does not go into the log"


def test_visits_have_days_by_their_dates(records: Records) -> None:
    records.create("A", WHO)
    records.put_visit("A", visit("first", 0.0, date(2026, 1, 10)), WHO)
    records.put_visit("A", visit("third", None, date(2026, 3, 11)), WHO)
    records.put_visit("A", visit("second", 0.0, date(2026, 2, 10)), WHO)
    records.put_visit("A", visit("before", None, date(2026, 1, 1)), WHO)
    assert [(v.timepoint_id, v.day) for v in records.visits("A")] == [("before", -9.0), ("first", 0.0), ("second", 31.0), ("third", 60.0)]
    records.put_visit("A", visit("by day", 100.0), WHO)
    with pytest.raises(ConflictError, match="on the day of 'first'"):
        records.put_visit("A", visit("other", None, date(2026, 1, 10)), WHO)
    records.create("B", WHO)
    records.put_visit("B", visit("first", 0.0), WHO)
    with pytest.raises(UsageError, match="its day"):
        records.put_visit("B", visit("second", None, date(2026, 1, 1)), WHO)


def test_another_patients_scan_is_refused_and_nothing_is_lost(records: Records) -> None:
    records.create("A", WHO)
    records.put_visit("A", visit("one", 0.0, identity="P-1"), WHO)
    with pytest.raises(ConflictError, match="another patient"):
        records.put_visit("A", visit("two", 7.0, identity="P-2"), WHO)
    records.put_visit("A", visit("two", 7.0), WHO)
    with pytest.raises(ConflictError, match="already"):
        records.put_visit("A", visit("two", 9.0, key="other"), WHO)
    same, freed = records.put_visit("A", visit("two", 7.0), WHO)
    assert (same.day, freed) == (7.0, [])
    row, freed = records.put_visit("A", visit("two", 9.0, key="other"), WHO, replace=True)
    assert (row.day, freed) == (9.0, [])
    kept = records.database.read(lambda c: c.scalar(sa.select(sa.func.count()).select_from(JOB_FILES)))
    assert kept == 2, "each visit needs its file, the replaced one no longer"
    assert [v.timepoint_id for v in records.visits("A")] == ["one", "two"]


def test_a_worker_that_lost_its_job_writes_nothing(records: Records, queue: Queue) -> None:
    records.create("A", WHO)
    queue.submit(NewJob("track", {}))
    job = queue.claim("worker")
    assert job is not None
    records.put_visit("A", visit("one", 0.0), WHO, job=job)
    queue.cancel(job.id)
    with pytest.raises(ConflictError, match="taken over"):
        records.put_visit("A", visit("two", 7.0), WHO, job=job)
    with pytest.raises(ConflictError, match="taken over"):
        records.set_registration("A", "one", {}, job=job)
    assert [v.timepoint_id for v in records.visits("A")] == ["one"]


def test_every_version_stays(records: Records) -> None:
    records.create("A", WHO)
    first = records.correct("A", {"links": [1]}, WHO, base=0, action="link", reason="why", detail={"lesion": ["v", "l"]})
    assert (first.version, first.user_id, first.reason) == (1, "key-1", "why")
    with pytest.raises(ConflictError, match="newest version is 1"):
        records.correct("A", {"links": [2]}, WHO, base=0, action="link")
    records.correct("A", {}, WHO, base=1, action="go_back")
    found, count = records.versions("A")
    assert ([v.edits for v in found], count) == ([{}, {"links": [1]}, {}], 3)
    with pytest.raises(IntegrityError, match="append-only"):
        records.database.write(lambda c: c.execute(sa.update(PATIENT_VERSIONS).values(reason="another")))
    with pytest.raises(NotFoundError):
        records.version("A", 9)
    line = audit.page(records.database, "A")[0][1]
    assert (line.timepoint_id, line.lesion_id, line.before_state, line.after_state) == ("v", "l", {}, {"links": [1]})


def test_the_audit_log_cannot_be_changed(records: Records) -> None:
    database = records.database
    records.create("A", WHO)
    for k in range(3):
        records.noted("A", WHO, f"look-{k}")
    for change in (
        sa.update(AUDIT).values(user_id="nobody"),
        sa.delete(AUDIT).where(AUDIT.c.action_type == "look-1"),
        sa.text("TRUNCATE audit_log") if database.dialect == "postgresql" else sa.text("INSERT OR REPLACE INTO audit_log SELECT * FROM audit_log"),
    ):
        with pytest.raises(IntegrityError, match="append-only"):
            database.write(lambda c, change=change: c.execute(change))  # type: ignore[misc]
    found, count = audit.page(database, "A", skip=1, limit=2)
    assert ([e.action_type for e in found], count) == (["look-0", "look-1"], 4)
    assert audit.intact(database, "A")


def test_who_takes_the_refusal_away_is_found_out(records: Records) -> None:
    database = records.database
    records.create("A", WHO)
    records.noted("A", WHO, "look")
    records.noted("A", WHO, "look again")

    def tamper(connection: sa.Connection) -> None:
        if database.dialect == "postgresql":
            connection.execute(sa.text("ALTER TABLE audit_log DISABLE TRIGGER audit_log_stays"))
        else:
            connection.execute(sa.text("DROP TRIGGER audit_log_no_delete"))
        connection.execute(sa.delete(AUDIT).where(AUDIT.c.action_type == "look"))

    database.write(tamper)
    assert not audit.intact(database, "A")


def test_a_patient_goes_and_the_log_stays(records: Records) -> None:
    records.create("A", WHO)
    records.put_visit("A", visit("one", 0.0), WHO)
    assert records.delete("A", WHO) == [SCAN.digest]
    with pytest.raises(NotFoundError):
        records.visits("A")
    actions = [e.action_type for e in audit.page(records.database, "A")[0]]
    assert actions == ["create_patient", "add_timepoint", "delete_patient"]
    assert audit.intact(records.database, "A")
    records.create("A", WHO)
    assert records.visits("A") == []
