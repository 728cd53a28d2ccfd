"""Leases, the way down when memory runs out, several devices and lost ones; on simulated cards whose memory is really counted."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from isocenter.core.errors import CancelledError, DeadlineError, MemoryLimitError, ModelError
from isocenter.core.model import QUIET, ModelContext, ModelSpec, Run, Task
from isocenter.runtime import devices
from isocenter.runtime.devices import Device, Machine
from isocenter.runtime.environment import GIB
from isocenter.runtime.options import Options
from isocenter.runtime.runtime import Lease, Runtime

PACKAGES = frozenset({"torch", "accelerate", "bitsandbytes", "onnxruntime"})


def machine(*sizes: float, ram: float = 64) -> Machine:
    """Cards of so many GiB beside a processor."""
    cards = tuple(Device(f"cuda:{i}", "cuda", "card", int(s * GIB), int(s * GIB), "sm_86") for i, s in enumerate(sizes))
    return Machine(Device("cpu", "cpu", "processor", int(ram * GIB), int(ram * GIB)), cards, 8, "local", PACKAGES)


@dataclass
class Cards:
    """What really lies on the simulated devices. errors: raised by the next answers on a device."""

    sizes: dict[str, int]
    taken: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    loads: Counter[tuple[str, str]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    errors: dict[str, list[Exception]] = field(default_factory=dict)

    def take(self, device: str, count: int) -> None:
        with self.lock:
            if self.taken[device] + count > self.sizes[device]:
                raise MemoryError(f"{device} is full")
            self.taken[device] += count
            self.most[device] = max(self.most[device], self.taken[device])


class Net:
    """A model that takes what it declares, and `per_item` for each slice that it computes at once."""

    cards: Cards
    per_item = 0

    def __init__(self, cards: Cards, per_item: int) -> None:
        self.cards, self.per_item = cards, per_item

    def load(self, context: ModelContext) -> None:
        assert context.spec is not None
        self.context, self.bytes = context, context.spec.resident_bytes[context.precision]
        shares = context.max_memory or {context.device: self.bytes}
        self.shares: dict[str, int] = {}
        for device, count in shares.items():
            self.cards.take(device, count)
            self.shares[device] = count
        self.cards.loads[context.spec.id, context.device] += 1

    def answer(self, run: Run = QUIET) -> str:
        run.check(0.5)
        if waiting := self.cards.errors.get(self.context.device):
            raise waiting.pop()
        assert self.context.spec is not None
        scratch = self.context.spec.scratch_bytes[self.context.precision] + (self.per_item * run.batch if self.per_item else 0)
        self.cards.take(self.context.device, scratch)
        self.cards.take(self.context.device, -scratch)
        return f"{self.context.precision} on {self.context.device}"

    def close(self) -> None:
        for device, count in self.shares.items():
            self.cards.take(device, -count)


def spec(name: str, resident: float, scratch: float = 1, *precisions: str, task: Task = Task.SEGMENT, **how: Any) -> ModelSpec:
    """resident, scratch: GiB in float32; half of it in 16 bits, an eighth in 4."""
    share = {"float32": 1.0, "bfloat16": 0.5, "float16": 0.5, "nf4": 0.125}
    names = precisions or ("float32",)
    return ModelSpec(
        name,
        "1",
        task,
        "tests.net:Net",
        "",
        packages=("torch",),
        resident_bytes={p: int(resident * share[p] * GIB) for p in names},
        scratch_bytes={p: int(scratch * GIB) for p in names},
        devices=("cpu", "cuda"),
        **how,
    )


@contextmanager
def running(here: Machine, *, per_item: int = 0, workers: int = 1, **options: Any) -> Iterator[tuple[Runtime, Cards]]:
    cards = Cards({d.id: d.total for d in (*here.devices, here.cpu)})
    runtime = Runtime(workers=workers, options=Options(**options), machine=here, create=lambda _: Net(cards, per_item))
    try:
        yield runtime, cards
    finally:
        runtime.close()
        assert not any(cards.taken.values()), "all memory came back"


def answer(lease: Lease) -> str:
    found: str = lease.model.answer(lease.run)
    return found


def test_a_model_is_loaded_once_and_closed_in_the_end() -> None:
    seen: list[tuple[str, str]] = []
    with running(machine(24)) as (runtime, cards):
        runtime.observe = lambda stage, model, seconds: seen.append((stage, model))
        for _ in range(3):
            with runtime.lease(spec("a", 4)) as lease:
                assert (lease.device, lease.bytes, lease.notes) == ("cuda:0", 5 * GIB, ())
        assert cards.loads.total() == 1
    assert seen == [("load", "a"), ("first_answer", "a"), ("evict", "a")]


def test_models_take_turns_in_one_cards_memory() -> None:
    names = {
        n: spec(n, r, s, task=t) for n, r, s, t in [("sam", 4, 4, Task.SEGMENT), ("siglip", 4, 2, Task.DESCRIBE), ("gemma", 16, 4, Task.NARRATE)]
    }
    with running(machine(24), workers=8) as (runtime, cards):
        choice = random.Random(1)
        jobs = [runtime.submit(lambda name=name: runtime.call(names[name], answer)) for name in choice.choices(list(names), k=60)]  # type: ignore[misc]
        assert {job.result(60) for job in jobs} == {"float32 on cuda:0"}
        assert 16 * GIB < cards.most["cuda:0"] <= 24 * GIB
        assert runtime.fleet.ledger("cuda:0").evictions > 0


def test_less_at_once_when_memory_runs_out() -> None:
    """The model takes more for each slice than anybody declared."""
    with running(machine(10), per_item=2 * GIB) as (runtime, _):
        notes = runtime.call(spec("a", 1), lambda lease: (answer(lease), lease.notes), batch=8)
        assert notes == ("float32 on cuda:0", ("memory ran out: computed 4 at a time instead of 8",))


def test_then_a_lower_precision_then_the_processor() -> None:
    class Greedy(Net):
        """Takes more than it says on the card."""

        def answer(self, run: Run = QUIET) -> str:
            if self.context.device != "cpu" and self.context.precision in self.too_much:
                raise MemoryError
            return super().answer(run)

        too_much: tuple[str, ...] = ()

    here = machine(10)
    for greedy, wanted in [(("bfloat16",), "nf4 on cuda:0"), (("bfloat16", "nf4"), "bfloat16 on cpu")]:
        cards = Cards({d.id: d.total for d in (*here.devices, here.cpu)})

        def create(_: ModelSpec, cards: Cards = cards, greedy: tuple[str, ...] = greedy) -> Net:
            made = Greedy(cards, 0)
            made.too_much = greedy
            return made

        runtime = Runtime(machine=here, create=create)
        found, notes = runtime.call(spec("a", 8, 1, "bfloat16", "nf4"), lambda lease: (answer(lease), lease.notes))
        assert found == wanted
        assert len(notes) == 1
        assert notes[0].startswith("memory ran out: computed ")
        runtime.close()
        assert not any(cards.taken.values())


def test_in_the_end_a_clear_error() -> None:
    with running(machine(10, ram=16)) as (runtime, cards):
        cards.errors = {"cuda:0": [MemoryError()] * 9, "cpu": [MemoryError()] * 9}
        with pytest.raises(MemoryLimitError, match="send a smaller volume"):
            runtime.call(spec("a", 1), answer)
        assert runtime.call(spec("b", 1), lambda lease: lease.device) == "cuda:0", "nothing is left behind"
        with pytest.raises(MemoryLimitError, match=r"'c' needs 101\.0 GiB of memory at least; the largest device here has"):
            runtime.call(spec("c", 100), answer)


def test_other_errors_are_not_tried_again() -> None:
    with running(machine(10)) as (runtime, cards):
        cards.errors = {"cuda:0": [ModelError("broken"), RuntimeError("shapes do not fit")]}
        for kind in (RuntimeError, ModelError):
            with pytest.raises(kind):
                runtime.call(spec("a", 1), answer)
        assert cards.loads.total() == 1


def test_what_others_hold_is_waited_for_and_not_fought_over() -> None:
    """Memory runs out beside another: the ledger then asks for more and so lets them take turns."""
    with running(machine(10), workers=2, per_item=5 * GIB) as (runtime, _):
        jobs = [runtime.submit(lambda: runtime.call(spec("a", 1, 0.5), answer, batch=1)) for _ in range(6)]
        assert {job.result(60) for job in jobs} == {"float32 on cuda:0"}


def lost() -> Exception:
    from onnxruntime.capi.onnxruntime_pybind11_state import DeviceReset

    error: Exception = DeviceReset("the device was reset")
    return error


def test_a_lost_card_takes_no_job_with_it() -> None:
    with running(machine(10, 10), workers=4) as (runtime, cards):
        cards.errors = {"cuda:0": [lost()]}
        jobs = [runtime.submit(lambda: runtime.call(spec("a", 2), answer)) for _ in range(8)]
        assert {job.result(60) for job in jobs} <= {"float32 on cuda:0", "float32 on cuda:1"}
        assert runtime.devices == ("cuda:1", "cpu")
        assert runtime.state()["devices"][0]["lost"]
        cards.errors = {"cuda:1": [lost()]}
        found, notes = runtime.call(spec("a", 2), lambda lease: (answer(lease), lease.notes))
        assert (found, notes) == ("float32 on cpu", ("cuda:1 stopped working: computed on another device",))
        cards.taken["cuda:0"] = cards.taken["cuda:1"] = 0  # went with the cards


def test_two_cards_share_the_load() -> None:
    """A model that is busy is copied to the card that has room; each model of a pair that does not fit on one card gets its own."""
    with running(machine(10, 10), workers=4) as (runtime, cards):
        both = threading.Barrier(2)

        def together(lease: Lease) -> str:
            both.wait(60)
            return answer(lease)

        jobs = [runtime.submit(lambda: runtime.call(spec("a", 4), together)) for _ in range(2)]
        assert {job.result(60) for job in jobs} == {"float32 on cuda:0", "float32 on cuda:1"}
        assert cards.loads == {("a", "cuda:0"): 1, ("a", "cuda:1"): 1}


def test_people_stay_with_one_copy() -> None:
    with running(machine(10, 10), workers=2) as (runtime, _):
        click = spec("clicks", 2, 1, task=Task.INTERACTIVE)

        def instance(lease: Lease) -> str:
            time.sleep(0.01)
            return lease.instance

        jobs = [runtime.submit(lambda: runtime.call(click, instance)) for _ in range(10)]
        assert len({job.result(60) for job in jobs}) == 1


def test_a_model_too_large_for_one_card_lies_on_two() -> None:
    with running(machine(10, 10)) as (runtime, cards):
        large = spec("gemma", 24, 1, "bfloat16", task=Task.NARRATE)
        found, shares = runtime.call(large, lambda lease: (answer(lease), lease.model.context.max_memory))
        assert found == "bfloat16 on cuda:0"
        assert list(shares) == ["cuda:0", "cuda:1"]
        assert sum(shares.values()) == 12.75 * GIB
        assert runtime.call(spec("a", 8), answer) == "float32 on cuda:1", "the large one makes room"
        assert cards.taken["cuda:0"] == 0, "and its other half is of no use then"
        assert runtime.call(large, answer) == "bfloat16 on cuda:0"


def test_a_model_for_several_threads_is_used_by_several() -> None:
    with running(machine(10), workers=3) as (runtime, cards):
        both = threading.Barrier(2)
        jobs = [runtime.submit(lambda: runtime.call(spec("a", 1, concurrent=2), lambda lease: both.wait(60) is not None)) for _ in range(2)]
        assert all(job.result(60) for job in jobs)
        assert cards.loads.total() == 1


def test_cancelling_ends_waiting_and_work() -> None:
    with running(machine(10), workers=2) as (runtime, _):
        started = threading.Event()

        def work(lease: Lease) -> None:
            started.set()
            while True:
                lease.run.check()
                time.sleep(0.002)

        first = runtime.submit(lambda: runtime.call(spec("a", 1), work))
        assert started.wait(60)
        second = runtime.submit(lambda: runtime.call(spec("a", 1), answer))  # waits for the model
        with pytest.raises(CancelledError):
            runtime.call(spec("a", 1), answer, run=Run(cancelled=lambda: True))
        while not runtime.fleet.ledger("cuda:0").waiting:
            time.sleep(0.001)
        second.cancel()
        first.cancel()
        for job in (first, second):
            with pytest.raises(CancelledError):
                job.result(60)


def test_a_model_that_hangs_is_given_up_and_its_child_ended() -> None:
    here, ended = machine(10), threading.Event()
    created: list[Net] = []

    class Hanging(Net):
        def answer(self, run: Run = QUIET) -> str:
            if len(created) == 1:
                assert ended.wait(60)
                raise ModelError("the child process ended")
            return super().answer(run)

        def abort(self) -> None:
            ended.set()

    cards = Cards({d.id: d.total for d in (*here.devices, here.cpu)})

    def create(_: ModelSpec) -> Net:
        created.append(Hanging(cards, 0))
        return created[-1]

    runtime = Runtime(machine=here, create=create, options=Options(inference_seconds=2.0))
    with pytest.raises(DeadlineError, match="gave no answer within"):
        runtime.submit(lambda: runtime.call(spec("a", 4), answer)).result(60)
    assert ended.wait(60), "the child was ended"
    assert runtime.submit(lambda: runtime.call(spec("a", 4), answer)).result(60) == "float32 on cuda:0", "with a new copy"
    runtime.close()
    assert len(created) == 2
    assert not any(cards.taken.values()), "memory returned, the hanging copy's too"


def test_a_slow_model_is_stopped_at_its_next_step() -> None:
    def work(lease: Lease) -> None:
        while True:
            lease.run.check()
            time.sleep(0.005)

    with running(machine(10), inference_seconds=0.05) as (runtime, _), pytest.raises(DeadlineError, match=r"ISOCENTER_INFERENCE_TIMEOUT = 0\.05"):
        runtime.call(spec("a", 1), work)


@pytest.mark.parametrize(
    ("gigabytes", "asked", "setting", "batch"),
    [
        (5.9, 0, 0, 1),
        (7.9, 0, 0, 2),
        (11.9, 0, 0, 3),
        (15.8, 0, 0, 4),
        (23.6, 0, 0, 6),
        (25.4, 0, 0, 8),
        (25.4, 0, 3, 3),
        (25.4, 5, 3, 5),
        (0, 0, 0, 1),
    ],
)
def test_slices_at_once_by_memory(gigabytes: float, asked: int, setting: int, batch: int) -> None:
    """The documents' rule; a request's number wins over the setting, the setting over the rule."""
    cards = (gigabytes * 10**9 / GIB,) if gigabytes else ()
    with running(machine(*cards), batch=setting) as (runtime, _), runtime.lease(spec("a", 1, task=Task.TEXT), batch=asked) as lease:
        assert lease.run.batch == batch
        assert asked or runtime.together(spec("b", 1, together=True)) == batch, "so are the slices of a 2-D network"


def test_a_model_of_the_processor_makes_nobody_look_for_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    def boom(*_: object) -> Machine:
        raise AssertionError("looked for cards")

    monkeypatch.setattr(devices, "detect", boom)
    runtime = Runtime()
    small = ModelSpec("geodesic", "1", Task.INTERACTIVE, "x:Y", "")
    assert runtime.fleet.rungs(small)[0].words == "float32 on cpu"


def test_a_lease_costs_next_to_nothing() -> None:
    """A click has a tenth of a second in all. Asking the machine for its packages or its memory each time took 15 ms of a processor."""
    runtime = Runtime(create=lambda _: Net(Cards({"cpu": 1 << 60}), 0))
    small = ModelSpec("small", "1", Task.INTERACTIVE, "x:Y", "", resident_bytes={"float32": 1 << 20}, scratch_bytes={"float32": 1 << 20})
    seconds = []
    for _ in range(50):
        started = time.thread_time()
        runtime.call(small, lambda lease: lease.device)
        seconds.append(time.thread_time() - started)
    assert sorted(seconds)[25] < 0.003
    runtime.close()


def test_places_and_profiles_can_be_set() -> None:
    moved = spec("a", 1)
    with running(machine(10), places={"net": "cpu"}) as (runtime, _):
        assert runtime.call(moved, answer) == "float32 on cpu"
    with running(machine(10), device="cpu") as (runtime, _):
        assert runtime.call(moved, answer) == "float32 on cpu"
    with running(machine(10), profile="cpu_only") as (runtime, _):
        assert runtime.state()["profile_chosen"] == "by hand"
        assert runtime.call(spec("a", 8, 1, "bfloat16", "nf4"), answer) == "nf4 on cpu", "the document's own choice, when it is asked for"
    with running(machine(10), memory_budget=3 * GIB) as (runtime, _):
        assert runtime.call(spec("a", 4), answer) == "float32 on cpu"


def test_measured_peaks_correct_what_was_declared() -> None:
    with running(machine(10)) as (runtime, _):
        net = spec("a", 1, 8)
        assert not runtime.fleet.rungs(spec("a", 4, 8))[0].device.startswith("cuda")
        for _ in range(3):
            runtime.fleet.peaks.worked(net, "float32", "cuda", 2 * GIB)
        runtime.fleet.peaks.loaded(net, "float32", "cuda", 3 * GIB)
        rung = runtime.fleet.rungs(spec("a", 4, 8))[0]
        assert (rung.device, rung.shares["cuda:0"], rung.scratch) == ("cuda:0", 3 * GIB, int(2 * GIB * 1.1))
        runtime.fleet.peaks.worked(net, "float32", "cuda", 8 * GIB)
        assert runtime.fleet.rungs(net)[0].device == "cpu", "one large scan counts"


def test_memory_that_is_held_for_something_else() -> None:
    with running(machine(10)) as (runtime, _):
        runtime.call(spec("a", 6), answer)
        give_back = runtime.reserve("encoder", "cuda", 5 * GIB)
        assert runtime.fleet.ledger("cuda:0").evictions == 1, "the idle model made room"
        assert runtime.fleet.ledger("cuda:0").state()["leased_bytes"] == 5 * GIB
        with pytest.raises(MemoryLimitError):
            runtime.reserve("another", "cuda", 11 * GIB)
        give_back()
        assert runtime.call(spec("a", 6), answer) == "float32 on cuda:0"


def test_a_processors_rough_measure_turns_no_model_away() -> None:
    with running(machine(ram=16)) as (runtime, _):
        net, room = spec("a", 2, 6), runtime.fleet.ledger("cpu").budget
        for count in (8 * GIB, 100 * GIB):
            runtime.fleet.peaks.loaded(net, "float32", "cpu", count)
            runtime.fleet.peaks.worked(net, "float32", "cpu", count)
            rung = runtime.fleet.rungs(net)[0]
            assert rung.shares["cpu"] >= 2 * GIB
            assert rung.scratch >= 6 * GIB
            assert rung.need("cpu") <= room


def batch_of(work: Callable[[Lease, Any], list[Any]], runtime: Runtime, items: list[Any], **how: Any) -> Any:
    return runtime.batched(spec("siglip", 1, 1, task=Task.DESCRIBE), "describe", items, work, **how)


def test_items_of_several_clients_are_computed_together_and_fail_alone() -> None:
    with running(machine(10)) as (runtime, _):
        gate, seen = threading.Event(), []
        runtime.submit(lambda: gate.wait(60))

        def work(lease: Lease, items: list[Any]) -> list[Any]:
            seen.append(len(items))
            if "broken" in items:
                raise ValueError("cannot read this one")
            return [item * 2 for item in items]

        futures = [batch_of(work, runtime, items) for items in (["a", "b"], ["broken"], ["c"], [])]
        gate.set()
        assert [f.result(60) for f in (futures[0], futures[2], futures[3])] == [["aa", "bb"], ["cc"], []]
        with pytest.raises(ValueError, match="cannot read"):
            futures[1].result(60)
        assert max(seen) > 1
        assert runtime._batches.batches < 8


def test_batched_work_of_an_inference_thread_waits_for_nobody() -> None:
    with running(machine(10)) as (runtime, _):
        job = runtime.submit(lambda: batch_of(lambda lease, items: list(items), runtime, [1, 2]).result(60))
        assert job.result(60) == [1, 2]


@pytest.mark.gpu
def test_estimates_against_real_peaks() -> None:
    """What a lease declares, and what torch then says that was taken, on a real card."""
    if not devices.likely():
        pytest.skip("needs a GPU")
    torch = pytest.importorskip("torch")

    class Real:
        def load(self, context: ModelContext) -> None:
            self.weights = torch.zeros(256 << 20, dtype=torch.uint8, device=context.device)

        def answer(self, run: Run = QUIET) -> int:
            return int(torch.zeros(512 << 20, dtype=torch.uint8, device=self.weights.device).sum())

        def close(self) -> None:
            del self.weights

    runtime = Runtime(create=lambda _: Real())
    net = spec("real", 1, 1)
    for _ in range(3):
        assert runtime.call(net, lambda lease: lease.model.answer()) == 0
    weights, scratch = runtime.fleet.peaks.sizes(net, "float32", "cuda")
    assert weights == pytest.approx(256 << 20, rel=0.05)
    assert scratch == pytest.approx(1.1 * (512 << 20), rel=0.1)
    runtime.close()


@pytest.mark.gpu
def test_a_real_card_that_is_full() -> None:
    if not devices.likely():
        pytest.skip("needs a GPU")
    torch = pytest.importorskip("torch")

    class Real:
        def load(self, context: ModelContext) -> None:
            self.device = context.device

        def answer(self, run: Run = QUIET) -> str:
            if self.device != "cpu":
                torch.empty(1 << 45, dtype=torch.uint8, device=self.device)
            return self.device

        def close(self) -> None:
            pass

    runtime = Runtime(create=lambda _: Real())
    assert runtime.call(spec("real", 1, 1), lambda lease: lease.model.answer(lease.run)) == "cpu"
    runtime.close()
