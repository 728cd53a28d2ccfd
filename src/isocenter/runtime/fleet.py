"""All devices of a machine: a ledger each, and the choice of where a model runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

import structlog

from isocenter.core.errors import MemoryLimitError, ModelError
from isocenter.core.model import ModelSpec, Task
from isocenter.runtime import devices, providers
from isocenter.runtime.devices import Device, Machine
from isocenter.runtime.environment import size, usable_cores
from isocenter.runtime.ladder import free_caches
from isocenter.runtime.ledger import Claim, Ledger, Resident
from isocenter.runtime.measure import Peaks, allocated
from isocenter.runtime.options import Options
from isocenter.runtime.precision import Rung, headroom, ladder, offered
from isocenter.runtime.profiles import Profile

log = structlog.get_logger("isocenter.runtime")
#: Seconds between two looks at how much memory there is.
_LOOK = 10.0
#: Models that need one of these compute through torch; the others through ONNX Runtime.
_TORCH = {"torch", "transformers", "nnunetv2", "nnInteractive", "monai", "accelerate"}
_PHASES = {Task.DESCRIBE: "embedding", Task.EMBED: "embedding", Task.SCORE: "embedding", Task.NARRATE: "narrative"}
Observer = Callable[[str, str, float], None]


@dataclass(frozen=True)
class Held:
    """A granted claim on every device that a rung takes; main: the one on the device where the model's inputs go."""

    rung: Rung
    claims: tuple[tuple[Ledger, Claim], ...]
    main: Claim
    ledger: Ledger

    @property
    def resident(self) -> Resident:
        """Where the model is kept."""
        return cast(Resident, self.main.resident)

    @property
    def alone(self) -> bool:
        """Whether nothing else is at work on the main device."""
        return self.ledger.alone()

    def discard(self) -> None:
        """The model is not to be used again."""
        for ledger, claim in self.claims:
            ledger.discard(claim)


