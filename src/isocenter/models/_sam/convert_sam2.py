"""sam2's checkpoints (sam2.1_hiera_tiny.pt and its sisters, MedSAM2_latest.pt) for transformers' `Sam2VideoModel`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isocenter.core.errors import ModelError
from isocenter.models._sam import checkpoint as original
from isocenter.models._sam.checkpoint import SHARED, Rules, State
from isocenter.models._sam.frame import IMAGENET_MEAN, IMAGENET_STD

_RULES: Rules = (
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^(vision_encoder\.backbone\.blocks\.\d+|mask_decoder\.transformer\.layers\.\d+)\.mlp\.layers\.0\.", r"\1.mlp.proj_in."),
    (r"^(vision_encoder\.backbone\.blocks\.\d+|mask_decoder\.transformer\.layers\.\d+)\.mlp\.layers\.1\.", r"\1.mlp.proj_out."),
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"^memory_encoder\.mask_downsampler\.encoder\.12\.", "memory_encoder.mask_downsampler.final_conv."),
    *((rf"^(memory_encoder\.mask_downsampler)\.encoder\.{3 * i}\.", rf"\1.layers.{i}.conv.") for i in range(4)),
    *((rf"^(memory_encoder\.mask_downsampler)\.encoder\.{3 * i + 1}\.", rf"\1.layers.{i}.layer_norm.") for i in range(4)),
    (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
    (r"\.gamma$", ".scale"),
    (r"\.out_proj\.", ".o_proj."),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    *SHARED,
)


@dataclass(frozen=True)
class _Hiera:
    """What the tensors of an encoder do not tell: heads of the first stage, blocks with global attention, windows by stage."""

    heads: int
    everywhere: tuple[int, ...]
    windows: tuple[int, ...] = (8, 4, 14, 7)


#: The published encoders (tiny, small, base plus, large) by the width of their first stage and their blocks by stage.
_KNOWN: dict[tuple[int, tuple[int, ...]], _Hiera] = {
    (96, (1, 2, 7, 2)): _Hiera(1, (5, 7, 9)),
    (96, (1, 2, 11, 2)): _Hiera(1, (7, 10, 13)),
    (112, (2, 3, 16, 3)): _Hiera(2, (12, 16, 20)),
    (144, (2, 6, 36, 4)): _Hiera(2, (23, 33, 43), (8, 4, 16, 8)),
}


def convert(checkpoint: Path, folder: Path, *, image_size: int, config: Mapping[str, Any] | None = None) -> None:
    """Write the folder. config: of the network (transformers' names), for one that is none of the published ones.

    Raises `ModelError` for a checkpoint that is not one of these.
    """
    from transformers import Sam2VideoConfig, Sam2VideoModel

    state = original.renamed(original.load(checkpoint), _RULES)
    embedding = "prompt_encoder.shared_embedding.positional_embedding"
    points = [f"prompt_encoder.point_embed.{i}.weight" for i in range(4)]
    try:
        made = Sam2VideoConfig(**(config or configuration(state, image_size)))
        state["shared_image_embedding.positional_embedding"] = state[embedding]
        state["prompt_encoder.point_embed.weight"] = _joined([state.pop(name) for name in points])
    except KeyError as error:
        raise ModelError(f"the checkpoint is not one of sam2's: it has no tensor for {error}") from None
    picture = {
        "image_processor_type": "Sam2ImageProcessor",
        "size": {"height": image_size, "width": image_size},
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }
    original.write(Sam2VideoModel(made), state, folder, picture)


def configuration(state: State, image_size: int) -> dict[str, Any]:
    """The configuration of a published network, told by its tensors. Raises `ModelError` for another, `KeyError` for missing names."""
    trunk = "vision_encoder.backbone."
    widths: list[int] = []
    while f"{trunk}blocks.{len(widths)}.layer_norm2.weight" in state:
        widths.append(int(state[f"{trunk}blocks.{len(widths)}.layer_norm2.weight"].shape[0]))
    first = int(state[f"{trunk}pos_embed"].shape[1])
    stages = sorted(set(widths))
    blocks = tuple(widths.count(width) for width in stages)
    known = _KNOWN.get((first, blocks))
    if known is None:
        raise ModelError(f"the checkpoint is none of the published SAM 2 networks: its encoder has blocks {blocks}, the first {first} wide")
    background = [int(n) for n in state[f"{trunk}pos_embed"].shape[-2:]]
    maps = [[image_size // stride] * 2 for stride in (4, 8, 16)]
    return {
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": first,
                "image_size": [image_size, image_size],
                "embed_dim_per_stage": stages,
                "blocks_per_stage": list(blocks),
                "num_attention_heads_per_stage": [known.heads * 2**i for i in range(len(stages))],
                "global_attention_blocks": list(known.everywhere),
                "window_size_per_stage": list(known.windows),
                "window_positional_embedding_background_size": background,
            },
            "backbone_channel_list": stages[::-1],
            "backbone_feature_sizes": maps,
        },
        "prompt_encoder_config": {"image_size": image_size},
        "image_size": image_size,
        "memory_attention_rope_feat_sizes": maps[-1],
        # SAM 2.1 has both, SAM 2 neither.
        "enable_temporal_pos_encoding_for_object_pointers": "temporal_positional_encoding_projection_layer.weight" in state,
        "enable_occlusion_spatial_embedding": "occlusion_spatial_embedding_parameter" in state,
    }


def _joined(parts: list[Any]) -> Any:
    import torch

    return torch.cat(parts, dim=0)
