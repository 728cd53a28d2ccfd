"""A CT of 512 x 512 x 300 through a network of nnU-Net's size as a job: `python -m benchmarks.ct_job [--precision bfloat16]`.

The network is nnU-Net's plain U-Net for 3-D at full resolution (six stages of 32 to 320 channels, two convolutions each,
instance normalisation: 31 million parameters) with random weights, which cost as much as trained ones. A server runs it on
overlapping windows of 128³ at 1.5 mm. Printed are the job's stages, the server's peak memory, and what as many bare calls of the
same engine take in this process; in a small run (`--shape 120,224,224 --classes 3`) as well.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.endtoend import served, submit
from isocenter.core.geometry import Grid
from isocenter.core.model import ModelContext
from isocenter.core.phantom import FIELD, phantom
from isocenter.io.nifti import write as as_nifti
from isocenter.models._onnx import engine as engines
from isocenter.models._onnx.windows import starts

CHANNELS = (32, 64, 128, 256, 320, 320)
PATCH = 128


def network(path: Path, classes: int, channels: tuple[int, ...] = CHANNELS, patch: int = PATCH) -> int:
    """Write the U-Net (1, 1, z, y, x) to (1, classes, z, y, x); returns its number of parameters."""
    rng = np.random.default_rng(0)
    tensors: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    parameters = 0

    def weight(name: str, shape: tuple[int, ...], scale: float) -> str:
        nonlocal parameters
        array = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale) if scale else np.zeros(shape, np.float32)
        parameters += array.size
        tensors.append(numpy_helper.from_array(array, name))
        return name

    def block(name: str, source: str, before: int, after: int, stride: int = 1) -> str:
        kernel = weight(f"{name}.w", (after, before, 3, 3, 3), math.sqrt(2 / (before * 27)))
        sizes = {"kernel_shape": [3] * 3, "strides": [stride] * 3, "pads": [1] * 6}
        nodes.append(helper.make_node("Conv", [source, kernel, weight(f"{name}.b", (after,), 0)], [f"{name}.c"], **sizes))
        tensors.append(numpy_helper.from_array(np.ones(after, np.float32), f"{name}.s"))
        nodes.append(helper.make_node("InstanceNormalization", [f"{name}.c", f"{name}.s", weight(f"{name}.o", (after,), 0)], [f"{name}.n"]))
        nodes.append(helper.make_node("LeakyRelu", [f"{name}.n"], [f"{name}.a"], alpha=0.01))
        return f"{name}.a"

    current, before, skips = "image", 1, []
    for stage, width in enumerate(channels):
        current = block(f"e{stage}0", current, before, width, 2 if stage else 1)
        current = block(f"e{stage}1", current, width, width)
        skips.append(current)
        before = width
    for stage in reversed(range(len(channels) - 1)):
        width = channels[stage]
        up = weight(f"u{stage}.w", (before, width, 2, 2, 2), math.sqrt(1 / before))
        sizes = {"kernel_shape": [2] * 3, "strides": [2] * 3}
        nodes.append(helper.make_node("ConvTranspose", [current, up, weight(f"u{stage}.b", (width,), 0)], [f"u{stage}"], **sizes))
        nodes.append(helper.make_node("Concat", [f"u{stage}", skips[stage]], [f"j{stage}"], axis=1))
        current = block(f"d{stage}1", block(f"d{stage}0", f"j{stage}", 2 * width, width), width, width)
        before = width
    last = weight("out.w", (classes, before, 1, 1, 1), math.sqrt(1 / before))
    nodes.append(helper.make_node("Conv", [current, last, weight("out.b", (classes,), 0)], ["scores"], kernel_shape=[1] * 3))
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, c, *[patch] * 3]) for n, c in (("image", 1), ("scores", classes))]
    graph = helper.make_graph(nodes, "nnunet", ports[:1], ports[1:], tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return parameters


def configuration(classes: int, spacing: float) -> dict[str, object]:
    """As nnU-Net's plans say it of a CT."""
    properties = {"percentile_00_5": -1000.0, "percentile_99_5": 1000.0, "mean": 0.0, "std": 400.0}
    return {
        "model_type": "nnunet",
        "model_parameters": {"patch_size": [PATCH] * 3, "spacing": [spacing] * 3, "normalization_schemes": ["CTNormalization"]},
        "dataset_parameters": {"num_classes": classes, "channels": {"0": {"foreground_properties": properties}}},
    }


