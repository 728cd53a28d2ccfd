"""`isocenter worker`: takes jobs from the table that a server fills, on this machine or on another."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from isocenter.jobs.handler import Handler

EXAMPLES = (
    "isocenter worker",
    "isocenter worker --device cuda:0",
    "REDIS_URL=redis://redis:6379/0 POSTGRES_SERVER=db MINIO_ENDPOINT=minio:9000 isocenter worker --device cpu --concurrency 2",
)


class Role(StrEnum):
    """Whose work it takes."""

    GPU = "gpu"
    CPU = "cpu"


Device = Annotated[str, typer.Option(metavar="cpu|cuda:N", help="Where its models run.")]
Concurrency = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Jobs at once, a process each.", show_default="2 on a processor, 1 on a GPU; ISOCENTER_JOB_WORKERS"),
]
Queue = Annotated[Role | None, typer.Option(help="Which queue comes first.", show_default="by the device")]


def worker(device: Device = "cpu", concurrency: Concurrency = None, queue: Queue = None) -> None:
    """Work on queued jobs until stopped.

    Finds them in the database of the settings (DATABASE_URL or POSTGRES_*; else the home folder's, on the same machine as
    the server), and their scans in the object store (MINIO_*; else the home folder). With REDIS_URL, Celery wakes it.

    A GPU worker takes the most urgent jobs of the queue "gpu"; a processor's worker takes the queue "cpu" and what the
    GPU workers cannot take at once.

    When it is told to stop (SIGTERM), a running job may still take ISOCENTER_JOB_DRAIN seconds; then it waits again.
    """
    import structlog

    from isocenter.cli.chosen import settings
    from isocenter.http import logs
    from isocenter.jobs.backend import role_of

    chosen = settings(device=device)
    logs.configure(chosen)
    role = queue.value if queue else role_of(device)
    count = concurrency or chosen.job_workers or (2 if role_of(device) == "cpu" else 1)
    if chosen.machine_share == 1:
        # Two processes that each compute in as many threads as there are cores would only get in each other's way.
        os.environ["ISOCENTER_MACHINE_SHARE"] = str(count)
    providers = chosen.effective_onnx_providers  # finding out writes the lines that the documented check greps for
    structlog.get_logger("isocenter.jobs").info("Waiting for jobs", device=device, queue=role, processes=count, onnx=providers)
    if chosen.redis_url is not None or count > 1:
        from isocenter.jobs.backend import Backend

        Backend(chosen, patience=chosen.database_wait).close()  # before there are processes that would each say that it is away
    if chosen.redis_url is not None:
        from isocenter.jobs import celery_app

        raise typer.Exit(celery_app.work(chosen, lambda: _handler(device), role=role, device=device, slots=count))
    if count > 1:
        from isocenter.jobs.processes import supervise

        command = [sys.executable, "-m", "isocenter", "worker", "--device", device, "--queue", role, "--concurrency", "1"]
        raise typer.Exit(supervise(command, count))
    _work(device, role)


def _handler(device: str) -> Handler:
    """What works, made in the process that it works in."""
    from isocenter import jobservice
    from isocenter.cli.chosen import settings
    from isocenter.service import Service

    return jobservice.handler(Service(settings(device=device)))


def _work(device: str, role: str) -> None:
    """One job at a time, in this process."""
    from isocenter.cli.chosen import settings
    from isocenter.jobs.backend import Backend
    from isocenter.jobs.processes import run_until_stopped

    chosen = settings(device=device)
    backend = Backend(chosen, patience=chosen.database_wait)
    made = backend.worker(_handler(device), device=device, role=role, stuck=lambda: os._exit(70))
    run_until_stopped(made.start, lambda: made.stop(chosen.job_drain))
    backend.close()
