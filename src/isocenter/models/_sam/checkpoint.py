"""Checkpoints as they were first published: read without running what they hold, renamed, checked, written for transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from isocenter.core.errors import ModelError

State = dict[str, Any]
Rules = Sequence[tuple[str, str]]

#: Names that SAM and SAM 2 share, from theirs to transformers'. A three-layer perceptron's first and last layers have names.
SHARED: Rules = (
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.pe_layer\.positional_encoding_gaussian_matrix$", ".shared_embedding.positional_embedding"),
    (r"\.norm(\d|_final_attn)?\.", r".layer_norm\1."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"((?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|object_pointer_proj))\.layers\.0\.", r"\1.proj_in."),
    (r"((?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|object_pointer_proj))\.layers\.1\.", r"\1.layers.0."),
    (r"((?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|object_pointer_proj))\.layers\.2\.", r"\1.proj_out."),
)


def load(checkpoint: Path) -> State:
    """The tensors of a .pt or .pth file, by name. Raises `ModelError` for one that holds anything else."""
    try:
        data = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError("the checkpoint is not there") from None
    except Exception as error:  # the loader raises errors of many kinds, whose words name paths
        if checkpoint.read_bytes()[:32].startswith(b"version https://git-lfs"):
            raise ModelError("the checkpoint is a Git LFS pointer, not the weights; fetch it with `git lfs pull`") from None
        raise ModelError(
            f"the checkpoint is refused ({type(error).__name__}): it is cut short, or holds more than tensors, which could run code when it is read"
        ) from None
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    if not isinstance(data, Mapping) or not data or not all(isinstance(t, torch.Tensor) for t in data.values()):
        raise ModelError("the checkpoint holds no tensors by name")
    return {str(name).removeprefix("module."): tensor for name, tensor in data.items()}


def renamed(state: State, rules: Rules) -> State:
    """The same tensors under transformers' names: each rule in turn on each name."""
    result: State = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


def write(module: Any, state: State, folder: Path, picture: Mapping[str, Any]) -> None:
    """Fill a network with the tensors, all of them and no others, and write the folder. Raises `ModelError`."""
    wanted = module.state_dict()
    for name, tensor in state.items():
        if name not in wanted:
            raise ModelError(f"the checkpoint does not fit: the network has no tensor '{name}'")
        if tuple(wanted[name].shape) != tuple(tensor.shape):
            raise ModelError(f"the checkpoint does not fit: '{name}' is {tuple(tensor.shape)}, the network's is {tuple(wanted[name].shape)}")
    if absent := sorted(set(wanted) - set(state)):
        raise ModelError(f"the checkpoint does not fit: {len(absent)} tensors are missing, such as '{absent[0]}'")
    module.load_state_dict({name: tensor.to(torch.float32) for name, tensor in state.items()})
    folder.mkdir(parents=True, exist_ok=True)
    module.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(picture), indent=2) + "\n", encoding="utf-8")
