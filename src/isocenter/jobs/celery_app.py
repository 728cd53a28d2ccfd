"""Celery over Redis as the bell between machines: a message carries a job's id and means "look into the table".

Whoever hears it takes the best job for itself, so order, priorities and overflow are the table's and exact, and a message that
is lost, doubled or late does no harm: workers look again after each job and every few seconds, and ring for each other. Where
no message comes though jobs wait, since the broker is away or its client came back deaf, they work without one.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue as queues
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from isocenter.core.errors import StoreError
from isocenter.core.settings import Settings
from isocenter.jobs.backend import Backend, role_of
from isocenter.jobs.handler import Handler
from isocenter.jobs.table import PRIORITIES, QUEUES, Job
from isocenter.jobs.worker import Worker

log = structlog.get_logger("isocenter.jobs")
TASK = "isocenter.work"
#: Messages that may wait in a queue; more would wake nobody who is not awake already.
_MOST = 100
#: A bell does not wait for a broker that is away.
_ONCE = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
#: Seconds without a message, while jobs wait, after which a worker does without; and between two looks.
_SILENCE, _LISTEN = 3.0, 1.0
#: Seconds for which nothing is rung after the broker was found to be away.
_PAUSE = 2.0


def answers(settings: Settings) -> bool:
    """Whether the broker can be reached; nothing is sent."""
    from kombu import Connection
    from kombu.exceptions import OperationalError

    try:
        with Connection(settings.redis_url, connect_timeout=_PAUSE) as connection:
            connection.ensure_connection(max_retries=1, timeout=_PAUSE)
            connection.default_channel.client.ping()
    except (OperationalError, OSError, ValueError):
        return False
    return True


def make(settings: Settings) -> Any:
    """The Celery application. Nothing is kept in Redis but messages that wait or are being worked on."""
    from celery import Celery
    from kombu import Queue

    app = Celery("isocenter", broker=settings.redis_url)
    app.conf.update(
        task_queues=[Queue(name) for name in QUEUES],
        task_default_queue="cpu",
        task_create_missing_queues=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "priority_steps": list(range(PRIORITIES[1] + 1)),
            "queue_order_strategy": "priority",
            # Longer than a lease, so that the table, which knows more, is always first to give a dead worker's job away.
            "visibility_timeout": int(max(4 * settings.job_lease, settings.job_timeout + 600)),
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
            "socket_connect_timeout": 2,
            "socket_timeout": 10,
            "socket_keepalive": True,
        },
    )
    return app


class CeleryBell:
    """Rings by sending messages, from a thread of its own, so that nobody waits for a broker that is away."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._settings = settings
        self._jobs: queues.SimpleQueue[tuple[str, int, tuple[str, ...]] | None] = queues.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def ring(self, job: Job) -> None:
        """Both queues hear it, its own first: the table decides whose job it is."""
        self.send(job.id, job.priority, tuple(sorted(QUEUES, key=lambda name: name != job.queue)))

    def send(self, job_id: str, priority: int, names: tuple[str, ...]) -> None:
        """Ring in some queues."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="jobs-bell", daemon=True)
                self._thread.start()
        self._jobs.put((job_id, priority, names))

    def close(self) -> None:
        """Send what is to be sent, and end."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(5.0)

    def _run(self) -> None:
        app = make(self._settings)
        connection: Any = None
        silent_until = 0.0
        while (item := self._jobs.get()) is not None:
            if time.monotonic() < silent_until:
                continue  # the workers look by themselves every few seconds
            try:
                connection = connection or app.connection_for_write(transport_options=_ONCE)
                _send(app, connection, *item)
            except Exception as error:  # whatever a broker does, the job is in the table
                log.warning("the broker cannot be reached; jobs wait in the table", error=type(error).__name__)
                connection = _closed(connection)
                silent_until = time.monotonic() + _PAUSE
        _closed(connection)


def _send(app: Any, connection: Any, job_id: str, priority: int, names: tuple[str, ...]) -> None:
    for name in names:
        if _waiting(connection, name) < _MOST:
            # Redis takes 0 for the most urgent.
            app.send_task(TASK, args=[job_id], queue=name, priority=PRIORITIES[1] - priority, connection=connection, retry=False)


def _waiting(connection: Any, name: str) -> int:
    """Messages that nobody has taken yet."""
    from kombu import Queue

    return int(Queue(name)(connection.default_channel).queue_declare().message_count)


def _closed(connection: Any) -> Any:
    """Close a connection; None, to be put in its place."""
    if connection is not None:
        try:
            connection.release()
        except Exception as error:
            log.debug("a connection did not close", error=type(error).__name__)
    return None


