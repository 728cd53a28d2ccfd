"""Where a model runs and in which precision: the first rung of a ladder that fits.

bfloat16 -> float16 -> NF4 -> partly on the processor -> all of it on the processor. What counts is the size of the
weights and of the scratch memory in each precision (`ModelSpec`), the memory that is free, and what the card computes in
by itself; not the number on its box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from isocenter.core.model import ModelSpec, Task
from isocenter.runtime.devices import Device, Machine
from isocenter.runtime.environment import GIB, size
from isocenter.runtime.profiles import Profile

#: Bytes that a model takes: resident and scratch, by (spec, precision, kind of device).
Sizes = Callable[[ModelSpec, str, str], tuple[int, int]]
#: On a processor, language models of this size in float32 are limited by reading their weights: half the bytes, twice the speed.
_LARGE = 8 * GIB
#: With less room than this for weights on a card, moving the rest to and fro costs more than the card gains.
_LEAST_SHARE = 1 * GIB
#: No layer of a language model is larger than this part of it, the tables of words of small ones excepted.
_WHOLE_LAYERS = 16


@dataclass(frozen=True)
class Rung:
    """One way to run a model. device: where its inputs go; shares: bytes of weights by device, more than one where it is spread.

    scratch: bytes beside the weights, on `device`. rank: rungs of one rank are equally good. why: why not a better one.
    """

    device: str
    precision: str
    shares: Mapping[str, int]
    scratch: int
    rank: int = 0
    why: str = ""

    @property
    def spread(self) -> bool:
        """Whether the weights lie on several devices."""
        return len(self.shares) > 1

    @property
    def max_memory(self) -> dict[str, int]:
        """For `ModelContext.max_memory`: empty when all lies on one device."""
        return dict(self.shares) if self.spread else {}

    def need(self, device: str) -> int:
        """Bytes that it takes on a device."""
        return self.shares.get(device, 0) + (self.scratch if device == self.device else 0)

    @property
    def words(self) -> str:
        """For people: "float16 on cuda:0"."""
        return f"{self.precision} on {' + '.join(self.shares)}"


def headroom(device: Device) -> int:
    """Bytes left alone: the driver's context and the allocator's gaps on a card, everything else that runs on a computer."""
    if device.kind == "cpu":
        return min(max(device.total // 10, GIB), 8 * GIB)
    return min(max(device.total // 20, GIB // 2), 2 * GIB)


def budgets(machine: Machine) -> dict[str, int]:
    """What models may take on each device that works."""
    return {d.id: max(0, min(d.free, d.total) - headroom(d)) for d in (*machine.usable, machine.cpu)}


def declared(spec: ModelSpec, precision: str, kind: str) -> tuple[int, int]:
    """(resident, scratch) as the model's own description says; its weights' file where it says nothing."""
    return spec.resident_bytes.get(precision, spec.weights_bytes), spec.scratch_bytes.get(precision, 0)


def offered(spec: ModelSpec) -> tuple[str, ...]:
    """Precisions that a model can be loaded in."""
    return tuple(spec.resident_bytes) or ("float32",)


def order(device: Device, spec: ModelSpec, machine: Machine) -> list[str]:
    """The precisions that a model offers and a device can do, best first."""
    if device.kind == "cpu":
        large = spec.resident_bytes.get("float32", 2 * spec.resident_bytes.get("bfloat16", 0)) >= _LARGE
        preferred = ["bfloat16", "float32", "float16", "nf4"] if large else ["float32", "bfloat16", "float16", "nf4"]
    elif device.bfloat16:
        preferred = ["bfloat16", "float16", "float32", "nf4"]
    else:
        # What the card emulates comes behind what it computes in, where a model leaves the choice.
        preferred = ["float16", "float32", "bfloat16", "nf4"]
    can = [p for p in preferred if p in offered(spec) and p not in spec.insisted]
    return [p for p in can if p != "nf4" or (device.nf4 and "bitsandbytes" in machine.packages)]


def ladder(
    spec: ModelSpec,
    machine: Machine,
    room: Mapping[str, int],
    *,
    sizes: Sizes = declared,
    profile: Profile | None = None,
    precision: str = "auto",
    device: str = "auto",
    prefer: str = "",
) -> list[Rung]:
    """All ways to run a model that fit, best first; none when it fits nowhere.

    room: bytes that it may take, by device; devices that are not in it are out of the question. precision, device: what
    somebody insists on ("auto": nothing); a model that does not offer the precision keeps its own order. device may be an
    id or a kind. prefer: a precision to try first where the device computes in it.
    """
    place = profile.place(spec.factory) if profile is not None else "auto"
    place = place if device == "auto" else device
    cards = [d for d in machine.usable if d.id in room and _runs_on(spec, d) and _matches(d, place)]
    found: list[tuple[tuple[int, ...], Rung]] = []
    misses: list[str] = []

    def allowed(target: Device) -> list[str]:
        names = order(target, spec, machine)
        if precision in names or (precision in spec.insisted and target.kind == "cpu" and target.bfloat16):
            return [precision]
        return [prefer, *(n for n in names if n != prefer)] if prefer in names else names

    for card in cards:
        for step, name in enumerate(allowed(card)):
            weights, scratch = sizes(spec, name, card.kind)
            if weights + scratch <= room[card.id]:
                found.append(((0, step, 0), Rung(card.id, name, {card.id: weights}, scratch)))
            else:
                misses.append(f"{name} needs {size(weights + scratch)}, {card.id} has {size(room[card.id])}")
    if cards and can_spread(spec, machine):
        found += _spread(spec, machine, cards, room, sizes, allowed(cards[0]))
    if "cpu" in room and ("cpu" in spec.devices or not spec.devices):
        for step, name in enumerate(allowed(machine.cpu)):
            weights, scratch = sizes(spec, name, "cpu")
            if weights + scratch <= room["cpu"]:
                found.append(((2, step, 0), Rung("cpu", name, {"cpu": weights}, scratch)))
            else:
                misses.append(f"{name} needs {size(weights + scratch)}, the processor's memory has {size(room['cpu'])}")
    if not found and place != device:  # the profile's place is a preference; better elsewhere than not at all
        return ladder(spec, machine, room, sizes=sizes, precision=precision, device=device, prefer=prefer)
    return _ranked(found, misses)


def can_spread(spec: ModelSpec, machine: Machine) -> bool:
    """Whether a model's layers may lie on several devices: language models, through accelerate."""
    return spec.task is Task.NARRATE and "accelerate" in machine.packages


