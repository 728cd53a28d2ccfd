"""BERTScore (Zhang et al., https://arxiv.org/abs/1904.09675), number for number as the package `bert_score` 0.3.12 has it.

Each token of one text is matched with the most similar token of the other; precision is the mean over the candidate's
tokens, recall over the reference's. Tokens weigh the same or by inverse document frequency; the two special tokens at
the ends weigh nothing, but can be matched. A text without tokens scores 0. `baselines.json` holds the published
baselines of that package (MIT licence, Copyright (c) 2019 Tianyi Zhang, Varsha Kishore, Felix Wu).
"""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import UsageError

Tokens = tuple[int, ...]
VERSION = "0.3.12"

#: The layer that agreed best with people's judgement, by the package's own table; encoders that are served here.
LAYERS = {
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "bert-base-cased-finetuned-mrpc": 9,
    "bert-base-multilingual-cased": 9,
    "bert-base-chinese": 8,
    "roberta-base": 10,
    "roberta-large": 17,
    "roberta-large-mnli": 19,
    "roberta-base-openai-detector": 7,
    "roberta-large-openai-detector": 15,
    "allenai/scibert_scivocab_uncased": 8,
    "allenai/scibert_scivocab_cased": 9,
    "nfliu/scibert_basevocab_uncased": 9,
    "distilroberta-base": 5,
    "distilbert-base-uncased": 5,
    "distilbert-base-uncased-distilled-squad": 4,
    "distilbert-base-multilingual-cased": 5,
    "xlm-roberta-base": 9,
    "xlm-roberta-large": 17,
    "google/electra-small-generator": 9,
    "google/electra-small-discriminator": 11,
    "google/electra-base-generator": 10,
    "google/electra-base-discriminator": 9,
    "google/electra-large-generator": 18,
    "google/electra-large-discriminator": 14,
    "microsoft/deberta-base": 9,
    "microsoft/deberta-base-mnli": 9,
    "microsoft/deberta-large": 16,
    "microsoft/deberta-large-mnli": 18,
    "microsoft/deberta-xlarge": 18,
    "microsoft/deberta-xlarge-mnli": 40,
    "microsoft/deberta-v2-xlarge": 10,
    "microsoft/deberta-v2-xlarge-mnli": 17,
    "microsoft/deberta-v2-xxlarge": 21,
    "microsoft/deberta-v2-xxlarge-mnli": 22,
    "microsoft/deberta-v3-xsmall": 10,
    "microsoft/deberta-v3-small": 4,
    "microsoft/deberta-v3-base": 9,
    "microsoft/mdeberta-v3-base": 10,
    "microsoft/deberta-v3-large": 12,
    "khalidalt/DeBERTa-v3-large-mnli": 18,
    "microsoft/mpnet-base": 8,
    "SpanBERT/spanbert-base-cased": 8,
    "SpanBERT/spanbert-large-cased": 17,
    "ProsusAI/finbert": 10,
    "princeton-nlp/unsup-simcse-bert-base-uncased": 10,
    "princeton-nlp/unsup-simcse-bert-large-uncased": 18,
    "princeton-nlp/unsup-simcse-roberta-base": 8,
    "princeton-nlp/unsup-simcse-roberta-large": 13,
    "princeton-nlp/sup-simcse-bert-base-uncased": 10,
    "princeton-nlp/sup-simcse-bert-large-uncased": 18,
    "princeton-nlp/sup-simcse-roberta-base": 10,
    "princeton-nlp/sup-simcse-roberta-large": 16,
    "dbmdz/bert-base-turkish-cased": 10,
    "dbmdz/distilbert-base-turkish-cased": 4,
}
#: The package's model for a language when none is named; any other language gets the multilingual one.
LANGUAGES = {"en": "roberta-large", "zh": "bert-base-chinese", "tr": "dbmdz/bert-base-turkish-cased", "en-sci": "allenai/scibert_scivocab_uncased"}
MULTILINGUAL = "bert-base-multilingual-cased"


