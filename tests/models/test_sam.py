"""SAM and MedSAM: the library's own numbers, what is taken and refused, folders that cannot be used, checkpoints converted."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isocenter.core.catalog import Entry
from isocenter.core.errors import ModelError, PromptError
from isocenter.core.model import ModelContext, ModelSpec
from isocenter.core.prompts import Box, Lasso, MaskPrompt, Point, Prompt, Scribble, Text
from isocenter.core.volume import Volume
from isocenter.models import sam
from tests.models import sam_networks

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sam_networks.save(sam_networks.build("sam"), tmp_path_factory.mktemp("sam") / "tiny-sam")


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[sam.Sam]:
    loaded = load(sam.offer(folder))
    yield loaded
    loaded.close()


def load(spec: ModelSpec) -> sam.Sam:
    made = sam.Sam()
    made.load(ModelContext(spec=spec))
    return made


def picture(shape: tuple[int, int, int] = (1, 40, 52), seed: int = 0) -> Volume:
    """8-bit pictures, which are shown as they are."""
    return Volume(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


def library(folder: Path, plane: NDArray[np.uint8], points: Any, labels: Any, box: Any) -> NDArray[np.bool_]:
    """What transformers' own processor, model and post-processing make of it; the best of three for a single click."""
    from PIL import Image
    from transformers import SamModel
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
    from transformers.models.sam.processing_sam import SamProcessor

    processor = SamProcessor(SamImageProcessorPil.from_pretrained(folder))
    module = SamModel.from_pretrained(folder).eval()
    rgb = Image.fromarray(np.repeat(plane[..., None], 3, axis=-1))
    inputs = processor(rgb, input_points=points, input_labels=labels, input_boxes=box, return_tensors="pt")
    several = box is None and len(points[0]) == 1
    given = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items() if k not in ("original_sizes", "reshaped_input_sizes")}
    with torch.no_grad():
        out = module(**given, multimask_output=several)
    masks = processor.post_process_masks(out.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    found: NDArray[np.bool_] = masks[0][0, int(out.iou_scores[0, 0].argmax())].numpy()
    return found


@pytest.mark.parametrize("shape", [(40, 52), (90, 64), (64, 64)])
def test_clicks_and_boxes_are_the_librarys_own(folder: Path, model: sam.Sam, shape: tuple[int, int]) -> None:
    """The library names a place by the pixel's corner, here it is the pixel's centre: the same place, said in both ways."""
    volume = picture((1, *shape))
    scale = max(shape) / sam_networks.SIDE
    centre = 0.5 - 0.5 * scale
    cases: list[tuple[list[Prompt], Any, Any, Any]] = [
        ([Point((0, 20, 30))], [[[30 + centre, 20 + centre]]], [[1]], None),
        ([Point((0, 20, 30)), Point((0, 5, 8), False)], [[[30 + centre, 20 + centre], [8 + centre, 5 + centre]]], [[1, 0]], None),
        ([Box((0, 4, 6), (1, 30, 44))], None, None, [[[6 - 0.5 * scale, 4 - 0.5 * scale, 44 - 0.5 * scale, 30 - 0.5 * scale]]]),
    ]
    for prompts, points, labels, box in cases:
        session = model.begin(model.prepare(volume))
        session.add(prompts)
        expected = library(folder, np.asarray(volume.array[0], np.uint8), points, labels, box)
        assert 0 < expected.sum() < expected.size
        assert (session.mask[0].astype(bool) != expected).mean() < 1e-3


def test_medsam_pictures_are_stretched_and_scaled_by_their_own_range(folder: Path) -> None:
    """MedSAM's own script, step by step: resize to the square, scale to 0..1, box, one mask, sigmoid, resize, one half."""
    from PIL import Image
    from transformers import SamModel

    spec = sam.offer(folder, Entry("medsam-vit-base", "sam", "", "Apache-2.0"))
    made = load(spec)
    volume = picture((1, 40, 52))
    session = made.begin(made.prepare(volume))
    session.add([Box((0, 4, 6), (1, 30, 44))])
    side = sam_networks.SIDE
    resized = np.asarray(Image.fromarray(np.asarray(volume.array[0])).resize((side, side), Image.Resampling.BICUBIC), np.float32)
    scaled = (resized - resized.min()) / (resized.max() - resized.min())
    corners = np.array([6, 4, 44, 30]) / np.array([52, 40, 52, 40]) * side - 0.5
    with torch.no_grad():
        module = SamModel.from_pretrained(folder).eval()
        pixels = torch.from_numpy(np.repeat(scaled[None, None], 3, axis=1))
        out = module(pixel_values=pixels, input_boxes=torch.tensor(corners[None, None], dtype=torch.float32), multimask_output=False)
        share = torch.nn.functional.interpolate(out.pred_masks[0].sigmoid(), size=(40, 52), mode="bilinear", align_corners=False)
    expected = (share[0, 0] > 0.5).numpy()
    assert 0 < expected.sum() < expected.size
    assert (session.mask[0].astype(bool) != expected).mean() < 1e-3
    with pytest.raises(PromptError, match="positive points, boxes and masks"):
        session.add([Point((0, 3, 3), False)])
    made.close()


def test_slices_are_encoded_once_and_several_at_once_for_a_mask(folder: Path) -> None:
    made = load(sam.offer(folder))
    assert made._net is not None
    seen: list[int] = []
    module = made._net.network.module
    original = module.get_image_embeddings

    def counted(pixels: Any) -> Any:
        seen.append(len(pixels))
        return original(pixels)

    module.get_image_embeddings = counted
    volume = picture((12, 40, 52))
    prepared = made.prepare(volume)
    assert prepared.nbytes == 0
    mask = np.zeros(volume.shape, np.uint8)
    mask[1:11, 10:30, 12:40] = 1
    session = made.begin(prepared)
    session.add([MaskPrompt(mask)])
    assert seen == [8, 2], "ten slices of a prior mask: eight at once, then the rest"
    assert prepared.nbytes == 10 * 16 * 8 * 8 * 4
    made.begin(prepared).add([MaskPrompt(mask)])
    assert len(seen) == 2, "another session on the same volume looks at nothing again"
    made.close()


def test_features_stay_within_their_bound() -> None:
    from isocenter.models._sam.features import Prepared
    from isocenter.models._sam.windows import Window

    prepared = Prepared(picture((9, 8, 8)), capacity=4000)

    def encode(part: list[int]) -> list[tuple[Any, ...]]:
        return [(torch.full((100,), float(z)),) for z in part]

    for z in (0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 0):
        (found,) = prepared.features([z], Window(0, 255), encode, 4)
        assert float(found[0][0]) == z
    assert prepared.nbytes == 3600
    for z in range(9):
        prepared.features([z], Window(-160, 240), encode, 4)
    seen: list[int] = []

    def other(part: list[int]) -> list[tuple[Any, ...]]:
        seen.extend(part)
        return encode(part)

    prepared.features([8], Window(-160, 240), other, 4, "another network")
    assert seen == [8], "what one network saw is not another's"
    assert prepared.nbytes == 4000, "ten of four hundred bytes fit; those of the other window went"


def test_undo_is_exact_and_a_failure_changes_nothing(model: sam.Sam) -> None:
    volume = picture((4, 40, 52))
    session = model.begin(model.prepare(volume))
    steps: list[list[Prompt]] = [[Point((2, 20, 30))], [Point((2, 8, 8), False)], [Box((1, 2, 2), (2, 30, 30))], [Point((0, 1, 1), False)]]
    states = [session.mask.copy()]
    for prompts in steps:
        before = session.mask.copy()
        box = session.add(prompts)
        outside = session.mask != before
        if box is not None:
            outside[box.slices] = False
        assert not outside.any()
        states.append(session.mask.copy())
    assert any((a != b).any() for a, b in itertools.pairwise(states))
    refused: list[Prompt] = [
        Scribble(((2, 1, 1), (2, 5, 5))),
        Lasso(((2, 1, 1), (2, 5, 5), (2, 1, 5))),
        Text("liver"),
        Box((2, 3, 3), (3, 9, 9), False),
        MaskPrompt(np.ones(volume.shape), positive=False),
        Box((0, 5, 3), (4, 6, 20)),
        Point((9, 1, 1)),
    ]
    for prompt in refused:
        with pytest.raises(PromptError):
            session.add([prompt])
        assert (session.mask == states[-1]).all()
    for state in reversed(states[:-1]):
        session.undo()
        assert (session.mask == state).all()
    assert session.undo() is None
    again = model.begin(model.prepare(volume))
    for prompts, state in zip(steps, states[1:], strict=True):
        again.add(prompts)
        assert (again.mask == state).all(), "the same prompts give the same mask"


def test_a_session_outlives_its_network(folder: Path) -> None:
    """A network that made room for another is loaded anew, as another object; nobody's work is lost."""
    spec = sam.offer(folder, Entry("outlived", "sam", "", ""))
    first = load(spec)
    volume = picture((2, 40, 52))
    session = first.begin(first.prepare(volume))
    session.add([Point((1, 20, 30))])
    first.close()
    second = load(spec)
    session.add([Point((1, 4, 4), False)])
    second.close()
    with pytest.raises(ModelError, match="not loaded"):
        session.add([Point((0, 4, 4))])


@pytest.mark.parametrize(
    ("modality", "values", "prompts", "window"),
    [
        ("CT", 40, [Point((0, 4, 4))], (-160, 240)),
        ("CT", -850, [Point((0, 4, 4))], (-1350, 150)),
        ("CT", 900, [Point((0, 4, 4), False), Box((0, 1, 1), (1, 7, 7))], (-500, 1300)),
        ("CT", -850, [Point((0, 4, 4), False)], (-160, 240)),
    ],
)
def test_the_window_shows_what_is_pointed_at(modality: str, values: int, prompts: list[Prompt], window: tuple[float, float]) -> None:
    from isocenter.models._sam import windows

    volume = Volume(np.full((1, 8, 8), values, np.int16), modality=modality, unit="HU")
    assert tuple(windows.choose(volume, prompts)) == window


def test_other_scans_are_shown_between_their_percentiles_and_nan_is_black() -> None:
    from isocenter.models._sam import windows

    values = np.linspace(0, 1000, 8000, dtype=np.float32).reshape(1, 80, 100)
    volume = Volume(values, modality="MR")
    lo, hi = windows.choose(volume, [])
    assert lo == pytest.approx(5, abs=1)
    assert hi == pytest.approx(995, abs=1)
    grey = windows.to_grey(np.array([[np.nan, np.inf, -np.inf, 500.0]]), windows.Window(0, 1000))
    assert grey.tolist() == [[0, 255, 0, 128]]


def test_pixels_that_are_no_squares_keep_the_anatomys_proportions() -> None:
    from isocenter.models._sam.frame import Recipe

    recipe = Recipe(size=64)
    assert recipe.frame((32, 64), (2.0, 1.0)).inner == (64, 64)
    assert recipe.frame((32, 64)).inner == (32, 64)
    frame = recipe.frame((32, 64), (2.0, 1.0))
    assert frame.point(0, 0) == (0.0, 0.5)
    assert frame.box((0, 0), (32, 64)) == (-0.5, -0.5, 63.5, 63.5)
    assert Recipe(size=64, pad=False).frame((32, 100), (5.0, 1.0)).inner == (64, 64)


def test_what_is_found_in_slices_becomes_one_body() -> None:
    from isocenter.models._sam.slices import consistent

    disc = np.hypot(*np.mgrid[-20:20, -20:20]) < 12
    dot = np.zeros((40, 40), bool)
    dot[2:5, 2:5] = True
    holed = disc.copy()
    holed[18:22, 18:22] = False
    found = {4: disc, 5: holed | dot, 6: disc, 11: disc}
    body = consistent(found, {4})
    assert sorted(body) == [4, 5, 6], "a slice that hangs on nothing goes"
    assert not body[5][2:5, 2:5].any(), "so does a spot beside"
    assert (body[4] == disc).all(), "what was said on a key slice stays"
    assert body[5].sum() > holed.sum(), "a hole in one slice is closed by its neighbours"


def test_specks_and_spurs_do_not_widen_the_next_slices_box() -> None:
    from isocenter.models._sam.slices import bulk, from_prior

    disc = np.hypot(*np.mgrid[-20:20, -20:20]) < 9
    spoilt = disc.copy()
    spoilt[2, 3] = spoilt[35:37, 35:37] = True  # specks
    spoilt[20, 28:37] = True  # a spur, a pixel wide
    box, meant = (np.array(from_prior(m, boxes_only=True).box) for m in (bulk(spoilt), disc))
    assert np.abs(box - meant).max() <= 1, "where the spur begins, a pixel stays"
    for thin in (np.eye(40, dtype=bool), np.pad(np.ones((30, 1), bool), ((5, 5), (20, 19))), np.zeros((40, 40), bool)):
        assert (bulk(thin) == thin).all(), "a vessel is no spur"
    two = disc | np.roll(disc, 18, axis=1)
    assert from_prior(bulk(two), boxes_only=True).box == from_prior(two, boxes_only=True).box, "parts stay"


def test_smoothing_goes_across_slices_alone() -> None:
    from isocenter.models._sam.slices import consistent

    square = np.zeros((30, 30), bool)
    square[5:20, 6:25] = True
    spoilt = square.copy()
    spoilt[4, 10] = True
    spoilt[12, 12] = False
    body = consistent({3: square, 4: square, 5: spoilt, 6: square}, {3})
    assert all((body[z] == square).all() for z in (3, 4, 5, 6)), "corners stay, and what one slice alone says goes"


_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("words", "spoil"),
    [
        (r"config\.json", lambda f: (f / "config.json").unlink()),
        ("convert", lambda f: ((f / "config.json").unlink(), (f / "medsam_vit_b.pth").write_bytes(b"x"))),
        ("type 'sam2'", lambda f: (f / "config.json").write_text('{"model_type": "sam2"}')),
        ("missing", lambda f: (f / "model.safetensors").unlink()),
        ("cut", lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100])),
        ("LFS", lambda f: (f / "model.safetensors").write_text(_POINTER)),
        ("do not fit", lambda f: edit(f / "config.json", "vision_config", "num_hidden_layers", 3)),
        ("64 x 64", lambda f: edit(f / "preprocessor_config.json", "size", "longest_edge", 1024)),
        ("image_mean", lambda f: edit(f / "preprocessor_config.json", None, "image_std", [1, 0, 1])),
        (r"config\.json", lambda f: edit(f / "config.json", "vision_config", "image_size", "large")),
    ],
)
def test_bad_folders_say_what_is_wrong(folder: Path, tmp_path: Path, words: str, spoil: Callable[[Path], Any]) -> None:
    shutil.copytree(folder, tmp_path / "bad")
    spoil(tmp_path / "bad")
    with pytest.raises(ModelError, match=words) as told:
        load(sam.offer(tmp_path / "bad"))
    assert str(tmp_path) not in told.value.message


