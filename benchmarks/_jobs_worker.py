"""A worker process with a toy handler, for the queue's benchmark and tests: `python -m benchmarks._jobs_worker [--queue gpu]`.

Settings come from the environment, as for `isocenter worker`. A job sleeps `request["seconds"]` in small steps, or computes
for as long where `request["work"]` is set, after waiting for a file `request["until"]`, and answers with a file that holds its own number,
unless `request["file"]` is false.
"""

from __future__ import annotations

import logging
import os
import sys
import time

import structlog

from isocenter.core.model import Run
from isocenter.core.settings import Settings
from isocenter.jobs.backend import Backend
from isocenter.jobs.handler import JobInput, JobResult, Product
from isocenter.jobs.processes import run_until_stopped


def toy(given: JobInput, run: Run) -> JobResult:
    """Takes a while and answers."""
    while "until" in given.request and not os.path.exists(given.request["until"]):
        time.sleep(0.02)
        run.check()
    seconds = float(given.request.get("seconds", 0))
    steps = max(int(seconds / 0.02), 1)
    for step in range(steps):
        run.check(step / steps, "working")
        if given.request.get("work"):
            until = time.process_time() + seconds / steps
            while time.process_time() < until:
                sum(range(2000))
        elif seconds:
            time.sleep(seconds / steps)
    number = given.request.get("number", 0)
    if given.request.get("file") is False:
        return JobResult()
    return JobResult((Product("answer.txt", f"job {number}".encode(), "text/plain"),), {"number": number})


def main(log: str | None = None, celery: bool = False, role: str | None = None, **env: str) -> None:
    """Work until stopped. log: a file for what is printed; env: variables to set first; both for who forks it."""
    if log is not None:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    os.environ.update(env)
    settings = Settings()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if celery:
        from isocenter.jobs import celery_app

        sys.exit(celery_app.work(settings, lambda: toy, role=role, slots=1))
    backend = Backend(settings)
    worker = backend.worker(toy, role=role)
    run_until_stopped(worker.start, lambda: worker.stop(settings.job_drain))
    backend.close()


if __name__ == "__main__":
    main(celery="--celery" in sys.argv, role=sys.argv[sys.argv.index("--queue") + 1] if "--queue" in sys.argv else None)
