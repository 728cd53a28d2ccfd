"""Volumetric ONNX networks: whole calls against the bare runs they need, MONAI's sliding window, memory, and published answers.

Times are medians of alternating runs and processor seconds beside them, since other programs disturb the clock. Run all of it, or
parts by name: `python -m benchmarks.volumes windows classes meshnet large answers`. Memory is measured in processes of their own.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from isocenter.core.model import ModelContext
from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.io import door
from isocenter.models import onnx_volume
from isocenter.models._onnx import engine as engines
from isocenter.models._onnx import meshnet
from tests.models import onnx_networks as nets

DATA = Path(os.environ.get("ISOCENTER_TEST_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
THREADS = os.cpu_count() or 1
#: Class names of the published networks.
COLOURS = {
    "model5_gw_ae": "model5_gw_ae/colormap3.json",
    "model18cls": "model18cls/colormap.json",
    "subcortical": "model18cls/colormap.json",
}


def peak_mb() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def timed(works: dict[str, Callable[[], object]], times: int = 3) -> dict[str, tuple[float, float]]:
    """(wall, processor) seconds of each, medians; they take turns, so that a disturbance meets all."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(times):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: (statistics.median(w for w, _ in runs), statistics.median(c for _, c in runs)) for name, runs in found.items()}


def install(place: Path, name: str) -> Path:
    """A published MeshNet as a model folder."""
    source = DATA / "brainchop_mit"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "onnx" / f"{name}.onnx", place / "model.onnx")
    names = json.loads((source / COLOURS[name]).read_text())["labels"]
    (place / "config.json").write_text(json.dumps(meshnet.configuration(names)))
    return place


def load(place: Path, engine: str) -> onnx_volume.OnnxVolume:
    model = onnx_volume.OnnxVolume()
    model.load(ModelContext(spec=onnx_volume.offer(place), threads=THREADS, engine=engine))
    return model


def t1() -> Volume:
    return door.read_path(DATA / "brainchop_mit" / "t1_crop.nii.gz", limits=Settings(), modality="MR")


def sliding(place: Path, name: str, patch: int) -> Path:
    """A published MeshNet run in blended windows (which it should not be: only to have a real network's cost)."""
    folder = install(place, name)
    configuration = json.loads((folder / "config.json").read_text())
    configuration["model_parameters"] |= {"inference": "sliding_window", "patch_size": [patch] * 3, "crop_to_nonzero": False, "spacing": None}
    (folder / "config.json").write_text(json.dumps(configuration))
    return folder


def windows() -> None:
    """MeshNet in 27 windows of 96³ over 192³: whole call, bare runs, MONAI with torch and with ONNX Runtime."""
    import torch
    from monai.inferers import sliding_window_inference

    torch.set_num_threads(THREADS)
    scan = Volume(np.ascontiguousarray(t1().array[32:224, 32:224, 32:224]), modality="MR")
    with tempfile.TemporaryDirectory() as place:
        folder = sliding(Path(place), "model5_gw_ae", 96)
        network = _torch_network(folder / "model.onnx")
        image = np.random.default_rng(0).random((1, 1, 192, 192, 192), dtype=np.float32)
        patch = np.ascontiguousarray(image[:, :, :96, :96, :96])
        for name in ("onnxruntime", "openvino"):
            model = load(folder, name)
            bare = engines.make(folder / "model.onnx", ModelContext(threads=THREADS, engine=name))

            def runs(bare: engines.Engine = bare) -> None:
                for _ in range(27):
                    bare.run(patch)

            def monai(predict: Callable[[Any], Any]) -> None:
                with torch.inference_mode():
                    sliding_window_inference(torch.from_numpy(image), 96, 1, predict, overlap=0.5, mode="gaussian").argmax(1)

            works: dict[str, Callable[[], object]] = {
                "bare runs": runs,
                "whole call": lambda model=model: model.segment(scan),  # type: ignore[misc]
                "MONAI + torch": lambda: monai(network),
                "MONAI + this engine": lambda bare=bare: monai(lambda x: torch.from_numpy(bare.run(x.numpy()))),  # type: ignore[misc]
            }
            found = timed(works)
            ours = found["whole call"]
            for who, (wall, cpu) in found.items():
                print(
                    f"{name:12} {who:20} {wall:7.2f} s ({cpu:7.2f} s of processors)  {wall / ours[0]:5.2f} ({cpu / ours[1]:4.2f}) x ours", flush=True
                )
            print(f"{name:12} whole call / bare runs: {ours[0] / found['bare runs'][0]:.3f} ({ours[1] / found['bare runs'][1]:.3f})", flush=True)
            wall_share, cpu_share = _beside_its_runs(model, scan)
            print(f"{name:12} whole call / the runs within it: {wall_share:.3f} ({cpu_share:.3f})", flush=True)