def _spread(
    spec: ModelSpec, machine: Machine, cards: Sequence[Device], room: Mapping[str, int], sizes: Sizes, names: Sequence[str]
) -> Iterator[tuple[tuple[int, ...], Rung]]:
    """Over all cards; and over all cards and the processor, which is what takes the longest."""
    for step, name in enumerate(names):
        weights, scratch = sizes(spec, name, cards[0].kind)
        if len(cards) > 1 and (shares := _share(weights, scratch, cards, room)) is not None:
            yield (0, step, 1), Rung(cards[0].id, name, shares, scratch)
    for step, name in enumerate(names):
        # 4-bit weights cannot be moved to the processor and back; an Apple GPU shares the processor's memory anyway.
        if name == "nf4" or "cpu" not in room or cards[0].kind == "mps":
            continue
        weights, scratch = sizes(spec, name, cards[0].kind)
        if room[cards[0].id] - scratch >= _LEAST_SHARE and (shares := _share(weights, scratch, [*cards, machine.cpu], room)) is not None:
            yield (1, step, 0), Rung(cards[0].id, name, shares, scratch)


def _share(weights: int, scratch: int, devices: Sequence[Device], room: Mapping[str, int]) -> dict[str, int] | None:
    """Weights over devices, each filled before the next; None when they do not fit or need fewer devices.

    Layers are not divided, so a sixteenth is added for what does not go into the one device and has to go into the next.
    """
    shares, left = {}, weights + weights // _WHOLE_LAYERS
    for device in devices:
        share = min(left, room[device.id] - (scratch if device is devices[0] else 0))
        if share > 0:
            shares[device.id] = share
            left -= share
    return shares if left == 0 and len(shares) > 1 and devices[0].id in shares else None


def _ranked(found: Sequence[tuple[tuple[int, ...], Rung]], misses: Sequence[str]) -> list[Rung]:
    ordered = sorted(found, key=lambda f: f[0])
    ranks = {key: rank for rank, key in enumerate(dict.fromkeys(key for key, _ in ordered))}
    why = misses[0] if misses else ""
    return [Rung(r.device, r.precision, r.shares, r.scratch, ranks[key], why) for key, r in ordered]


def _runs_on(spec: ModelSpec, device: Device) -> bool:
    # torch calls AMD's cards "cuda" too, and so do the models' descriptions.
    return bool({device.kind, device.id, "cuda" if device.kind == "rocm" else device.kind} & set(spec.devices))


def _matches(device: Device, place: str) -> bool:
    return place == "auto" or place in (device.id, device.kind) or (place == "cuda" and device.kind == "rocm")
