"""The runtime's lines of `isocenter doctor`: profile, memory for models, where each model would run, what runs ONNX files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from isocenter.core.errors import IsocenterError
from isocenter.core.model import ModelSpec
from isocenter.runtime import providers
from isocenter.runtime.devices import Device
from isocenter.runtime.environment import Fact, State, size
from isocenter.runtime.fleet import Fleet
from isocenter.runtime.precision import Rung


def facts(fleet: Fleet, specs: Iterable[ModelSpec]) -> list[Fact]:
    """All of them. Models that declare no memory are left out: they run anywhere."""
    return [_profile(fleet), *_devices(fleet), *_models(fleet, specs), _onnx(fleet)]


def decision(fleet: Fleet, spec: ModelSpec) -> Rung | str:
    """Where a model would run now, or why it cannot."""
    try:
        rungs = fleet.rungs(spec)
    except IsocenterError as error:
        return error.message
    return rungs[0]


def _profile(fleet: Fleet) -> Fact:
    profile, machine = fleet.profile, fleet.machine
    where = {"kaggle": "Kaggle", "colab": "Colab", "local": "this computer"}[machine.platform]
    how = "set by ISOCENTER_PROFILE" if fleet.options.profile != "auto" else f"for {where}; ISOCENTER_PROFILE chooses another"
    return Fact("Profile", f"{profile.name}, {how}")


def _devices(fleet: Fleet) -> Iterator[Fact]:
    for device in (*fleet.machine.devices, fleet.machine.cpu):
        name = f"Models on {device.id}"
        if device.fault:
            yield Fact(name, f"{device.name} is not used: {device.fault}", State.NOTE, "models run on the processor until then")
            continue
        ledger = fleet.ledger(device.id)
        value = f"{size(ledger.budget)} for models, {size(ledger.headroom)} left alone{_computes(device)}"
        little = device.kind != "cpu" and ledger.budget < device.total // 2
        remedy = "other programs hold most of it: nvidia-smi names them" if little and fleet.options.memory_budget is None else ""
        yield Fact(name, value, State.NOTE if remedy else State.OK, remedy)


def _computes(device: Device) -> str:
    if device.kind == "cpu":
        return "; float32" + (", bfloat16 for large models or when asked for" if device.bfloat16 else "")
    return f"; {device.name}, " + ("computes in bfloat16" if device.bfloat16 else "no bfloat16 of its own: float16")


def _models(fleet: Fleet, specs: Iterable[ModelSpec]) -> Iterator[Fact]:
    fits = []
    for spec in specs:
        if not (spec.weights_bytes or any(spec.resident_bytes.values())):
            continue
        found = decision(fleet, spec)
        if isinstance(found, str):
            yield Fact(f"Model {spec.id}", found, State.NOTE, "the other models answer")
        else:
            total = sum(found.need(name) for name in {found.device, *found.shares})
            fits.append(f"{spec.id}: {found.words} ({size(total)})")
    if fits:
        yield Fact("Precision", "; ".join(fits))


def _onnx(fleet: Fleet) -> Fact:
    name = "ONNX files"
    using = list(fleet.providers)
    engine = providers.engine(fleet.options.engine, "cpu", using)
    value = f"{', '.join(using)}; on the processor {'OpenVINO' if engine == 'openvino' else 'ONNX Runtime'}"
    if several := providers.conflicts():
        both = " and ".join(several)
        return Fact(
            name, f"{both} are installed and overwrite each other", State.NOTE, f"pip uninstall {' '.join(several)}, then install one of them"
        )
    return Fact(name, value)
