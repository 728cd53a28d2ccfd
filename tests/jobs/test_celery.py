"""Celery on a real Redis: who takes what, a broker that forgets, and a worker that is told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from isocenter.core.settings import Settings
from isocenter.jobs import celery_app
from isocenter.jobs.backend import Backend
from isocenter.jobs.table import Job, NewJob, State
from isocenter.store.tables import EVENTS
from tests.conftest import ROOT
from tests.jobs import servers
from tests.jobs.conftest import new_database
from tests.ports import free_port


def until(condition: Callable[[], bool], log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def done(backend: Backend) -> int:
    return sum(n for (_, state), n in backend.queue.standing().counts.items() if state is State.COMPLETED)


def test_order_a_broker_that_forgets_and_a_drain(tmp_path: Path, postgres: servers.Postgres) -> None:
    with servers.redis(tmp_path) as redis:
        variables = {"DATABASE_URL": new_database(postgres), "REDIS_URL": f"redis://127.0.0.1:{redis.port}/0"}
        own = {"ISOCENTER_HOME": str(tmp_path), "ISOCENTER_JOB_LEASE": "4", "ISOCENTER_MIN_FREE_BYTES": "0", "PYTHONPATH": str(ROOT)}
        backend = Backend(Settings(home=tmp_path, database_url=variables["DATABASE_URL"], redis_url=variables["REDIS_URL"], job_lease=4))
        log = tmp_path / "log"
        with log.open("ab") as out:
            workers = [
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks._jobs_worker", "--celery", "--queue", role],
                    env={**os.environ, **variables, **own}, stdout=out, stderr=out, start_new_session=True,
                )
                for role in ("gpu", "cpu")
            ]  # fmt: skip
        try:
            until(lambda: backend.queue.standing().workers == {"gpu": 1, "cpu": 1}, log)
            _order(backend, log)
            _forgetful(backend, redis, log)
            _drain(backend, workers, log)
        finally:
            for worker in workers:
                if worker.poll() is None:
                    os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
            backend.close()


def _order(backend: Backend, log: Path) -> None:
    """Two processes on processors, one in the place of a card: what each took, looked at claim by claim in the audit trail."""
    gate = backend.settings.home / "gate"
    backend.submit(NewJob("x", {"until": str(gate)}, queue="gpu", priority=9))
    backend.submit(NewJob("x", {"until": str(gate)}, queue="cpu", priority=9))
    until(lambda: backend.queue.standing().waiting == 0, log)
    jobs: dict[str, Job] = {}
    for number in range(24):
        job, _ = backend.submit(NewJob("x", {"seconds": 0.2, "n": number}, queue="gpu", priority=number * 7 % 10))
        jobs[job.id] = job
    gate.touch()
    until(lambda: done(backend) == 26, log)
    rows = backend.database.read(
        lambda c: c.execute(sa.select(EVENTS.c.job_id, EVENTS.c.worker).where(EVENTS.c.what == "claimed").order_by(EVENTS.c.number)).all()
    )
    claims = [(jobs[job], worker) for job, worker in rows if job in jobs]
    assert len(claims) == 24
    waiting = sorted(jobs.values(), key=lambda j: (-j.priority, j.request["n"]))
    first = {worker: next(j for j, w in claims if w == worker) for _, worker in claims}
    assert len(first) == 2, "both worked"
    card = next(w for w, j in first.items() if j.id == waiting[0].id)
    before = ""
    for job, worker in claims:
        # The most urgent that waits goes to the card; a processor gets the next one, what the card cannot take at once. Where
        # both took at the same moment, the next one has become the first in the trail.
        place = [j.id for j in waiting].index(job.id)
        assert place == 0 if worker == card else place == 1 or (place == 0 and before == card), (job.priority, worker == card, place)
        waiting = [j for j in waiting if j.id != job.id]
        before = worker


def _forgetful(backend: Backend, redis: servers.Server, log: Path) -> None:
    """Redis is killed with messages in it, and all is done without it; it comes back empty, and is of use again."""
    before = done(backend)
    for number in range(20):
        backend.submit(NewJob("x", {"seconds": 0.1, "n": number}))
    until(lambda: done(backend) > before + 2, log)
    redis.kill()
    started = time.monotonic()
    for number in range(10):
        backend.submit(NewJob("x", {"seconds": 0.02, "m": number}))
    assert time.monotonic() - started < 30, "submitting does not wait for a broker"
    until(lambda: done(backend) == before + 30, log)
    redis.start()
    for number in range(5):
        backend.submit(NewJob("x", {"n": number, "again": True}))
    until(lambda: done(backend) == before + 35, log)


def _drain(backend: Backend, workers: list[subprocess.Popen[bytes]], log: Path) -> None:
    """SIGTERM lets the running job finish, and ends the process with 0."""
    gate = backend.settings.home / "another gate"
    job, _ = backend.submit(NewJob("x", {"until": str(gate)}))
    until(lambda: backend.queue.get(job.id).state is State.RUNNING, log)
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    gate.touch()
    assert [worker.wait(120) for worker in workers] == [0, 0], log.read_text()[-3000:]
    assert backend.queue.get(job.id).state is State.COMPLETED
    assert backend.queue.standing().workers == {}


def test_the_settings_that_keep_jobs_safe() -> None:
    settings = Settings(redis_url="redis://127.0.0.1:1/0", job_lease=60, job_timeout=100)
    conf = celery_app.make(settings).conf
    assert (conf.task_acks_late, conf.worker_prefetch_multiplier, conf.task_ignore_result, conf.result_backend) == (True, 1, True, None)
    assert {q.name for q in conf.task_queues} == {"gpu", "cpu"}
    options = conf.broker_transport_options
    assert options["visibility_timeout"] > settings.job_lease
    assert (options["unacked_restore_interval"], options["unacked_restore_throttle"]) == (2, 1)
    assert conf.accept_content == ["json"]


def test_a_broker_that_is_not_there_keeps_nobody_waiting(tmp_path: Path) -> None:
    backend = Backend(Settings(home=tmp_path, redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    started = time.monotonic()
    for number in range(5):
        backend.submit(NewJob("x", {"n": number}))
    assert time.monotonic() - started < 30
    assert backend.queue.standing().waiting == 5
    backend.close()


def test_messages_nobody_takes_do_not_pile_up(tmp_path: Path, redis: servers.Server) -> None:
    import redis as client

    backend = Backend(Settings(home=tmp_path, redis_url=f"redis://127.0.0.1:{redis.port}/2"))
    for number in range(130):
        backend.ring(_job(backend, number))
    backend.close()
    connection = client.Redis(port=redis.port, db=2)
    lengths = [connection.llen(key) for key in connection.keys("gpu*")]
    assert 90 <= sum(lengths) <= 101
    assert all(b"words" not in item for key in connection.keys("gpu*") for item in connection.lrange(key, 0, 5)), "an id and nothing else"
    connection.close()


def _job(backend: Backend, number: int) -> Job:
    if number == 0 or not backend.queue.page(limit=1)[0]:
        backend.queue.submit(NewJob("x", {"words": "secret"}))
    return backend.queue.page(limit=1)[0][0]
