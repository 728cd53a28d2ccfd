"""What goes with age or for want of space, and what never does: on SQLite and on PostgreSQL, in a folder and in a bucket."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from blake3 import blake3
from typer.testing import CliRunner

from isocenter.cli import app
from isocenter.core.errors import ConflictError, NotFoundError
from isocenter.core.settings import DAY, Settings
from isocenter.io.upload import Upload
from isocenter.jobs import needs, retention
from isocenter.jobs.backend import Backend
from isocenter.jobs.studies import Studies
from isocenter.jobs.table import Job, NewJob, Stored
from isocenter.store.objects import Folder
from isocenter.store.orders import Orders
from isocenter.store.s3 import Bucket
from isocenter.store.tables import CLICK_ORDERS, EVENTS, JOBS, STUDIES
from tests.http.conftest import dicom_series, zipped
from tests.jobs.servers import Swift


@pytest.fixture
def stores(tmp_path: Path, database_url: str) -> Iterator[Backend]:
    made = Backend(Settings(home=tmp_path, database_url=database_url, job_keep=7 * DAY, upload_keep=3 * DAY, min_free_bytes=0))
    yield made
    made.close()


def submit(stores: Backend, scan: bytes, number: int = 0) -> Job:
    digest = blake3(scan).hexdigest()
    job, _ = stores.submit(NewJob("x", {"n": number}, (Stored("scan.nii.gz", digest, len(scan)),)), files={digest: io.BytesIO(scan)})
    return job


def finish(stores: Backend, result: bytes, days: float = 0.0) -> Job:
    """Complete the next job with a result, so many days ago."""
    job = stores.queue.claim("w")
    assert job is not None
    made = stores.objects.put(result)
    assert stores.queue.complete(job, [Stored("mask.nii.gz", made.digest, made.bytes)], {}, {})
    age(stores, job, days)
    return job


def age(stores: Backend, job: Job, days: float) -> None:
    then = time.time() - days * DAY
    stores.database.write(lambda c: c.execute(sa.update(JOBS).where(JOBS.c.id == job.id).values(finished=then, created=then)))


def held(stores: Backend) -> set[bytes]:
    return {b"".join(stores.objects.read(s.digest)) for s, _ in stores.objects.items()}


def gone(tallies: list[retention.Tally]) -> dict[str, int]:
    return {t.what: t.gone for t in tallies if t.gone}


def test_old_jobs_go_with_what_nobody_else_needs(stores: Backend) -> None:
    jobs: dict[str, Job] = {}
    for name, scan, result, days in (("old", b"scan 1", b"mask 1", 8), ("kept", b"scan 2", b"mask 2", 8), ("new", b"scan 1", b"mask 3", 1)):
        submit(stores, scan, len(jobs))
        jobs[name] = finish(stores, result, days)
    assert stores.queue.keep(jobs["kept"].id).kept
    waiting = submit(stores, b"scan 4")
    age(stores, waiting, 100)
    stores.database.write(lambda c: c.execute(sa.update(JOBS).where(JOBS.c.id == waiting.id).values(finished=None)))
    everything = held(stores)
    said = retention.sweep(stores, dry=True)
    assert held(stores) == everything
    assert stores.queue.page()[1] == 4
    done = retention.sweep(stores)
    assert gone(done)["jobs and their results"] == gone(said)["jobs and their results"] == 1
    assert held(stores) == {b"scan 1", b"scan 2", b"mask 2", b"mask 3", b"scan 4"}
    assert {job.id for job in stores.queue.page()[0]} == {jobs["kept"].id, jobs["new"].id, waiting.id}
    assert [e.what for e in stores.queue.events(jobs["old"].id)][-1] == "deleted"
    assert gone(retention.sweep(stores)) == {}
    stores.queue.keep(jobs["kept"].id, kept=False)
    assert gone(retention.sweep(stores))["jobs and their results"] == 1
    assert held(stores) == {b"scan 1", b"mask 3", b"scan 4"}


def test_zero_is_never(tmp_path: Path) -> None:
    stores = Backend(Settings(home=tmp_path, job_keep=0, upload_keep=0, audit_keep=0, cache_keep=0))
    submit(stores, b"scan")
    finish(stores, b"mask", days=100_000)
    assert gone(retention.sweep(stores)) == {}
    assert all(t.rule == "never" for t in retention.sweep(stores) if t.what.startswith(("jobs", "uploaded", "audit", "compiled")))
    stores.close()


def test_too_much_goes_from_the_oldest_on(stores: Backend) -> None:
    jobs = []
    for number in range(4):
        submit(stores, b"scan", number)
        jobs.append(finish(stores, bytes([number]) * 1000, days=1 - number / 10))
    stores.queue.keep(jobs[0].id)
    small = Backend(stores.settings.model_copy(update={"job_keep_bytes": 2500}))
    assert gone(retention.sweep(small)) == {"jobs and their results": 2}
    small.close()
    assert {job.id for job in stores.queue.page()[0]} == {jobs[0].id, jobs[3].id}


def test_uploads_that_nobody_uses_go_before_the_results(stores: Backend) -> None:
    """A completed job stays without its scan; what waits, runs or is kept has its own."""
    submit(stores, b"unused")
    done = finish(stores, b"mask", days=4)
    submit(stores, b"shared", 1)
    finish(stores, b"mask 2", days=4)
    submit(stores, b"shared", 2)  # waits for the same scan
    retention.sweep(stores)
    assert held(stores) == {b"mask", b"shared", b"mask 2"}
    assert stores.queue.get(done.id).artifacts
    running = stores.queue.claim("w")
    assert running is not None
    retention.sweep(stores)
    assert b"shared" in held(stores)
    stores.queue.fail(running, "input", "no")
    age(stores, running, 4)
    retention.sweep(stores)
    assert b"shared" not in held(stores)
    with pytest.raises(ConflictError, match="submit it again"):
        stores.queue.retry(running.id)
    # The same content sent again is there again, and so is what was made from it.
    assert stores.queue.claim("w") is None
    submit(stores, b"shared", 3)
    assert b"shared" in held(stores)


def test_what_others_than_jobs_need_stays(stores: Backend) -> None:
    submit(stores, b"a visit's scan")
    job = finish(stores, b"mask", days=100)
    stores.database.write(lambda c: needs.add(c, "a visit", job.inputs, made=False))
    retention.sweep(stores)
    assert stores.queue.page()[1] == 0
    assert held(stores) == {b"a visit's scan"}


def test_studies_go_after_their_last_use(stores: Backend) -> None:
    studies = Studies(stores, stores.settings)
    made = []
    for number in range(3):
        data = zipped(dicom_series(np.full((2, 8, 8), number, np.int16), uid=f"1.2.3.{number}"))
        with Upload.of(data, "a.zip") as upload:
            made.append(studies.add(upload))
    old = time.time() - 5 * DAY
    stores.database.write(lambda c: c.execute(sa.update(STUDIES).values(created=old)))
    file = Stored("scan.zip", made[1].digest, made[1].bytes)
    stores.submit(NewJob("x", {}, (file,), study_id=made[1].id))
    finish(stores, b"mask")  # used today
    waiting, _ = stores.submit(NewJob("x", {}, (Stored("scan.zip", made[2].digest, made[2].bytes),), study_id=made[2].id))
    assert gone(retention.sweep(stores)) == {"uploaded scans and studies": 1}
    assert {s.id for s in studies.page()[0]} == {made[1].id, made[2].id}
    assert stores.objects.has(made[2].digest)
    assert not stores.objects.has(made[0].digest)
    with pytest.raises(NotFoundError):
        stores.submit(NewJob("x", {}, (Stored("scan.zip", made[0].digest, made[0].bytes),), study_id=made[0].id))
    stores.queue.cancel(waiting.id)
    studies.delete(made[2].id)
    assert stores.objects.has(made[2].digest), "the job that was made from it still names it"
    stores.delete(waiting.id)
    assert not stores.objects.has(made[2].digest)


class _SlowToDelete(Folder):
    """Before a file goes, somebody submits the same content, and gets all the time that can be had."""

    def __init__(self, folder: Path, meanwhile: threading.Thread) -> None:
        super().__init__(folder)
        self.meanwhile = meanwhile

    def delete(self, digest: str) -> None:
        self.meanwhile.start()
        self.meanwhile.join(1.0)
        super().delete(digest)


def test_who_submits_the_same_content_at_that_moment_keeps_it(stores: Backend) -> None:
    scan = b"wanted again"
    job = submit(stores, scan)
    stores.queue.cancel(job.id)
    again: list[Job] = []
    late = threading.Thread(target=lambda: again.append(submit(stores, scan, 1)))
    digests = stores.queue.delete(job.id)
    needs.drop(stores.database, _SlowToDelete(stores.settings.home / "objects", late), digests)
    late.join(60)
    assert again[0].inputs[0].digest == digests[0]
    assert held(stores) == {scan}


def test_a_result_that_is_completed_at_that_moment_stays(stores: Backend) -> None:
    """Two jobs with one result: the one is deleted while the other is completed."""
    submit(stores, b"scan")
    first = finish(stores, b"mask")
    submit(stores, b"scan", 1)

    def work() -> None:
        from isocenter.jobs.handler import JobResult, Product

        stores.worker(lambda given, run: JobResult((Product("mask.nii.gz", b"mask"),))).work_once()

    late = threading.Thread(target=work)
    digests = stores.queue.delete(first.id)
    mask = blake3(b"mask").hexdigest()
    needs.drop(stores.database, _SlowToDelete(stores.settings.home / "objects", late), [d for d in digests if d == mask])
    late.join(60)
    assert held(stores) == {b"scan", b"mask"}


def test_many_at_once(stores: Backend) -> None:
    """Deleting and submitting the same content from several threads: whatever job there is in the end has its scan."""
    lost: list[str] = []

    def go(name: int) -> None:
        for number in range(10):
            job = submit(stores, b"the same", name * 100 + number)
            if not stores.objects.has(job.inputs[0].digest):
                lost.append(job.id)
            stores.queue.cancel(job.id)
            stores.delete(job.id)

    threads = [threading.Thread(target=go, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    assert held(stores) == set()


def test_files_without_a_row_go_a_day_later(stores: Backend) -> None:
    stray, young = stores.objects.put(b"stray"), stores.objects.put(b"young")
    used = submit(stores, b"scan").inputs[0]
    for stored in (stray, used):
        path = stores.objects.fetch(stored.digest, stores.settings.home)
        os.utime(path, (0, time.time() - 2 * DAY))
    retention.sweep(stores, dry=True)
    assert held(stores) == {b"stray", b"young", b"scan"}
    assert gone(retention.sweep(stores)) == {"files that nothing needs": 1}
    assert held(stores) == {b"young", b"scan"}
    os.utime(stores.objects.fetch(young.digest, stores.settings.home), (0, time.time() - 2 * DAY))
    stores.objects.put(b"young")  # wanted again, so it is young again
    assert gone(retention.sweep(stores)) == {}


def test_a_bucket_says_when_a_file_was_last_put(swift: Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(swift.settings(tmp_path, "written"))
    stored = bucket.put(b"a file")
    first = bucket.written(stored.digest)
    assert abs(first - time.time()) < 3600
    assert bucket.put(b"a file") == stored
    assert bucket.written(stored.digest) == first
    monkeypatch.setattr("isocenter.store.s3._FRESH", -1e9)  # as if an hour had passed
    deadline = time.monotonic() + 60
    while bucket.written(stored.digest) == first:
        assert time.monotonic() < deadline
        bucket.put(b"a file")
    with pytest.raises(NotFoundError):
        bucket.written("0" * 64)


def test_trails_and_this_machines_folders(stores: Backend) -> None:
    home = stores.settings.home
    for folder, names in {"artifacts": ["mask_AAAAAAAA.npz", "notours.txt"], "scratch": ["tmp1"], "kernels": ["a.nbi"]}.items():
        (home / folder).mkdir(exist_ok=True)
        for name in names:
            (home / folder / name).write_bytes(b"x" * 10)
            os.utime(home / folder / name, (0, 0))
    (home / "kernels" / "young").write_bytes(b"x")
    job = submit(stores, b"scan")
    stores.queue.cancel(job.id)
    stores.delete(job.id)
    submit(stores, b"scan")
    stores.database.write(lambda c: c.execute(sa.update(EVENTS).values(at=0.0)))
    done = gone(retention.sweep(stores))
    assert done == {"audit trails of jobs that are gone": 3, "result files under /files": 1, "folders of attempts": 1, "compiled kernels": 1}
    assert sorted(p.name for f in ("artifacts", "scratch", "kernels") for p in (home / f).iterdir()) == ["notours.txt", "young"]
    assert stores.queue.events(job.id) == []


def test_orders_of_prompts_go_with_their_sessions(stores: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Orders(stores.database, stores.settings.session_ttl, 3)
    for name in ("old", "new"):
        kept.note(name, None, ["p"])
    then = time.time() - stores.settings.session_ttl - 3600
    stores.database.write(lambda c: c.execute(sa.update(CLICK_ORDERS).where(CLICK_ORDERS.c.whose == "old").values(used=then)))
    monkeypatch.setenv("ISOCENTER_HOME", str(stores.settings.home))
    monkeypatch.setenv("DATABASE_URL", stores.settings.database_url or "")
    for flag, left in (("--dry-run", ["new", "old"]), ("--json", ["new"])):
        told = CliRunner().invoke(app, ["clean", flag, "--json"])
        assert told.exit_code == 0, told.output
        (row,) = (k for k in json.loads(told.stdout)["kinds"] if k["what"] == "orders of prompts")
        assert (row["rule"], row["gone"], row["stays"]) == ("older than 1 h", 1, 1)
        assert sorted(stores.database.read(lambda c: list(c.scalars(sa.select(CLICK_ORDERS.c.whose))))) == left
    assert kept.recall("new") == [["p"]]


def test_attempts_may_end_while_their_folders_are_looked_at(tmp_path: Path) -> None:
    """Workers make and remove folders all the time; a round of tidying does not fail over that."""
    over = threading.Event()

    def attempts() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            folder = tmp_path / "scratch" / f"tmp{number % 8}" / "work" / "deep"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "file").write_bytes(b"x")
            shutil.rmtree(tmp_path / "scratch" / f"tmp{number % 8}")

    working = threading.Thread(target=attempts)
    working.start()
    try:
        for _ in range(150):
            tally = next(t for t in retention.folders(Settings(home=tmp_path)) if t.what == "folders of attempts")
            assert tally.gone == 0
    finally:
        over.set()
        working.join()


def test_clean_and_doctor_say_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_HOME", str(tmp_path))
    monkeypatch.setenv("ISOCENTER_JOB_KEEP", "1d")
    runner = CliRunner()
    facts = {f["name"]: f["value"] for f in json.loads(runner.invoke(app, ["doctor", "--json"]).stdout)["facts"]}
    assert facts["Job table"].startswith("none yet")
    assert not (tmp_path / "isocenter.db").exists()
    stores = Backend(Settings())
    submit(stores, b"scan")
    finish(stores, b"m" * 2**21, days=2)
    facts = {f["name"]: f["value"] for f in json.loads(runner.invoke(app, ["doctor", "--json"]).stdout)["facts"]}
    assert facts["Held: jobs and their results"] == "1, 2 MiB"
    assert facts["Held: uploaded scans and studies"] == "1, 0 MiB"
    told = runner.invoke(app, ["clean", "--dry-run"])
    assert told.exit_code == 0
    assert "Would go" in told.stdout
    assert "older than 1 d" in told.stdout
    assert stores.queue.page()[1] == 1
    done = json.loads(runner.invoke(app, ["clean", "--json"]).stdout)
    jobs = next(k for k in done["kinds"] if k["what"] == "jobs and their results")
    assert (jobs["gone"], jobs["gone_bytes"], jobs["stays"]) == (1, 2**21, 0)
    assert stores.queue.page()[1] == 0
    assert held(stores) == set()
    stores.close()
