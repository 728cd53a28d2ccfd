"""ONNX Runtime's providers, the three log lines, OpenVINO, and packages that overwrite each other."""

from __future__ import annotations

import re

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
