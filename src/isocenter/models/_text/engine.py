"""Running an encoder: ONNX Runtime by default, OpenVINO or torch where installed and asked for.

An engine turns padded tokens into hidden states and may be called by several threads at once, one for each slot.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import ModelError
from isocenter.core.model import ModelContext
from isocenter.models import _onnxruntime, _openvino
from isocenter.models._text import bert, deberta
from isocenter.models._text.graph import Graph
from isocenter.models._text.weights import Weights

Ints = NDArray[np.int64]
States = NDArray[np.float32]


class Engine(Protocol):
    """name: as provenance and `/info` tell it, e.g. "onnxruntime float32". packs: whether padding costs (nearly) nothing."""

    name: str
    packs: bool

    def run(self, ids: Ints, mask: Ints) -> States:
        """Hidden states (texts, tokens, size) of `ids` (texts, tokens), where `mask` is 1 for tokens and 0 for padding.

        Padding stands at the texts' ends; what comes out for it means nothing.
        """

    def rest(self) -> None:
        """Give back what is only kept for the next batch; called when there is nothing to do."""


def make(engine: str, folder: Path, config: Mapping[str, Any], layers: int, context: ModelContext) -> Engine:
    """An engine for the first `layers` layers. engine: "onnxruntime", "openvino" or "torch"."""
    if engine == "torch":
        return TorchEngine(folder, layers, context)
    if context.device != "cpu":
        raise ModelError(f"on {context.device} text models run with torch; install the extra [torch]")
    if engine == "openvino":
        return OpenVinoEngine(folder, config, layers, context)
    return OnnxEngine(folder, config, layers, context)


def _graph(folder: Path, config: Mapping[str, Any], layers: int, *, fused: bool, int8: bool = False) -> tuple[Graph, str]:
    build = deberta.build if config["model_type"] in deberta.FAMILY else bert.build
    graph = Graph(fused=fused, int8=int8)
    with Weights(folder) as weights:
        return graph, build(graph, config, weights, layers)


class OnnxEngine:
    """ONNX Runtime on the processor, in float32 or with int8 dense layers."""

    def __init__(self, folder: Path, config: Mapping[str, Any], layers: int, context: ModelContext) -> None:
        onnxruntime = _onnxruntime.load()

        if context.precision not in ("float32", "int8"):
            raise ModelError(
                f"ONNX Runtime offers float32 and int8 for text models here, not {context.precision}; bfloat16 needs the extra [openvino]"
            )
        graph, output = _graph(folder, config, layers, fused=True, int8=context.precision == "int8")
        data, outside = graph.finish(output)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = context.threads
        options.inter_op_num_threads = 1
        # The arena halves what batches of changing shapes take at once; it would keep that for good: see `rest`.
        options.enable_cpu_mem_arena = True
        # Threads of the pool would otherwise spin between batches and starve the slot beside.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if outside:
            self._kept = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in outside.items()}
            options.add_external_initializers(list(self._kept), list(self._kept.values()))
        graph.constants.clear()
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._shrinking = onnxruntime.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        # The session keeps the message, all weights in it, to be able to change providers later, which nobody does here.
        self._session._model_bytes = None
        self.packs = config["model_type"] not in deberta.FAMILY and bert.packs(graph)
        self.name = f"onnxruntime {context.precision}"

    def run(self, ids: Ints, mask: Ints) -> States:
        """See `Engine.run`."""
        return np.asarray(self._session.run(["states"], {"ids": ids, "mask": mask})[0], np.float32)

    def rest(self) -> None:
        """See `Engine.rest`. The arena shrinks at the end of a run that says so."""
        one = np.ones((1, 1), np.int64)
        self._session.run(["states"], {"ids": one, "mask": one}, self._shrinking)


class OpenVinoEngine:
    """OpenVINO on the processor, in float32, with int8 dense layers or, where the processor has it, in bfloat16."""

    packs = False

    def __init__(self, folder: Path, config: Mapping[str, Any], layers: int, context: ModelContext) -> None:
        if context.precision not in ("float32", "bfloat16", "int8"):
            raise ModelError(f"OpenVINO offers float32, bfloat16 and int8 for text models here, not {context.precision}")
        graph, output = _graph(folder, config, layers, fused=False)
        read = self._read(graph, output)
        self._compiled, precision = _openvino.compiled(read, context.precision, threads=context.threads * context.slots, streams=context.slots)
        # A request belongs to one caller at a time, and there is one for each stream: made here, so that none is made or
        # let go while others compute, and none waits inside of OpenVINO for a stream.
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(context.slots):
            self._free.put(self._compiled.create_infer_request())
        self._output = self._compiled.output(0)
        self.name = f"openvino {precision}"

    @staticmethod
    def _read(graph: Graph, output: str) -> Any:
        data, outside = graph.finish(output)
        if not outside:
            graph.constants.clear()
            return _openvino.read(data)
        # Too large for one message: by way of a file with its weights beside it.
        import onnx

        model = onnx.load_model_from_string(data)
        for tensor in model.graph.initializer:
            if tensor.name in outside:
                tensor.CopyFrom(onnx.numpy_helper.from_array(outside[tensor.name], tensor.name))
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "encoder.onnx"
            onnx.save_model(model, path, save_as_external_data=True)
            return _openvino.read(path)

    def run(self, ids: Ints, mask: Ints) -> States:
        """See `Engine.run`. As many callers as there are slots compute at once; another waits for one of them."""
        request = self._free.get()
        try:
            request.infer({"ids": ids, "mask": mask})
            return np.array(request.get_tensor(self._output).data, np.float32)
        finally:
            self._free.put(request)

    def rest(self) -> None:
        """See `Engine.rest`. OpenVINO keeps its requests' memory."""


class TorchEngine:
    """torch with transformers, on a GPU or the processor."""

    packs = False

    def __init__(self, folder: Path, layers: int, context: ModelContext) -> None:
        try:
            import torch
            import transformers
        except ImportError:
            raise ModelError("the extra [torch] is not installed: pip install 'isocenter[torch]'") from None
        kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if context.precision not in kinds:
            raise ModelError(f"torch offers {', '.join(kinds)} for text models here, not {context.precision}")
        try:
            model = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=kinds[context.precision]
            )
            self._model = model.to(context.device).eval()
        except (OSError, ValueError, RuntimeError):
            raise ModelError(f"the text model '{folder.name}' cannot be loaded on {context.device} with torch") from None
        self._torch, self._device, self._layers = torch, context.device, layers
        self.name = f"torch {context.precision}"

    def run(self, ids: Ints, mask: Ints) -> States:
        """See `Engine.run`."""
        torch = self._torch
        with torch.inference_mode():
            given = {"input_ids": torch.from_numpy(ids).to(self._device), "attention_mask": torch.from_numpy(mask).to(self._device)}
            found = self._model(**given, output_hidden_states=True).hidden_states[self._layers]
            states: States = found.float().cpu().numpy()
        return states

    def rest(self) -> None:
        """See `Engine.rest`."""
        if self._device == "cuda":
            self._torch.cuda.empty_cache()
