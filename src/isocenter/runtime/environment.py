"""What this machine offers and what is wrong with it: the facts behind `isocenter doctor` and a server's start.

Nothing here imports a heavy library: a GPU is found through the driver's own tool, packages through their metadata.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from isocenter.runtime import cgroups

GIB = 1024**3
#: Below these, the first realistic scan fails.
_LEAST_MEMORY, _LITTLE_MEMORY = GIB, 4 * GIB
_LEAST_DISK, _LITTLE_DISK = GIB // 4, 5 * GIB
_NEEDED = ("numpy", "scipy", "numba", "SimpleITK", "nibabel", "pydicom", "highdicom", "onnxruntime", "fastapi", "uvicorn")
#: Packages that hold the same files, so the one installed last wins, and uninstalling one breaks the other. One of them is needed.
ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-rocm", "onnxruntime-training")
_OPTIONAL = ("torch", "openvino", "nnunetv2", "transformers")


def size(count: int) -> str:
    """Bytes for people: "950 MiB", "21.4 GiB"."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 1024**2:.0f} MiB"


class State(StrEnum):
    """How a fact is to be taken: fine, worth knowing, or keeping Isocenter from working."""

    OK = "ok"
    NOTE = "note"
    BROKEN = "broken"


@dataclass(frozen=True)
class Fact:
    """One line of the doctor's table. remedy: what to do; empty where there is nothing to do."""

    name: str
    value: str
    state: State = State.OK
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """Plain data for JSON."""
        return asdict(self)


def facts(home: Path, host: str, ports: tuple[int, ...], least: int = 0) -> list[Fact]:
    """All facts of this machine. home: where state lies. host, ports: where a server would listen. least: see `disk`."""
    return [python(), system(), cores(), memory(), gpu(), disk(home, least), *packages(), *(port(host, p) for p in ports)]


def python() -> Fact:
    """The interpreter."""
    return Fact("Python", f"{platform.python_version()} ({sys.executable})")


def system() -> Fact:
    """Operating system and processor."""
    return Fact("System", f"{platform.system()} {platform.release()}, {platform.machine()}")


def cores() -> Fact:
    """Processor cores that this process may use."""
    count = usable_cores()
    total = os.cpu_count() or count
    return Fact("Cores", f"{count}" if count == total else f"{count} of {total}")


def usable_cores() -> int:
    """Cores by affinity and by the container's quota, at least one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroups.cores()
    return count if quota is None else min(count, max(1, round(quota)))


def memory() -> Fact:
    """Memory of the machine, what of it is free, and the container's limit."""
    total, free = _memory()
    limit = memory_limit()
    if total is None:
        return Fact("Memory", "unknown on this system")
    value = f"{total / GIB:.1f} GiB" + (f", {free / GIB:.1f} free" if free is not None else "")
    room = free if free is not None else total
    if limit is not None and limit < total:
        value += f"; limited to {limit / GIB:.1f} GiB by the container"
        room = min(room, limit)
    if room < _LEAST_MEMORY:
        return Fact("Memory", value, State.BROKEN, "a CT of 512 x 512 x 300 takes about 1 GiB: close other programs or raise the container's limit")
    if room < _LITTLE_MEMORY:
        return Fact("Memory", value, State.NOTE, "enough for single scans; lower ISOCENTER_VOLUME_CACHE_BYTES when several people use the server")
    return Fact("Memory", value)


def _memory() -> tuple[int | None, int | None]:
    """Bytes in all and bytes free, as far as the system tells."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemTotal"].split()[0]) * 1024, int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    if sys.platform != "win32":
        with suppress(ValueError, OSError):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    return None, None


def memory_limit() -> int | None:
    """The container's memory limit in bytes, None without one."""
    return cgroups.memory_limit()


def gpu() -> Fact:
    """Graphics processors, as the NVIDIA driver or the operating system names them."""
    name = "GPU"
    tool = shutil.which("nvidia-smi")
    if tool is None:
        if platform.system() == "Darwin" and platform.machine() == "arm64":
            return Fact(name, "Apple silicon (Metal)")
        return Fact(name, "none; everything runs on the processor")
    try:
        # The tool's path comes from the system, its arguments are fixed.
        run = subprocess.run(  # noqa: S603
            [tool, "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return Fact(name, "the driver does not answer", State.NOTE, "run nvidia-smi; in a container start it with --gpus all")
    found = []
    for line in run.stdout.strip().splitlines():
        model, total, free, driver = (part.strip() for part in line.split(","))
        found.append(f"{model}, {_mebibytes(free)} of {_mebibytes(total)} free, driver {driver}")
    if not found:
        return Fact(name, "a driver, but no device", State.NOTE, "in a container start it with --gpus all")
    value = "; ".join(found)
    if version("torch") is None:
        return Fact(name, value, State.NOTE, "not used yet: install the extra [torch] for models that need a GPU")
    return Fact(name, value)


def _mebibytes(text: str) -> str:
    return f"{int(text) / 1024:.0f} GiB" if text.isdigit() else text


def disk(home: Path, least: int = 0) -> Fact:
    """Room where state lies, and whether it can be written. least: bytes below which a server says that it is not ready."""
    existing = home
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    value = f"{free / GIB:.1f} GiB free in {home}"
    if not os.access(existing, os.W_OK):
        return Fact("Disk", value + ", not writable", State.BROKEN, "set ISOCENTER_HOME to a folder that can be written")
    if free < least:
        remedy = "free some space, set ISOCENTER_HOME to another disk, or ISOCENTER_MIN_FREE_BYTES to less"
        return Fact("Disk", f"{value}, less than the {least / GIB:.1f} GiB that a server wants", State.BROKEN, remedy)
    if free < _LEAST_DISK:
        return Fact("Disk", value, State.BROKEN, "free some space, or set ISOCENTER_HOME to another disk")
    if free < _LITTLE_DISK:
        return Fact("Disk", value, State.NOTE, "too little for large models: free some space, or set ISOCENTER_HOME to another disk")
    return Fact("Disk", value)


def version(package: str) -> str | None:
    """Version of an installed package, None when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def packages() -> list[Fact]:
    """Needed and optional packages with their versions."""
    runtime = next((name for name in ONNX_RUNTIMES if version(name)), ONNX_RUNTIMES[0])
    needed = {name: version(name) for name in (runtime if name == ONNX_RUNTIMES[0] else name for name in _NEEDED)}
    missing = [name for name, found in needed.items() if found is None]
    present = ", ".join(f"{name} {found}" for name, found in needed.items() if found)
    facts = [Fact("Packages", present)]
    if missing:
        facts = [Fact("Packages", f"{', '.join(missing)} missing", State.BROKEN, "install again: pip install isocenter")]
    optional = [f"{name} {found}" for name in _OPTIONAL if (found := version(name))]
    return [*facts, Fact("Extras", ", ".join(optional) or "none installed")]


def port(host: str, number: int) -> Fact:
    """Whether a server could listen there, or already does."""
    name = f"Port {number}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            if _answers(host, number):
                return Fact(name, "an Isocenter server is running there")
            return Fact(name, f"not available ({error.strerror})", State.NOTE, "choose another: isocenter serve --port 8001")
    return Fact(name, "free")


def _answers(host: str, number: int) -> bool:
    """Whether an Isocenter server answers at that port."""
    place = f"[{host}]" if ":" in host else host
    try:
        with urllib.request.urlopen(f"http://{place}:{number}/healthz", timeout=1) as answer:
            return b'"ok"' in answer.read(100)
    except (OSError, ValueError, urllib.error.URLError):
        return False
