"""The queue: a table in which each change of a job's state is one statement, guarded by the state and the fence.

A worker that was stopped past its lease, or cut off, holds an old fence: whatever it writes then changes nothing.
Raises `StoreError` where the database is away.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from isocenter.core.errors import ConflictError, NotFoundError, UsageError
from isocenter.jobs import claims, needs, rows
from isocenter.jobs.table import ENDED, PRIORITIES, QUEUES, TRANSITIONS, Event, Job, NewJob, Standing, State, Stored, What
from isocenter.store.database import Database
from isocenter.store.tables import EVENTS, JOBS, WORKERS

_MESSAGE, _ERROR = 200, 500


class Queue:
    """The job table of one database, and the workers that are there. lease: seconds; see `Settings.job_lease`."""

    def __init__(self, database: Database, *, lease: float = 60.0, gpu_reserve: int = 1, webhook: bool = False) -> None:
        self.database = database
        self.lease = lease
        self._reserve = gpu_reserve
        self._webhook = webhook
        self._claims: dict[str, sa.Executable] = {}
        self._ends: dict[What, sa.Update] = {}

    # 1. A job comes in.

    def submit(self, new: NewJob, *, key: str | None = None, same_within: float = 0.0) -> tuple[Job, bool]:
        """The job, and whether it is new.

        key: a client's own name for the submission; a second one under it is the first's job, where it asks for the same.
        Raises `ConflictError` where it asks for something else. same_within: seconds for which an equal submission of
        the same owner, that has not failed, is taken for the same even without a key. Raises `NotFoundError` where its
        study is gone.
        """
        if new.queue not in QUEUES:
            raise UsageError(f"the queue must be one of {', '.join(QUEUES)}")
        if not PRIORITIES[0] <= new.priority <= PRIORITIES[1]:
            raise UsageError(f"the priority must lie in {PRIORITIES[0]}..{PRIORITIES[1]}, 9 being the most urgent")
        job_id, digest = str(uuid.uuid4()), rows.digest(new)
        values = {f.name: getattr(new, f.name) for f in fields(NewJob)}
        values |= {"id": job_id, "state": State.PENDING, "attempts": 0, "releases": 0, "fence": 0, "not_before": 0.0}
        values |= {"progress": 0.0, "message": "", "inputs": [asdict(i) for i in new.inputs], "request": dict(new.request), "artifacts": []}
        values |= {"facts": {}, "seconds": {}, "idempotency_key": key, "digest": digest, "webhook_tries": 0, "kept": False}

        def work(connection: Connection) -> tuple[Job, bool]:
            if same_within > 0 and key is None and (same := self._same(connection, digest, same_within)):
                return same, False
            needs.lock(connection, [i.digest for i in new.inputs])
            if new.study_id is not None:
                needs.check_study(connection, new.study_id)
            if rows.inserted(connection, self.database.now, values):
                needs.add(connection, job_id, new.inputs, made=False)
                rows.note(connection, self.database.now, What.SUBMITTED, job_id, State.PENDING)
            # Its own, also where this very call went through before the connection broke; or that of the same key.
            found = rows.by_id(connection, job_id) or (rows.one(connection, JOBS.c.idempotency_key == key) if key else None)
            if found is None:
                raise ConflictError("this job was deleted while it was submitted")
            if found.id != job_id and connection.scalar(sa.select(JOBS.c.digest).where(JOBS.c.id == found.id)) != digest:
                raise ConflictError("this Idempotency-Key was used for another request; take a new one")
            return found, found.id == job_id

        return self.database.write(work, durable=True)

    def _same(self, connection: Connection, digest: str, within: float) -> Job | None:
        if self.database.dialect == "postgresql":
            # Two equal requests at the same time take turns here; SQLite lets only one write in any case.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(int(digest[:15], 16))))
        recent = JOBS.c.created > self.database.now - within
        return rows.one(connection, sa.and_(JOBS.c.digest == digest, recent, JOBS.c.state.not_in([State.FAILED, State.CANCELLED])))

    # 2. A worker takes it ...

    def claim(self, worker: str, role: str = "cpu") -> Job | None:
        """The next job for a worker of a role, which then holds it for one lease; None where there is none.

        Jobs go by priority, then by age. A "gpu" worker takes the gpu queue, and the cpu queue where nobody else does. A
        "cpu" worker takes the cpu queue and the overflow of the gpu queue: what is left beside the first jobs that
        are kept for the GPU workers that are there.
        """
        if role not in self._claims:
            self._claims[role] = claims.statement(self.database, role, self.lease, self._reserve)
        statement = self._claims[role]

        def work(connection: Connection) -> Job | None:
            row = connection.execute(statement, {"claimer": worker}).mappings().first()
            if row is None:
                return None
            job = rows.job(row)
            rows.note(connection, self.database.now, What.CLAIMED, job.id, job.state, job.fence, worker)
            return job

        return self.database.write(work)

    # ... and says how far it is, until it is done.

    def beat(self, job: Job, progress: float | None = None, message: str | None = None, *, patience: float | None = None) -> bool:
        """A sign of life: the lease runs anew. False where the job is no longer this worker's. patience: see `Database`."""
        values: dict[str, Any] = {"heartbeat": self.database.now, "lease_until": self.database.now + self.lease}
        if progress is not None:
            values["progress"] = min(max(float(progress), 0.0), 1.0)
        if message is not None:
            values["message"] = message[:_MESSAGE]
        statement = sa.update(JOBS).where(*_HELD).values(values)
        return self.database.write(lambda c: c.execute(statement, _holding(job)).rowcount == 1, patience=patience)

    def complete(self, job: Job, artifacts: Iterable[Stored], facts: Mapping[str, Any], seconds: Mapping[str, float]) -> bool:
        """End it well. False, and nothing changes, where the fence is an old one."""
        artifacts = tuple(artifacts)
        values = {"artifacts": [asdict(a) for a in artifacts], "facts": dict(facts), "seconds": dict(seconds), "progress": 1.0, "message": ""}
        return self._leave(What.COMPLETED, job, {}, values, made=artifacts)

    def fail(self, job: Job, code: str, error: str) -> bool:
        """End it badly; trying again would not help."""
        return self._leave(What.FAILED, job, {}, {"error_code": code, "error": error[:_ERROR]}, detail=code)

    def release(self, job: Job, why: str, *, delay: float = 0.0, counts: bool = True) -> bool:
        """Give it back, to be tried again after `delay` seconds. counts: whether this was one of its attempts."""
        values = {
            "not_before": self.database.now + delay, "message": why[:_MESSAGE], "progress": 0.0, "worker": None, "lease_until": None,
            "attempts": JOBS.c.attempts - (0 if counts else 1), "releases": JOBS.c.releases + 1, "fence": JOBS.c.fence + 1,
        }  # fmt: skip
        return self._leave(What.RELEASED, job, values, {}, detail=why)

    def _leave(
        self, what: What, job: Job, terms: dict[str, Any], values: dict[str, Any], detail: str | None = None, made: tuple[Stored, ...] = ()
    ) -> bool:
        """terms: columns that the database computes. values: plain ones."""
        target = TRANSITIONS[what][1]
        if terms:
            statement = sa.update(JOBS).where(*_HELD).values(state=target, **terms)
        else:  # built once: see `rows`
            if what not in self._ends:
                self._ends[what] = (
                    sa.update(JOBS).where(*_HELD).values(state=target, finished=self.database.now, lease_until=None, **self._announce())
                )
            statement = self._ends[what]
        values = {**values, **_holding(job)}

        def work(connection: Connection) -> bool:
            needs.lock(connection, [a.digest for a in made])
            if connection.execute(statement, values).rowcount == 1:
                needs.add(connection, job.id, made, made=True)
                rows.note(connection, self.database.now, what, job.id, target, job.fence, job.worker, detail)
                return True
            # Perhaps this very call went through before the connection broke.
            there = rows.by_id(connection, job.id)
            return target in ENDED and there is not None and (there.state, there.fence, there.worker) == (target, job.fence, job.worker)

        return self.database.write(work)

    def expire(self) -> int:
        """Take jobs from workers that gave no sign of life for a lease; returns how many wait again.

        A job that took as many workers with it as it has attempts has failed.
        """
        now = self.database.now
        lost = sa.and_(JOBS.c.state == rows.LEASED, JOBS.c.lease_until < now)
        again = (
            sa.update(JOBS)
            .where(lost, JOBS.c.attempts < JOBS.c.max_attempts)
            .values(state=TRANSITIONS[What.LOST][1], fence=JOBS.c.fence + 1, worker=None, lease_until=None, progress=0.0, message="")
            .returning(JOBS.c.id, JOBS.c.fence)
        )
        text = "the worker died or hung at every attempt; the scan may need more memory than there is"
        ended = {"state": State.FAILED, "fence": JOBS.c.fence + 1, "lease_until": None, "finished": now, "error_code": "worker_lost", "error": text}
        over = sa.update(JOBS).where(lost, JOBS.c.attempts >= JOBS.c.max_attempts).values({**ended, **self._announce()})

        def work(connection: Connection) -> int:
            waiting = connection.execute(again).all()
            for job_id, fence in waiting:
                rows.note(connection, self.database.now, What.LOST, job_id, State.PENDING, fence)
            for job_id, fence in connection.execute(over.returning(JOBS.c.id, JOBS.c.fence)).all():
                rows.note(connection, self.database.now, What.FAILED, job_id, State.FAILED, fence, detail="worker_lost")
            return len(waiting)

        if not self.database.read(lambda c: c.scalar(sa.select(sa.exists().where(lost)))):
            return 0
        return self.database.write(work)

    # 3. People look at it, and change their minds.

    def get(self, job_id: str) -> Job:
        """The job of this id. Raises `NotFoundError`."""
        found = self.database.read(lambda c: rows.by_id(c, job_id))
        if found is None:
            raise NotFoundError("Job not found")
        return found

    def page(
        self, *, skip: int = 0, limit: int = 100, kind: str | None = None, model: str | None = None,
        states: Iterable[State] = (), study_id: str | None = None,
    ) -> tuple[list[Job], int]:  # fmt: skip
        """A page of the jobs, newest first, and how many there are in all."""
        wanted = [column == value for column, value in ((JOBS.c.kind, kind), (JOBS.c.model, model), (JOBS.c.study_id, study_id)) if value]
        if states := list(states):
            wanted.append(JOBS.c.state.in_(states))
        page = sa.select(*rows.COLUMNS).where(*wanted).order_by(JOBS.c.number.desc()).offset(skip).limit(limit)
        total = sa.select(sa.func.count()).select_from(JOBS).where(*wanted)
        return self.database.read(lambda c: ([rows.job(row) for row in c.execute(page).mappings()], int(c.scalar(total) or 0)))

    def events(self, job_id: str) -> list[Event]:
        """What happened to it, in order; also of a job that was deleted."""
        found = sa.select(*(EVENTS.c[f.name] for f in fields(Event))).where(EVENTS.c.job_id == job_id).order_by(EVENTS.c.number)
        return self.database.read(lambda c: [Event(**row) for row in c.execute(found).mappings()])

    def cancel(self, job_id: str) -> Job:
        """Stop it: at once where it waits; a worker that runs it finds out within one tile. Raises `ConflictError` when it has ended."""
        values = {"finished": self.database.now, "lease_until": None, "message": "", **self._announce()}
        return self._change(What.CANCELLED, job_id, values, "Cannot cancel job in status: {state}")

    def retry(self, job_id: str) -> Job:
        """Start a failed or cancelled job anew. Raises `ConflictError` for any other, and where its scan was removed."""
        values: dict[str, Any] = {
            "attempts": 0, "releases": 0, "not_before": 0.0, "finished": None, "started": None, "progress": 0.0, "worker": None,
            "error_code": None, "error": None, "webhook_at": None,
        }  # fmt: skip
        return self._change(What.RETRIED, job_id, values, "Cannot retry job in status: {state}")

    def _change(self, what: What, job_id: str, values: Mapping[str, Any], refusal: str) -> Job:
        allowed, target = TRANSITIONS[what]
        statement = (
            sa.update(JOBS)
            .where(JOBS.c.id == job_id, JOBS.c.state.in_(allowed))
            .values(state=target, fence=JOBS.c.fence + 1, **values)
            .returning(*rows.COLUMNS)
        )

        def work(connection: Connection) -> Job:
            if what is What.RETRIED:
                needs.check_scan(connection, job_id)
            row = connection.execute(statement).mappings().first()
            if row is not None:
                rows.note(connection, self.database.now, what, job_id, target, row["fence"])
                return rows.job(row)
            there = rows.by_id(connection, job_id)
            if there is None:
                raise NotFoundError("Job not found")
            raise ConflictError(refusal.format(state=there.state))

        return self.database.write(work)

    def keep(self, job_id: str, kept: bool = True) -> Job:
        """Have a job and its files stay whatever their age, or no longer."""
        statement = sa.update(JOBS).where(JOBS.c.id == job_id).values(kept=kept).returning(*rows.COLUMNS)

        def work(connection: Connection) -> Job:
            row = connection.execute(statement).mappings().first()
            if row is None:
                raise NotFoundError("Job not found")
            rows.note(connection, self.database.now, What.KEPT if kept else What.LET_GO, job_id, row["state"], row["fence"])
            return rows.job(row)

        return self.database.write(work)

    def delete(self, job_id: str, *, old: bool = False) -> list[str]:
        """Forget a job that has ended; returns the digests of its files, for `needs.drop`. Its audit trail stays.

        old: by its age and not by a person, so not where it is kept. Raises `ConflictError` where it may not go.
        """
        allowed = sa.and_(JOBS.c.id == job_id, JOBS.c.state.in_(ENDED), JOBS.c.kept == sa.false() if old else sa.true())

        def work(connection: Connection) -> list[str]:
            job = rows.by_id(connection, job_id)
            if job is None:
                raise NotFoundError("Job not found")
            if not connection.execute(sa.delete(JOBS).where(allowed)).rowcount:
                raise ConflictError("the job is kept" if job.ended else f"Cannot delete job in status: {job.state}; cancel it first")
            rows.note(connection, self.database.now, What.DELETED, job_id, job.state, job.fence, detail="age" if old else None)
            return needs.remove(connection, job_id)

        return self.database.write(work)

    def waits(self) -> bool:
        """Whether a job waits that could be taken now."""
        ready = sa.and_(JOBS.c.state == rows.WAITING, JOBS.c.not_before <= self.database.now)
        return bool(self.database.read(lambda c: c.scalar(sa.select(sa.exists().where(ready)))))

    def standing(self) -> Standing:
        """The queue now."""
        now = self.database.now
        counts = sa.select(JOBS.c.queue, JOBS.c.state, sa.func.count()).group_by(JOBS.c.queue, JOBS.c.state)
        oldest = sa.select(JOBS.c.queue, now - sa.func.min(JOBS.c.created)).where(JOBS.c.state == State.PENDING).group_by(JOBS.c.queue)
        there = WORKERS.c.beat > now - claims.GONE * self.lease
        workers = sa.select(WORKERS.c.role, sa.func.sum(WORKERS.c.slots)).where(there).group_by(WORKERS.c.role)

        def look(connection: Connection) -> Standing:
            return Standing(
                {(queue, State(state)): n for queue, state, n in connection.execute(counts)},
                {queue: float(age) for queue, age in connection.execute(oldest)},
                {role: int(n) for role, n in connection.execute(workers)},
            )

        return self.database.read(look)

    def stages(self, since: float, most: int = 5000) -> tuple[list[tuple[str, float]], float]:
        """Stages and their seconds of the jobs that were completed after `since`, and when the last of them was."""
        found = sa.select(JOBS.c.finished, JOBS.c.seconds).where(JOBS.c.state == State.COMPLETED, JOBS.c.finished > since)
        ended = self.database.read(lambda c: c.execute(found.order_by(JOBS.c.finished).limit(most)).all())
        return [(str(k), float(v)) for _, seconds in ended for k, v in seconds.items()], max((float(at) for at, _ in ended), default=since)

    # 4. Who works.

    def register(self, worker: str, role: str, device: str, slots: int = 1, *, draining: bool = False) -> None:
        """A worker is there, or still is; called again every third of a lease. Those that went without a word are forgotten."""
        now = self.database.now
        values = {"role": role, "device": device, "slots": slots, "draining": draining, "beat": now}
        again = sa.update(WORKERS).where(WORKERS.c.id == worker).values(values)
        gone = sa.delete(WORKERS).where(WORKERS.c.beat < now - 10 * self.lease)

        def work(connection: Connection) -> None:
            if not connection.execute(again).rowcount:
                connection.execute(gone)
                connection.execute(sa.insert(WORKERS).values(id=worker, started=now, **values))

        self.database.write(work)

    def leave(self, worker: str) -> None:
        """A worker goes."""
        self.database.write(lambda c: c.execute(sa.delete(WORKERS).where(WORKERS.c.id == worker)), patience=1.0)

    def _announce(self) -> dict[str, Any]:
        """What a job's end sets where there is a webhook to tell."""
        return {"webhook_at": self.database.now, "webhook_tries": 0} if self._webhook else {}


#: That a job is still the one that was claimed.
_HELD = (JOBS.c.id == sa.bindparam("held_id"), JOBS.c.state == State.RUNNING, JOBS.c.fence == sa.bindparam("held_fence"))


def _holding(job: Job) -> dict[str, Any]:
    """Parameters of `_HELD`."""
    return {"held_id": job.id, "held_fence": job.fence}
