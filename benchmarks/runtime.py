"""The runtime: what a lease costs, how often a crowd loads models, how long a switch of models takes, what batches gain.

`python -m benchmarks.runtime` measures all of it, `python -m benchmarks.runtime together` one part.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from isocenter.core.model import ModelContext, ModelSpec, Task
from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.runtime.ledger import Ledger
from isocenter.runtime.runtime import Runtime
from isocenter.service import Service
from tests.runtime.test_ledger import GB, Card, crowd

DATA = Path(os.environ.get("ISOCENTER_TEST_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


class Nothing:
    """A model that does nothing."""

    def load(self, context: ModelContext) -> None: ...

    def close(self) -> None: ...


def median(work: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def lease() -> None:
    runtime = Runtime(create=lambda _: Nothing())
    for what, size in (("declares nothing", 0), ("is measured", 1 << 28)):
        spec = ModelSpec("m", "1", Task.SEGMENT, "x:Y", "", resident_bytes={"float32": size}, scratch_bytes={"float32": size}, weights_sha256=what)
        direct = median(lambda spec=spec: runtime.call(spec, lambda lease: None), 2000)  # type: ignore[misc]
        queued = median(lambda spec=spec: runtime.submit(lambda: runtime.call(spec, lambda lease: None)).result(), 2000)  # type: ignore[misc]
        print(f"a lease of a model that {what}: {direct * 1e6:.0f} us, through the queue {queued * 1e6:.0f} us")
    runtime.close()


def turns() -> None:
    for overtakes, name in ((0, "first come, first served"), (8, "phases in turn")):
        ledger, card = Ledger(24 * GB, overtakes=overtakes), Card(24 * GB)
        started = time.perf_counter()
        overtaken = crowd(ledger, card, 4000, 1)
        seconds = time.perf_counter() - started
        print(f"16 threads, 5 models, 24 GB, 4 000 requests, {name}: {card.loads.total()} loads, overtaken at most {max(overtaken)}, {seconds:.2f} s")
        assert ledger.peak <= ledger.budget


def switch() -> None:
    """Two copies of a real network (2.7 MB, 128 x 128 x 128) in memory for one; what /metrics shows as `isocenter_model_switch_seconds`."""
    network = DATA / "onnx_deepbrain" / "deepbrain_v2_fixed128.onnx"
    if not network.is_file():
        print("switch of models: needs the real weights")
        return
    config = {
        "model_type": "fixed",
        "model_parameters": {"patch_size": [128, 128, 128], "normalization_schemes": ["RescaleTo01Normalization"], "threshold": 0.5},
        "dataset_parameters": {"modality": "MR", "num_classes": 2, "class_names": {"1": "brain"}},
    }
    with tempfile.TemporaryDirectory() as home:
        for name in ("one", "two"):
            folder = Path(home, "models", name)
            folder.mkdir(parents=True)
            shutil.copy(network, folder / "model.onnx")
            (folder / "config.json").write_text(json.dumps(config))
        need = Service(Settings(home=Path(home))).registry.spec("one")
        budget = need.resident_bytes["float32"] + need.scratch_bytes["float32"] + 10
        service = Service(Settings(home=Path(home), memory_budget_bytes=budget))
        seconds: dict[str, list[float]] = {}
        service.runtime.observe = lambda stage, model, value: seconds.setdefault(stage, []).append(value)
        scan = Volume(np.random.default_rng(0).normal(100, 10, (128, 128, 128)).astype(np.float32), modality="MR", unit="a.u.")
        for _ in range(4):
            for name in ("one", "two"):
                service.label(scan, model=name)
        again = median(lambda: service.label(scan, model="two"), 3)
        shown = ", ".join(f"{stage} {statistics.median(values[1:]) * 1e3:.0f} ms" for stage, values in seconds.items())
        print(f"switch of models: {shown}; an answer without a switch {again * 1e3:.0f} ms")
        service.close()


def together() -> None:
    """What seeing a slice costs alone and in a batch: processor time, on a GPU seconds. SAM's ViT-B has random weights, and as many sums.

    Its layers come in four equal groups of two with windows and one without. A processor, which needs 5 to 20 seconds for a
    slice, is measured on the first group.
    """
    import torch
    from transformers import SamConfig, SamModel
    from transformers.utils import logging

    small = Path(__file__).parent.parent / "tests" / "data" / "sam_phantom"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clock = time.perf_counter if device == "cuda" else time.process_time
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    part = {} if device == "cuda" else {"num_hidden_layers": 3, "global_attn_indexes": [2]}
    for name, size, network, times in (
        ("a network of 128 x 128 pixels", 4, SamModel.from_pretrained(small, dtype=torch.float32), 20),
        (f"SAM's ViT-B of 1024 x 1024{', a quarter of it' if part else ''}", 2, SamModel(SamConfig(vision_config=part)), 1),
    ):
        network = network.eval().to(device)
        side = network.config.vision_config.image_size
        pictures = torch.randn(size, 3, side, side, device=device)

        def seconds(batches: list[torch.Tensor], network: SamModel = network, times: int = times) -> float:
            started = clock()
            for _ in range(times):
                for batch in batches:
                    network.get_image_embeddings(batch)[0].float().sum().item()
            return (clock() - started) / times

        with torch.inference_mode():
            seconds([pictures[:1]])
            alone, batched = seconds(list(pictures.split(1))), seconds([pictures])
        print(f"{name}, {size} slices: alone {alone / size:.3f} s each, together {batched / size:.3f} s, {alone / batched:.2f} times")


PARTS: dict[str, Callable[[], None]] = {"lease": lease, "turns": turns, "switch": switch, "together": together}

if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(PARTS)
    if unknown:
        sys.exit(f"there is no part '{unknown.pop()}'; there are: {', '.join(PARTS)}")
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
    print(f"{time.process_time():.0f} s of processor time in all")
