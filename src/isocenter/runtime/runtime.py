"""Who computes, where and when: the models in memory, the inference threads, and what happens when memory runs out.

`call` is how a model answers: it takes a lease, which holds weights and scratch memory together, runs the work, and goes
down the ladder when memory runs out or a device is lost. `lease` is the same without a second try.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog

from isocenter.core.errors import CancelledError, DeadlineError, MemoryLimitError
from isocenter.core.model import QUIET, Model, ModelSpec, Run, Task
from isocenter.models import registry
from isocenter.runtime import providers
from isocenter.runtime.devices import Machine
from isocenter.runtime.environment import size
from isocenter.runtime.fleet import Fleet, Held
from isocenter.runtime.ladder import AskedRun, Attempt, attempts, trouble
from isocenter.runtime.ledger import DeviceLostError
from isocenter.runtime.loading import Loader
from isocenter.runtime.options import Options
from isocenter.runtime.precision import Rung
from isocenter.runtime.slices import Batches, batch_size
from isocenter.runtime.workers import Job, Workers, current

log = structlog.get_logger("isocenter.runtime")
T = TypeVar("T")


@dataclass(frozen=True)
class Lease:
    """The right to use a model. bytes: weights and scratch, granted in one step. instance: tells one loaded copy from another.

    run: what to hand the model in its call: progress, cancelling, the time limit, and how much at once.
    notes: what the answer's reader should know, such as a lower precision than was meant.
    """

    spec: ModelSpec
    model: Any
    device: str = "cpu"
    precision: str = "float32"
    bytes: int = 0
    run: Run = QUIET
    notes: tuple[str, ...] = ()
    instance: str = ""


class Runtime:
    """The models in memory and the threads that run them. Safe to use from several threads."""

    def __init__(
        self,
        *,
        workers: int = 1,
        queue_size: int = 64,
        options: Options | None = None,
        machine: Machine | None = None,
        create: Callable[[ModelSpec], Model] = registry.create,
    ) -> None:
        self.options = options or Options()
        #: Called as (stage, model, seconds): "load", "evict", "first_answer", "out_of_memory".
        self.observe: Callable[[str, str, float], None] = lambda stage, model, seconds: None
        #: Called with an instance when it was closed: what depends on it is of no use any more.
        self.closed: Callable[[str], None] = lambda instance: None
        self.fleet = Fleet(self.options, machine, observe=lambda *what: self.observe(*what))
        self._workers = Workers(workers, queue_size, self.options.inference_seconds)
        self._batches = Batches(self.submit)
        self._loader = Loader(self.fleet, workers, create, closed=lambda instance: self.closed(instance))

    @property
    def waiting(self) -> int:
        """Inferences queued or running."""
        return self._workers.waiting

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices that models run on here."""
        return self.fleet.ids

    @contextlib.contextmanager
    def lease(self, spec: ModelSpec, *, run: Run = QUIET, batch: int = 0) -> Iterator[Lease]:
        """A loaded model, for as many users at a time as it takes. It is loaded on first use; one that fails to load is tried again.

        Raises `MemoryLimitError`, `BusyError`, `CancelledError`, `ModelError`. Do not ask for another lease while holding one.
        """
        rungs = self._rungs(spec)
        with self._leased(spec, Attempt(rungs[0], self._batch(spec, rungs[0], batch)), run) as lease:
            yield lease

    def call(self, spec: ModelSpec, work: Callable[[Lease], T], *, run: Run = QUIET, batch: int = 0) -> T:
        """What `work` makes of a lease. When memory runs out it is called again with less at once, less precision or another device.

        batch: slices at once, 0 for as many as memory allows. `work` hands `lease.run` to the model, keeps nothing of a
        call that failed, and finds in `lease.notes` how this one differs from what was meant. Raises as `lease`, and
        `MemoryLimitError` when nothing helped.
        """
        rungs = self._rungs(spec)
        ways = attempts(rungs, self._batch(spec, rungs[0], batch))
        attempt, lost = next(ways), ""
        while True:
            answer, failure, asked, said = self._attempt(spec, attempt, run, work, lost)
            if failure is None:
                return answer[0]
            # The error and the frames that it held are gone by here, and with them the memory.
            device = attempt.rung.device
            self.observe("out_of_memory" if failure == "memory" else "device_lost", spec.id, 0.0)
            log.warning("memory ran out" if failure == "memory" else "device lost", model=spec.id, on=attempt.rung.words, batch=attempt.batch)
            if failure == "lost":
                self.fleet.lose(device)
                lost = f"{device} stopped working: computed on another device"
                rungs = self._rungs(spec)
                ways = attempts(rungs, self._batch(spec, rungs[0], batch))
                attempt = next(ways)
                continue
            for name in attempt.rung.shares:
                self.fleet.relieve(name, spec, attempt.rung)
            try:
                attempt = ways.send(asked)
            except StopIteration:
                raise MemoryLimitError(
                    said
                    or f"memory ran out on {device}, also with less at once, at a lower precision and on other devices, as far as '{spec.id}' "
                    "allows that: send a smaller volume, choose a smaller model, or try again when less is going on"
                ) from None

    def submit(self, work: Callable[[], T], *, seconds: float | None = None) -> Job[T]:
        """Run `work` on an inference thread. Raises `BusyError` when too many wait already.

        Cancelling the future takes the work out of the queue; work that runs is told, and stops at its model's next step.
        seconds: its own time limit in place of the setting's, infinite for none.
        """
        return self._workers.submit(work, seconds=seconds)

    def batched(
        self,
        spec: ModelSpec,
        key: Hashable,
        items: Sequence[Any],
        work: Callable[[Lease, Sequence[Any]], Sequence[Any]],
        *,
        seconds: float | None = None,
    ) -> Future[list[Any]]:
        """One result an item, computed together with the items of others that come with the same model and `key`.

        work(lease, items) answers for at most `lease.run.batch` items at once. An item that makes it fail fails its own
        request alone. seconds: how long the request may wait to begin, `ISOCENTER_LEASE_TIMEOUT` where nobody says. A batch
        that nobody waits for any more ends at its model's next step. From an inference thread, which others' work would
        wait for, it is computed at once and alone.
        """

        def compute(batch: Sequence[Any], unwanted: Callable[[], bool] = lambda: False) -> list[Any]:
            def pieces(lease: Lease) -> list[Any]:
                step = lease.run.batch or len(batch)
                return [result for start in range(0, len(batch), step) for result in work(lease, batch[start : start + step])]

            return self.call(spec, pieces, run=Run(cancelled=unwanted))

        if current() is not None:
            done: Future[list[Any]] = Future()
            done.set_result(compute(items) if items else [])
            return done
        patience = self.options.lease_seconds if seconds is None else seconds
        return self._batches.add((spec.id, spec.weights_sha256, key), items, compute, seconds=patience)

    def together(self, spec: ModelSpec) -> int:
        """How many pictures of several clients this model would take at once where it runs; 1 where that gains nothing."""
        return self._batch(spec, self._rungs(spec)[0], 0) if spec.together else 1

    def reserve(self, name: str, device: str, need: int) -> Callable[[], None]:
        """Hold memory for a model that is not leased for each answer, such as an encoder of texts, until the returned function is called.

        Idle models make room for it. Raises `MemoryLimitError` for more than the device has, `BusyError` when it is in use for too long.
        """
        stack = contextlib.ExitStack()
        known = f"{device}:0" if device in ("cuda", "rocm") else device
        claim = self.fleet.ledger(known).claim(("reserved", name), weights=0, scratch=need, phase="embedding", timeout=self.options.lease_seconds)
        stack.enter_context(claim)
        return stack.close

    def announce(self) -> None:
        """Look at the machine, and log what it computes with, in the lines that operators look for."""
        providers.announce(self.options.providers)
        for device in (*self.fleet.machine.usable, self.fleet.machine.cpu):
            ledger = self.fleet.ledger(device.id)
            log.info(f"device {device.id}: {device.name}, {size(ledger.budget)} for models", profile=self.fleet.profile.name)

    def state(self) -> dict[str, Any]:
        """Profile, devices, memory, models and engine, for people and programs."""
        profile = self.fleet.profile
        using = self.fleet.providers
        return {
            "profile": profile.name,
            "profile_chosen": "by hand" if self.options.profile != "auto" else "by itself",
            "platform": self.fleet.machine.platform,
            "cores": self.fleet.machine.cores,
            "narrative": profile.narrative,
            "database": profile.database,
            "onnx": {"providers": list(using), "engine": providers.engine(self.options.engine, "cpu", using)},
            "devices": self.fleet.state(),
            "waiting": self.waiting,
        }

    def close(self) -> None:
        """Finish what runs, drop what waits, and give the models' memory back."""
        self._workers.close()
        self.fleet.close()

    def _rungs(self, spec: ModelSpec) -> list[Rung]:
        """The ladder with the place that is taken now in front."""
        rungs = self.fleet.rungs(spec)
        first = self.fleet.place(rungs, spec)
        return [first, *(r for r in rungs if r is not first)]

    def _batch(self, spec: ModelSpec, rung: Rung, asked: int) -> int:
        """Slices at once: as asked for, as set, or by the device's memory; other things at once by the profile."""
        if asked or self.options.batch:
            return asked or self.options.batch
        slices = spec.task is Task.SEGMENT and spec.together  # a 2-D network's
        if spec.task in (Task.DESCRIBE, Task.NARRATE, Task.SEGMENT) and not slices and set(spec.devices) - {"cpu"}:
            return self.fleet.profile.batch
        return batch_size(None if rung.device == "cpu" else self.fleet.ledger(rung.device).capacity)

    def _attempt(
        self, spec: ModelSpec, attempt: Attempt, run: Run, work: Callable[[Lease], T], lost: str
    ) -> tuple[tuple[T, ...], str | None, set[str], str]:
        """((answer,), None, ...), or ((), what ran out, what the model had asked `run` for, its own words). Every other error passes."""
        asked: set[str] = set()
        try:
            with self._leased(spec, attempt, run, lost) as lease:
                try:
                    return (work(lease),), None, asked, ""
                finally:
                    asked |= getattr(lease.run, "asked", set())
        except DeviceLostError:
            return (), "lost", asked, ""
        except Exception as error:
            found = trouble(error)
            if found is None or (found == "lost" and attempt.rung.device == "cpu"):
                raise
            return (), found, asked, error.message if isinstance(error, MemoryLimitError) else ""

    @contextlib.contextmanager
    def _leased(self, spec: ModelSpec, attempt: Attempt, run: Run, lost: str = "") -> Iterator[Lease]:
        job = current()
        limit = self.options.inference_seconds if job is None else job.seconds
        began: list[float] = []

        def late() -> bool:
            return bool(began) and limit is not None and time.monotonic() - began[0] > limit

        def unwanted() -> bool:
            return run.cancelled() or (job is not None and job.unwanted.is_set()) or late()

        rung = attempt.rung
        with self.fleet.hold(spec, rung, unwanted) as held, contextlib.ExitStack() as stack:
            began.append(time.monotonic())
            loaded = self._loader.loaded(spec, held, partial(_abandonable, job, held))
            stack.enter_context(_abandonable(job, held, loaded.model))
            measured = self._loader.measure(spec, held)
            asked = AskedRun(run.progress, unwanted, attempt.batch, attempt.tile)
            size = sum(rung.need(name) for name in {rung.device, *rung.shares})
            notes = tuple(n for n in (lost, attempt.note) if n)
            started = time.perf_counter()
            try:
                yield Lease(spec, loaded.model, rung.device, rung.precision, size, asked, notes, loaded.instance)
            except CancelledError:
                if late():
                    raise DeadlineError(f"the model took longer than ISOCENTER_INFERENCE_TIMEOUT = {limit:g} seconds and was stopped") from None
                raise
            if not loaded.answered:
                loaded.answered = True
                self.observe("first_answer", spec.id, time.perf_counter() - started)
            measured()


@contextlib.contextmanager
def _abandonable(job: Job[Any] | None, held: Held, model: Model) -> Iterator[None]:
    """While a job has a model load or answer: when the job's time is over, the model is given up. Raises `CancelledError` where it is already."""
    if job is None:
        yield
        return
    abandon = partial(_abandon, held, model)
    job.on_abandon.append(abandon)
    try:
        if job.unwanted.is_set():  # whoever said so may have looked before there was anything to give up
            raise CancelledError("the work was cancelled")
        yield
    finally:
        job.on_abandon.remove(abandon)


def _abandon(held: Held, model: Model) -> None:
    """Its time is over: nobody is to use this copy again, and a child process is ended."""
    held.discard()
    abort = getattr(model, "abort", None)
    if abort is not None:
        with contextlib.suppress(Exception):
            abort()
