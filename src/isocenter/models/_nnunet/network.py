"""The network of a trained-model folder: built from its plans, its weights read without running anything in them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from isocenter.core.errors import ModelError
from isocenter.models._nnunet import folder as _folder
from isocenter.models._nnunet.folder import Trained

State = dict[str, torch.Tensor]


@dataclass
class Network:
    """A network ready to run. folds: a set of weights each; the only one of a single fold is already in `module`.

    mirrored: axes (0 = first of the array's) that may be flipped and averaged, as training allowed it. trained: the folder,
    with the configuration that the weights name.
    """

    trained: Trained
    module: Any
    folds: tuple[State, ...]
    plans: Any
    configuration: Any
    mirrored: tuple[int, ...]
    trainer: str


def build(trained: Trained) -> Network:
    """Raises `ModelError` for weights that cannot be read safely or do not fit the plans."""
    with quiet():
        plans = PlansManager(dict(trained.plans))
        read = [read_checkpoint(path) for path in trained.checkpoints]
        facts = read[0][1]
        name = facts.get("configuration") or trained.name
        if name not in trained.plans["configurations"]:
            raise ModelError(f"the weights were trained for the configuration '{str(name)[:40]}', which plans.json does not have")
        if name != trained.name:
            again = [path.parent.name.removeprefix("fold_") for path in trained.checkpoints]
            trained = _folder.read(trained.folder, {"configuration": name, "folds": again, "orientation": trained.orientation})
        configuration = plans.get_configuration(name)
        module = make(configuration, 1, trained.heads)
    trainer = str(facts.get("trainer_name", ""))
    for state, _ in read:
        fill(module, state, trainer)
    module.eval().requires_grad_(False)
    axes = tuple(int(a) for a in facts.get("inference_allowed_mirroring_axes") or ())
    if axes and max(axes) >= len(configuration.patch_size):
        raise ModelError("the weights allow mirroring along an axis that the network does not have")
    folds = tuple(state for state, _ in read) if len(read) > 1 else ()
    return Network(trained, module, folds, plans, configuration, axes, trainer)


def make(configuration: Any, inputs: int, outputs: int) -> Any:
    """The network of a configuration whose names were checked, with weights of no meaning. Raises `ModelError`."""
    try:
        return get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            inputs,
            outputs,
            allow_init=False,
            deep_supervision=False,
        )
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ImportError, AssertionError, RuntimeError):
        raise ModelError("the network that plans.json describes cannot be built with the nnU-Net that is installed here") from None


@contextmanager
def quiet() -> Iterator[None]:
    """nnU-Net warns of old plans, which it then reads all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_checkpoint(path: Path) -> tuple[State, Mapping[str, Any]]:
    """Weights and what was written beside them: trainer_name, configuration, inference_allowed_mirroring_axes."""
    if path.suffix == ".safetensors":
        return _safe(path)
    scalar = np.float64(0).__reduce__()[0]  # nnU-Net logs numpy numbers beside the weights; rebuilding one runs nothing
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "bool")]
    allowed = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *kinds]
    try:
        with torch.serialization.safe_globals(allowed):
            data = torch.load(path, map_location="cpu", weights_only=True)
        facts = {k: data.get(k) for k in ("trainer_name", "inference_allowed_mirroring_axes")}
        facts["configuration"] = (data.get("init_args") or {}).get("configuration")
        weights = data["network_weights"]
    except Exception:  # whatever a broken or hostile file makes of it
        raise ModelError(
            f"'{path.name}' cannot be read without running code in it, or holds no weights of nnU-Net v2; convert it to safetensors"
        ) from None
    return _tensors(weights, path), facts


def _safe(path: Path) -> tuple[State, Mapping[str, Any]]:
    """The same of a safetensors file; the facts are its metadata, mirroring axes as "0,1,2"."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = dict(file.metadata() or {})
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError):
        raise ModelError(f"'{path.name}' cannot be read; install the model again") from None
    axes = facts.get("inference_allowed_mirroring_axes") or ""
    facts["inference_allowed_mirroring_axes"] = [int(a) for a in axes.strip("[]()").split(",") if a.strip().isdigit()]
    return _tensors(weights, path), facts


def _tensors(weights: Any, path: Path) -> State:
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise ModelError(f"'{path.name}' holds no weights of nnU-Net v2")
    # Compiled and parallel networks carry a prefix that means nothing here.
    return {str(k).removeprefix("module.").removeprefix("_orig_mod."): v.float() if v.is_floating_point() else v for k, v in weights.items()}


def fill(module: Any, state: State, trainer: str) -> None:
    """Put weights in, and into `state` the further names that the network has for the same tensors."""
    names: dict[int, list[str]] = {}
    for name, tensor in module.state_dict().items():
        names.setdefault(tensor.data_ptr(), []).append(name)
    for group in names.values():
        known = next((state[n] for n in group if n in state), None)
        if known is not None:
            state.update(dict.fromkeys(group, known))
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError:
        kind = f" (trainer {trainer[:60]})" if trainer else ""
        raise ModelError(
            f"the weights do not fit the network that plans.json describes{kind}; trainers with networks of their own are not supported"
        ) from None
