"""SAM 2: equal to the library's own processor, session and propagation, also when slices are made and forgotten on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isocenter.core.errors import ModelError, PromptError
from isocenter.core.model import ModelContext
from isocenter.core.prompts import Box, MaskPrompt, Point, Scribble
from isocenter.core.volume import Volume
from isocenter.models import sam2
from tests.models import sam_networks
from tests.models.test_sam import first_names

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
SIDE = sam_networks.SIDE
SHAPE = (9, 40, 52)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sam_networks.save(sam_networks.build("sam2_video"), tmp_path_factory.mktemp("sam2") / "tiny-sam2")


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[sam2.Sam2]:
    loaded = load(folder)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def volume() -> Volume:
    rng = np.random.default_rng(3)
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    ball = np.hypot(np.hypot((z - 4) * 4, y - 20), x - 26) < 14
    return Volume((rng.integers(0, 90, SHAPE) + 140 * ball).astype(np.uint8))


def load(folder: Path) -> sam2.Sam2:
    made = sam2.Sam2()
    made.load(ModelContext(spec=sam2.offer(folder)))
    return made


def pixels(volume: Volume) -> Any:
    """What `Sam2ImageProcessor` makes of the slices: torch's 8-bit antialiased bilinear resize, ImageNet's mean and deviation."""
    planes = torch.from_numpy(np.array(volume.array))[:, None]
    square = torch.nn.functional.interpolate(planes, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(v)[None, :, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (square.float() / 255 - mean) / std


def library(folder: Path, volume: Volume, says: list[tuple[int, dict[str, Any]]], start: int) -> dict[int, NDArray[np.bool_]]:
    """The library's own road: its processor's prompts, its session with the whole film, its iterator up and then down."""
    from transformers import Sam2VideoModel
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession
    from transformers.models.sam2_video.processing_sam2_video import Sam2VideoProcessor

    module = Sam2VideoModel.from_pretrained(folder).eval()
    # The processor cannot be made without torchvision, which only its pictures need.
    processor = object.__new__(Sam2VideoProcessor)
    processor.target_size, processor.point_pad_value = SIDE, -10
    session = Sam2VideoInferenceSession(video=pixels(volume), video_height=SHAPE[1], video_width=SHAPE[2], dtype=torch.float32)
    for z, said in says:
        processor.add_inputs_to_inference_session(session, z, 1, **said)
        module(inference_session=session, frame_idx=z)
    found = {}
    for reverse in (False, True):
        for out in module.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
            masks = torch.nn.functional.interpolate(out.pred_masks, size=SHAPE[1:], mode="bilinear", align_corners=False)
            found[out.frame_idx] = (masks[0, 0] > 0).numpy()
    return found


def agree(mask: NDArray[np.uint8], found: dict[int, NDArray[np.bool_]], keys: set[int]) -> None:
    from isocenter.models._sam.slices import consistent

    expected = np.zeros(mask.shape, bool)
    for z, plane in consistent(found, keys, smooth=False).items():
        expected[z] = plane
    assert expected.any(axis=(1, 2)).sum() >= 5
    assert not expected.all()
    assert (mask.astype(bool) != expected).mean() < 1e-3


#: A voxel's centre in the words of a library that names the pixel's corner.
_SY, _SX = SIDE / SHAPE[1], SIDE / SHAPE[2]


def corner(y: float, x: float) -> list[float]:
    return [x + 0.5 - 0.5 / _SX, y + 0.5 - 0.5 / _SY]


def test_clicks_are_followed_as_the_library_follows_them(folder: Path, model: sam2.Sam2, volume: Volume) -> None:
    session = model.begin(model.prepare(volume))
    session.add([Point((3, 20, 26)), Point((3, 4, 4), False), Point((6, 22, 24))])
    says = [
        (3, {"input_points": [[[corner(20, 26), corner(4, 4)]]], "input_labels": [[[1, 0]]]}),
        (6, {"input_points": [[[corner(22, 24)]]], "input_labels": [[[1]]]}),
    ]
    agree(session.mask, library(folder, volume, says, 3), {3, 6})


def test_boxes_are_followed_as_the_library_follows_them(folder: Path, model: sam2.Sam2, volume: Volume) -> None:
    session = model.begin(model.prepare(volume))
    session.add([Box((4, 6, 12), (5, 34, 40))])
    box = [12 - 0.5 / _SX, 6 - 0.5 / _SY, 40 - 0.5 / _SX, 34 - 0.5 / _SY]
    agree(session.mask, library(folder, volume, [(4, {"input_boxes": [[box]]})], 4), {4})


def test_a_mask_on_one_slice_is_the_truth_there_and_followed(folder: Path, model: sam2.Sam2, volume: Volume) -> None:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[4, 8:32, 14:38] = 1
    session = model.begin(model.prepare(volume))
    session.add([MaskPrompt(drawn)])
    found = library(folder, volume, [(4, {"input_masks": drawn[4].astype(bool)})], 4)
    agree(session.mask, {**found, 4: drawn[4].astype(bool)}, {4})
    assert (session.mask[4] == drawn[4]).all()


def test_masks_on_several_slices_are_kept_and_filled_in_between(model: sam2.Sam2, volume: Volume) -> None:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[[2, 6], 8:32, 14:38] = 1
    session = model.begin(model.prepare(volume))
    session.add([MaskPrompt(drawn)])
    assert (session.mask[[2, 6]] == drawn[[2, 6]]).all()
    assert session.mask[3:6].any(axis=(1, 2)).all()
    assert not session.mask[:2].any()
    assert not session.mask[7:].any()
    whole = np.zeros(SHAPE, np.uint8)
    whole[2:7, 8:32, 14:38] = 1
    other = model.begin(model.prepare(volume))
    other.add([MaskPrompt(whole)])
    assert (other.mask == whole).all(), "nothing is left to find"


def test_a_deep_box_bounds_the_way(model: sam2.Sam2, volume: Volume) -> None:
    session = model.begin(model.prepare(volume))
    session.add([Box((2, 6, 12), (7, 34, 40))])
    filled = np.flatnonzero(session.mask.any(axis=(1, 2)))
    assert filled.min() >= 2
    assert filled.max() <= 6
    assert 4 in filled, "it speaks of its middle slice"


def test_undo_is_exact_and_memory_is_trimmed(folder: Path, model: sam2.Sam2, volume: Volume) -> None:
    session = model.begin(model.prepare(volume))
    states = [session.mask.copy()]
    for prompts in ([Point((4, 20, 26))], [Point((7, 20, 26), False)], [Point((2, 20, 26))]):
        session.add(prompts)
        states.append(session.mask.copy())
    for state in reversed(states[:-1]):
        session.undo()
        assert (session.mask == state).all()
    with pytest.raises(PromptError, match="not scribbles"):
        session.add([Scribble(((1, 1, 1),))])

    from isocenter.models._sam.video import Film

    kept: list[int] = []
    trim = Film._trim

    def counting(self: Film, state: Any, *rest: Any) -> None:
        trim(self, state, *rest)
        outputs = [o for kind in state.output_dict_per_obj[0].values() for o in kind.values()]
        kept.append(sum("high_res_masks" in o for o in outputs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Film, "_trim", counting)
        session.add([Point((4, 20, 26))])
    assert kept
    assert not any(kept), "what the library keeps for every frame followed (4 MB each at full size) is let go"


def test_a_film_longer_than_the_memory_is_followed_to_its_end(folder: Path, model: sam2.Sam2) -> None:
    """Outputs that no later slice asks for are forgotten; the answer is that of a session that forgets nothing."""
    from isocenter.models._sam.video import Film

    rng = np.random.default_rng(1)
    long = Volume(rng.integers(0, 256, (44, 24, 24)).astype(np.uint8))
    masks = []
    for forget in (True, False):
        session = model.begin(model.prepare(long))
        with pytest.MonkeyPatch.context() as patch:
            if not forget:
                patch.setattr(Film, "_trim", lambda *_: None)
            session.add([Point((20, 12, 12))])
        masks.append(session.mask.copy())
    assert masks[0].any(axis=(1, 2)).sum() > 30
    assert (masks[0] == masks[1]).all()


def test_a_folder_for_single_pictures_is_the_librarys_own_too(tmp_path: Path, volume: Volume) -> None:
    folder = sam_networks.save(sam_networks.build("sam2"), tmp_path / "sam2-still")
    made = load(folder)
    one = Volume(np.asarray(volume.array[4:5]))
    session = made.begin(made.prepare(one))
    session.add([Box((0, 6, 12), (1, 34, 40))])

    from transformers import Sam2Model

    module = Sam2Model.from_pretrained(folder).eval()
    box = torch.tensor([[[12 * _SX - 0.5, 6 * _SY - 0.5, 40 * _SX - 0.5, 34 * _SY - 0.5]]])
    with torch.no_grad():
        out = module(pixel_values=pixels(one), input_boxes=box, multimask_output=False)
        masks = torch.nn.functional.interpolate(out.pred_masks[0], size=SHAPE[1:], mode="bilinear", align_corners=False)
    expected = (masks[0, 0] > 0).numpy()
    assert 0 < expected.sum() < expected.size
    assert (session.mask[0].astype(bool) != expected).mean() < 1e-3
    made.close()


def test_sessions_go_on_with_a_network_that_was_loaded_again(folder: Path, volume: Volume) -> None:
    first = load(folder)
    prepared = first.prepare(volume)
    session = first.begin(prepared)
    session.add([Point((4, 20, 26))])
    held = prepared.nbytes
    assert held > 0
    first.close()
    second = load(folder)
    other = second.begin(prepared)
    other.add([Point((4, 20, 26))])
    assert (other.mask == session.mask).all()
    session.add([Point((4, 4, 4), False)])
    assert prepared.nbytes == held, "the slices' features were kept"
    second.close()


#: sam2's names of tensors, by transformers' names; kept apart from the program's own table on purpose.
_SAM2_NAMES = (
    (r"^vision_encoder\.backbone\.blocks\.(\d+)\.layer_norm(\d)\.", r"image_encoder.trunk.blocks.\1.norm\2."),
    (r"^vision_encoder\.backbone\.blocks\.(\d+)\.mlp\.proj_in\.", r"image_encoder.trunk.blocks.\1.mlp.layers.0."),
    (r"^vision_encoder\.backbone\.blocks\.(\d+)\.mlp\.proj_out\.", r"image_encoder.trunk.blocks.\1.mlp.layers.1."),
    (r"^vision_encoder\.backbone\.patch_embed\.projection\.", "image_encoder.trunk.patch_embed.proj."),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^prompt_encoder\.shared_embedding\.positional_embedding", "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "sam_prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "sam_prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "sam_prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "sam_prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "sam_prompt_encoder.mask_downscaling.6."),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^mask_decoder\.transformer\.layers\.(\d)\.layer_norm(\d)\.", r"sam_mask_decoder.transformer.layers.\1.norm\2."),
    (r"^mask_decoder\.transformer\.layer_norm_final_attn\.", "sam_mask_decoder.transformer.norm_final_attn."),
    (r"^mask_decoder\.transformer\.(.*)\.mlp\.proj_in\.", r"sam_mask_decoder.transformer.\1.mlp.layers.0."),
    (r"^mask_decoder\.transformer\.(.*)\.mlp\.proj_out\.", r"sam_mask_decoder.transformer.\1.mlp.layers.1."),
    (r"^mask_decoder\.transformer\.(.*)\.o_proj\.", r"sam_mask_decoder.transformer.\1.out_proj."),
    (r"^mask_decoder\.upscale_conv1\.", "sam_mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "sam_mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "sam_mask_decoder.output_upscaling.3."),
    (r"^mask_decoder\.(output_hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head)\.layers\.0\.", r"sam_mask_decoder.\1.layers.1."),
    (r"^mask_decoder\.(output_hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head)\.proj_in\.", r"sam_mask_decoder.\1.layers.0."),
    (r"^mask_decoder\.(output_hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head)\.proj_out\.", r"sam_mask_decoder.\1.layers.2."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"^memory_attention\.layers\.(\d)\.layer_norm(\d)\.", r"memory_attention.layers.\1.norm\2."),
    (r"^memory_attention\.layer_norm\.", "memory_attention.norm."),
    (r"^memory_attention\.(.*)\.o_proj\.", r"memory_attention.\1.out_proj."),
    (r"^memory_encoder\.mask_downsampler\.layers\.0\.conv\.", "memory_encoder.mask_downsampler.encoder.0."),
    (r"^memory_encoder\.mask_downsampler\.layers\.0\.layer_norm\.", "memory_encoder.mask_downsampler.encoder.1."),
    (r"^memory_encoder\.mask_downsampler\.layers\.1\.conv\.", "memory_encoder.mask_downsampler.encoder.3."),
    (r"^memory_encoder\.mask_downsampler\.layers\.1\.layer_norm\.", "memory_encoder.mask_downsampler.encoder.4."),
    (r"^memory_encoder\.mask_downsampler\.layers\.2\.conv\.", "memory_encoder.mask_downsampler.encoder.6."),
    (r"^memory_encoder\.mask_downsampler\.layers\.2\.layer_norm\.", "memory_encoder.mask_downsampler.encoder.7."),
    (r"^memory_encoder\.mask_downsampler\.layers\.3\.conv\.", "memory_encoder.mask_downsampler.encoder.9."),
    (r"^memory_encoder\.mask_downsampler\.layers\.3\.layer_norm\.", "memory_encoder.mask_downsampler.encoder.10."),
    (r"^memory_encoder\.mask_downsampler\.final_conv\.", "memory_encoder.mask_downsampler.encoder.12."),
    (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (r"^memory_encoder\.memory_fuser\.layers\.(\d)\.scale", r"memory_encoder.fuser.layers.\1.gamma"),
    (r"^memory_encoder\.memory_fuser\.layers\.(\d)\.depthwise_conv\.", r"memory_encoder.fuser.layers.\1.dwconv."),
    (r"^memory_encoder\.memory_fuser\.layers\.(\d)\.pointwise_conv(\d)\.", r"memory_encoder.fuser.layers.\1.pwconv\2."),
    (r"^memory_encoder\.memory_fuser\.layers\.(\d)\.layer_norm\.", r"memory_encoder.fuser.layers.\1.norm."),
    (r"^object_pointer_proj\.proj_in\.", "obj_ptr_proj.layers.0."),
    (r"^object_pointer_proj\.layers\.0\.", "obj_ptr_proj.layers.1."),
    (r"^object_pointer_proj\.proj_out\.", "obj_ptr_proj.layers.2."),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
    (r"^memory_temporal_positional_encoding", "maskmem_tpos_enc"),
    (r"^no_memory_embedding", "no_mem_embed"),
    (r"^no_memory_positional_encoding", "no_mem_pos_enc"),
    (r"^no_object_pointer", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
)


def published(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as sam2 writes it: its names, one tensor for each kind of point."""
    state = {k: v for k, v in state.items() if k != "shared_image_embedding.positional_embedding"}
    points = state.pop("prompt_encoder.point_embed.weight")
    renamed = first_names(state, _SAM2_NAMES)
    return renamed | {f"sam_prompt_encoder.point_embeddings.{i}.weight": points[i : i + 1] for i in range(4)}


