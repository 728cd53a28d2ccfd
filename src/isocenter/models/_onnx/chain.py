"""Fully convolutional chains, such as MeshNet: found in an ONNX graph, and run as a stream of slices.

A chain of convolutions sees each layer's neighbourhood only, so a volume can flow through it slice by slice: every stage keeps
the few slices that its kernel still needs. The result is that of the whole volume at once (zeros around each layer's input
included), nothing is computed twice, and memory grows with the slices' area and not with their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isocenter.core.model import ModelContext, Run
from isocenter.models._onnx.engine import OrtEngine

if TYPE_CHECKING:
    import onnx

Image = NDArray[np.float32]
#: Operations that look at one voxel at a time.
_POINTWISE = {"Relu", "Elu", "LeakyRelu", "PRelu", "Selu", "Sigmoid", "Tanh", "Clip", "Gelu", "BatchNormalization", "Identity", "Dropout"}
#: Bytes of a stage's input and output that are aimed at, which decides how many slices flow at a time.
BUDGET_BYTES = 100 * 1024 * 1024
LEAST_SLICES, MOST_SLICES = 8, 32


@dataclass(frozen=True)
class Stage:
    """One convolution and what follows it voxel by voxel, as a network of its own without margin along z.

    reach: slices that it looks at on either side. channels: of its input and its output.
    """

    network: bytes
    reach: int
    channels: tuple[int, int]


@dataclass(frozen=True)
class Chain:
    """stages in order; halo: how far the whole looks along (z, y, x)."""

    stages: tuple[Stage, ...]
    halo: tuple[int, int, int]


def find(path: Path) -> Chain | None:
    """The chain that a network is, or None: another kind of network, or one with strides, branches or global operations."""
    import onnx
    from onnx import helper

    try:
        model = onnx.load(path)
    except Exception:
        return None  # the engine says what is wrong with it
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    data = [i.name for i in graph.input if i.name not in weights]
    if len(data) != 1 or len(graph.output) != 1:
        return None
    groups: list[tuple[list[onnx.NodeProto], int, tuple[int, int]]] = []
    halo, current = [0, 0, 0], data[0]
    for node in graph.node:
        others = list(node.input)[1:]
        if not node.input or node.input[0] != current or any(name and name not in weights for name in others):
            return None
        if node.op_type == "Conv":
            facts = _convolution(node, weights)
            if facts is None:
                return None
            far, channels = facts
            halo = [a + b for a, b in zip(halo, far, strict=True)]
            groups.append(([node], far[0], channels))
        elif node.op_type not in _POINTWISE or not groups:
            return None
        else:
            groups[-1][0].append(node)
        current = node.output[0]
    if not groups or current != graph.output[0].name:
        return None
    stages = []
    for nodes, reach, (before, after) in groups:
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        pads = next(a for a in nodes[0].attribute if a.name == "pads") if reach else None
        if pads is not None:
            pads.ints[0] = pads.ints[3] = 0
        used = [weights[name] for node in nodes for name in list(node.input)[1:] if name]
        ports = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, *sizes])
            for name, channels, sizes in ((nodes[0].input[0], before, ("d", "h", "w")), (nodes[-1].output[0], after, ("e", "h", "w")))
        ]
        part = helper.make_graph(nodes, "stage", ports[:1], ports[1:], used)
        made = helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
        stages.append(Stage(made.SerializeToString(), reach, (before, after)))
    return Chain(tuple(stages), (halo[0], halo[1], halo[2]))


def _convolution(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> tuple[list[int], tuple[int, int]] | None:
    """(reach along z, y, x; channels in and out) of a convolution that keeps the size, else None."""
    from onnx import helper

    tensor = weights[node.input[1]]
    if len(tensor.dims) != 5:
        return None
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    kernel = np.array(tensor.dims[2:])
    dilation = np.array(settings.get("dilations", [1, 1, 1]))
    reach = (kernel - 1) // 2 * dilation
    keeps = (kernel % 2 == 1).all() and list(settings.get("pads", [0] * 6)) == [*reach, *reach]
    plain = settings.get("auto_pad", b"NOTSET") == b"NOTSET" and list(settings.get("strides", [1, 1, 1])) == [1, 1, 1]
    if not keeps or not plain:
        return None
    return [int(r) for r in reach], (int(tensor.dims[1]) * int(settings.get("group", 1)), int(tensor.dims[0]))


def whole_bytes(chain: Chain, voxels: int) -> int:
    """Memory that an engine needs for the whole volume at once: the widest stage's input and output, the image and the scores."""
    widest = max(sum(stage.channels) for stage in chain.stages)
    return 4 * voxels * (widest + 1 + chain.stages[-1].channels[1])


