"""Texts to tokens with the folder's own tokenizer. Works outside of the interpreter lock, on all cores."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isocenter.core.errors import ModelError

Tokens = tuple[int, ...]
#: Characters that are tokenised at once, or a single text.
GROUP = 50_000


@dataclass(frozen=True)
class Cut:
    """One text's tokens, special ones included, and whether it was too long and lost its end."""

    ids: Tokens
    truncated: bool


class Tokenizer:
    """A tokenizer; for use by several threads."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self._tokenizer = _load(folder, config)
        self._tokenizer.no_padding()
        self._lock = threading.Lock()
        self._limited: dict[int, Any] = {}
        settings = _settings(folder)
        self.pad = int(config.get("pad_token_id") or 0)
        self.cls, self.sep = (self._special(settings, names) for names in (("cls_token", "bos_token"), ("sep_token", "eos_token")))

    def _special(self, settings: dict[str, Any], names: tuple[str, str]) -> int | None:
        for name in names:
            token = settings.get(name)
            text = token.get("content") if isinstance(token, dict) else token
            if text is not None and (found := self._tokenizer.token_to_id(text)) is not None:
                return int(found)
        empty = self._tokenizer.encode("").ids
        return int(empty[0 if names[0] == "cls_token" else -1]) if empty else None

    def encode(self, texts: Sequence[str], limit: int) -> list[Cut]:
        """Tokens of each text, cut at `limit` with the special tokens kept."""
        tokenizer = self._limited.get(limit) or self._limit(limit)
        if len(texts) == 1:  # quicker by itself: the batch call spreads its texts over threads
            return [_cut(tokenizer.encode(texts[0]))]
        return [_cut(encoding) for group in _groups(texts) for encoding in tokenizer.encode_batch(group)]

    def _limit(self, limit: int) -> Any:
        """The tokenizer that cuts at `limit`: one for each limit, set up once, so that nobody waits for another's texts."""
        from tokenizers import Tokenizer as Fast

        with self._lock:
            if limit not in self._limited:
                made = Fast.from_str(self._tokenizer.to_str()) if self._limited else self._tokenizer
                made.enable_truncation(limit)
                self._limited[limit] = made
            return self._limited[limit]

    def size(self) -> int:
        """How many different tokens there are."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))


def _cut(encoding: Any) -> Cut:
    return Cut(tuple(encoding.ids), bool(encoding.overflowing))


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """A few texts at a time: the library keeps some hundred bytes for each token, also of those that are cut off."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size > GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found.update({k: v for k, v in json.loads((folder / name).read_text(encoding="utf-8")).items() if v is not None})
    return found


def _load(folder: Path, config: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer as Fast

    try:
        if (folder / "tokenizer.json").is_file():
            return Fast.from_file(str(folder / "tokenizer.json"))
        if (folder / "vocab.txt").is_file():
            return _wordpiece(folder, _settings(folder))
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return _byte_level(folder, config)
    except Exception:
        raise ModelError(f"the tokenizer of the text model '{folder.name}' cannot be read; download it again") from None
    raise ModelError(f"the text model '{folder.name}' has no tokenizer.json, vocab.txt, or vocab.json with merges.txt")


def _wordpiece(folder: Path, settings: dict[str, Any]) -> Any:
    """BERT's tokenizer from its list of word pieces."""
    from tokenizers.implementations import BertWordPieceTokenizer

    return BertWordPieceTokenizer(
        str(folder / "vocab.txt"),
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
    )._tokenizer


def _byte_level(folder: Path, config: dict[str, Any]) -> Any:
    """The byte-level tokenizer of RoBERTa and DeBERTa 1, from its vocabulary and merges."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, processors

    deberta = config["model_type"] == "deberta"
    start, end = ("[CLS]", "[SEP]") if deberta else ("<s>", "</s>")
    tokenizer = Fast(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token="[UNK]" if deberta else None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    first, last = tokenizer.token_to_id(start), tokenizer.token_to_id(end)
    pair = f"{start} $A {end} $B {end}" if deberta else f"{start} $A {end} {end} $B {end}"
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", pair=pair, special_tokens=[(start, first), (end, last)])
    return tokenizer
