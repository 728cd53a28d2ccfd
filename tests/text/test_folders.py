"""Folders as sentence-transformers writes them: pooling, dense layers, normalisation, prompts and lengths, against that library."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isocenter.core.errors import ModelError, UsageError
from isocenter.core.model import ModelContext
from isocenter.core.settings import Settings
from isocenter.models._text import folder
from isocenter.models.text import TextEncoder
from isocenter.textservice import TextService

TEXTS = ["No pleural effusion.", "", "Left lower lobe opacity, 12 mm.", "clear " * 90]
PROMPTS = {"query": "the size of: ", "document": "no mass "}


def published(place: Path, source: Path, pooling: dict[str, Any], *, dense: bool = False, normalize: bool = False, default: str | None = None) -> Any:
    """A sentence-transformers folder around an encoder, and that library's own model of it."""
    library = pytest.importorskip("sentence_transformers")
    shutil.copytree(source, place)
    modules: list[tuple[str, str, dict[str, Any] | None]] = [("Transformer", "", None), ("Pooling", "1_Pooling", pooling)]
    (place / "1_Pooling").mkdir()
    if dense:
        from safetensors.numpy import save_file

        rng = np.random.default_rng(0)
        activation = "torch.nn.modules.activation.Tanh"
        modules.append(("Dense", "2_Dense", {"in_features": 32, "out_features": 16, "bias": True, "activation_function": activation}))
        (place / "2_Dense").mkdir()
        weights = {"linear.weight": rng.normal(size=(16, 32)).astype(np.float32), "linear.bias": rng.normal(size=16).astype(np.float32)}
        save_file(weights, place / "2_Dense" / "model.safetensors")
    if normalize:
        modules.append(("Normalize", "3_Normalize", {}))
        (place / "3_Normalize").mkdir()
    for _, path, config in modules:
        if config is not None:
            (place / path / "config.json").write_text(json.dumps(config))
    listed = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (kind, path, _) in enumerate(modules)]
    (place / "modules.json").write_text(json.dumps(listed))
    (place / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40, "do_lower_case": False}))
    prompts = {"prompts": PROMPTS, "default_prompt_name": default, "similarity_fn_name": "cosine"}
    (place / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return library.SentenceTransformer(str(place), device="cpu")


@pytest.mark.parametrize(
    ("mode", "include", "extra"),
    [
        ("mean_tokens", True, {}),
        ("mean_tokens", False, {}),
        ("max_tokens", False, {"normalize": True}),
        ("cls_token", True, {"dense": True}),
        ("cls_token", False, {}),
        ("lasttoken", False, {"default": "document"}),
        ("weightedmean_tokens", False, {"dense": True, "normalize": True}),
        ("mean_sqrt_len_tokens", False, {"default": "query"}),
    ],
)
def test_equal_to_sentence_transformers(tiny: Callable[..., Path], tmp_path: Path, mode: str, include: bool, extra: dict[str, Any]) -> None:
    pooling = {"word_embedding_dimension": 32, f"pooling_mode_{mode}": True, "include_prompt": include}
    pooling |= {f"pooling_mode_{other}": False for other in ("cls_token", "mean_tokens", "max_tokens") if other != mode}
    theirs = published(tmp_path / "model", tiny("BertConfig"), pooling, **extra)
    texts = TextService(Settings(home=tmp_path / "home", text_engine="onnxruntime", text_models=(f"model={tmp_path / 'model'}",)))
    try:
        name, future = texts.embedder("model")
        encoder = future.result()
        for prompt in (None, "query", "document"):
            found = texts.answer(texts.embed(name, encoder, TEXTS, prompt=prompt))
            expected = theirs.encode(TEXTS, prompt_name=prompt)
            np.testing.assert_allclose(found.vectors, expected, atol=2e-5, err_msg=f"prompt {prompt}")
            assert found.truncated == (3,)
        with pytest.raises(UsageError, match="query, document"):
            texts.embed(name, encoder, TEXTS, prompt="passage")
    finally:
        texts.close()


def test_what_is_not_understood_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    place = tmp_path / "model"
    published(place, tiny("BertConfig"), {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    listed = json.loads((place / "modules.json").read_text())
    (place / "modules.json").write_text(json.dumps([*listed, {"idx": 9, "name": "9", "path": "9", "type": "somebody.Else"}]))
    with pytest.raises(ModelError, match="module 'Else'"):
        folder.read(place)
    (place / "modules.json").unlink()
    (place / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelError, match="'gpt2'"):
        folder.read(place)


def changed(place: Path, name: str, **values: Any) -> None:
    """Change values in one of a folder's JSON files."""
    path = place / name
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, **values}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin"), "docs/text.md shows how to convert"),
        (lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:5000]), "weights .* cannot be read"),
        (lambda p: (p / "config.json").write_text('{"model_type": "bert"}'), "configuration .* is damaged"),
        (lambda p: (p / "modules.json").write_text('[{"type": "x"}]'), "configuration .* is damaged"),
        (lambda p: (p / "modules.json").write_text("{"), "configuration .* is damaged"),
        (lambda p: changed(p, "sentence_bert_config.json", max_seq_length="long"), "configuration .* is damaged"),
        (lambda p: changed(p, "config.json", num_hidden_layers=9), "lacks the tensor"),
        (lambda p: changed(p, "config.json", num_attention_heads=5), "do not fit together"),
        (lambda p: changed(p, "1_Pooling/config.json", pooling_mode_mean_tokens=False), "how it pools"),
        (lambda p: changed(p, "1_Pooling/config.json", pooling_mode="other"), "pooling by 'other'"),
        (lambda p: (p / "tokenizer.json").write_text("{"), "tokenizer .* cannot be read"),
    ],
)
def test_a_damaged_folder_is_the_folders_fault(tiny: Callable[..., Path], tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    place = tmp_path / "model"
    published(place, tiny("BertConfig"), {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    damage(place)
    context = ModelContext(device="cpu", precision="float32", threads=1, slots=1)
    with pytest.raises(ModelError, match=message):
        TextEncoder(place).load(context)


def test_a_tokenizer_that_knows_more_than_the_weights_is_the_folders_fault(tiny: Callable[..., Path]) -> None:
    """Only texts with such a token are refused."""
    place = tiny("BertConfig", vocab_size=60)
    encoder = TextEncoder(place)
    encoder.load(ModelContext(device="cpu", precision="float32", threads=1, slots=1))
    few = [w for w in ("a", "!", "the") if max(c for cut in encoder.tokenizer.encode([w], 64) for c in cut.ids) < 60]
    assert few
    assert encoder.cut(few)
    for cut in (encoder.cut, encoder.cut_for_score):
        with pytest.raises(ModelError, match="do not belong together"):
            cut([*few, "~~~"])