def edit(path: Path, part: str | None, key: str, value: Any) -> None:
    data = json.loads(path.read_text())
    (data[part] if part else data)[key] = value
    path.write_text(json.dumps(data))


def test_a_window_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="window"):
        load(sam.offer(folder, Entry("x", "sam", "", "", options={"window": [3, 1]})))


def test_numbers_that_are_none_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["mask_decoder.iou_token.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="NaN"):
        load(sam.offer(tmp_path / "nan"))
    made = load(sam.offer(folder))
    assert made._net is not None
    made._net.network.module.mask_decoder.iou_token.weight.fill_(float("nan"))
    session = made.begin(made.prepare(picture()))
    with pytest.raises(ModelError, match="NaN"):
        session.add([Point((0, 20, 30))])
    assert not session.mask.any()
    made.close()


def test_half_precision_gives_nearly_the_same(folder: Path, model: sam.Sam) -> None:
    half = sam.Sam()
    half.load(ModelContext(spec=sam.offer(folder), precision="bfloat16"))
    masks = []
    for made in (half, model):
        session = made.begin(made.prepare(picture()))
        session.add([Box((0, 4, 6), (1, 30, 44))])
        masks.append(session.mask.copy())
    assert (masks[0] != masks[1]).mean() < 0.02
    half.close()


#: segment-anything's names of tensors, by transformers' names; kept apart from the program's own table on purpose.
_SAM_NAMES = (
    (r"^vision_encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"image_encoder.blocks.\1.norm\2."),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^vision_encoder\.pos_embed", "image_encoder.pos_embed"),
    (r"^prompt_encoder\.shared_embedding\.positional_embedding", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^mask_decoder\.transformer\.layers\.(\d+)\.layer_norm(\d)\.", r"mask_decoder.transformer.layers.\1.norm\2."),
    (r"^mask_decoder\.transformer\.layer_norm_final_attn\.", "mask_decoder.transformer.norm_final_attn."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head))\.layers\.0\.", r"\1.layers.1."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head))\.proj_in\.", r"\1.layers.0."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head))\.proj_out\.", r"\1.layers.2."),
)