class _Child:
    """One process of a Celery worker: it holds a worker that works when a message comes."""

    def __init__(self, settings: Settings, handler: Handler, role: str, device: str, draining: Any) -> None:
        self._settings = settings
        self._draining = draining
        self._drain_until = 0.0
        self.backend = Backend(settings)
        self.bell = CeleryBell(settings.redis_url or "", settings)
        self._connection: Any = None
        self._app = make(settings)
        self.worker: Worker = self.backend.worker(handler, device=device, role=role, chores=self._chores, stuck=lambda: os._exit(70))
        self.worker.start(threads=False)
        #: One job at a time, by message or without.
        self._one = threading.Lock()
        self._heard = time.monotonic()
        self._over = threading.Event()
        self._unasked = threading.Thread(target=self._work_unasked, name="jobs-unasked", daemon=True)
        self._unasked.start()

    def work(self) -> None:
        """A message came: do one job, the best there is for this worker, and ring again where more wait."""
        with self._one:
            if not self._draining.is_set():
                self.worker.work_once()
                self._again()
            self._heard = time.monotonic()

    def _work_unasked(self) -> None:
        """Where jobs wait and no message comes, do them: the table is enough."""
        while not self._over.wait(_LISTEN):
            try:
                while not self._draining.is_set() and time.monotonic() - self._heard > _SILENCE and self.backend.queue.waits():
                    if not self._one.acquire(blocking=False):
                        break  # a message came just now
                    try:
                        if not self.worker.work_once():
                            break
                    finally:
                        self._one.release()
            except StoreError as error:
                log.warning("the queue is away", reason=error.message)
            except Exception as error:  # one bad look must not end them all
                log.error("looking for jobs failed", error=type(error).__name__, exc_info=error)

    def _chores(self) -> None:
        if self._draining.is_set():
            self.worker.drain()
            self._drain_until = self._drain_until or time.monotonic() + self._settings.job_drain
            if time.monotonic() > self._drain_until:
                self.worker.give_back()
        else:
            self._again()

    def _again(self) -> None:
        """Where jobs wait and no message does, as after a broker lost all it had: ring."""
        if self.backend.queue.waits():
            try:
                self._connection = self._connection or self._app.connection_for_write(transport_options=_ONCE)
                if not _waiting(self._connection, self.worker.role):
                    _send(self._app, self._connection, "", PRIORITIES[0], (self.worker.role,))
            except Exception as error:
                log.debug("the broker cannot be reached", error=type(error).__name__)
                self._connection = _closed(self._connection)

    def close(self) -> None:
        self._over.set()
        # A job that was begun without a message is none of Celery's, so nobody else waits for it.
        self.worker.stop(self._settings.job_drain)
        self.bell.close()
        _closed(self._connection)
        self.backend.close()


def _quiet_celery(**_: Any) -> None:
    """Celery tells of trouble only; this program's own log goes on as it was configured."""
    for name in ("celery", "kombu"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().getEffectiveLevel()))


_child: _Child | None = None


def work(settings: Settings, make_handler: Callable[[], Handler], *, role: str | None = None, device: str = "cpu", slots: int = 1) -> int:
    """Work for a broker in `slots` processes until SIGTERM; returns the exit code.

    A job that runs when the signal comes may finish within `job_drain` seconds; then it waits in the table again.
    """
    from celery.signals import setup_logging, worker_process_init, worker_process_shutdown, worker_shutting_down

    app = make(settings)
    role = role or role_of(device)
    draining = multiprocessing.get_context("fork" if sys.platform == "linux" else None).Event()

    def begin(**_: Any) -> None:
        global _child
        _child = _Child(settings, make_handler(), role, device, draining)

    def end(**_: Any) -> None:
        global _child
        if _child is not None:
            _child.close()
            _child = None

    def run(job_id: str) -> None:
        if _child is None:  # a pool without processes of its own
            begin()
        if _child is not None:
            _child.work()

    app.task(run, name=TASK)
    # Where somebody listens to this signal, Celery leaves logging alone: else it would raise the level, and no job's end were told.
    setup_logging.connect(_quiet_celery, weak=False)
    worker_process_init.connect(begin, weak=False)
    worker_process_shutdown.connect(end, weak=False)
    worker_shutting_down.connect(lambda **_: draining.set(), weak=False)
    pool = "prefork" if sys.platform != "win32" else "solo"
    worker = app.Worker(
        pool=pool, concurrency=slots, queues=[role], loglevel="WARNING", without_gossip=True, without_mingle=True, without_heartbeat=True
    )
    worker.start()
    return int(worker.exitcode or 0)
