"""MedSigLIP: the library's own vectors, of length one, from folders that are whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isocenter.core.catalog import Entry
from isocenter.core.errors import CancelledError, InputError, ModelError, UsageError
from isocenter.core.model import ModelContext, Run
from isocenter.models.medsiglip import MedSigLIP, offer

TEXTS = ["a lesion in the liver", "clear lungs", "a chest radiograph"]


def words(folder: Path) -> None:
    """A tokenizer trained on a few words, as a folder has it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=["<unk>", "<pad>", "</s>"]))
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", eos_token="</s>").save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random SigLIP, as transformers saves one."""
    import torch
    from transformers import SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    made = tmp_path_factory.mktemp("siglip") / "medsiglip"
    torch.manual_seed(0)
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = SiglipConfig(
        text_config=common | {"vocab_size": 32, "max_position_embeddings": 16}, vision_config=common | {"image_size": 32, "patch_size": 8}
    )
    SiglipModel(config).save_pretrained(made)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(made)
    words(made)
    return made


def loaded(folder: Path, precision: str = "float32") -> MedSigLIP:
    model = MedSigLIP()
    model.load(ModelContext(spec=offer(folder), precision=precision))
    return model


def pictures() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((40, 50), (32, 32, 3), (64, 20))]


def by_library(folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoTokenizer, SiglipModel

    model = SiglipModel.from_pretrained(folder).eval()
    values = AutoImageProcessor.from_pretrained(folder)(images=[Image.fromarray(p).convert("RGB") for p in pictures()], return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        answer = model(input_ids=tokens["input_ids"], pixel_values=values["pixel_values"])
    return answer.image_embeds.numpy(), answer.text_embeds.numpy()


def test_the_librarys_vectors(folder: Path) -> None:
    model = loaded(folder)
    images, texts = by_library(folder)
    np.testing.assert_allclose(model.describe(pictures()), images, atol=1e-5)
    np.testing.assert_allclose(model.describe(pictures(), run=Run(batch=1)), images, atol=1e-5)
    np.testing.assert_allclose(model.describe_texts(TEXTS), texts, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(model.describe(pictures()), axis=1), 1, atol=1e-5)
    assert model.describe([]).shape == (0, 32)
    assert np.sum(loaded(folder, "bfloat16").describe(pictures()) * images, axis=1).min() > 0.999
    model.close()
    with pytest.raises(ModelError, match="not loaded"):
        model.describe(pictures())


def test_what_a_folder_says_of_itself(folder: Path) -> None:
    spec = offer(folder, Entry("medsiglip-448", "medsiglip", "Pictures to vectors", "HAI-DEF", revision="abc"))
    assert (spec.id, spec.version, spec.licence) == ("medsiglip-448", "abc", "HAI-DEF")
    assert spec.resident_bytes["float32"] == 2 * spec.resident_bytes["bfloat16"]
    assert 0 < spec.weights_bytes - spec.resident_bytes["float32"] < 20_000, "the file is its numbers and a header"
    assert spec.weights_sha256 is not None


def test_what_is_no_picture_and_no_text(folder: Path) -> None:
    model = loaded(folder)
    for wrong in (np.zeros((4, 4), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(InputError, match="8-bit"):
            model.describe([wrong])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="empty"):
        model.describe_texts(["liver", " "])
    long = model.describe_texts(["lungs " * 100])
    assert long.shape == (1, 32), "a long text is cut, as the library cuts it"
    with pytest.raises(CancelledError):
        model.describe(pictures(), run=Run(cancelled=lambda: True))


@pytest.mark.parametrize("damage", ["type", "cut", "pointer", "pickled", "lacking", "nan", "processor"])
def test_bad_folders(folder: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    if damage == "type":
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif damage == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    elif damage == "pickled":
        weights.rename(copy / "pytorch_model.bin")
    elif damage == "processor":
        (copy / "preprocessor_config.json").unlink()
    else:
        tensors = load_file(weights)
        name = "vision_model.post_layernorm.weight"
        if damage == "lacking":
            del tensors[name]
        else:
            tensors[name] = tensors[name] * np.nan
        save_file(tensors, weights, metadata={"format": "pt"})
    said = {"type": "'clip'", "cut": "cut off", "pointer": "git lfs pull", "pickled": "pickled", "lacking": "missing", "nan": "not finite"}
    with pytest.raises(ModelError, match=said.get(damage, "preprocessor_config.json is missing")) as caught:
        loaded(copy).describe(pictures())
    assert str(tmp_path) not in caught.value.message
