"""The queue in numbers, for Prometheus: read from the table, so that every server tells of the whole cluster."""

from __future__ import annotations

import threading
import time

from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector

from isocenter.core.errors import StoreError
from isocenter.http.jobdesk import JobDesk
from isocenter.jobs.table import QUEUES, State

_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 180, 600, 1800, 3600)


class JobMetrics:
    """Queue depth, age of the oldest job, live workers, seconds by stage, this process's memory."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._depth = Gauge("isocenter_jobs", "Jobs by queue and state", ("queue", "state"), registry=registry)
        self._oldest = Gauge("isocenter_jobs_oldest_waiting_seconds", "Age of the oldest job that waits", ("queue",), registry=registry)
        self._workers = Gauge("isocenter_workers", "Jobs that the live workers can work on at once", ("role",), registry=registry)
        self._writable = Gauge("isocenter_stores_writable", "1 while records and files can be written", registry=registry)
        self._seconds = Histogram("isocenter_job_stage_seconds", "Time that jobs spent in a stage", ("stage",), buckets=_BUCKETS, registry=registry)
        ProcessCollector(registry=registry)
        self._lock = threading.Lock()
        self._since = time.time()

    def read(self, desk: JobDesk) -> None:
        """Bring them up to date; what cannot be read stays as it was."""
        self._writable.set(desk.writable())
        try:
            standing = desk.backend.queue.standing()
            with self._lock:
                ended, self._since = desk.backend.queue.stages(self._since)
        except StoreError:
            return
        for queue in QUEUES:
            for state in State:
                self._depth.labels(queue, state.value).set(standing.counts.get((queue, state), 0))
            self._oldest.labels(queue).set(standing.oldest.get(queue, 0.0))
            self._workers.labels(queue).set(standing.workers.get(queue, 0))
        for stage, seconds in ended:
            self._seconds.labels(stage).observe(seconds)