def first_names(state: dict[str, Any], table: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in table:
            new = re.sub(pattern, replacement, name)
            if new != name:
                name = new
                break
        renamed[name] = tensor
    return renamed


def test_original_checkpoints_become_folders(tmp_path: Path) -> None:
    torch.manual_seed(1)
    import transformers

    made = transformers.SamModel(sam_networks.sam_config(heads=8)).eval()
    state = {k: v for k, v in made.state_dict().items() if k != "shared_image_embedding.positional_embedding"}
    state = {k: torch.randn_like(v) for k, v in state.items()}
    published = first_names(state, _SAM_NAMES)
    for known in ("image_encoder.blocks.0.norm1.weight", "mask_decoder.transformer.final_attn_token_to_image.out_proj.bias"):
        assert known in published
    assert {"prompt_encoder.point_embeddings.3.weight", "mask_decoder.iou_prediction_head.layers.2.bias"} <= set(published)
    torch.save(published, tmp_path / "medsam_vit_b.pth")
    sam.convert(tmp_path / "medsam_vit_b.pth", tmp_path / "medsam")
    read = transformers.SamModel.from_pretrained(tmp_path / "medsam").state_dict()
    assert all((read[name] == tensor).all() for name, tensor in state.items())
    spec = sam.offer(tmp_path / "medsam")
    assert spec.options["medsam"]
    loaded = load(spec)
    assert loaded._net is not None
    assert loaded._net.recipe.minmax
    assert not loaded._net.recipe.pad
    loaded.close()
    for name in ("pixel_mean", "pixel_std"):
        published[name] = torch.ones(3, 1, 1)
    torch.save({"model": {f"module.{k}": v for k, v in published.items()}}, tmp_path / "sam_vit_b.pth")
    sam.convert(tmp_path / "sam_vit_b.pth", tmp_path / "sam")
    assert not sam.offer(tmp_path / "sam").options["medsam"]


def test_checkpoints_that_are_none_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (exec, ("raise SystemExit",))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="refused"):
        sam.convert(tmp_path / "evil.pth", tmp_path / "out")
    torch.save({"model": {"some.weight": torch.ones(3)}}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="not one of segment-anything"):
        sam.convert(tmp_path / "other.pth", tmp_path / "out")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match="LFS"):
        sam.convert(tmp_path / "pointer.pth", tmp_path / "out")
    with pytest.raises(ModelError, match="not there"):
        sam.convert(tmp_path / "absent.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()
