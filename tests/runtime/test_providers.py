"""ONNX Runtime's providers, the three log lines, OpenVINO, and packages that overwrite each other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from isocenter.core.settings import Settings
from isocenter.runtime import providers

GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("requested", "offered", "using"),
    [
        (None, GPU[2:], ["CPUExecutionProvider"]),
        (None, GPU, GPU),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], GPU[2:], ["CPUExecutionProvider"]),
        (["CPUExecutionProvider", "CUDAExecutionProvider"], GPU, ["CPUExecutionProvider", "CUDAExecutionProvider"]),
        (["CUDAExecutionProvider"], GPU[2:], ["CPUExecutionProvider"]),
        (["Nonsense"], GPU, ["CPUExecutionProvider"]),
        (None, ["CoreMLExecutionProvider", "CPUExecutionProvider"], ["CoreMLExecutionProvider", "CPUExecutionProvider"]),
    ],
)
def test_requested_and_available(requested: list[str] | None, offered: list[str], using: list[str]) -> None:
    assert providers.effective(requested, offered) == using


def test_the_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """As the inference service's document greps for them, asked of the real library; once in a process."""
    providers._SAID.clear()
    for _ in range(2):
        assert providers.announce(["CPUExecutionProvider"]) == ["CPUExecutionProvider"]
    lines = re.findall(r"ONNX providers \w+: \[.*\]", capsys.readouterr().out)
    assert len(lines) == 3
    assert lines[0] == "ONNX providers requested: ['CPUExecutionProvider']"
    assert lines[1].startswith("ONNX providers available: [")
    assert "'CPUExecutionProvider'" in lines[1]
    assert lines[2] == "ONNX providers using: ['CPUExecutionProvider']"


@pytest.mark.parametrize("text", ['["CUDAExecutionProvider", "CPUExecutionProvider"]', "CUDAExecutionProvider, CPUExecutionProvider"])
def test_the_documents_setting(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ONNX_PROVIDERS", text)
    settings = Settings()
    assert settings.onnx_providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    import onnxruntime

    offered = onnxruntime.get_available_providers()
    assert settings.effective_onnx_providers == [p for p in settings.onnx_providers if p in offered]


def test_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "version", lambda package: "2026.4" if package == "openvino" else None)
    assert providers.engine("auto", "cpu", ["CPUExecutionProvider"]) == "openvino"
    assert providers.engine("auto", "cuda:0", GPU) == "onnxruntime"
    assert providers.engine("auto", "cpu", ["CoreMLExecutionProvider", "CPUExecutionProvider"]) == "onnxruntime"
    assert providers.engine("onnxruntime", "cpu", ["CPUExecutionProvider"]) == "onnxruntime"
    monkeypatch.setattr(providers, "version", lambda package: None)
    assert providers.engine("auto", "cpu", ["CPUExecutionProvider"]) == "onnxruntime"


def test_packages_that_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "version", lambda package: "1.31" if package.startswith("onnxruntime-gpu") or package == "onnxruntime" else None)
    assert providers.conflicts() == ["onnxruntime", "onnxruntime-gpu"]
    monkeypatch.setattr(providers, "version", lambda package: "1.31" if package == "onnxruntime" else None)
    assert providers.conflicts() == []


def test_nothing_is_reported_to_its_maker(tmp_path: Path) -> None:
    """Its own reporting, on by default from 1.29, leaves an identifier and a queue of what is to be sent in the user's folder."""
    code = """
from onnx import TensorProto, helper
from isocenter.core.model import ModelContext
from isocenter.models._onnx.engine import OrtEngine

ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 2, 2, 2]) for name in ("image", "scores")]
graph = helper.make_graph([helper.make_node("Relu", ["image"], ["scores"])], "test", ends[:1], ends[1:])
network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
print(OrtEngine(network, ModelContext(), 1).name)
"""
    # Without the variables of a CI or a test run, in which it keeps silent by itself.
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "SYSTEMROOT") if name in os.environ} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ONNX Runtime" in done.stdout
    assert list(tmp_path.rglob("*")) == []
    assert "telemetry" not in done.stderr
