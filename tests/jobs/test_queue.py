"""The contract of the queue, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from isocenter.core.errors import ConflictError, NotFoundError, UsageError
from isocenter.core.settings import Settings
from isocenter.jobs import needs
from isocenter.jobs.queue import Queue
from isocenter.jobs.table import ENDED, TRANSITIONS, Job, NewJob, State, Stored, What
from isocenter.store.database import Database, head, url_of
from isocenter.store.tables import JOB_FILES, JOBS, METADATA, STUDIES
from tests.jobs.servers import Postgres

FILE = Stored("mask.nii.gz", "a" * 64, 5, "application/gzip")


def claimed(queue: Queue, worker: str = "w", role: str = "cpu") -> Job:
    job = queue.claim(worker, role)
    assert job is not None
    return job


def trail(queue: Queue, job: Job) -> list[str]:
    return [event.what for event in queue.events(job.id)]


def let_leases_end(queue: Queue) -> None:
    queue.database.write(lambda c: c.execute(sa.update(JOBS).values(lease_until=0.0)))


def test_a_job_from_submission_to_its_end(queue: Queue) -> None:
    job, new = queue.submit(NewJob("segment", {"words": ["Leber"]}, (FILE,), priority=7, model="tissue"))
    assert new
    assert (job.state, job.fence, job.attempts, job.inputs) == (State.PENDING, 0, 0, (FILE,))
    assert queue.standing().waiting == 1
    running = claimed(queue)
    assert (running.id, running.state, running.fence, running.worker) == (job.id, State.RUNNING, 1, "w")
    assert queue.claim("other") is None
    assert queue.beat(running, 0.5, "tile 3 of 6")
    seen = queue.get(job.id)
    assert (seen.progress, seen.message) == (0.5, "tile 3 of 6")
    assert queue.complete(running, [FILE], {"volume_mm3": 3.5}, {"infer": 1.25})
    done = queue.get(job.id)
    assert (done.state, done.progress, done.artifacts, done.facts, done.seconds) == (
        State.COMPLETED, 1.0, (FILE,), {"volume_mm3": 3.5}, {"infer": 1.25},
    )  # fmt: skip
    assert done.finished is not None
    assert abs(done.finished - time.time()) < 60
    assert trail(queue, job) == ["submitted", "claimed", "completed"]
    assert queue.complete(running, [FILE], {}, {}), "said again, as after a lost connection"
    assert trail(queue, job) == ["submitted", "claimed", "completed"]
    assert queue.stages(0.0)[0] == [("infer", 1.25)]


def test_what_may_happen_in_which_state(queue: Queue) -> None:
    """Every thing that happens, tried in every state, does what the one table of transitions says and nothing else."""

    def in_state(state: State) -> Job:
        job, _ = queue.submit(NewJob("x", {}))
        if state is State.CANCELLED:
            return queue.cancel(job.id)
        if state is not State.PENDING:
            job = claimed(queue)
        if state is State.COMPLETED:
            queue.complete(job, [], {}, {})
        if state is State.FAILED:
            queue.fail(job, "input", "no")
        return job

    def refused(act: object) -> bool:
        try:
            return act() is False  # type: ignore[operator]
        except ConflictError:
            return True

    for state in State:
        for what, act in {
            What.COMPLETED: lambda j: queue.complete(j, [], {}, {}),
            What.FAILED: lambda j: queue.fail(j, "x", "x"),
            What.RELEASED: lambda j: queue.release(j, "x"),
            What.CANCELLED: lambda j: queue.cancel(j.id),
            What.RETRIED: lambda j: queue.retry(j.id),
        }.items():
            job = in_state(state)
            if TRANSITIONS[what][1] is state:
                continue  # said twice by one worker: see above
            allowed, target = TRANSITIONS[what]
            assert refused(lambda act=act, job=job: act(job)) is (state not in allowed), (state, what)
            assert queue.get(job.id).state is (target if state in allowed else state)
            while (left := queue.claim("clean")) is not None:
                queue.fail(left, "x", "x")


def test_urgent_first_then_old_and_none_before_its_time(queue: Queue) -> None:
    for number, priority in enumerate([5, 9, 5, 0, 9]):
        queue.submit(NewJob("x", {"n": number}, priority=priority))
    order = [claimed(queue) for _ in range(5)]
    assert [job.request["n"] for job in order] == [1, 4, 0, 2, 3]
    assert queue.release(order[0], "later", delay=60)
    assert queue.claim("w") is None
    with pytest.raises(UsageError, match="priority"):
        queue.submit(NewJob("x", {}, priority=10))
    with pytest.raises(UsageError, match="queue"):
        queue.submit(NewJob("x", {}, queue="tpu"))


def test_the_gpu_has_the_first_jobs_and_processors_the_overflow(queue: Queue) -> None:
    for number in range(6):
        queue.submit(NewJob("x", {"n": number}, queue="gpu", priority=number))
    queue.register("card", "gpu", "cuda:0")
    taken: dict[str, list[int]] = {"gpu": [], "cpu": []}
    for role in ("cpu", "gpu", "cpu", "cpu", "gpu", "cpu", "cpu"):
        job = queue.claim(role, role)
        if job is not None:
            taken[role].append(job.request["n"])
    assert taken == {"gpu": [5, 3], "cpu": [4, 2, 1]}
    assert queue.claim("cpu", "cpu") is None, "the last one is kept for the card"
    queue.leave("card")
    assert claimed(queue, role="cpu").request["n"] == 0


def test_a_card_does_the_processors_work_where_no_other_does(queue: Queue) -> None:
    queue.submit(NewJob("x", {}, queue="cpu", priority=9))
    queue.submit(NewJob("x", {}, queue="gpu", priority=1))
    queue.register("processor", "cpu", "cpu")
    assert claimed(queue, role="gpu").queue == "gpu"
    assert queue.claim("card", "gpu") is None
    queue.leave("processor")
    assert claimed(queue, role="gpu").queue == "cpu"


def test_many_at_once_get_each_job_once(queue: Queue) -> None:
    for number in range(60):
        queue.submit(NewJob("x", {"n": number}))
    seen: Counter[str] = Counter()
    lock = threading.Lock()

    def work(name: str) -> None:
        while (job := queue.claim(name)) is not None:
            with lock:
                seen[job.id] += 1
            assert queue.complete(job, [], {}, {})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, [f"w{n}" for n in range(6)]))
    assert len(seen) == 60
    assert set(seen.values()) == {1}
    assert queue.standing().counts == {("cpu", State.COMPLETED): 60}


def test_who_lost_its_lease_can_change_nothing(queue: Queue) -> None:
    queue.submit(NewJob("x", {}))
    slow = claimed(queue, "slow")
    let_leases_end(queue)
    assert queue.expire() == 1
    assert not queue.beat(slow, 0.9)
    assert not queue.complete(slow, [FILE], {}, {})
    quick = claimed(queue, "quick")
    assert quick.fence > slow.fence
    assert quick.attempts == 2
    assert not queue.beat(slow, 0.9)
    assert not queue.complete(slow, [FILE], {}, {})
    assert not queue.fail(slow, "x", "x")
    assert not queue.release(slow, "x")
    assert queue.complete(quick, [], {"by": "quick"}, {})
    assert not queue.complete(slow, [FILE], {}, {})
    assert queue.get(slow.id).facts == {"by": "quick"}
    assert trail(queue, slow) == ["submitted", "claimed", "lost", "claimed", "completed"]


def test_a_job_that_takes_every_worker_with_it_fails(queue: Queue) -> None:
    job, _ = queue.submit(NewJob("x", {}, max_attempts=3))
    for _ in range(3):
        claimed(queue)
        let_leases_end(queue)
        queue.expire()
    failed = queue.get(job.id)
    assert (failed.state, failed.error_code, failed.attempts) == (State.FAILED, "worker_lost", 3)
    assert queue.claim("w") is None
    again = queue.retry(job.id)
    assert (again.state, again.attempts, again.error_code) == (State.PENDING, 0, None)
    assert claimed(queue).id == job.id


def test_given_back_without_fault_is_no_attempt(queue: Queue) -> None:
    queue.submit(NewJob("x", {}))
    for _ in range(5):
        assert queue.release(claimed(queue), "the disk is full", counts=False)
    job = claimed(queue)
    assert (job.attempts, job.releases) == (1, 5)


def test_cancelling_stops_whoever_works_on_it(queue: Queue) -> None:
    job, _ = queue.submit(NewJob("x", {}))
    running = claimed(queue)
    assert queue.cancel(job.id).state is State.CANCELLED
    assert not queue.beat(running)
    assert not queue.complete(running, [], {}, {})
    with pytest.raises(ConflictError, match="Cannot cancel job in status: cancelled"):
        queue.cancel(job.id)
    with pytest.raises(NotFoundError):
        queue.cancel("no-such-job")


def test_five_submissions_at_once_are_one_job(queue: Queue) -> None:
    new = NewJob("x", {"words": ["liver"]}, owner="me")
    for how in ({"key": "k"}, {"same_within": 60.0}):
        with ThreadPoolExecutor(5) as pool:
            made = list(pool.map(lambda _, how=how: queue.submit(new, **how), range(5)))
        assert len({job.id for job, _ in made}) == 1
        assert sum(is_new for _, is_new in made) == (1 if "key" in how else 0)
    assert queue.page()[1] == 1
    with pytest.raises(ConflictError, match="Idempotency-Key"):
        queue.submit(NewJob("x", {"words": ["spleen"]}, owner="me"), key="k")
    job = claimed(queue)
    queue.fail(job, "input", "no")
    assert queue.submit(new, same_within=60)[1], "one that failed may be tried again"
    assert queue.submit(NewJob("x", {"words": ["liver"]}, owner="you"), same_within=60)[1]


def test_pages_with_filters_and_the_true_count(queue: Queue) -> None:
    values = {"id": "s", "digest": "d", "bytes": 1, "suffix": ".zip", "created": 0.0, "files": 1, "facts": {}, "series": []}
    queue.database.write(lambda c: c.execute(sa.insert(STUDIES).values(values)))
    for number in range(7):
        queue.submit(NewJob("x", {"n": number}, model="a" if number % 2 else "b", study_id="s" if number < 2 else None))
    queue.cancel(queue.page(limit=1)[0][0].id)
    newest, count = queue.page(limit=3)
    assert ([job.request["n"] for job in newest], count) == ([6, 5, 4], 7)
    assert [job.request["n"] for job in queue.page(skip=5)[0]] == [1, 0]
    assert queue.page(model="a")[1] == 3
    assert queue.page(states=[State.CANCELLED])[1] == 1
    assert queue.page(study_id="s")[1] == 2
    with pytest.raises(NotFoundError, match="Study"):
        queue.submit(NewJob("x", {}, study_id="gone"))


def test_deleting_leaves_the_audit_trail_and_frees_files_that_nobody_needs(queue: Queue) -> None:
    one, _ = queue.submit(NewJob("x", {}, (FILE,)))
    two, _ = queue.submit(NewJob("x", {}, (FILE,)))
    with pytest.raises(ConflictError, match="cancel it first"):
        queue.delete(one.id)
    for job in (one, two):
        queue.cancel(job.id)
    assert queue.delete(one.id) == [FILE.digest]
    assert queue.database.read(lambda c: needs.needed(c, FILE.digest))
    assert queue.delete(two.id) == [FILE.digest]
    assert not queue.database.read(lambda c: needs.needed(c, FILE.digest))
    with pytest.raises(NotFoundError):
        queue.get(one.id)
    assert trail(queue, one) == ["submitted", "cancelled", "deleted"]


def test_workers_come_and_go(queue: Queue) -> None:
    queue.register("a", "cpu", "cpu", 2)
    queue.register("a", "cpu", "cpu", 2)
    queue.register("b", "gpu", "cuda:0")
    assert queue.standing().workers == {"cpu": 2, "gpu": 1}
    queue.leave("b")
    assert queue.standing().workers == {"cpu": 2}


def test_a_database_of_the_first_revision_is_brought_up_to_date_with_its_jobs(database_url: str) -> None:
    database = Database(url_of(Settings(database_url=database_url)))
    database.migrate("0001")
    queue = Queue(database)
    first = sa.Table("jobs", sa.MetaData(), *(sa.Column(c.name, c.type, nullable=c.nullable) for c in JOBS.columns if c.name != "kept"))
    row = {c.name: 0 for c in first.columns if not c.nullable and c.name != "number"} | {
        "kind": "x",
        "queue": "cpu",
        "message": "",
        "created": time.time(),
        "max_attempts": 3,
    }
    row |= {"request": {}, "inputs": [], "artifacts": [], "facts": {}, "seconds": {}}
    kept = [{"name": FILE.name, "digest": FILE.digest, "bytes": FILE.bytes, "media_type": FILE.media_type}]
    waiting = {**row, "id": "a", "state": "pending", "digest": "1", "inputs": kept}
    done = {**row, "id": "b", "state": "completed", "digest": "2", "artifacts": kept, "finished": time.time()}
    database.write(lambda c: c.execute(sa.insert(first), [{**waiting, "finished": None}, done]))
    assert database.revision() == "0001"
    with ThreadPoolExecutor(3) as pool:  # as when several servers start at once
        others = [Database(url_of(Settings(database_url=database_url))) for _ in range(3)]
        list(pool.map(Database.migrate, others))
    for other in others:
        other.close()
    assert database.revision() == head()
    assert queue.get("b").artifacts == (FILE,)
    assert not queue.get("b").kept
    assert claimed(queue).id == "a"
    known = database.read(lambda c: c.execute(sa.select(JOB_FILES).order_by(JOB_FILES.c.job_id)).all())
    assert known == [("a", FILE.digest, False, FILE.bytes), ("b", FILE.digest, True, FILE.bytes)]
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    assert database.read(lambda c: compare_metadata(MigrationContext.configure(c), METADATA)) == []
    database.close()


def test_the_database_is_restarted_under_the_queue(postgres: Postgres) -> None:
    from tests.jobs.conftest import new_database

    database = Database(url_of(Settings(database_url=new_database(postgres))), patience=120)
    database.migrate()
    queue = Queue(database, lease=30)
    for number in range(20):
        queue.submit(NewJob("x", {"n": number}))
    ended: list[str] = []

    def work() -> None:
        while len(ended) < 20:
            job = queue.claim("w")
            if job is not None and queue.complete(job, [], {}, {}):
                ended.append(job.id)
            time.sleep(0.02)

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.15)
    postgres.kill()
    time.sleep(0.3)
    postgres.start()
    worker.join(200)
    assert sorted(ended) == sorted(job.id for job in queue.page(states=ENDED)[0])
    assert len(ended) == 20
    assert all(trail(queue, job).count("completed") == 1 for job in queue.page()[0])
    database.close()
