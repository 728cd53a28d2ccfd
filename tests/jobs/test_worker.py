"""Workers: how jobs end, and what they survive."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from isocenter.core import errors
from isocenter.core.model import Run
from isocenter.core.settings import Settings
from isocenter.jobs.backend import Backend
from isocenter.jobs.handler import Handler, JobInput, JobResult, Product
from isocenter.jobs.table import Job, NewJob, State, Stored
from isocenter.jobs.worker import Worker
from tests.jobs.servers import Swift


@contextmanager
def working(backend: Backend, handler: Handler, *, timeout: float = 60) -> Iterator[Worker]:
    worker = Worker(backend.queue, backend.objects, handler, scratch=backend.settings.home / "scratch", timeout=timeout)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(60)


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def ended(backend: Backend, job: Job, seconds: float = 120) -> Job:
    until(lambda: backend.queue.get(job.id).ended, seconds)
    return backend.queue.get(job.id)


def test_a_handler_is_given_checked_files_and_a_folder_of_its_own(backend: Backend) -> None:
    folders: list[Path] = []

    def handler(given: JobInput, run: Run) -> JobResult:
        run.check(0.3, "reading")
        text = given.files["scan.txt"].read_bytes()
        (given.folder / "out.txt").write_bytes(text.upper())
        folders.append(given.folder)
        return JobResult((Product("out.txt", given.folder / "out.txt", "text/plain"),), {"n": given.request["n"]}, {"infer": 0.5})

    stored = backend.objects.put(b"a scan")
    scan = Stored("scan.txt", stored.digest, stored.bytes)
    with working(backend, handler):
        done = ended(backend, backend.submit(NewJob("x", {"n": 3}, (scan,)))[0])
    assert (done.state, done.facts, done.seconds["infer"]) == (State.COMPLETED, {"n": 3}, 0.5)
    assert b"".join(backend.objects.read(done.artifacts[0].digest)) == b"A SCAN"
    assert not folders[0].exists()
    assert list((backend.settings.home / "scratch").iterdir()) == []
    assert backend.queue.standing().workers == {}


@pytest.mark.parametrize(
    ("error", "code", "attempts"),
    [
        (errors.InputError("cannot be read"), "input", 1),
        (errors.LimitError("too large", limit="max_voxels", value=3), "limit", 1),
        (errors.UnknownPromptError("no such word"), "prompt", 1),
        (errors.ModelError("not installed"), "model", 1),
        (errors.MemoryLimitError("too little memory"), "memory", 2),
        (MemoryError(), "memory", 2),
        (RuntimeError("secret path /home/jane"), "internal", 2),
    ],
)
def test_how_errors_end_a_job(backend: Backend, error: Exception, code: str, attempts: int) -> None:
    def handler(given: JobInput, run: Run) -> JobResult:
        raise error

    with working(backend, handler):
        done = ended(backend, backend.submit(NewJob("x", {}, max_attempts=2))[0])
    assert (done.state, done.error_code, done.attempts) == (State.FAILED, code, attempts)
    assert done.error
    assert "jane" not in done.error


def test_cancelling_stops_within_one_step_and_progress_is_seen(backend: Backend) -> None:
    steps: list[float] = []

    def handler(given: JobInput, run: Run) -> JobResult:
        for step in range(1000):
            steps.append(time.monotonic())
            time.sleep(0.1)
            run.check(step / 1000, f"tile {step}")
        return JobResult()

    with working(backend, handler) as worker:
        job, _ = backend.submit(NewJob("x", {}))
        until(lambda: backend.queue.get(job.id).progress > 0.001)
        assert backend.queue.get(job.id).message.startswith("tile")
        backend.queue.cancel(job.id)
        cancelled = time.monotonic()
        until(lambda: not worker.busy)
        assert steps[-1] - cancelled < 60, "it went on for much more than a look and a step, though not to its end (100 s)"
        assert backend.queue.get(job.id).state is State.CANCELLED


def test_a_silent_handler_keeps_its_job_and_a_slow_one_is_ended(backend: Backend) -> None:
    def silent(given: JobInput, run: Run) -> JobResult:
        time.sleep(2.2)  # more than two leases without a word
        return JobResult()

    with working(backend, silent):
        done = ended(backend, backend.submit(NewJob("x", {}))[0])
    assert (done.state, done.attempts) == (State.COMPLETED, 1)

    def slow(given: JobInput, run: Run) -> JobResult:
        while True:
            time.sleep(0.02)
            run.check()

    with working(backend, slow, timeout=0.4):
        done = ended(backend, backend.submit(NewJob("x", {"slow": 1}))[0])
    assert (done.state, done.error_code) == (State.FAILED, "timeout")


def test_a_drained_worker_gives_its_job_back(backend: Backend) -> None:
    running = threading.Event()

    def handler(given: JobInput, run: Run) -> JobResult:
        running.set()
        for _ in range(given.request["steps"]):
            time.sleep(0.02)
            run.check()
        return JobResult()

    with working(backend, handler) as worker:
        job, _ = backend.submit(NewJob("x", {"steps": 20}))
        assert running.wait(120)
        backend.submit(NewJob("x", {"steps": 1}))
        assert worker.stop(120), "it had the time"
        assert backend.queue.get(job.id).state is State.COMPLETED
        assert backend.queue.standing().waiting == 1
    running.clear()
    job, _ = backend.submit(NewJob("x", {"steps": 100_000}, priority=9))
    with working(backend, handler) as worker:
        assert running.wait(120)
        assert not worker.stop(0.1)
    back = backend.queue.get(job.id)
    assert (back.state, back.attempts) == (State.PENDING, 0)


def test_an_input_that_is_gone_is_said_in_the_end(backend: Backend) -> None:
    job, _ = backend.submit(NewJob("x", {}, (Stored("scan", "0" * 64, 1),)))
    import sqlalchemy as sa

    from isocenter.store.tables import JOBS

    backend.database.write(lambda c: c.execute(sa.update(JOBS).values(releases=5)))
    with working(backend, lambda given, run: JobResult()):
        done = ended(backend, job)
    assert (done.state, done.error_code) == (State.FAILED, "input")


def test_a_full_disk_delays_a_job_and_loses_nothing(tmp_path: Path) -> None:
    """On a real file system of 4 MB, mounted for this test alone."""
    ways = (["unshare", "-m"], ["unshare", "-rm"])
    folder = tmp_path / "home"
    for way in ways:
        try:
            probe = subprocess.run([*way, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True)
        except FileNotFoundError:
            continue
        if probe.returncode == 0:
            break
    else:
        pytest.skip("needs the right to mount a file system in a namespace of its own")
    folder.mkdir()
    script = Path(__file__).with_name("full_disk.py")
    run = subprocess.run([*way, sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout.splitlines()[-1])
    assert seen["errno"] == errno.ENOSPC
    assert "full" in seen["refused"]
    assert (seen["writable"], seen["writable_again"]) == (False, True)
    assert (seen["state_while_full"], seen["halves"]) == ("running", [])
    assert (seen["state"], seen["attempts"], seen["right"], seen["parts"]) == ("completed", 1, True, 0)


def test_s3_away_for_a_while_delays_a_job_and_loses_nothing(swift: Swift, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    computed: list[str] = []

    def handler(given: JobInput, run: Run) -> JobResult:
        computed.append(given.job.id)
        if len(computed) == 1:
            swift.kill()
        return JobResult((Product("a.bin", data),))

    settings = swift.settings(tmp_path, "jobs")
    backend = Backend(Settings(**{**settings.model_dump(), "job_lease": 1.0}))
    with working(backend, handler):
        job, _ = backend.submit(NewJob("x", {}))
        until(lambda: bool(computed))
        time.sleep(2.5)
        assert not backend.queue.get(job.id).ended
        swift.start()
        done = ended(backend, job)
    assert (done.state, done.attempts, len(computed)) == (State.COMPLETED, 1, 1)
    assert b"".join(backend.objects.read(done.artifacts[0].digest)) == data
    backend.close()
