"""SAM 3: one folder, two models; clicks followed as the library does, words as its post-processing does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isocenter.core.errors import CancelledError, LimitError, ModelError, PromptError
from isocenter.core.model import ModelContext, Run, Task
from isocenter.core.prompts import Point
from isocenter.core.volume import Volume
from isocenter.models import registry, sam3
from tests.models import sam_networks

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
SIDE = sam_networks.SIDE3
SHAPE = (5, 40, 52)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sam_networks.save(sam_networks.build("sam3"), tmp_path_factory.mktemp("sam3") / "sam3")


@pytest.fixture(scope="module")
def volume() -> Volume:
    rng = np.random.default_rng(3)
    return Volume((rng.integers(-300, 400, SHAPE)).astype(np.int16), modality="CT", unit="HU")


@pytest.fixture(scope="module")
def finder(folder: Path) -> Iterator[sam3.Sam3Text]:
    made = sam3.Sam3Text()
    made.load(ModelContext(spec=sam3.offer(folder)[1]))
    yield made
    made.close()


def pixels(volume: Volume) -> Any:
    """What `Sam3ImageProcessor` makes of slices in the soft tissue window: torch's 8-bit resize, between -1 and 1."""
    grey = np.rint(np.clip((np.asarray(volume.array, np.float32) + 160) / 400 * 255, 0, 255)).astype(np.uint8)
    square = torch.nn.functional.interpolate(torch.from_numpy(grey)[:, None], size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return ((square.float() / 255 - 0.5) / 0.5).expand(-1, 3, -1, -1)


def test_one_folder_offers_clicks_and_words(folder: Path) -> None:
    clicks, words = sam3.offer(folder)
    assert (clicks.id, clicks.task, clicks.prompts) == ("sam3", Task.INTERACTIVE, ("point", "box", "mask"))
    assert (words.id, words.task, words.prompts) == ("sam3-text", Task.TEXT, ("text",))
    whole = (folder / "model.safetensors").stat().st_size
    assert 0 < clicks.resident_bytes["float32"] < whole
    assert 0 < words.resident_bytes["float32"] < whole
    assert clicks.weights_sha256 == words.weights_sha256 is not None
    assert isinstance(registry.create(words), sam3.Sam3Text)


def test_clicks_are_followed_as_the_library_follows_them(folder: Path, volume: Volume) -> None:
    from transformers import Sam3TrackerVideoModel, Sam3VideoConfig
    from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoInferenceSession

    from isocenter.models._sam.slices import consistent

    made = sam3.Sam3()
    made.load(ModelContext(spec=sam3.offer(folder)[0]))
    session = made.begin(made.prepare(volume))
    session.add([Point((2, 20, 26))])
    config = Sam3VideoConfig.from_pretrained(folder).tracker_config
    module = Sam3TrackerVideoModel.from_pretrained(folder, config=config).eval()
    state = Sam3TrackerVideoInferenceSession(video=pixels(volume), video_height=SHAPE[1], video_width=SHAPE[2], dtype=torch.float32)
    point = torch.tensor([[[[26.5 / 52 * SIDE - 0.5, 20.5 / 40 * SIDE - 0.5]]]])
    state.add_point_inputs(state.obj_id_to_idx(1), 2, {"point_coords": point, "point_labels": torch.ones(1, 1, 1, dtype=torch.int32)})
    state.obj_with_new_inputs = [1]
    module(inference_session=state, frame_idx=2)
    found: dict[int, NDArray[np.bool_]] = {}
    for reverse in (False, True):
        for out in module.propagate_in_video_iterator(state, start_frame_idx=2, reverse=reverse):
            masks = torch.nn.functional.interpolate(out.pred_masks, size=SHAPE[1:], mode="bilinear", align_corners=False)
            found[out.frame_idx] = (masks[0, 0] > 0).numpy()
    expected = np.zeros(SHAPE, bool)
    for z, plane in consistent(found, {2}, smooth=False).items():
        expected[z] = plane
    assert expected[2].any()
    assert not expected.all()
    assert (session.mask.astype(bool) != expected).mean() < 1e-3
    made.close()


def expected(folder: Path, volume: Volume, prompt: str, threshold: float) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """The library's detector on every slice, its processor's padding to 32 tokens, its post-processing written out."""
    from transformers import Sam3Model, Sam3VideoConfig

    module = Sam3Model.from_pretrained(folder, config=Sam3VideoConfig.from_pretrained(folder).detector_config).eval()
    tokens = sam_networks.tokenizer()(prompt, return_tensors="pt", padding="max_length", max_length=32)
    best = np.zeros(SHAPE, np.float32)
    for z, square in enumerate(pixels(volume)):
        with torch.no_grad():
            out = module(pixel_values=square[None], input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        scores = out.pred_logits.sigmoid() * out.presence_logits.sigmoid()
        masks = out.pred_masks.sigmoid()[0][scores[0] > 0.5]
        if len(masks):
            resized = torch.nn.functional.interpolate(masks[None], size=SHAPE[1:], mode="bilinear", align_corners=False)
            best[z] = resized[0].amax(0).numpy()
    return best > threshold, best


def test_words_are_found_as_the_library_finds_them(folder: Path, finder: sam3.Sam3Text, volume: Volume) -> None:
    prompts = ["liver", "the left kidney"]
    found = finder.find(volume, prompts, threshold=0.6)
    assert [f.prompt for f in found] == prompts
    for finding in found:
        mask, probability = expected(folder, volume, finding.prompt, 0.6)
        assert 0 < mask.sum() < mask.size
        assert (finding.mask.astype(bool) != mask).mean() < 1e-3
        assert np.abs(finding.probability.astype(int) - np.floor(probability * 255).astype(int)).max() <= 1
        assert 0.5 < finding.presence <= 1
        assert "-160 to 240 HU" in finding.notes[0]
    assert (found[0].probability != found[1].probability).any(), "the words matter"
    one = finder.find(volume, ["liver"], threshold=0.6, run=Run(batch=1))[0]
    assert (one.mask != found[0].mask).mean() < 1e-3


def test_words_that_say_nothing_or_too_much_are_refused(finder: sam3.Sam3Text, volume: Volume) -> None:
    with pytest.raises(PromptError, match="empty"):
        finder.find(volume, ["  "])
    with pytest.raises(LimitError, match="tokens"):
        finder.find(volume, ["the left kidney " * 20])
    with pytest.raises(CancelledError):
        finder.find(volume, ["liver"], run=Run(cancelled=lambda: True))
    steps: list[float] = []
    finder.find(volume, ["liver"], run=Run(progress=lambda fraction, _: steps.append(fraction), batch=2))
    assert steps == pytest.approx([0, 0.4, 0.8])


def test_a_folder_without_a_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "sam3")
    for name in ("tokenizer.json", "vocab.json"):
        (tmp_path / "sam3" / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="tokenizer"):
        sam3.offer(tmp_path / "sam3")
