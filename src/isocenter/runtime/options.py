"""How the runtime is set up: the part of the settings that it needs, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from isocenter.core.errors import UsageError
from isocenter.runtime.profiles import PROFILES, Profile, choose

if TYPE_CHECKING:
    from isocenter.core.settings import Settings
    from isocenter.runtime.devices import Machine


@dataclass(frozen=True)
class Options:
    """profile, precision, device: "auto" leaves the choice; places: devices by model family, over the profile's.

    memory_budget, memory_headroom: bytes on each accelerator (without one, of the computer), None to find out.
    inference_seconds: what one answer may take; lease_seconds: how long one may wait for a model; None for no end.
    batch: slices at once, 0 for as many as memory allows. share: processes like this one on this machine.
    """

    profile: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    places: Mapping[str, str] = field(default_factory=dict)
    memory_budget: int | None = None
    memory_headroom: int | None = None
    caches: int = 0
    inference_seconds: float | None = None
    lease_seconds: float | None = None
    batch: int = 0
    engine: str = "auto"
    providers: tuple[str, ...] = ()
    arena_bytes: int | None = None
    share: int = 1

    @classmethod
    def of(cls, settings: Settings) -> Options:
        """From the settings. Raises `UsageError` for a place that is not "family=device"."""
        places = {}
        for part in settings.model_places:
            family, equals, device = part.partition("=")
            if not (family and equals and device):
                raise UsageError(f"ISOCENTER_MODEL_PLACES is made of family=device, such as nnunet=cpu, not '{part[:60]}'")
            places[family.strip()] = device.strip()
        return cls(
            profile=settings.profile,
            precision=settings.precision,
            device=settings.device,
            places=places,
            memory_budget=settings.memory_budget_bytes,
            memory_headroom=settings.memory_headroom_bytes,
            caches=settings.volume_cache_bytes + settings.session_cache_bytes,
            inference_seconds=settings.inference_timeout,
            lease_seconds=settings.lease_timeout,
            batch=settings.slice_batch_size or 0,
            engine=settings.onnx_engine,
            providers=settings.onnx_providers,
            arena_bytes=settings.gpu_memory_limit,
            share=settings.machine_share,
        )

    def profile_for(self, machine: Machine) -> Profile:
        """The profile asked for, else the machine's, with the places that were set."""
        chosen = next((p for p in PROFILES.values() if p.name == self.profile), None) or choose(machine)
        if not self.places:
            return chosen
        return Profile(chosen.name, chosen.narrative, chosen.precision, {**chosen.places, **self.places}, chosen.batch, chosen.database)
