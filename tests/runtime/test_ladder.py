"""Memory that runs out: real libraries' errors known for what they are, and the order in which less is tried."""

from __future__ import annotations

import numpy as np
import pytest

from isocenter.core.errors import ModelError
from isocenter.core.model import QUIET
from isocenter.runtime.ladder import AskedRun, attempts, trouble
from isocenter.runtime.precision import Rung


def caught(work: object) -> BaseException:
    with pytest.raises(Exception) as info:  # noqa: PT011 - which one is what the test is about
        work()  # type: ignore[operator]
    return info.value


def test_numpys_own() -> None:
    assert trouble(caught(lambda: np.empty(1 << 60, np.uint8))) == "memory"


def test_torchs_own() -> None:
    torch = pytest.importorskip("torch")
    assert trouble(caught(lambda: torch.empty(1 << 50))) == "memory", "the processor's allocator raises a bare RuntimeError"
    assert trouble(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")) == "memory"
    assert trouble(caught(lambda: torch.ones(2, 3) @ torch.ones(2, 3))) is None, "a shape that does not fit is no want of memory"
    lost = torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered", 214)
    assert trouble(lost) == "lost"
    assert trouble(torch.AcceleratorError("CUDA error: invalid argument", 1)) is None


def test_onnx_runtimes_own() -> None:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]), helper.make_tensor_value_info("shape", TensorProto.INT64, [1])]
    node = helper.make_node("Expand", ["x", "shape"], ["y"])
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.ones(1, np.float32)
    assert trouble(caught(lambda: session.run(None, {"x": x, "shape": np.array([1 << 48])}))) == "memory"
    assert trouble(caught(lambda: session.run(None, {"x": np.ones(2, np.float32), "shape": np.array([3])}))) is None


def test_other_errors_are_the_callers() -> None:
    for error in (RuntimeError("the patient ran out of memory"), ValueError("CUDA error: illegal memory access"), ModelError("broken"), OSError(12)):
        assert trouble(error) is None


def test_an_error_that_a_model_wrapped() -> None:
    def wrap() -> None:
        try:
            np.empty(1 << 60, np.uint8)
        except MemoryError as error:
            raise ModelError("the network failed") from error

    def hide() -> None:
        try:
            np.empty(1 << 60, np.uint8)
        except MemoryError:
            raise ModelError("the network failed") from None

    assert trouble(caught(wrap)) == trouble(caught(hide)) == "memory"


GPU = Rung("cuda:0", "bfloat16", {"cuda:0": 50}, 10)
SAME = Rung("cuda:0", "float16", {"cuda:0": 50}, 10, 1)
SMALL = Rung("cuda:0", "nf4", {"cuda:0": 15}, 10, 2)
CPU = Rung("cpu", "bfloat16", {"cpu": 50}, 10, 3)


def walk(rungs: list[Rung], batch: int, asked: set[str]) -> list[tuple[str, int, float]]:
    ways = attempts(rungs, batch)
    found = [next(ways)]
    while True:
        try:
            found.append(ways.send(asked))
        except StopIteration:
            return [(a.rung.words, a.batch, a.tile) for a in found]


def test_the_order_of_the_ladder() -> None:
    assert walk([GPU, SAME, SMALL, CPU], 8, {"batch"}) == [
        ("bfloat16 on cuda:0", 8, 1.0),
        ("bfloat16 on cuda:0", 8, 1.0),
        ("bfloat16 on cuda:0", 4, 1.0),
        ("bfloat16 on cuda:0", 2, 1.0),
        ("bfloat16 on cuda:0", 1, 1.0),
        ("nf4 on cuda:0", 8, 1.0),
        ("nf4 on cuda:0", 4, 1.0),
        ("nf4 on cuda:0", 2, 1.0),
        ("nf4 on cuda:0", 1, 1.0),
        ("bfloat16 on cpu", 8, 1.0),
        ("bfloat16 on cpu", 4, 1.0),
        ("bfloat16 on cpu", 2, 1.0),
        ("bfloat16 on cpu", 1, 1.0),
    ]


def test_what_a_model_does_not_ask_for_is_not_tried() -> None:
    assert walk([GPU, CPU], 8, set()) == [("bfloat16 on cuda:0", 8, 1.0)] * 2 + [("bfloat16 on cpu", 8, 1.0)]
    assert [tile for _, _, tile in walk([GPU], 1, {"tile"})] == [1.0, 1.0, 0.75, 0.5625]


def test_the_note_says_how_the_answer_differs() -> None:
    ways = attempts([GPU, CPU], 4)
    assert next(ways).note == ""
    assert ways.send({"batch"}).note == ""
    assert ways.send({"batch"}).note == "memory ran out: computed 2 at a time instead of 4"
    ways.send({"batch"})
    assert ways.send(set()).note == "memory ran out: computed on cpu instead of cuda:0"
    assert Rung("cuda:0", "nf4", {"cuda:0": 1}, 1).spread is False


def test_a_run_knows_what_it_was_asked() -> None:
    run = AskedRun(QUIET.progress, QUIET.cancelled, 4, 1.0)
    run.check(0.5, "half")
    assert run.asked == set()
    assert run.batch == 4
    assert run.asked == {"batch"}
