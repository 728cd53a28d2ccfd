"""SAM 2's and SAM 3's networks from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isocenter.core.errors import ModelError
from isocenter.core.model import ModelContext
from isocenter.models._sam import folder as installed
from isocenter.models._sam import frame, network
from isocenter.models._sam.still import Still, window_of
from isocenter.models._sam.video import Tracker

#: SAM 3's pictures lie between -1 and 1.
HALF = (0.5, 0.5, 0.5)


def sam2(context: ModelContext) -> Tracker | Still:
    """SAM 2 from the context's folder: the video network, or the one for single pictures. Raises `ModelError`."""
    from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    config = installed.read_json(context.weights / "config.json")
    options: Mapping[str, Any] = context.spec.options if context.spec else {}
    window = window_of(options.get("window"))
    slices = installed.batch(installed.hiera_bytes(config), context.precision)
    said = frame.said_by(context.weights)
    if config.get("model_type") == "sam2":
        still = network.configured(Sam2Config, context.weights)
        recipe = frame.recipe(said, side(still.prompt_encoder_config), stretch=True)
        return Still(network.build(Sam2Model, still, context.weights, context), recipe, False, window, 0.0, slices)
    video = network.configured(Sam2VideoConfig, context.weights)
    recipe = frame.recipe(said, side(video.prompt_encoder_config), stretch=True)
    return Tracker(network.build(Sam2VideoModel, video, context.weights, context), recipe, Sam2VideoInferenceSession, window, slices)


def sam3(context: ModelContext) -> Tracker | Still:
    """SAM 3's tracker from the context's folder, which may hold the detector of words too. Raises `ModelError`."""
    from transformers import Sam3TrackerConfig, Sam3TrackerModel, Sam3TrackerVideoConfig, Sam3TrackerVideoModel, Sam3VideoConfig
    from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoInferenceSession

    kind = installed.read_json(context.weights / "config.json").get("model_type")
    options: Mapping[str, Any] = context.spec.options if context.spec else {}
    window = window_of(options.get("window"))
    if kind == "sam3_video":
        config = network.configured(Sam3VideoConfig, context.weights).tracker_config
    else:
        config = network.configured(Sam3TrackerConfig if kind == "sam3_tracker" else Sam3TrackerVideoConfig, context.weights)
    recipe = frame.recipe(frame.said_by(context.weights), side(config.prompt_encoder_config), stretch=True, mean=HALF, std=HALF)
    backbone = config.vision_config.backbone_config
    slices = installed.batch(installed.vit_bytes(backbone.to_dict()), context.precision)
    if kind == "sam3_tracker":
        return Still(network.build(Sam3TrackerModel, config, context.weights, context), recipe, False, window, 0.0, slices)
    built = network.build(Sam3TrackerVideoModel, config, context.weights, context)
    return Tracker(built, recipe, Sam3TrackerVideoInferenceSession, window, slices)


def side(prompts: Any) -> int:
    """The side of a network's square picture. Raises `ModelError` for one that is no square."""
    size = prompts.image_size
    if isinstance(size, int):
        return size
    if len(size) == 2 and size[0] == size[1]:
        return int(size[0])
    raise ModelError("the model's pictures are no squares; those of the SAM family are")