def model_for(language: str) -> str:
    """The package's model for a language."""
    return LANGUAGES.get(language.lower(), MULTILINGUAL)


def idf(references: Sequence[Tokens]) -> dict[int, float]:
    """Inverse document frequency of each token of the references. A token that none has weighs `log(n + 1)`: see `weights`."""
    counts = Counter(token for ids in references for token in set(ids))
    return {token: math.log((len(references) + 1) / (count + 1)) for token, count in counts.items()}


def weights(ids: Tokens, frequencies: Mapping[int, float] | None, documents: int, special: tuple[int | None, int | None]) -> NDArray[np.float32]:
    """Each token's share, summing to 1 (not numbers where all weigh 0). frequencies: from `idf`, None for equal weights."""
    if frequencies is None:
        raw = [0.0 if token in special else 1.0 for token in ids]
    else:
        unseen = math.log(documents + 1)
        raw = [frequencies.get(token, unseen) for token in ids]
    weight = np.asarray(raw, np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weight / weight.sum(), np.float32)


def match(
    candidate: NDArray[np.float32], reference: NDArray[np.float32], candidate_weights: NDArray[np.float32], reference_weights: NDArray[np.float32]
) -> tuple[float, float, float]:
    """Precision, recall and F1 of one pair, from unit vectors of tokens (tokens, size) and their weights."""
    if len(candidate) <= 2 or len(reference) <= 2:
        return 0.0, 0.0, 0.0
    similar = candidate @ reference.T
    precision = np.float32((similar.max(axis=1) * candidate_weights).sum())
    recall = np.float32((similar.max(axis=0) * reference_weights).sum())
    both = precision + recall
    f1 = np.float32(2) * precision * recall / both if both != 0 else np.float32(0)
    return float(precision), float(recall), 0.0 if np.isnan(f1) else float(f1)


class Pairs:
    """Scores of pairs, each computed as soon as both of its texts are there, so that few token vectors are held at a time.

    shares: each text's `weights`, a candidate and its reference in turn: then both of a pair are computed near each other.
    May be called by several threads.
    """

    def __init__(self, shares: Sequence[NDArray[np.float32]]) -> None:
        self._shares = shares
        self._alone: dict[int, NDArray[np.float32]] = {}
        self._lock = threading.Lock()
        self.scores: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)] * (len(shares) // 2)

    def __call__(self, position: int, vectors: NDArray[np.float32]) -> None:
        """Take the unit vectors (tokens, size) of the text at a position."""
        pair, second = divmod(position, 2)
        with self._lock:
            other = self._alone.pop(pair, None)
            if other is None:
                self._alone[pair] = vectors
                return
        candidate, reference = (other, vectors) if second else (vectors, other)
        self.scores[pair] = match(candidate, reference, *self._shares[2 * pair : 2 * pair + 2])


def rescale(scores: Sequence[tuple[float, float, float]], model: str, language: str, layer: int) -> list[tuple[float, float, float]]:
    """Scores on a scale where unrelated sentences get about 0. Raises `UsageError` where no baseline was published."""
    rows = _baselines().get(f"{language.lower()}/{model}")
    if rows is None or layer >= len(rows):
        raise UsageError(f"no baseline was published for this model and the language '{language[:20]}'; leave rescale_with_baseline out")
    base = np.asarray(rows[layer], np.float32)
    return [tuple(float(v) for v in (np.asarray(s, np.float32) - base) / (1 - base)) for s in scores]  # type: ignore[misc]


@lru_cache(maxsize=1)
def _baselines() -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = json.loads(files(__package__ or "").joinpath("baselines.json").read_text())
    return found


def code(model: str, layer: int, *, idf: bool, rescaled: bool, engine: str) -> str:
    """The reproducibility hash, as the package writes it, with the engine in the place of its transformers version."""
    text = f"{model}_L{layer}{'_idf' if idf else '_no-idf'}_version={VERSION}({engine})"
    return text + ("-rescaled" if rescaled else "") + "_fast-tokenizer"
