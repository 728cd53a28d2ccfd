"""Tiny networks of the SAM family with random weights, made on the spot and saved as the published folders are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SIDE = 64  #: of SAM's and SAM 2's pictures here
SIDE3 = 56  #: of SAM 3's

_HIERA: dict[str, Any] = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "image_size": [SIDE, SIDE],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "blocks_per_stage": [1, 1, 2, 1],
    "global_attention_blocks": [3],
    "window_size_per_stage": [4, 2, 4, 2],
    "window_positional_embedding_background_size": [4, 4],
}
_HIERA_VISION: dict[str, Any] = {
    "model_type": "sam2_vision_model",
    "backbone_config": _HIERA,
    "backbone_channel_list": [64, 32, 16, 8],
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    "fpn_hidden_size": 128,
}
_DECODER = {"hidden_size": 128, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
#: The library reads memories of 64 channels, and pointers of more than that.
_MEMORY: dict[str, Any] = {
    "memory_attention_hidden_size": 128,
    "memory_attention_feed_forward_hidden_size": 32,
    "memory_attention_num_layers": 1,
    "memory_attention_rope_feat_sizes": [4, 4],
    "memory_encoder_hidden_size": 128,
    "memory_encoder_output_channels": 64,
    "mask_downsampler_embed_dim": 128,
    "memory_fuser_embed_dim": 128,
    "memory_fuser_intermediate_dim": 64,
    "memory_fuser_num_layers": 1,
}
_SMALL = {"hidden_size": 128, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def sam_config(heads: int = 2) -> Any:
    from transformers import SamConfig

    vision = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    more = {"window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8, "mlp_ratio": 2.0, "mlp_dim": 64, "initializer_range": 0.02}
    prompt = {"hidden_size": 16, "image_size": SIDE, "patch_size": 8, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": heads, "iou_head_hidden_dim": 16}
    return SamConfig(vision_config={**vision, **more}, prompt_encoder_config=prompt, mask_decoder_config=decoder)


def sam2_config(kind: str = "sam2_video") -> dict[str, Any]:
    prompt = {"hidden_size": 128, "image_size": SIDE, "mask_input_channels": 4}
    parts = {"vision_config": _HIERA_VISION, "prompt_encoder_config": prompt, "mask_decoder_config": _DECODER}
    return parts if kind == "sam2" else {**parts, "image_size": SIDE, **_MEMORY}


def sam3_config() -> Any:
    from transformers import Sam3VideoConfig

    vit: dict[str, Any] = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vit |= {"image_size": SIDE3, "patch_size": 14, "window_size": 2, "global_attn_indexes": [1], "pretrain_image_size": 28}
    sizes = [[16, 16], [8, 8], [4, 4]]
    vision = {"model_type": "sam3_vision_model", "backbone_config": vit, "fpn_hidden_size": 128, "backbone_feature_sizes": sizes}
    words: dict[str, Any] = {"model_type": "clip_text_model", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "projection_dim": 16}
    words |= {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 2,
    }
    detector: dict[str, Any] = {
        "model_type": "sam3",
        "vision_config": vision,
        "text_config": words,
        "geometry_encoder_config": _SMALL,
        "detr_encoder_config": _SMALL,
    }
    detector |= {"detr_decoder_config": {**_SMALL, "num_queries": 5}, "mask_decoder_config": {"hidden_size": 128, "num_attention_heads": 2}}
    prompt = {"hidden_size": 128, "image_size": SIDE3, "patch_size": 14, "mask_input_channels": 4}
    tracker: dict[str, Any] = {
        "model_type": "sam3_tracker_video",
        "vision_config": vision,
        "prompt_encoder_config": prompt,
        "mask_decoder_config": _DECODER,
    }
    tracker |= {"image_size": SIDE3, **_MEMORY}
    return Sam3VideoConfig(detector_config=detector, tracker_config=tracker, low_res_mask_size=16)


def build(kind: str) -> Any:
    """A network with random weights, the same every time."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    if kind == "sam":
        made = t.SamModel(sam_config())
        torch.nn.init.normal_(made.shared_image_embedding.positional_embedding)
    elif kind == "sam2":
        made = t.Sam2Model(t.Sam2Config(**sam2_config("sam2")))
    elif kind == "sam2_video":
        made = t.Sam2VideoModel(t.Sam2VideoConfig(**sam2_config()))
    else:
        made = t.Sam3VideoModel(sam3_config())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim < 2 or parameter.std() < 1e-4:
                # The libraries' zeros and ones would hide a part that is left out.
                parameter.add_(torch.randn_like(parameter) * (0.02 if "bias" in name else 0.1))
        for name, parameter in made.named_parameters():
            # Random networks mostly see nothing; these see something everywhere.
            if name.endswith(("pred_obj_score_head.proj_out.bias", "presence_head.layer3.bias")):
                parameter.fill_(4.0)
            if name.endswith(("query_proj.weight", "mask_embedder.layers.2.weight")):
                parameter.mul_(30)
        if kind.startswith("sam2"):
            made.shared_image_embedding.load_state_dict(made.prompt_encoder.shared_embedding.state_dict())
    return made.eval()


def save(made: Any, folder: Path) -> Path:
    """The network as a folder; SAM's and SAM 3's with what else belongs to it."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    made.save_pretrained(folder)
    kind = made.config.model_type
    if kind == "sam":
        picture: dict[str, Any] = {"size": {"longest_edge": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}}
    else:
        side = SIDE3 if kind.startswith("sam3") else SIDE
        picture = {"size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(picture))
    if kind == "sam3_video":
        tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> Any:
    """A tokenizer of a few words, with the marks of CLIP's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "liver", "lesion", "left", "right", "kidney", "lung", "the"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=32, **marks)
