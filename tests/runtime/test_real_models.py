"""Real networks through the service: two that take turns in memory for one, and one whose memory runs out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.service import Service
from tests.models import onnx_networks


@pytest.fixture
def scan() -> Volume:
    return Volume(np.random.default_rng(0).normal(0, 1, (24, 24, 24)).astype(np.float32), modality="MR", unit="a.u.")


def service(home: Path, **settings: Any) -> Service:
    for seed, name in enumerate(("first", "second")):
        onnx_networks.folder(home / "models" / name, onnx_networks.unet(seed=seed), onnx_networks.config())
    return Service(Settings(home=home, onnx_engine="onnxruntime", **settings))


def test_two_networks_take_turns_in_memory_for_one(tmp_path: Path, scan: Volume) -> None:
    plenty = service(tmp_path)
    wanted = {name: plenty.label(scan, model=name).mask for name in ("first", "second")}
    assert not np.array_equal(wanted["first"], wanted["second"])
    assert plenty.runtime.fleet.ledger("cpu").evictions == 0
    plenty.close()

    spec = plenty.registry.spec("first")
    need = spec.resident_bytes["float32"] + spec.scratch_bytes["float32"]
    seen: list[tuple[str, str]] = []
    tight = service(tmp_path, memory_budget_bytes=need + 10)
    tight.runtime.observe = lambda stage, model, seconds: seen.append((stage, model))
    for name in ("first", "second", "first"):
        result = tight.label(scan, model=name)
        assert np.array_equal(result.mask, wanted[name])
        assert (result.provenance.device, result.provenance.precision) == ("cpu", "float32")
    assert [model for stage, model in seen if stage == "evict"] == ["first", "second"]
    assert [model for stage, model in seen if stage == "load"] == ["first", "second", "first"]
    assert tight.runtime.fleet.ledger("cpu").peak <= need + 10
    tight.close()


def test_a_network_whose_memory_runs_out_answers_in_smaller_pieces(tmp_path: Path, scan: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two calls of ONNX Runtime fail as they do without memory; the answer is the same and says what happened."""
    from isocenter.models import onnx_volume

    made = service(tmp_path)
    wanted = made.label(scan, model="first").mask
    tries: list[float] = []
    whole = onnx_volume.OnnxVolume.segment

    def tight(self: Any, volume: Volume, **how: Any) -> Any:
        tries.append(how["run"].tile)
        if len(tries) < 3:
            raise MemoryError("Failed to allocate memory for requested buffer of size 1125899906842624")
        return whole(self, volume, **how)

    monkeypatch.setattr(onnx_volume.OnnxVolume, "segment", tight)
    result = made.label(scan, model="first")
    assert tries == [1.0, 1.0, 0.75]
    assert np.array_equal(result.mask, wanted)
    assert "memory ran out: computed in tiles of 75% of their usual edge" in result.provenance.notes
    made.close()
