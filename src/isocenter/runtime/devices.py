"""What this machine computes with: its accelerators, its processor, their memory, and where it stands (Kaggle, Colab, local).

Everything else in the runtime works from a `Machine`, which is plain data: `detect` describes this one, tests describe
any other. Cards are asked through torch where it is installed (CUDA and ROCm share its API, Apple's is MPS), else through
NVIDIA's own tool; a machine without a card never imports torch.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from isocenter.runtime import cgroups
from isocenter.runtime.environment import GIB, usable_cores, version

Kind = Literal["cuda", "rocm", "mps", "cpu"]
#: What the drivers of NVIDIA's and AMD's cards leave in the file system.
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")
#: Extensions that compute with bfloat16, as /proc/cpuinfo names them (x86, ARM).
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Device:
    """One place where models run.

    id: torch's name ("cuda:0", "mps", "cpu"). architecture: "sm_75", "gfx942", a processor's flags; "" if unknown.
    total, free: bytes; free counts what other processes hold. For the processor both mean memory this process may have.
    fault: why it cannot be used, "" if it can. torch: whether torch computes there; ONNX Runtime may without it.
    """

    id: str
    kind: Kind
    name: str
    total: int
    free: int
    architecture: str = ""
    fault: str = ""
    torch: bool = True

    @property
    def capability(self) -> int:
        """CUDA's compute capability times ten (75 for a T4), 0 for anything else."""
        match = re.fullmatch(r"sm_(\d+)[a-z]*", self.architecture)
        return int(match[1]) if match else 0

    @property
    def bfloat16(self) -> bool:
        """Whether it computes in bfloat16 itself. Older cards emulate it, slowly: a T4 answers that it is "supported"."""
        if self.kind == "cuda":
            return self.capability >= 80
        if self.kind == "rocm":
            # Instinct from the MI100 on, Radeon from the 7000 series on.
            return bool(re.match(r"gfx(908|90a|94\d|95\d|11|12)", self.architecture))
        if self.kind == "mps":
            return "M1" not in self.name
        return bool(_BFLOAT16_FLAGS & set(self.architecture.split()))

    @property
    def float16(self) -> bool:
        """Whether 16-bit floats are worth using. Processors convert them one by one."""
        return self.kind != "cpu"

    @property
    def nf4(self) -> bool:
        """Whether bitsandbytes runs there: NVIDIA from compute capability 6.0, AMD's cards, processors (slowly, it only saves memory)."""
        return self.kind in ("rocm", "cpu") or self.capability >= 60


@dataclass(frozen=True)
class Machine:
    """One computer. devices: its accelerators, best first, without the processor. packages: what is installed, of `PACKAGES`."""

    cpu: Device
    devices: tuple[Device, ...] = ()
    cores: int = 1
    platform: Literal["kaggle", "colab", "local"] = "local"
    packages: frozenset[str] = field(default=frozenset())

    @property
    def usable(self) -> tuple[Device, ...]:
        """Accelerators that work."""
        return tuple(d for d in self.devices if not d.fault)

    def device(self, name: str) -> Device:
        """By id. Raises `KeyError`."""
        return {d.id: d for d in (*self.devices, self.cpu)}[name]


#: Packages that decide what can be done.
PACKAGES = ("torch", "accelerate", "bitsandbytes", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "openvino")


def detect(environ: Mapping[str, str] = os.environ) -> Machine:
    """This machine. Imports torch (seconds) where it is installed and a card's driver is there, and only then."""
    packages = installed()
    devices = _torch_devices() if "torch" in packages and likely() else []
    if not devices:
        devices = [replace(d, fault=unusable(packages)) for d in driver_devices(environ)]
    return Machine(processor(), tuple(devices), usable_cores(), where(environ), packages)


def unusable(packages: frozenset[str]) -> str:
    """Why a card that only its driver knows of cannot be used, "" if ONNX Runtime can."""
    if "onnxruntime-gpu" in packages:
        return ""
    if "torch" in packages:
        return "the installed torch cannot use it: it is a build without CUDA, or the driver is too old for it"
    return "install the extra [torch], or onnxruntime-gpu in place of onnxruntime"


def installed() -> frozenset[str]:
    """Those of `PACKAGES` that are installed."""
    return frozenset(name for name in PACKAGES if version(name))


def likely() -> bool:
    """Whether there is an accelerator's driver; nothing is loaded or started."""
    return any(Path(p).exists() for p in _DRIVERS) or shutil.which("nvidia-smi") is not None or _apple()


def where(environ: Mapping[str, str] = os.environ) -> Literal["kaggle", "colab", "local"]:
    """The notebook service that this runs on, by what it leaves in the environment."""
    if environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    return "colab" if environ.get("COLAB_RELEASE_TAG") or "google.colab" in sys.modules else "local"