class Fleet:
    """The devices of one machine. Safe to use from several threads."""

    def __init__(
        self,
        options: Options | None = None,
        machine: Machine | None = None,
        *,
        free: Callable[[Device], int | None] = devices.free_bytes,
        observe: Observer = lambda stage, model, seconds: None,
    ) -> None:
        self.options = options or Options()
        self.peaks = Peaks()
        self.observe = observe
        self._free = free
        self._simulated = machine is not None
        self._looked = time.monotonic()
        self._machine = machine
        self._lock = threading.RLock()
        self._ledgers: dict[str, Ledger] = {}
        self._providers: tuple[str, ...] | None = None

    @property
    def machine(self) -> Machine:
        """This machine; found out when first asked for, which imports torch where there is a card."""
        with self._lock:
            if self._machine is None:
                self._machine = _detected()
                for device in self._machine.devices:
                    if device.fault:
                        log.warning("accelerator not used", device=device.name, fault=device.fault)
            return self._machine

    @property
    def ids(self) -> tuple[str, ...]:
        """Devices that models run on. Before the machine was looked at, a card is assumed where its driver is."""
        if self._machine is None:
            return ("cuda:0", "cpu") if devices.likely() else ("cpu",)
        return tuple(d.id for d in (*self._machine.usable, self._machine.cpu) if not self.ledger(d.id).lost)

    @property
    def cores(self) -> int:
        """Cores that models of this process may use: its share of the machine's."""
        return max(1, (usable_cores() if self._machine is None else self._machine.cores) // self.options.share)

    @property
    def profile(self) -> Profile:
        """What this kind of machine is set up for."""
        return self.options.profile_for(self.machine)

    @property
    def providers(self) -> tuple[str, ...]:
        """ONNX Runtime's providers in use."""
        if self._providers is None:
            self._providers = tuple(providers.effective(self.options.providers))
        return self._providers

    def ledger(self, name: str) -> Ledger:
        """A device's ledger."""
        with self._lock:
            if name not in self._ledgers:
                device = self.device(name)
                ledger = Ledger(*self._capacity(device), name=name)
                ledger.observe = partial(self._closed)
                self._ledgers[name] = ledger
            return self._ledgers[name]

    @property
    def ledgers(self) -> dict[str, Ledger]:
        """Those of the devices that were used so far, by device."""
        with self._lock:
            return dict(self._ledgers)

    def rungs(self, spec: ModelSpec) -> list[Rung]:
        """All ways to run a model here, best first. Raises `MemoryLimitError` when it fits nowhere, `ModelError` without its device."""
        if self._machine is None and set(spec.devices) <= {"cpu"}:
            # A model of the processor alone does not make the machine look for cards.
            machine, profile = Machine(self._processor, packages=self._packages), None
        else:
            machine, profile = self.machine, self.profile
        self._look_again()
        if machine.usable and set(spec.packages) & _TORCH:
            machine = replace(machine, devices=tuple(d for d in machine.usable if d.torch))
        elif machine.usable and not providers.ON_CARDS & set(self.providers):
            machine = replace(machine, devices=())
        room = {d.id: self.ledger(d.id).budget for d in (*machine.usable, machine.cpu) if not self.ledger(d.id).lost}
        explicit = self.options.profile != "auto" and profile is not None
        found = ladder(
            spec,
            machine,
            room,
            sizes=self._sizes,
            profile=profile,
            precision=self.options.precision,
            device=self.options.device,
            prefer=profile.precision if explicit and profile is not None else "",
        )
        if not found:
            raise self._nowhere(spec, room)
        return found

    def place(self, rungs: Sequence[Rung], spec: ModelSpec) -> Rung:
        """Of the equally good rungs the one to take: where the model is and is free, else where there is room, else the shortest queue."""
        best = [r for r in rungs if r.rank == rungs[0].rank]
        if len(best) == 1:
            return best[0]

        def load(rung: Rung) -> tuple[int, int, int]:
            ledger = self.ledger(rung.device)
            there, free = ledger.holds(_key(spec, rung))
            if free:
                return 0, ledger.waiting, 0
            if not there and ledger.fits(rung.need(rung.device)) and spec.task is not Task.INTERACTIVE:
                return 1, ledger.waiting, ledger.used
            # People's sessions live with one copy of their model, so that one is not copied.
            return (1 if there and spec.task is Task.INTERACTIVE else 2), ledger.waiting, ledger.used

        return min(best, key=load)

    @contextlib.contextmanager
    def hold(self, spec: ModelSpec, rung: Rung, cancelled: Callable[[], bool] | None = None) -> Iterator[Held]:
        """Wait for a rung's memory and hold it. Several devices are taken in the order of their names, so that two never lock each other out."""
        with contextlib.ExitStack() as stack:
            claims = []
            for name in sorted({rung.device, *rung.shares}):
                ledger = self.ledger(name)
                claim = ledger.claim(
                    _key(spec, rung),
                    weights=rung.shares.get(name, 0),
                    scratch=rung.need(name) - rung.shares.get(name, 0),
                    phase=_PHASES.get(spec.task, "segmentation"),
                    slots=spec.concurrent,
                    cancelled=cancelled,
                    timeout=self.options.lease_seconds,
                )
                claims.append((ledger, stack.enter_context(claim)))
            main = next((ledger, claim) for ledger, claim in claims if ledger.name == rung.device)
            yield Held(rung, tuple(claims), main[1], main[0])

    def relieve(self, name: str, spec: ModelSpec, rung: Rung) -> None:
        """Memory ran out there: close idle models, free the allocators' caches, look again at how much there is."""
        device, ledger = self.device(name), self.ledger(name)
        ledger.evict_idle()
        free_caches(name)
        if ledger.used and ledger.state()["leased_bytes"]:
            # Others were at work beside it. Next time it waits until there is more room.
            self.peaks.ran_out(spec, rung.precision, device.kind, max(0, ledger.budget - rung.shares.get(name, 0)))
        else:
            self._resize(device)

    def lose(self, name: str) -> None:
        """A device stopped working: nothing is run there any more."""
        ledger = self.ledger(name)
        if not ledger.lost:
            log.error("a device stopped working and is left alone until the server is started again", device=name)
            ledger.lose()

    def state(self) -> list[dict[str, Any]]:
        """Every device with its memory and models."""
        machine = self.machine
        found = []
        for device in (*machine.devices, machine.cpu):
            facts: dict[str, Any] = {"id": device.id, "kind": device.kind, "name": device.name, "total_bytes": device.total}
            facts |= {"fault": device.fault} if device.fault else {"bfloat16": device.bfloat16} | self.ledger(device.id).state()
            found.append(facts)
        return found

    def close(self) -> None:
        """Close the models."""
        for ledger in list(self._ledgers.values()):
            if not ledger.lost:
                ledger.close()

    def device(self, name: str) -> Device:
        """By its id; the processor without looking for cards."""
        return self._processor if self._machine is None and name == "cpu" else self.machine.device(name)

    @cached_property
    def _processor(self) -> Device:
        return devices.processor()

    @cached_property
    def _packages(self) -> frozenset[str]:
        return devices.installed()

    def _look_again(self) -> None:
        """Other programs come and go: every few seconds, see how much memory there is."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        for name, ledger in list(self._ledgers.items()):
            if not ledger.lost:
                self._resize(self.device(name))

    def _resize(self, device: Device) -> None:
        """Capacity is what is free and what models hold already. Small changes are left, so that no model is loaded to and fro for them."""
        if self._simulated or self.options.memory_budget is not None:
            return
        ledger, free = self.ledger(device.id), self._free(device)
        if free is None:
            return
        capacity = min(device.total, free + max(ledger.used, allocated(device)))
        if device.kind == "cpu":
            capacity -= min(self.options.caches, capacity // 4)
        if abs(capacity - ledger.capacity) > device.total // 20:
            ledger.resize(capacity)

    def _capacity(self, device: Device) -> tuple[int, int]:
        """(capacity, headroom) of a device's ledger."""
        options = self.options
        margin = headroom(device) if options.memory_headroom is None else options.memory_headroom
        governs = device.kind != "cpu" or not (devices.likely() if self._machine is None else self._machine.usable)
        if options.memory_budget is not None and governs:
            return options.memory_budget + margin, margin
        room = min(device.free, device.total)
        if device.kind == "cpu":
            room -= min(options.caches, room // 4)
        return room // options.share, margin // options.share

    def _sizes(self, spec: ModelSpec, precision: str, kind: str) -> tuple[int, int]:
        """Measured sizes, but never more than the processor has: its measure is a rough one and must not turn a model away."""
        weights, scratch = self.peaks.sizes(spec, precision, kind)
        if kind == "cpu":
            least, working = spec.resident_bytes.get(precision, spec.weights_bytes), spec.scratch_bytes.get(precision, 0)
            room = self.ledger("cpu").budget
            weights = max(least, min(weights, room - working))
            scratch = max(working, min(scratch, room - weights))
        return weights, scratch

    def _closed(self, stage: str, key: Hashable, seconds: float) -> None:
        self.observe(stage, str(key[0]) if isinstance(key, tuple) else str(key), seconds)

    def _nowhere(self, spec: ModelSpec, room: dict[str, int]) -> Exception:
        if not room or (set(room) == {"cpu"} and "cpu" not in spec.devices):
            return ModelError(f"'{spec.id}' needs {' or '.join(spec.devices)}, which is not here or does not work; isocenter doctor says more")
        least = min(sum(self._sizes(spec, name, "cpu" if set(room) == {"cpu"} else "cuda")) for name in offered(spec))
        most = max(room.values())
        return MemoryLimitError(
            f"'{spec.id}' needs {size(least)} of memory at least; the largest device here has {size(most)} for models: "
            "choose a smaller model or another machine, or set ISOCENTER_MEMORY_BUDGET_BYTES when you know better"
        )


def _detected() -> Machine:
    try:
        return devices.detect()
    except Exception as error:  # a broken torch or driver must not keep the processor from working
        log.error("the accelerators cannot be asked; everything runs on the processor", error=type(error).__name__, exc_info=error)
        return Machine(devices.processor(), (), usable_cores(), devices.where(), devices.installed())


def _key(spec: ModelSpec, rung: Rung) -> tuple[str, ...]:
    return (spec.id, spec.weights_sha256 or str(spec.weights), rung.precision, *sorted(rung.shares))
