"""What the container, or the service manager, lets this process have: control groups of both versions.

A limit may be set on the process's own group or on any above it; the smallest counts. Inside a container the file system
usually shows the container's group as the root.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
#: Version 1 says "no limit" as a number near 2**63.
_UNLIMITED = 1 << 60


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that this process and its group may use, None without a limit. root: where the file system begins (for tests)."""
    limits = [n for folder in _folders(root, "memory") for n in _numbers(folder, "memory.max", "memory.limit_in_bytes") if n < _UNLIMITED]
    return min(limits, default=None)


def memory_used(root: Path = ROOT) -> int | None:
    """Bytes that the limited group uses, less what the system can drop at once (its file cache); None where nobody counts."""
    for folder in _folders(root, "memory"):
        for used in _numbers(folder, "memory.current", "memory.usage_in_bytes"):
            return max(0, used - _statistic(folder, "inactive_file"))
    return None


def cores(root: Path = ROOT) -> float | None:
    """Processors' worth of time that the group gets, None without a quota."""
    quotas = []
    for folder in _folders(root, "cpu"):
        words = _line(folder / "cpu.max").split()
        if not words:
            words = [_line(folder / "cpu.cfs_quota_us"), _line(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The process's group and those above it, the nearest first."""
    base = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number != "0" and controller not in names.split(","):
            continue
        top = base if number == "0" else base / controller
        folder = top / path.strip("/")
        while folder != top and top in folder.parents:
            yield folder
            folder = folder.parent
    yield base
    yield base / controller


def _numbers(folder: Path, *names: str) -> Iterator[int]:
    for name in names:
        text = _line(folder / name)
        if text.isdigit():
            yield int(text)


def _statistic(folder: Path, name: str) -> int:
    try:
        fields = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
        return int(fields.get(name, 0))
    except (OSError, ValueError):
        return 0


def _line(path: Path) -> str:
    try:
        return path.read_text().split("\n", 1)[0].strip()
    except OSError:
        return ""
