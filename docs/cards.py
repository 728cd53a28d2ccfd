"""Real machines and the models of the field: what the runtime decides for each. The table of `docs/runtime.md`; tests read it too.

Memory is what torch reports (`total_memory`, `recommendedMaxWorkingSetSize` on Apple's), free is what is left on a machine
that only shows a desktop, or on a server's card nothing but the driver. Models' bytes are their parameters in each precision,
4-bit ones with double quantisation (4.127 bits) and embeddings left in 16 bits; scratch is activations and, for language
models, the cache of 4 096 tokens. Installed models declare their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isocenter.core.model import ModelSpec, Task
from isocenter.runtime import precision
from isocenter.runtime.devices import Device, Machine
from isocenter.runtime.precision import Rung
from isocenter.runtime.profiles import choose

GIB = 1024**3
_ALL = frozenset({"torch", "accelerate", "bitsandbytes", "onnxruntime"})


def _machine(*cards: tuple[str, str, float], ram: float, flags: str = "", where: str = "local", busy: float = 0.0) -> Machine:
    """cards: (name, architecture, GiB); ram: GiB free of the computer; busy: GiB that other processes hold on the first card."""
    devices = []
    for index, (name, architecture, size) in enumerate(cards):
        kind = "mps" if not architecture else "rocm" if architecture.startswith("gfx") else "cuda"
        used = busy if index == 0 else 0.0
        total = int(size * GIB)
        devices.append(
            Device("mps" if kind == "mps" else f"cuda:{index}", kind, name, total, total - int((used + 0.25) * GIB), architecture)  # type: ignore[arg-type]
        )
    cpu = Device("cpu", "cpu", "x86_64", int(ram * 1.15 * GIB), int(ram * GIB), flags)
    packages = _ALL - {"bitsandbytes"} if devices and devices[0].kind == "mps" else _ALL
    return Machine(cpu, tuple(devices), 8, where, packages)  # type: ignore[arg-type]


#: By what people call them.
MACHINES: Mapping[str, Machine] = {
    "Kaggle, T4": _machine(("Tesla T4", "sm_75", 14.74), ram=12, where="kaggle"),
    "Kaggle, 2 x T4": _machine(("Tesla T4", "sm_75", 14.74), ("Tesla T4", "sm_75", 14.74), ram=28, where="kaggle"),
    "Kaggle, P100": _machine(("Tesla P100-PCIE-16GB", "sm_60", 15.89), ram=28, where="kaggle"),
    "Colab, T4": _machine(("Tesla T4", "sm_75", 14.74), ram=11, where="colab"),
    "Colab, L4": _machine(("NVIDIA L4", "sm_89", 22.16), ram=50, where="colab"),
    "Colab, A100-40": _machine(("NVIDIA A100-SXM4-40GB", "sm_80", 39.56), ram=80, where="colab"),
    "Colab, A100-80": _machine(("NVIDIA A100-SXM4-80GB", "sm_80", 79.32), ram=160, where="colab"),
    "V100-16": _machine(("Tesla V100-SXM2-16GB", "sm_70", 15.77), ram=56),
    "GTX 1060 6 GB": _machine(("NVIDIA GeForce GTX 1060 6GB", "sm_61", 5.93), ram=12, busy=0.5),
    "RTX 3060 12 GB": _machine(("NVIDIA GeForce RTX 3060", "sm_86", 11.76), ram=24, busy=0.5),
    "RTX 3070 8 GB": _machine(("NVIDIA GeForce RTX 3070", "sm_86", 7.79), ram=24, busy=0.5),
    "RTX 3080 10 GB": _machine(("NVIDIA GeForce RTX 3080", "sm_86", 9.77), ram=24, busy=0.5),
    "RTX 4060 Ti 16 GB": _machine(("NVIDIA GeForce RTX 4060 Ti", "sm_89", 15.70), ram=24, busy=0.5),
    "RTX 3090": _machine(("NVIDIA GeForce RTX 3090", "sm_86", 23.69), ram=56, busy=0.5),
    "RTX 4090": _machine(("NVIDIA GeForce RTX 4090", "sm_89", 23.65), ram=56, busy=0.5),
    "RTX 4090, half taken by others": _machine(("NVIDIA GeForce RTX 4090", "sm_89", 23.65), ram=56, busy=12),
    "2 x RTX 3090": _machine(("NVIDIA GeForce RTX 3090", "sm_86", 23.69), ("NVIDIA GeForce RTX 3090", "sm_86", 23.69), ram=100),
    "A10": _machine(("NVIDIA A10", "sm_86", 22.07), ram=56),
    "H100": _machine(("NVIDIA H100 80GB HBM3", "sm_90", 79.10), ram=200),
    "H200": _machine(("NVIDIA H200", "sm_90", 139.80), ram=200),
    "Instinct MI210": _machine(("AMD Instinct MI210", "gfx90a", 63.98), ram=200),
    "Instinct MI300X": _machine(("AMD Instinct MI300X", "gfx942", 191.98), ram=200),
    "MacBook M1, 16 GB": _machine(("Apple M1", "", 10.67), ram=10),
    "Mac Studio M2 Max, 64 GB": _machine(("Apple M2 Max", "", 48.0), ram=50),
    "Laptop, no GPU, 16 GB": _machine(ram=11),
    "Server, no GPU, 128 GB": _machine(ram=110, flags="amx_bf16 avx512_bf16"),
}


def _network(name: str, task: Task, parameters: float, scratch: float, *precisions: str, embedded: float = 0.0, family: str = "") -> ModelSpec:
    """parameters, embedded (those that are never quantised): in billions; scratch: GiB in 16 bits, twice that in float32."""
    size = {
        "float32": int(parameters * 4e9),
        "bfloat16": int(parameters * 2e9),
        "float16": int(parameters * 2e9),
        "nf4": int((parameters - embedded) * 4.127 / 8 * 1e9 + embedded * 2e9),
    }
    large = task is Task.NARRATE
    return ModelSpec(
        id=name,
        version="",
        task=task,
        factory=f"isocenter.models.{family or name}:Model",
        description="",
        packages=("torch",),
        resident_bytes={p: size[p] for p in precisions},
        scratch_bytes={p: int(scratch * (2 if p == "float32" and not large else 1) * GIB) for p in precisions},
        devices=("cpu", "cuda", "mps"),
    )


_HALF = ("float32", "bfloat16", "float16")
MODELS: Mapping[str, ModelSpec] = {
    "MedSAM": _network("medsam", Task.INTERACTIVE, 0.094, 1.5, *_HALF, family="sam"),
    "nnU-Net": _network("nnunet", Task.SEGMENT, 0.031, 2.0, *_HALF),
    "SAM 3": _network("sam3", Task.TEXT, 0.85, 2.5, *_HALF),
    "MedSigLIP": _network("medsiglip", Task.DESCRIBE, 0.88, 0.5, *_HALF),
    "MedGemma 4B": _network("medgemma-4b", Task.NARRATE, 4.3, 1.5, "bfloat16", "float16", "nf4", embedded=0.67, family="medgemma"),
    "MedGemma 27B": _network("medgemma-27b", Task.NARRATE, 27.0, 3.0, "bfloat16", "float16", "nf4", embedded=1.41, family="medgemma"),
}


@dataclass(frozen=True)
class Decision:
    """What is decided for a model on a machine; rung is None where it fits nowhere."""

    rung: Rung | None

    @property
    def words(self) -> str:
        """As the table has it: precision, and where when it is not the whole model on one card."""
        rung = self.rung
        if rung is None:
            return "does not fit"
        cards = sum(name != "cpu" for name in rung.shares)
        if not cards:
            return f"{rung.precision}, processor"
        if "cpu" in rung.shares:
            part = 1 - rung.shares["cpu"] / sum(rung.shares.values())
            return f"{rung.precision}, {part:.0%} on the GPU{'s' if cards > 1 else ''}"
        return rung.precision if cards == 1 else f"{rung.precision}, {cards} GPUs"


def decide(machine: Machine, spec: ModelSpec) -> Decision:
    """The first rung of the ladder, as the runtime takes it."""
    rungs = precision.ladder(spec, machine, precision.budgets(machine), profile=choose(machine))
    return Decision(rungs[0] if rungs else None)


def table() -> str:
    """Markdown: a row a machine, a column a model."""
    lines = ["| machine | profile | " + " | ".join(MODELS) + " |", "|---" * (2 + len(MODELS)) + "|"]
    for name, machine in MACHINES.items():
        cells = [decide(machine, spec).words for spec in MODELS.values()]
        lines.append(f"| {name} | `{choose(machine).name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