def scan(shape: tuple[int, int, int]) -> tuple[bytes, tuple[float, float, float]]:
    """A torso CT (z, y, x) as NIfTI, and its voxels in mm: 0.75 mm pixels, slices of 1 mm, as such scans have."""
    small = phantom((shape[0] // 4, shape[1] // 4, shape[2] // 4)).volume.array
    array = np.repeat(np.repeat(np.repeat(small, 4, 0), 4, 1), 4, 2)
    array = np.pad(array, [(0, want - have) for want, have in zip(shape, array.shape, strict=True)], mode="edge")
    spacing = (FIELD[0] / 512, FIELD[1] / 512, 1.0)
    return as_nifti(np.ascontiguousarray(array, np.int16), Grid(shape, spacing)), spacing


def main() -> None:
    """Run it and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="300,512,512", help="z,y,x")
    parser.add_argument("--spacing", type=float, default=1.5, help="of the network, mm")
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="bfloat16 with OpenVINO only")
    parser.add_argument("--engine", default="auto", choices=("auto", "onnxruntime", "openvino"))
    parser.add_argument("--bare", type=int, default=3, help="bare calls to time")
    asked = parser.parse_args()
    z, y, x = (int(n) for n in asked.shape.split(","))
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model = place / "models" / "unet"
        parameters = network(model / "model.onnx", asked.classes)
        (model / "config.json").write_text(json.dumps(configuration(asked.classes, asked.spacing)))
        data, spacing = scan((z, y, x))
        grid = [round(n * have / asked.spacing) for n, have in zip((z, y, x), spacing[::-1], strict=True)]
        windows = math.prod(len(starts(max(n, PATCH), PATCH, 0.5)) for n in grid)
        print(
            f"network: {parameters / 1e6:.1f} million parameters, {windows} windows of {PATCH}³ over {grid}; CT {len(data) / 1e6:.0f} MB", flush=True
        )

        engine = engines.make(model / "model.onnx", ModelContext(threads=threads, engine=asked.engine, precision=asked.precision))
        patch = np.random.default_rng(0).standard_normal((1, 1, PATCH, PATCH, PATCH), dtype=np.float32)
        engine.run(patch)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(asked.bare):
            engine.run(patch)
        bare, bare_cpu = ((now - then) / asked.bare for now, then in ((time.perf_counter(), wall), (time.process_time(), cpu)))
        print(f"bare: {engine.name}, {bare:.2f} s ({bare_cpu:.2f} s of processors) a window, {bare * windows:.1f} s in all", flush=True)
        engine.close()
        del engine

        env = {**os.environ, "ISOCENTER_HOME": str(place / "home"), "MODELS_PATH": str(place / "models"), "ISOCENTER_MIN_FREE_BYTES": "0"}
        env |= {"ISOCENTER_PRECISION": asked.precision, "ISOCENTER_ONNX_ENGINE": asked.engine}
        with served(place, env) as address:
            wall = time.perf_counter()
            job = submit(address, "ct.nii.gz", data, [("model", "unet"), ("modality", "CT"), ("formats", "nifti"), ("formats", "measurements")])
            took = time.perf_counter() - wall
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        stages = {stage: round(seconds, 2) for stage, seconds in job["seconds"].items()}
        print(f"job: {took:.1f} s from submission to answer, stages {stages}; notes {job['result']['provenance']['notes']}")
        print(f"server: {used.ru_utime + used.ru_stime:.1f} s of processors, start included; peak {used.ru_maxrss / 1000:.0f} MB")
        print(f"job / bare calls: {took / (bare * windows):.2f} (wall)", flush=True)


if __name__ == "__main__":
    main()