def _beside_its_runs(model: onnx_volume.OnnxVolume, scan: Volume) -> tuple[float, float]:
    """A whole call over the network's runs that it makes, by the clock and in processor seconds; medians of three.

    Both are of the same seconds, so that what else the machine does between two measurements does not count.
    """
    spent = [0.0, 0.0]
    engine = model._engine
    bare = engine.run

    def watched(image: NDArray[np.float32]) -> NDArray[np.float32]:
        wall, cpu = time.perf_counter(), time.process_time()
        scores = bare(image)
        spent[0] += time.perf_counter() - wall
        spent[1] += time.process_time() - cpu
        return scores

    shares = []
    with mock.patch.object(engine, "run", watched):
        for _ in range(3):
            spent[:] = [0.0, 0.0]
            wall, cpu = time.perf_counter(), time.process_time()
            model.segment(scan)
            shares.append(((time.perf_counter() - wall) / spent[0], (time.process_time() - cpu) / spent[1]))
    return statistics.median(w for w, _ in shares), statistics.median(c for _, c in shares)


def _torch_network(path: Path) -> Any:
    """The same chain in torch."""
    import onnx
    import torch
    from onnx import helper, numpy_helper

    graph = onnx.load(path).graph
    weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    layers: list[torch.nn.Module] = []
    for node in graph.node:
        if node.op_type == "Conv":
            facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            kernel = weights[node.input[1]]
            layer = torch.nn.Conv3d(
                kernel.shape[1], kernel.shape[0], tuple(kernel.shape[2:]), padding=facts["pads"][0], dilation=facts["dilations"][0]
            )
            layer.weight.data, layer.bias.data = kernel, weights[node.input[2]]
            layers.append(layer)
        else:
            layers.append({"Relu": torch.nn.ReLU, "Elu": torch.nn.ELU}[node.op_type]())
    return torch.nn.Sequential(*layers).eval()


def _many(place: Path, classes: int, patch: int) -> Path:
    configuration = nets.config(classes, patch_size=[patch] * 3)
    return nets.folder(place, nets.chain(classes=classes, channels=4, dilations=(1,), seed=1), configuration)


def classes() -> None:
    """104 classes of 256³: peak memory of the whole call and of MONAI with argmax, beside the time."""
    for who in ("isocenter", "monai"):
        _child("classes-" + who)


