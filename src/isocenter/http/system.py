"""What the server computes with: profile, devices and their memory, where each model runs; the same in numbers for Prometheus."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily

from isocenter.http.context import Here
from isocenter.runtime import facts
from isocenter.runtime.precision import Rung
from isocenter.runtime.runtime import Runtime

router = APIRouter(tags=["Operations"])
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)
_GAUGES = {
    "capacity_bytes": "Memory that was free for this server",
    "budget_bytes": "Memory that models may take",
    "leased_bytes": "Memory of models at work, weights and scratch",
    "idle_bytes": "Memory of models that are kept loaded",
    "waiting": "Requests that wait for a model or for memory",
    "lost": "1 when the device stopped working",
}


@router.get("/api/v1/system")
async def system(here: Here) -> dict[str, Any]:
    """Profile, devices with their memory and models, what runs ONNX files, and where each model would run, in which precision and why."""
    return await asyncio.to_thread(_system, here.service.runtime, here)


def _system(runtime: Runtime, here: Here) -> dict[str, Any]:
    decisions = {spec.id: _decision(facts.decision(runtime.fleet, spec)) for spec in here.service.models()}
    return {**runtime.state(), "models": decisions}


def _decision(found: Rung | str) -> dict[str, Any]:
    if isinstance(found, str):
        return {"fits": False, "reason": found}
    need = {name: found.need(name) for name in sorted({found.device, *found.shares})}
    reason = {"reason": found.why} if found.why else {}
    return {"fits": True, "device": found.device, "precision": found.precision, "bytes": need, **reason}


async def gpu_log() -> PlainTextResponse:
    """What `nvidia-smi` says, as MONAI Label's route of this name."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise HTTPException(404, "this machine has no NVIDIA driver; /api/v1/system tells what the server computes with")
    try:
        run = await asyncio.to_thread(subprocess.run, [tool], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        raise HTTPException(500, "the NVIDIA driver does not answer") from None
    return PlainTextResponse(run.stdout)


router.add_api_route("/logs/gpu", gpu_log, response_model=None)
router.add_api_route("/monai/logs/gpu", gpu_log, response_model=None, include_in_schema=False)


class RuntimeMetrics:
    """Model switches, memory by device, trouble. `watch` ties it to a runtime; until then it counts nothing."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._runtime: Runtime | None = None
        self._switches = Histogram(
            "isocenter_model_switch_seconds",
            "Time to close a model (evict), to load one, and to its first answer",
            ("stage", "model"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._trouble = Counter("isocenter_model_trouble", "Times that memory ran out or a device was lost", ("kind", "model"), registry=registry)
        registry.register(self)

    def watch(self, runtime: Runtime) -> None:
        """Count what this runtime does."""
        self._runtime = runtime
        runtime.observe = self._observe

    def _observe(self, stage: str, model: str, seconds: float) -> None:
        if stage in ("out_of_memory", "device_lost"):
            self._trouble.labels(stage, model).inc()
        else:
            self._switches.labels(stage, model).observe(seconds)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called by the registry: the ledgers as they stand. Devices that nobody asked for yet are left out."""
        ledgers = self._runtime.fleet.ledgers if self._runtime is not None else {}
        states = {name: ledger.state() for name, ledger in ledgers.items()}
        for key, description in _GAUGES.items():
            family = GaugeMetricFamily(f"isocenter_device_{key}", description, labels=("device",))
            for name, state in states.items():
                family.add_metric((name,), float(state[key]))
            yield family
