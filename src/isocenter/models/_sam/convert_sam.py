"""segment-anything's checkpoints (sam_vit_b_01ec64.pth and its sisters, MedSAM's medsam_vit_b.pth) for transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isocenter.core.errors import ModelError
from isocenter.models._sam import checkpoint as original
from isocenter.models._sam.checkpoint import SHARED, Rules, State
from isocenter.models._sam.frame import MEDSAM

_RULES: Rules = (
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"^image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"^image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"^image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"^image_encoder\.", "vision_encoder."),
    *SHARED,
)
#: Heads of the mask decoder's attention: the one number that no tensor's shape tells; all published networks have it.
_HEADS = 8


def convert(checkpoint: Path, folder: Path, *, medsam: bool) -> None:
    """Write the folder. Raises `ModelError` for a checkpoint that is not one of these."""
    from transformers import SamConfig, SamModel

    state = original.renamed(original.load(checkpoint), _RULES)
    for name in ("pixel_mean", "pixel_std"):
        state.pop(name, None)
    embedding = "prompt_encoder.shared_embedding.positional_embedding"
    try:
        config = SamConfig(**configuration(state))
        state["shared_image_embedding.positional_embedding"] = state[embedding]
    except KeyError as error:
        raise ModelError(f"the checkpoint is not one of segment-anything's: it has no tensor for {error}") from None
    side = config.vision_config.image_size
    square: dict[str, Any] = {"size": {"longest_edge": side}, "pad_size": {"height": side, "width": side}}
    picture = {**MEDSAM, "size": {"height": side, "width": side}} if medsam else square
    original.write(SamModel(config), state, folder, {"image_processor_type": "SamImageProcessor", **picture})


def configuration(state: State) -> dict[str, Any]:
    """The configuration that the tensors' shapes tell (transformers' names). Raises `KeyError` for names that are missing."""
    vision, prompts, masks = "vision_encoder.", "prompt_encoder.", "mask_decoder."
    patches = state[f"{vision}patch_embed.projection.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    tokens = state[f"{vision}pos_embed"].shape[1]
    depth = _count(state, f"{vision}layers.")
    relative = [state[f"{vision}layers.{i}.attn.rel_pos_h"] for i in range(depth)]
    spans = [(r.shape[0] + 1) // 2 for r in relative]
    out = state[f"{vision}neck.conv2.weight"].shape[0]
    hidden = state[f"{masks}iou_token.weight"].shape[1]
    inner = state[f"{masks}transformer.final_attn_token_to_image.q_proj.weight"].shape[0]
    mlp = state[f"{vision}layers.0.mlp.lin1.weight"].shape[0]
    return {
        "vision_config": {
            "hidden_size": width,
            "output_channels": out,
            "num_hidden_layers": depth,
            "num_attention_heads": width // relative[0].shape[1],
            "image_size": tokens * patch,
            "patch_size": patch,
            "window_size": min(spans),
            "global_attn_indexes": [i for i, span in enumerate(spans) if span == tokens],
            "num_pos_feats": state[f"{prompts}shared_embedding.positional_embedding"].shape[1],
            "mlp_ratio": mlp / width,
            "mlp_dim": mlp,
        },
        "prompt_encoder_config": {
            "hidden_size": hidden,
            "image_size": tokens * patch,
            "patch_size": patch,
            "mask_input_channels": state[f"{prompts}mask_embed.conv2.weight"].shape[0],
        },
        "mask_decoder_config": {
            "hidden_size": hidden,
            "mlp_dim": state[f"{masks}transformer.layers.0.mlp.lin1.weight"].shape[0],
            "num_hidden_layers": _count(state, f"{masks}transformer.layers."),
            "num_attention_heads": _HEADS,
            "attention_downsample_rate": hidden // inner,
            "num_multimask_outputs": state[f"{masks}mask_tokens.weight"].shape[0] - 1,
            "iou_head_hidden_dim": state[f"{masks}iou_prediction_head.proj_in.weight"].shape[0],
        },
    }


def _count(state: State, prefix: str) -> int:
    """How many numbered layers begin with `prefix`."""
    return 1 + max((int(name[len(prefix) :].split(".", 1)[0]) for name in state if name.startswith(prefix)), default=-1)
