"""Running an ONNX network: ONNX Runtime, or OpenVINO where it is installed and the processor computes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import ModelError
from isocenter.core.model import ModelContext
from isocenter.models import _onnxruntime, _openvino

Image = NDArray[np.float32]
#: What ONNX Runtime calls the element types that a volume can be given as.
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
#: What it says when memory runs out.
_FULL = ("allocate", "bad_alloc", "out of memory", "bad allocation")


class Engine(Protocol):
    """name: as the answer's notes say it. image, scores: sizes of the first input and output, None where any is taken."""

    name: str
    image: tuple[int | None, ...]
    scores: tuple[int | None, ...]

    def run(self, image: Image) -> Image:
        """Scores (1, C, z, y, x) of an image (1, 1, z, y, x), or (n, C, y, x) of slices (n, 1, y, x); valid until the next call.

        One call at a time.
        """

    def close(self) -> None:
        """Give the memory back."""


def make(network: Path | bytes, context: ModelContext, *, channels: int = 1, flat: bool = False) -> Engine:
    """An engine for a file, or for a network in memory. channels: of its input. flat: it takes slices, (n, 1, y, x).

    "auto" is OpenVINO on the processor where it is installed, else ONNX Runtime. Raises `ModelError` for a file that is
    damaged or holds another kind of network.
    """
    chosen = context.engine
    if chosen == "auto":
        chosen = "openvino" if context.device == "cpu" and importlib.util.find_spec("openvino") else "onnxruntime"
    if chosen == "openvino":
        if context.device != "cpu":
            raise ModelError("OpenVINO runs networks on the processor only; choose the engine onnxruntime for a GPU")
        return OpenVinoEngine(network, context, channels, flat=flat)
    return OrtEngine(network, context, channels, flat=flat)


def providers(context: ModelContext) -> list[str | tuple[str, dict[str, Any]]]:
    """ONNX Runtime's execution providers: those wanted that this build has, the processor's last."""
    onnxruntime = _onnxruntime.load()

    available = onnxruntime.get_available_providers()
    chosen: list[str | tuple[str, dict[str, Any]]] = []
    for name in context.providers:
        # Those of cards need one; Core ML computes where the processor does.
        if name not in available or name == "CPUExecutionProvider" or (context.device == "cpu" and name != "CoreMLExecutionProvider"):
            continue
        options: dict[str, Any] = {}
        if name in ("CUDAExecutionProvider", "ROCMExecutionProvider", "TensorrtExecutionProvider"):
            options["device_id"] = int(context.device.partition(":")[2] or 0)
        if name in ("CUDAExecutionProvider", "ROCMExecutionProvider") and context.arena_bytes:
            options |= {"gpu_mem_limit": context.arena_bytes, "arena_extend_strategy": "kSameAsRequested"}
        chosen.append((name, options) if options else name)
    return [*chosen, "CPUExecutionProvider"]


def _damaged(network: Path | bytes) -> ModelError:
    name = f"'{network.name}'" if isinstance(network, Path) else "the network"
    return ModelError(f"{name} is not a valid ONNX network (cut off, damaged, or of a version that is not understood); install the model again")


@contextmanager
def _refusals() -> Iterator[None]:
    """An engine's own exceptions as the program's: `MemoryError` when memory ran out, else `ModelError`."""
    try:
        yield
    except (MemoryError, ModelError):
        raise
    except Exception as error:
        if any(word in str(error).lower() for word in _FULL):
            raise MemoryError("the network's activations do not fit in memory") from None
        raise ModelError("the network cannot compute what it was given: the size of its input does not fit; see patch_size in config.json") from None