def processor() -> Device:
    """The processor and the memory that this process may have: the machine's, or the container's share of it."""
    total, free = _host_memory()
    limit = cgroups.memory_limit()
    if limit is not None and limit < total:
        total, free = limit, min(free, max(0, limit - (cgroups.memory_used() or 0)))
    name = platform.processor() or platform.machine()
    return Device("cpu", "cpu", name, total, free, " ".join(sorted(_flags())))


def free_bytes(device: Device) -> int | None:
    """What is free there now, other processes' use counted; None where nobody can tell."""
    if device.kind == "cpu":
        return processor().free
    torch: Any = sys.modules.get("torch")
    if torch is not None and device.kind in ("cuda", "rocm"):
        return int(torch.cuda.mem_get_info(device.id)[0])
    if torch is not None and device.kind == "mps":
        return max(0, int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory()))
    return None  # asking the driver's tool takes too long to do it every few seconds


def _torch_devices() -> list[Device]:
    import torch

    found = []
    if torch.cuda.is_available():
        rocm = getattr(torch.version, "hip", None) is not None
        built_for = set(torch.cuda.get_arch_list())
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            architecture = str(getattr(properties, "gcnArchName", "")).split(":")[0] if rocm else f"sm_{properties.major}{properties.minor}"
            kind: Kind = "rocm" if rocm else "cuda"
            device = Device(f"cuda:{index}", kind, properties.name, total, free, architecture)
            found.append(replace(device, fault=unbuilt(device, built_for)))
    elif torch.backends.mps.is_available():
        most = int(torch.mps.recommended_max_memory())
        found.append(Device("mps", "mps", _apple_name(), most, max(0, most - int(torch.mps.driver_allocated_memory()))))
    return found


def unbuilt(device: Device, built_for: set[str]) -> str:
    """Why a build of torch cannot use a card, "" if it can. built_for: `torch.cuda.get_arch_list()`.

    Binaries run on cards of the same major capability and of a minor one as high; intermediate code ("compute_90") on
    all newer cards.
    """
    if not built_for or not device.architecture:
        return ""
    if device.kind == "rocm":
        return "" if device.architecture in built_for else f"this build of torch has no code for {device.architecture}"
    capability = device.capability
    for arch in built_for:
        match = re.fullmatch(r"(sm|compute)_(\d+)[a-z]*", arch)
        if match and int(match[2]) <= capability and (match[1] == "compute" or int(match[2]) // 10 == capability // 10):
            return ""
    return f"this build of torch has no code for {device.architecture}; install one built for an older CUDA (12.6 has it back to sm_50)"


def driver_devices(environ: Mapping[str, str]) -> list[Device]:
    """NVIDIA's cards as the driver's own tool lists them, those that `CUDA_VISIBLE_DEVICES` leaves, in its order."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        # The tool's path comes from the system, its arguments are fixed.
        run = subprocess.run(  # noqa: S603
            [tool, "--query-gpu=uuid,name,memory.total,memory.free,compute_cap", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in run.stdout.strip().splitlines()]
    chosen = visible([row[0] for row in rows if len(row) == 5], environ.get("CUDA_VISIBLE_DEVICES"))
    found = []
    for index, row in enumerate(rows[i] for i in chosen):
        _, name, total, free, capability = row
        if total.isdigit() and free.isdigit():
            sm = f"sm_{capability.replace('.', '')}" if re.fullmatch(r"\d+\.\d+", capability) else ""
            found.append(Device(f"cuda:{index}", "cuda", name, int(total) << 20, int(free) << 20, sm, torch=False))
    return found


def visible(uuids: Sequence[str], wanted: str | None) -> list[int]:
    """Which of a driver's devices `CUDA_VISIBLE_DEVICES` leaves, in its order: by number or by the beginning of a UUID.

    As CUDA does, everything behind the first entry that names no device is ignored.
    """
    if wanted is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for part in (p.strip() for p in wanted.split(",")):
        match = [i for i, uuid in enumerate(uuids) if part and uuid.startswith(part)]
        if part.isdigit() and int(part) < len(uuids):
            match = [int(part)]
        if len(match) != 1:
            break
        if match[0] not in chosen:
            chosen.append(match[0])
    return chosen


def _apple() -> bool:
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def _apple_name() -> str:
    try:
        run = subprocess.run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5, check=True)
        return run.stdout.strip() or "Apple silicon"
    except (OSError, subprocess.SubprocessError):
        return "Apple silicon"


def _host_memory() -> tuple[int, int]:
    """Bytes in all and bytes that can be had now."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemTotal"].split()[0]) << 10, int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        pass
    total = 8 * GIB  # where nobody says: a small computer
    if sys.platform != "win32":
        with suppress(ValueError, OSError):
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, total // 2


def _flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return _BFLOAT16_FLAGS & set(value.split())
    except OSError:
        pass
    return set()
