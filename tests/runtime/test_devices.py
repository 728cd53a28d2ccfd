"""What the machine is: cards through the driver's tool, control groups, notebooks."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from isocenter.core.settings import Settings
from isocenter.runtime import cgroups, devices
from isocenter.runtime.devices import Device, Machine, unbuilt, visible
from isocenter.runtime.environment import GIB
from isocenter.runtime.fleet import Fleet
from isocenter.runtime.options import Options

LISTING = """GPU-aaa1, Tesla T4, 15360, 15000, 7.5
GPU-aab2, NVIDIA A100-SXM4-40GB, 40960, 100, 8.0
GPU-ccc3, NVIDIA H200, 143771, [N/A], 9.0
"""


def test_cards_through_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, LISTING, ""))
    found = devices.driver_devices({})
    assert [(d.id, d.name, d.capability, d.bfloat16) for d in found] == [
        ("cuda:0", "Tesla T4", 75, False),
        ("cuda:1", "NVIDIA A100-SXM4-40GB", 80, True),
    ]
    assert found[1].free == 100 << 20, "what other processes hold is not free"
    assert [d.name for d in devices.driver_devices({"CUDA_VISIBLE_DEVICES": "1"})] == ["NVIDIA A100-SXM4-40GB"]
    assert devices.driver_devices({"CUDA_VISIBLE_DEVICES": ""}) == []


@pytest.mark.parametrize(
    ("wanted", "left"),
    [(None, [0, 1, 2]), ("", []), ("2,0", [2, 0]), ("GPU-c", [2]), ("GPU-a", []), ("1,7,0", [1]), ("-1", []), ("0,0", [0])],
)
def test_visible_devices(wanted: str | None, left: list[int]) -> None:
    assert visible(["GPU-aaa1", "GPU-aab2", "GPU-ccc3"], wanted) == left


@pytest.mark.parametrize(
    ("architecture", "built", "works"),
    [
        ("sm_75", {"sm_75", "sm_80"}, True),
        ("sm_86", {"sm_80"}, True),
        ("sm_60", {"sm_75", "sm_80", "sm_90"}, False),
        ("sm_120", {"sm_90", "compute_90"}, True),
        ("sm_120", {"sm_90"}, False),
        ("sm_75", set(), True),
    ],
)
def test_a_card_that_the_build_has_no_code_for(architecture: str, built: set[str], works: bool) -> None:
    assert (unbuilt(Device("cuda:0", "cuda", "card", 1, 1, architecture), built) == "") is works


@pytest.mark.parametrize(
    ("packages", "fault"),
    [(frozenset({"torch"}), "build without CUDA"), (frozenset({"torch", "onnxruntime-gpu"}), ""), (frozenset({"onnxruntime"}), r"extra \[torch\]")],
)
def test_a_card_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch, packages: frozenset[str], fault: str) -> None:
    """The driver lists it; it is used by ONNX Runtime alone, or not at all, and then the doctor says why."""
    monkeypatch.setattr(devices, "installed", lambda: packages)
    monkeypatch.setattr(devices, "_torch_devices", list)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, LISTING, ""))
    machine = devices.detect({})
    assert not any(d.torch for d in machine.devices)
    assert re.search(fault, machine.devices[0].fault) if fault else machine.devices[0].fault == ""
    assert bool(machine.usable) == (not fault)


def test_a_broken_torch_leaves_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(devices, "detect", broken)
    assert Fleet().machine.usable == ()


def test_processes_that_share_a_machine_take_a_part_each() -> None:
    machine = Machine(Device("cpu", "cpu", "processor", 16 * GIB, 16 * GIB), (), 8)
    alone, half, tenth = (Fleet(Options(share=share, memory_headroom=2 * GIB), machine) for share in (1, 2, 10))
    assert (alone.cores, half.cores, tenth.cores) == (8, 4, 1)
    assert half.ledger("cpu").budget == alone.ledger("cpu").budget // 2 == 7 * GIB
    assert Options.of(Settings(machine_share=3)).share == 3


def test_platform() -> None:
    assert devices.where({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}) == "kaggle"
    assert devices.where({"COLAB_RELEASE_TAG": "release-colab"}) == "colab"
    assert devices.where({}) == "local"


def test_a_machine_without_a_card_never_imports_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def boom() -> list[Device]:
        raise AssertionError("asked torch")

    monkeypatch.setattr(devices, "likely", lambda: False)
    monkeypatch.setattr(devices, "_torch_devices", boom)
    machine = devices.detect({})
    assert machine.cpu.total >= machine.cpu.free > 0
    assert machine.cores >= 1


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_control_groups_of_version_two(tmp_path: Path) -> None:
    """The limit may be on a group above; the service manager's counts as much as a container's."""
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/isocenter.service\n",
            "sys/fs/cgroup/system.slice/isocenter.service/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/isocenter.service/memory.current": str(3 * GIB),
            "sys/fs/cgroup/system.slice/isocenter.service/memory.stat": f"anon {GIB}\ninactive_file {GIB}\n",
            "sys/fs/cgroup/system.slice/memory.max": str(4 * GIB),
            "sys/fs/cgroup/system.slice/isocenter.service/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
        },
    )
    assert (cgroups.memory_limit(root), cgroups.memory_used(root), cgroups.cores(root)) == (4 * GIB, 2 * GIB, 1.5)


def test_control_groups_of_version_one(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB),
            "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": str((1 << 63) - 4096),
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert (cgroups.memory_limit(root), cgroups.cores(root)) == (2 * GIB, 0.5)


def test_no_control_groups(tmp_path: Path) -> None:
    assert (cgroups.memory_limit(tmp_path), cgroups.memory_used(tmp_path), cgroups.cores(tmp_path)) == (None, None, None)


@pytest.mark.gpu
def test_a_real_card_is_described() -> None:
    if not devices.likely():
        pytest.skip("needs a GPU")
    torch = pytest.importorskip("torch")
    device = devices.detect().usable[0]
    assert device.total == torch.cuda.get_device_properties(0).total_memory
    assert abs((devices.free_bytes(device) or 0) - device.free) < GIB
    assert device.bfloat16 == (torch.cuda.get_device_capability(0)[0] >= 8 or device.kind == "rocm")
