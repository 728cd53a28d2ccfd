"""The queue: what it adds to a job, how many it does, and whether all survive a storm.

`python -m benchmarks.jobs` measures; `python -m benchmarks.jobs kill --jobs 2000` kills (SIGKILL) and stops (SIGSTOP, past
the lease) worker processes at random while they work, and counts how often each job ended. With DATABASE_URL and REDIS_URL
set it does so on those servers, else on SQLite in a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks import _jobs_worker
from benchmarks._jobs_worker import toy
from isocenter.core.settings import Settings
from isocenter.jobs.backend import Backend
from isocenter.jobs.table import NewJob, State, What
from isocenter.store.tables import EVENTS


@dataclass
class Storm:
    """How a storm went. ends: how often each job ended; wrong: those whose number of completions is not 1."""

    jobs: int
    seconds: float = 0.0
    killed: int = 0
    stopped: int = 0
    claims: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    left: int = 0

    def __str__(self) -> str:
        return (
            f"{self.jobs} jobs in {self.seconds:.1f} s, {self.killed} workers killed, {self.stopped} stopped past their lease, "
            f"{self.claims} claims; completed {self.ends['completed']}, other ends {sum(self.ends.values()) - self.ends['completed']}, "
            f"not exactly once {self.wrong}, left {self.left}"
        )


def storm(
    home: Path,
    jobs: int,
    *,
    workers: int = 4,
    seconds: float = 0.02,
    lease: float = 1.0,
    seed: int = 1,
    limit: float = 600.0,
    celery: bool = False,
    attacks: int = 10_000,
) -> Storm:
    """Have `jobs` jobs done by worker processes that are killed and stopped at random all the while.

    A process is left alone until it has had time to start, and all of them after `attacks`.
    """
    settle = 3.0 if celery else 0.5
    env = {"ISOCENTER_HOME": str(home), "ISOCENTER_JOB_LEASE": str(lease), "ISOCENTER_MIN_FREE_BYTES": "0"}
    env |= {name: os.environ[name] for name in ("DATABASE_URL", "REDIS_URL") if name in os.environ}
    backend = Backend(Settings(home=home, job_lease=lease, min_free_bytes=0))
    result, dice, started = Storm(jobs), random.Random(seed), time.monotonic()
    ids = [backend.submit(NewJob("toy", {"number": n, "seconds": seconds}, max_attempts=1000))[0].id for n in range(jobs)]
    # Forked from a process that has everything imported: they are there at once, however often they are killed.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks._jobs_worker", *(["celery.apps.worker", "kombu.transport.redis"] if celery else [])])

    def start() -> Any:
        process = context.Process(target=_jobs_worker.main, args=(str(home / "workers.log"), celery), kwargs=env)
        process.start()
        return process

    processes = [start() for _ in range(workers)]
    born = {p.pid: time.monotonic() for p in processes}
    asleep: dict[int, tuple[Any, float]] = {}
    try:
        while time.monotonic() - started < limit and _open(backend):
            time.sleep(0.1)
            for pid in [p for p, (_, until) in asleep.items() if time.monotonic() > until]:
                _signal(asleep.pop(pid)[0], signal.SIGCONT)
            processes = [p if p.is_alive() else start() for p in processes]
            born = {p.pid: born.get(p.pid, time.monotonic()) for p in processes}
            chosen = dice.choice(processes)
            ripe = time.monotonic() - born[chosen.pid] > settle and result.killed + result.stopped < attacks
            fate = dice.random() if ripe else 1.0
            if fate < 0.15:
                _signal(chosen, signal.SIGKILL)
                chosen.join()
                asleep.pop(chosen.pid, None)
                result.killed += 1
            elif fate < 0.35 and chosen.pid not in asleep:
                _signal(chosen, signal.SIGSTOP)
                asleep[chosen.pid] = (chosen, time.monotonic() + lease * dice.uniform(1.2, 2.5))
                result.stopped += 1
    finally:
        for process in processes:
            _signal(process, signal.SIGCONT)
        time.sleep(0.5)  # those that wake up find that their jobs are done
        for process in processes:
            _signal(process, signal.SIGKILL)
            process.join()
    result.seconds = time.monotonic() - started
    _count(backend, ids, result)
    backend.close()
    return result


def _signal(process: Any, number: signal.Signals) -> None:
    """To a worker and its children; to it alone while it is so young that it leads no group yet."""
    if not process.is_alive():
        return
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _open(backend: Backend) -> int:
    return sum(n for (_, state), n in backend.queue.standing().counts.items() if state in (State.PENDING, State.RUNNING))


def _count(backend: Backend, ids: list[str], result: Storm) -> None:
    """How the jobs ended, by the audit trail and by the table."""
    with_id = sa.select(EVENTS.c.job_id, EVENTS.c.what).where(EVENTS.c.what != What.SUBMITTED)
    rows = backend.database.read(lambda c: c.execute(with_id).all())
    completed = Counter(job for job, what in rows if what == What.COMPLETED)
    result.claims = sum(what == What.CLAIMED for _, what in rows)
    result.wrong = sum(completed[job] != 1 for job in ids)
    for job_id in ids:
        job = backend.queue.get(job_id)
        result.ends[job.state.value] += job.ended
        result.left += not job.ended
        if job.state is State.COMPLETED:
            text = b"".join(backend.objects.read(job.artifacts[0].digest))
            result.wrong += text != f"job {job.request['number']}".encode()


def overhead(home: Path, jobs: int = 300) -> dict[str, float]:
    """Median milliseconds: of each step, and of all that the queue does around one empty job."""
    backend = Backend(Settings(home=home))
    steps: dict[str, list[float]] = {"submit": [], "claim": [], "complete": [], "all": []}
    for number in range(jobs):
        times = [time.perf_counter()]
        backend.queue.submit(NewJob("toy", {"number": number}))
        times.append(time.perf_counter())
        job = backend.queue.claim("benchmark")
        assert job is not None
        times.append(time.perf_counter())
        assert backend.queue.complete(job, [], {}, {})
        times.append(time.perf_counter())
        for name, before, after in zip(steps, times, times[1:], strict=False):
            steps[name].append(after - before)
        steps["all"].append(times[-1] - times[0])
    backend.close()
    return {name: round(1000 * statistics.median(values), 2) for name, values in steps.items()}


def latency(home: Path, jobs: int = 100, *, file: bool = True, celery: bool = False) -> float:
    """Median milliseconds from an empty job's submission to its end. file: it makes a file, which is kept.

    In a worker of this process, or in a Celery worker on the servers that the environment names.
    """
    backend = Backend(Settings(home=home, min_free_bytes=0))
    worker, process = backend.worker(toy), None
    if celery:
        env = {**os.environ, "ISOCENTER_HOME": str(home), "ISOCENTER_MIN_FREE_BYTES": "0"}
        process = subprocess.Popen([sys.executable, "-m", "benchmarks._jobs_worker", "--celery"], env=env)
        while not backend.queue.standing().workers:
            time.sleep(0.05)
    else:
        worker.start()
    took = []
    for number in range(jobs):
        job, _ = backend.submit(NewJob("toy", {"number": number, "file": file}))
        while not (job := backend.queue.get(job.id)).ended:
            time.sleep(0.002)
        if job.finished is not None:
            took.append(job.finished - job.created)
    if process is not None:
        process.terminate()
        process.wait()
    worker.stop(5)
    backend.close()
    return round(1000 * statistics.median(took), 2)


def scaling(home: Path, jobs: int = 24, seconds: float = 0.5) -> tuple[float, float]:
    """Jobs a second of one and of two worker processes that compute all the time."""
    rates = []
    for count in (1, 2):
        env = {**os.environ, "ISOCENTER_HOME": str(home), "ISOCENTER_MIN_FREE_BYTES": "0"}
        backend = Backend(Settings(home=home, min_free_bytes=0))
        command = [sys.executable, "-m", "benchmarks._jobs_worker"]
        processes = [subprocess.Popen(command, env=env) for _ in range(count)]
        while backend.queue.standing().workers.get("cpu", 0) < count:
            time.sleep(0.05)
        started = time.monotonic()
        for number in range(jobs):
            backend.submit(NewJob("toy", {"number": number, "seconds": seconds, "work": True}))
        while _open(backend):
            time.sleep(0.02)
        rates.append(jobs / (time.monotonic() - started))
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        backend.close()
    return rates[0], rates[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "kill"], nargs="?", default="measure")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--celery", action="store_true", help="workers on Celery; needs REDIS_URL, and DATABASE_URL for more than one machine")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        if chosen.what == "kill":
            result = storm(home, chosen.jobs, seed=chosen.seed, celery=chosen.celery)
            print(result)
            sys.exit(1 if result.wrong or result.left else 0)
        print("ms a job:", overhead(home / "a"))
        for file in (False, True):
            print(f"ms from submission to end, {'a file kept' if file else 'no file'}:", latency(home / f"b{file}", file=file, celery=chosen.celery))
        if chosen.celery:
            return
        one, two = scaling(home / "c")
        print(f"jobs/s, one worker {one:.2f}, two {two:.2f}: {two / one:.2f} times")


if __name__ == "__main__":
    main()
