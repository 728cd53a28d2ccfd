"""Conversions of published files, and pickles that are refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isocenter.core.errors import ModelError
from isocenter.models._catalog import convert, found

torch = pytest.importorskip("torch", reason="needs torch")


class Evil:
    """What unpickles to a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_torch_file_becomes_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    shared = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    state = {"a.weight": shared, "b.weight": shared, "c.weight": shared.T, "half": torch.ones(3, dtype=torch.float16)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    convert.run("safetensors", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, state[name])
    convert.run("safetensors", tmp_path)  # nothing more to do


def test_weights_below_a_key_of_their_own(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, tmp_path / "net.ckpt")
    convert.run("safetensors", tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == {"w"}


def test_what_nnunet_writes_is_read(tmp_path: Path) -> None:
    state = {
        "network_weights": {"w": torch.ones(2)},
        "_best_ema": np.float64(0.5),
        "logging": {"dice": [np.float32(0.25), np.mean([1, 2])]},
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "init_args": {"plans": {"a": [1, 2]}, "fold": 0},
    }
    torch.save(state, tmp_path / "checkpoint_final.pth")
    assert convert.read_pickled(tmp_path / "checkpoint_final.pth")["_best_ema"] == 0.5
    convert.check_pickles(tmp_path)


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.ckpt", "a.bin", "a.pkl"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "model").mkdir()
    torch.save({"w": torch.ones(1), "x": Evil(tmp_path / "ran")}, tmp_path / "model" / name)
    with pytest.raises(ModelError, match="refused"):
        convert.check_pickles(tmp_path)
    (tmp_path / "model" / name).write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(ModelError, match="refused"):
        convert.check_pickles(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_cut_torch_file_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(10_000)}, tmp_path / "a.pth")
    data = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="damaged"):
        convert.check_pickles(tmp_path)
    (tmp_path / "a.pth").unlink()
    (tmp_path / "raw.bin").write_bytes(b"raw numbers of TensorFlow.js")
    convert.check_pickles(tmp_path)


def test_without_torch_it_says_what_to_install(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pth")
    code = (
        "import sys, pathlib\nsys.modules['torch'] = None\nimport importlib.util\n"
        "find = importlib.util.find_spec\nimportlib.util.find_spec = lambda n, *a: None if n == 'torch' else find(n, *a)\n"
        "from isocenter.models._catalog import convert\nfrom isocenter.core.errors import ModelError\n"
        "try: convert.check_pickles(pathlib.Path(sys.argv[1]))\nexcept ModelError as e: print(e.message)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert "isocenter[torch]" in said


def test_a_meshnet_of_tensorflow_js_becomes_onnx(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kernels = {"c1": rng.normal(size=(3, 3, 3, 1, 2)).astype("<f4"), "c2": rng.normal(size=(1, 1, 1, 2, 3)).astype("<f4")}
    layers: list[dict[str, Any]] = [
        {"class_name": "InputLayer", "name": "input", "config": {"batch_input_shape": [None, None, None, None, 1]}, "inbound_nodes": []}
    ]
    manifest, data = [], b""
    for name, kernel in kernels.items():
        config = {
            "filters": kernel.shape[-1],
            "padding": "same",
            "strides": [1, 1, 1],
            "dilation_rate": [1, 1, 1],
            "use_bias": True,
            "activation": "linear",
        }
        layers.append({"class_name": "Conv3D", "name": name, "config": config, "inbound_nodes": [[[layers[-1]["name"], 0, 0, {}]]]})
        for part, array in (("kernel", kernel), ("bias", np.zeros(kernel.shape[-1], "<f4"))):
            manifest.append({"name": f"{name}/{part}", "shape": list(array.shape), "dtype": "float32"})
            data += array.tobytes()
    topology = {"model_config": {"class_name": "Functional", "config": {"layers": layers}}}
    model = {"modelTopology": topology, "weightsManifest": [{"paths": ["model.bin"], "weights": manifest}]}
    (tmp_path / "model.json").write_text(json.dumps(model))
    (tmp_path / "model.bin").write_bytes(data)
    convert.run("meshnet", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.onnx"]
    assert found.one(tmp_path).family == "onnx_volume"


def test_a_conversion_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="newer"):
        convert.run("alchemy", tmp_path)