def test_original_checkpoints_become_folders(tmp_path: Path) -> None:
    from isocenter.models._sam import convert_sam2

    made = sam_networks.build("sam2_video")
    original = made.state_dict()
    names = published(dict(original))
    known = {"maskmem_tpos_enc", "no_mem_embed", "obj_ptr_tpos_proj.weight", "image_encoder.trunk.blocks.0.mlp.layers.1.bias"}
    known |= {"memory_attention.layers.0.cross_attn_image.out_proj.weight", "memory_encoder.fuser.layers.0.gamma", "mask_downsample.weight"}
    known |= {"sam_mask_decoder.transformer.layers.1.norm4.weight", "sam_prompt_encoder.point_embeddings.2.weight"}
    assert known <= set(names)
    assert not [n for n in names if re.search("layer_norm|proj_in|proj_out|o_proj", n)]
    torch.save({"model": names}, tmp_path / "tiny.pt")
    convert_sam2.convert(tmp_path / "tiny.pt", tmp_path / "out", image_size=SIDE, config=sam_networks.sam2_config())
    from transformers import Sam2VideoModel

    read = Sam2VideoModel.from_pretrained(tmp_path / "out").state_dict()
    assert set(read) == set(original)
    assert all((read[name] == tensor).all() for name, tensor in original.items())
    assert sam2.offer(tmp_path / "out").task.value == "interactive"
    with pytest.raises(ModelError, match="none of the published"):
        sam2.convert(tmp_path / "tiny.pt", tmp_path / "other")


@pytest.mark.parametrize(("size", "heads"), [(1024, 1), (512, 1)])
def test_published_networks_are_told_by_their_tensors(size: int, heads: int) -> None:
    """The library's defaults are those of sam2.1-hiera-tiny; MedSAM2 is the same network for pictures of 512 pixels."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    from isocenter.models._sam.convert_sam2 import configuration

    with torch.device("meta"):
        state = dict(Sam2VideoModel(Sam2VideoConfig()).state_dict())
    told = Sam2VideoConfig(**configuration(state, size)).to_dict()
    usual = Sam2VideoConfig().to_dict()
    if size == 1024:
        assert told == usual
    else:
        assert told["memory_attention_rope_feat_sizes"] == [32, 32]
        assert told["vision_config"]["backbone_feature_sizes"] == [[128, 128], [64, 64], [32, 32]]
        with torch.device("meta"):
            shapes = {k: v.shape for k, v in Sam2VideoModel(Sam2VideoConfig(**configuration(state, size))).state_dict().items()}
        assert shapes == {k: v.shape for k, v in state.items()}
    assert told["vision_config"]["backbone_config"]["num_attention_heads_per_stage"][0] == heads