class OrtEngine:
    """ONNX Runtime, in float32."""

    def __init__(self, network: Path | bytes, context: ModelContext, channels: int, *, flat: bool = False) -> None:
        onnxruntime = _onnxruntime.load()

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = context.threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        # Threads that wait would otherwise spin, and take the cores of whoever computes beside them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = providers(context)
        try:
            source = str(network) if isinstance(network, Path) else network
            self._session = onnxruntime.InferenceSession(source, options, providers=wanted)
        except MemoryError:
            raise
        except Exception:
            raise _damaged(network) from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        check_ports([i.shape for i in inputs], [o.shape for o in outputs], channels, flat=flat)
        if inputs[0].type not in _TYPES:
            raise ModelError(f"the network takes {inputs[0].type} as input; a volume is float32")
        self._input, self._type, self._output = inputs[0].name, _TYPES[inputs[0].type], outputs[0].name
        self.image, self.scores = _sizes(inputs[0].shape), _sizes(outputs[0].shape)
        used = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self.name = f"ONNX Runtime {onnxruntime.__version__} ({used}, float32)"

    def run(self, image: Image) -> Image:
        """See `Engine.run`."""
        with _refusals():
            found = self._session.run([self._output], {self._input: image.astype(self._type, copy=False)})[0]
        return np.ascontiguousarray(found, np.float32)

    def run_into(self, image: Image, scores: Image) -> None:
        """As `run`, of any number of channels, into an array of the right shape. Both are float32 and C-contiguous."""
        binding = self._session.io_binding()
        binding.bind_input(self._input, "cpu", 0, np.float32, image.shape, image.ctypes.data)
        binding.bind_output(self._output, "cpu", 0, np.float32, scores.shape, scores.ctypes.data)
        with _refusals():
            self._session.run_with_iobinding(binding)

    def close(self) -> None:
        """See `Engine.close`."""
        del self._session


class OpenVinoEngine:
    """OpenVINO on the processor, in float32 or, where it was asked for and the processor has it, bfloat16."""

    def __init__(self, network: Path | bytes, context: ModelContext, channels: int, *, flat: bool = False) -> None:
        try:
            import openvino
        except ImportError:
            raise ModelError("OpenVINO is not installed: pip install 'isocenter[openvino]', or choose the engine onnxruntime") from None
        try:
            model = _openvino.read(network)
            check_ports([_partial(i) for i in model.inputs], [_partial(o) for o in model.outputs], channels, flat=flat)
            self._compiled, precision = _openvino.compiled(model, context.precision, threads=context.threads)
        except (MemoryError, ModelError):
            raise
        except Exception:  # its readers have several kinds, without a name in common
            raise _damaged(network) from None
        self.image, self.scores = _sizes(_partial(model.inputs[0])), _sizes(_partial(model.outputs[0]))
        self._request = self._compiled.create_infer_request()
        self._type = {"f16": np.float16, "f64": np.float64}.get(model.inputs[0].element_type.get_type_name(), np.float32)
        self.name = f"OpenVINO {openvino.__version__.split('-')[0]} (CPU, {precision})"

    def run(self, image: Image) -> Image:
        """See `Engine.run`."""
        with _refusals():
            self._request.infer([image.astype(self._type, copy=False)], share_inputs=True, share_outputs=True)
        return np.ascontiguousarray(self._request.get_output_tensor(0).data, np.float32)

    def close(self) -> None:
        """See `Engine.close`."""
        del self._request, self._compiled


def _partial(port: Any) -> list[int | None]:
    return [d.get_length() if d.is_static else None for d in port.get_partial_shape()]


def _sizes(shape: list[Any]) -> tuple[int | None, ...]:
    return tuple(n if isinstance(n, int) and n > 0 else None for n in shape)


def check_ports(inputs: list[list[Any]], outputs: list[list[Any]], channels: int, *, flat: bool = False) -> None:
    """Raise `ModelError` for a network that is not one volume in (flat: slices), scores by class out."""
    shape = "slices (n, 1, y, x)" if flat else "a volume (1, 1, z, y, x)"
    if len(inputs) != 1:
        raise ModelError(f"the network takes {len(inputs)} inputs; only networks of one input, {shape}, can be used")
    if not outputs:
        raise ModelError("the network has no output")
    image, scores = _sizes(inputs[0]), _sizes(outputs[0])
    axes = 4 if flat else 5
    if len(image) == len(scores) == 9 - axes:
        found, said, wanted = ("volumes", "slices", "three numbers [Z, Y, X]") if flat else ("slices", "volumes", "two numbers [Y, X]")
        raise ModelError(f"the network takes {found}, but its config.json describes one of {said}: patch_size must be {wanted}")
    if len(image) != axes or len(scores) != axes:
        raise ModelError(
            f"the network maps {len(image)} axes to {len(scores)}; only volumes (1, 1, z, y, x) to scores (1, classes, z, y, x), "
            "or slices (n, 1, y, x) to (n, classes, y, x), can be used"
        )
    if image[1] != channels and image[-1] == 1:
        raise ModelError("the network wants its channels last; export it with channels first, (1, 1, z, y, x) or (n, 1, y, x)")
    if image[1] not in (channels, None):
        raise ModelError(f"the network takes {image[1]} channels (several scans of one patient); only one is possible here")
    if image[0] not in (1, None):
        raise ModelError(f"the network takes {image[0]} {'slices' if flat else 'volumes'} at once; export it for one, or with a free batch size")
