"""Telling a configured address how jobs end: a signed POST, again and again until it is taken, at most ten times.

What is due is in the job table, so nothing is forgotten when a process dies; a receiver may hear of the same end twice.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import urllib.error
import urllib.request
from typing import Any

import sqlalchemy as sa
import structlog

from isocenter.core.settings import Settings
from isocenter.jobs import rows
from isocenter.jobs.queue import Queue
from isocenter.jobs.table import Job
from isocenter.store.tables import JOBS

log = structlog.get_logger("isocenter.jobs")
TRIES = 10
_SECONDS = 10.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """What was configured is told, and nobody else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))


def deliver(queue: Queue, settings: Settings, *, most: int = 20) -> int:
    """Tell what is due, `most` jobs at the most; returns how many were taken. For one thread of every process."""
    told = 0
    for _ in range(most if settings.webhook_url else 0):
        due = _next(queue)
        if due is None:
            break
        job, tries = due
        taken = _post(job, settings)
        told += taken
        if taken or tries >= TRIES:
            if not taken:
                log.error("the webhook's receiver did not take a job's end", job=job.id, tries=tries)
            statement = sa.update(JOBS).where(JOBS.c.id == job.id, JOBS.c.webhook_tries == tries).values(webhook_at=None)
            queue.database.write(lambda c, s=statement: c.execute(s))  # type: ignore[misc]
    return told


def _next(queue: Queue) -> tuple[Job, int] | None:
    """The next job to tell of, which nobody else tells for a while: the longer the more often it failed."""
    now = queue.database.now
    due = sa.select(JOBS.c.number).where(JOBS.c.webhook_at <= now).order_by(JOBS.c.webhook_at).limit(1).with_for_update(skip_locked=True)
    pause = sa.case(*((JOBS.c.webhook_tries == n, _SECONDS + 2.0**n) for n in range(TRIES)), else_=600.0)
    statement = (
        sa.update(JOBS)
        .where(JOBS.c.number == due.scalar_subquery())
        .values(webhook_at=now + pause, webhook_tries=JOBS.c.webhook_tries + 1)
        .returning(*rows.COLUMNS, JOBS.c.webhook_tries)
    )
    if not queue.database.read(lambda c: c.scalar(sa.select(sa.exists().where(JOBS.c.webhook_at <= now)))):
        return None
    row = queue.database.write(lambda c: c.execute(statement).mappings().first())
    if row is None:
        return None
    values = dict(row)
    tries = int(values.pop("webhook_tries"))
    return rows.job(values), tries


def body_of(job: Job) -> bytes:
    """What is told of a job."""
    facts = {
        "id": job.id,
        "kind": job.kind,
        "status": job.state,
        "model": job.model,
        "study_id": job.study_id,
        "created": job.created,
        "finished": job.finished,
        "error_code": job.error_code,
        "error": job.error,
        "artifacts": [{"name": a.name, "bytes": a.bytes, "blake3": a.digest} for a in job.artifacts],
    }
    return json.dumps(facts).encode()


def signature(secret: str, stamp: str, body: bytes) -> str:
    """HMAC-SHA256 of `<stamp>.<body>`, hexadecimal. A receiver computes the same and refuses old stamps."""
    return hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _post(job: Job, settings: Settings) -> bool:
    body, stamp = body_of(job), str(int(time.time()))
    headers = {"Content-Type": "application/json", "X-Isocenter-Timestamp": stamp, "X-Isocenter-Delivery": f"{job.id}:{job.fence}"}
    if settings.webhook_secret:
        headers["X-Isocenter-Signature"] = f"sha256={signature(settings.webhook_secret, stamp, body)}"
    request = urllib.request.Request(settings.webhook_url or "", body, headers, method="POST")  # noqa: S310 - checked below
    if request.type not in ("http", "https"):
        return False
    try:
        with _OPENER.open(request, timeout=_SECONDS) as answer:
            return bool(200 <= answer.status < 300)
    except (OSError, ValueError):
        return False