class Stream:
    """A chain that is ready to run, with ONNX Runtime: it computes into buffers that all stages share."""

    def __init__(self, chain: Chain, context: ModelContext) -> None:
        self._chain = chain
        self._engines = [OrtEngine(stage.network, context, stage.channels[0]) for stage in chain.stages]
        self.name = self._engines[0].name

    def slices(self, area: int, part: float = 1.0) -> int:
        """How many slices of `area` pixels flow at a time: as `BUDGET_BYTES` allow, but enough to keep cores busy.

        part: of that, after memory ran out.
        """
        wide = max(sum(stage.channels) for stage in self._chain.stages) * 4 * area
        return max(1, int(part * min(MOST_SLICES, max(LEAST_SLICES, BUDGET_BYTES // wide))))

    def run(self, work: Image, run: Run) -> Iterator[Image]:
        """Scores (1, C, n, y, x) of `work` (z, y, x), in pieces of some slices from the first to the last; each is valid until the next."""
        depth, rows, columns = work.shape
        count, area, stages = self.slices(rows * columns, run.tile), rows * columns, self._chain.stages
        # Slices that a stage still needs, and how many of them have come: at first the zeros before the volume.
        self._held = [np.zeros((1, stage.channels[0], 2 * stage.reach, rows, columns), np.float32) for stage in stages]
        self._come = [stage.reach for stage in stages]
        self._image = np.empty(max(stage.channels[0] * (2 * stage.reach + count) for stage in stages) * area, np.float32)
        self._scores = np.empty(max(stage.channels[1] for stage in stages) * count * area, np.float32)
        try:
            for start in range(0, depth, count):
                yield from self._push(0, work[None, None, start : start + count], count)
                done = min(start + count, depth)
                run.check(done / depth, f"slice {done} of {depth}")
            for index, stage in enumerate(stages):
                # What lies behind the last slice is nothing, for every stage anew.
                behind = np.zeros((1, stage.channels[0], min(stage.reach, count), rows, columns), np.float32)
                for start in range(0, stage.reach, count):
                    yield from self._push(index, behind[:, :, : stage.reach - start], count)
                    run.check()
        finally:
            del self._held, self._come, self._image, self._scores

    def _push(self, index: int, piece: Image, count: int) -> Iterator[Image]:
        """Slices come to a stage; what it makes of them goes on to the next. `piece` may lie in the buffer of scores."""
        if index == len(self._chain.stages):
            yield piece
            return
        stage, held, come = self._chain.stages[index], self._held[index], self._come[index]
        shape = (1, stage.channels[0], come + piece.shape[2], *piece.shape[3:])
        image = self._image[: math.prod(shape)].reshape(shape)
        image[:, :, :come] = held[:, :, :come]
        image[:, :, come:] = piece
        kept = self._come[index] = min(2 * stage.reach, shape[2])
        held[:, :, :kept] = image[:, :, shape[2] - kept :]
        if shape[2] > 2 * stage.reach:
            out = (1, stage.channels[1], shape[2] - 2 * stage.reach, *shape[3:])
            scores = self._scores[: math.prod(out)].reshape(out)
            self._engines[index].run_into(image, scores)
            yield from self._push(index + 1, scores, count)

    def close(self) -> None:
        """Give the memory back."""
        for engine in self._engines:
            engine.close()
