"""Models coming and going: loaded by the first who holds them, handed what they may know, measured, closed."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

from isocenter.core.model import Model, ModelContext, ModelSpec
from isocenter.runtime import providers
from isocenter.runtime.fleet import Fleet, Held
from isocenter.runtime.measure import meter
from isocenter.runtime.precision import Rung


@dataclass(eq=False)
class Loaded:
    """A model in memory. closed: its memory was given back, perhaps on another device than the one that asks."""

    model: Model
    instance: str
    answered: bool = False
    closed: threading.Event = field(default_factory=threading.Event)


class Loader:
    """Creates, loads and closes models. closed: called with an instance that is no more. Safe to use from several threads."""

    def __init__(self, fleet: Fleet, workers: int, create: Callable[[ModelSpec], Model], closed: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._workers = workers
        self._closed = closed
        self._instances = itertools.count()
        self.create = create

    def loaded(self, spec: ModelSpec, held: Held, watched: Callable[[Model], AbstractContextManager[None]]) -> Loaded:
        """The model of a granted claim, loaded by the first who holds it. watched: entered while the model loads."""
        resident, rung = held.resident, held.rung
        with resident.loading:
            if resident.value is None or resident.value.closed.is_set():
                started = time.perf_counter()
                count = meter(self._fleet.device(rung.device)) if held.alone else None
                model = self.create(spec)
                with watched(model):
                    model.load(self._context(spec, rung))
                loaded = Loaded(model, f"{spec.id}#{next(self._instances)}")
                for _, claim in held.claims:
                    if claim.resident is not None:
                        claim.resident.value = loaded
                        claim.resident.close = partial(self._close, loaded)
                if count is not None and held.alone and not rung.spread:
                    self._weighed(spec, held, count()[0])
                self._fleet.observe("load", spec.id, time.perf_counter() - started)
            found: Loaded = resident.value
            return found

    def _context(self, spec: ModelSpec, rung: Rung) -> ModelContext:
        using = self._fleet.providers if set(spec.devices) - {"cpu"} or self._fleet.options.providers else ("CPUExecutionProvider",)
        if rung.device == "cpu":
            using = tuple(p for p in using if p not in providers.ON_CARDS) or ("CPUExecutionProvider",)
        cores = self._fleet.cores
        return ModelContext(
            device=rung.device,
            precision=rung.precision,
            threads=max(1, cores // min(self._workers, cores)),
            slots=spec.concurrent,
            spec=spec,
            engine=providers.engine(self._fleet.options.engine, rung.device, using),
            providers=using,
            arena_bytes=None if rung.device == "cpu" else self._fleet.options.arena_bytes or self._fleet.ledger(rung.device).budget,
            max_memory=rung.max_memory,
        )

    def _weighed(self, spec: ModelSpec, held: Held, count: int) -> None:
        """A model was loaded while nothing else ran: book what it really takes. A processor's count is rough: it only adds."""
        kind = self._fleet.device(held.rung.device).kind
        booked = held.main.weights
        if count > 0 and (kind != "cpu" or count > booked > 0):
            self._fleet.peaks.loaded(spec, held.rung.precision, kind, count)
            held.ledger.correct(held.main, count)

    def measure(self, spec: ModelSpec, held: Held) -> Callable[[], None]:
        """Start measuring scratch memory, where nothing else runs there; the function ends it."""
        device = self._fleet.device(held.rung.device)
        # A model that declares nothing is small; looking at the process costs more than it would tell.
        count = meter(device) if held.alone and held.main.scratch and held.main.weights else None
        if count is None:
            return lambda: None
        grants = held.ledger.grants

        def end() -> None:
            if held.ledger.grants == grants:
                self._fleet.peaks.worked(spec, held.rung.precision, device.kind, max(0, count()[1]))

        return end

    def _close(self, loaded: Loaded) -> None:
        if not loaded.closed.is_set():
            loaded.closed.set()
            self._closed(loaded.instance)
            loaded.model.close()