def _classes_child(who: str) -> None:
    array = np.random.default_rng(0).integers(0, 255, (256, 256, 256)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as place:
        folder = _many(Path(place), 104, 96)
        if who == "isocenter":
            model, scan = load(folder, "onnxruntime"), Volume(array)
            model.segment(Volume(array[:96, :96, :96].copy()))
            work: Callable[[], object] = lambda: model.segment(scan)  # noqa: E731
        else:
            import torch
            from monai.inferers import sliding_window_inference

            torch.set_num_threads(THREADS)
            bare = engines.make(folder / "model.onnx", ModelContext(threads=THREADS, engine="onnxruntime"))
            image = torch.from_numpy(array.astype(np.float32))[None, None]
            predict = lambda x: torch.from_numpy(bare.run(x.numpy()))  # noqa: E731
            work = lambda: sliding_window_inference(image, 96, 1, predict, overlap=0.5, mode="gaussian").argmax(1)  # noqa: E731
        before, wall, cpu = peak_mb(), time.perf_counter(), time.process_time()
        work()
        took, used = time.perf_counter() - wall, time.process_time() - cpu
        print(f"104 classes  {who:10} {took:7.1f} s ({used:6.1f} s of processors), peak {peak_mb():6.0f} MB ({before:.0f} MB before)", flush=True)


def meshnets() -> None:
    """The smallest published MeshNet on 256³: peak memory of a whole call, and of a plain script."""
    for who in ("isocenter", "plain"):
        _child("meshnet-" + who)


def _meshnet_child(who: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = install(Path(place), "model5_gw_ae")
        scan = t1()
        wall, cpu = time.perf_counter(), time.process_time()
        if who == "isocenter":
            load(folder, "auto").segment(scan)
        else:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = THREADS
            session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
            image = scan.array.T.astype(np.float32)
            low, high = np.quantile(image, [0.02, 0.98])
            image = ((image - low) / (high - low)).clip(0, 1)[None, None]
            session.run(None, {"image": np.ascontiguousarray(image, np.float32)})[0][0].argmax(0).astype(np.uint8)
        took, used = time.perf_counter() - wall, time.process_time() - cpu
        print(f"MeshNet 256³ {who:10} {took:7.1f} s ({used:6.1f} s of processors), peak {peak_mb():6.0f} MB", flush=True)


def large() -> None:
    """512 x 512 x 300 with a small network of 25 classes: the scores alone would be 7.9 GB."""
    _child("large-isocenter")


def _large_child(who: str) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (300, 512, 512)).astype(np.int16)
    with tempfile.TemporaryDirectory() as place:
        model = load(_many(Path(place), 25, 128), "auto")
        wall, cpu = time.perf_counter(), time.process_time()
        model.segment(Volume(array))
        took, used = time.perf_counter() - wall, time.process_time() - cpu
        print(f"512x512x300, 25 classes: {took:.1f} s ({used:.1f} s of processors), peak {peak_mb():.0f} MB", flush=True)


def answers() -> None:
    """Agreement of the published networks with their own answers on a T1 of 256³; the largest against a plain run."""
    import nibabel as nib

    scan = t1()
    for name in COLOURS:
        with tempfile.TemporaryDirectory() as place:
            model = load(install(Path(place), name), "onnxruntime")
            mask = model.segment(scan).mask
        path = DATA / "brainchop_mit" / "reference_outputs" / f"{name}_t1_crop_argmax.nii.gz"
        truth: NDArray[Any] = np.asarray(nib.load(path).dataobj).T if path.exists() else _plain(name, scan)
        print(f"{name:14} agrees on {100 * (mask == truth).mean():.4f} % of the voxels", flush=True)


def _plain(name: str, scan: Volume) -> NDArray[np.uint8]:
    """What a plain script answers, in slabs with more than the network's reach around, (z, y, x) of the scan."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(DATA / "brainchop_mit" / "onnx" / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    image = scan.array.T.astype(np.float32)
    low, high = np.quantile(image, [0.02, 0.98])
    image = ((image - low) / (high - low)).clip(0, 1).astype(np.float32)
    answer = np.zeros(image.shape, np.uint8)
    for x in range(0, 256, 64):
        first, last = max(x - 48, 0), min(x + 112, 256)
        scores = session.run(None, {"image": np.ascontiguousarray(image[None, None, first:last])})[0][0]
        answer[x : x + 64] = scores.argmax(0)[x - first : x - first + 64]
    return answer.T


def _child(work: str) -> None:
    subprocess.run([sys.executable, "-m", "benchmarks.volumes", work], check=True)


PARTS = {"windows": windows, "classes": classes, "meshnet": meshnets, "large": large, "answers": answers}
CHILDREN = {"classes": _classes_child, "meshnet": _meshnet_child, "large": _large_child}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        kind, _, chosen = part.partition("-")
        if chosen:
            CHILDREN[kind](chosen)
        else:
            PARTS[kind]()
