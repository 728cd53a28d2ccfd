"""Text encoders: vectors of texts and BERTScore, from any BERT-family or DeBERTa folder as it was published.

The folders lie in `ISOCENTER_HOME/models` or are named by the setting `text_models`; what is there is what may be asked
for. Nothing is downloaded and nothing stands in for a model that is not there.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from numpy.typing import NDArray

from isocenter.core.errors import IsocenterError, ModelError, UnknownModelError, UsageError
from isocenter.core.model import ModelContext, ModelSpec, Task

if TYPE_CHECKING:
    from isocenter.models._text.engine import Engine
    from isocenter.models._text.folder import Recipe
    from isocenter.models._text.tokens import Cut, Tokenizer

log = structlog.get_logger("isocenter")
_FACTORY = "isocenter.models.text:TextEncoder"
_FOLDERS = "Folders in ISOCENTER_HOME/models; see docs/text.md."
#: Bytes of the real models that the reference document names as its defaults.
SPECS = (
    ModelSpec(
        id="text-embedding",
        version="1.0",
        task=Task.EMBED,
        factory=_FACTORY,
        description=f"Texts to vectors with an installed sentence encoder. {_FOLDERS}",
        prompts=("text",),
        weights_bytes=90_868_376,
        resident_bytes={"float32": 100_000_000},
        scratch_bytes={"float32": 60_000_000},
        devices=("cpu", "cuda"),
    ),
    ModelSpec(
        id="bertscore",
        version="0.3.12",
        task=Task.SCORE,
        factory=_FACTORY,
        description=f"BERTScore of generated against reference texts with an installed encoder. {_FOLDERS}",
        prompts=("text",),
        citation="Zhang et al., BERTScore: Evaluating Text Generation with BERT, ICLR 2020",
        weights_bytes=3_040_000_000,
        resident_bytes={"float32": 3_200_000_000},
        scratch_bytes={"float32": 500_000_000},
        devices=("cpu", "cuda"),
    ),
)
#: A folder that is named without its publisher also answers to these publishers' names.
PUBLISHERS = ("sentence-transformers", "microsoft")


@dataclass(frozen=True)
class Installed:
    """A model folder. name: as it is listed; names: all that it answers to."""

    name: str
    folder: Path
    names: tuple[str, ...]


def installed(home: Path, extra: Sequence[str] = (), models_path: Path | None = None) -> list[Installed]:
    """The text models there are: folders below `home`/models and `models_path`, and `name=folder` or `name=package` entries."""
    from isocenter.models._catalog import found as folders
    from isocenter.models.registry import places

    # The home folder's come first: a name that is there twice is its.
    bases = reversed(places(home, models_path))
    found = [_entry(f.id, f.path) for base in bases for f in folders.folders(base) if f.family == folders.TEXT]
    for entry in extra:
        name, _, place = entry.partition("=")
        where = Path(place).expanduser() if "/" in place or "\\" in place else _package(place)
        if where is not None and (where / "config.json").is_file():
            found.append(_entry(name, where))
    return found


def _entry(name: str, folder: Path) -> Installed:
    publisher, slash, bare = name.partition("/")
    return Installed(name, folder, (name, bare) if slash else (name, *(f"{p}/{publisher}" for p in PUBLISHERS)))


def _package(name: str) -> Path | None:
    """The model folder inside of an installed package."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.origin:
        return None
    root = Path(spec.origin).parent
    return next((p for p in (root, root / "model") if (p / "config.json").is_file()), None)


def choose(models: Sequence[Installed], name: str, *, expected: bool) -> Installed:
    """The installed model of this name. expected: it is a default that the server was set up with, so its absence is the server's lack."""
    from isocenter.core.settings import TEXT_MODEL

    if not re.fullmatch(TEXT_MODEL, name):
        raise UsageError("a model is named like 'all-MiniLM-L6-v2' or 'publisher/name'")
    for model in models:
        if name in model.names:
            return model
    if expected or not models:
        from isocenter.models import catalog
        from isocenter.models._text.bertscore import LAYERS

        # BERTScore's models without a publisher have none on the hub either.
        full = name if "/" in name or name in LAYERS else f"sentence-transformers/{name}"
        place = f"$ISOCENTER_HOME/models/{full.replace('/', '--')}"
        known = next((e for e in catalog.entries().values() if full == e.repository or name == e.id), None)
        how = f"isocenter models pull {known.id}" if known else f"hf download {full} --local-dir {place}"
        raise ModelError(f"the text model '{name}' is not installed here; install it with: {how}")
    raise UnknownModelError(f"no text model '{name}' is installed here; there are: {', '.join(m.name for m in models)}")


def depth(model: Installed) -> int:
    """How many layers a model has."""
    from isocenter.models._text import folder

    return folder.read(model.folder).layers


def give_back() -> None:
    """Have the C library return freed memory: it would keep what building a graph took, some 50 MB for MiniLM, and what large requests took."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has this
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def _damage(message: str) -> Iterator[None]:
    """Turns what a damaged or foreign folder leads to, in whichever library, into a `ModelError` with this message."""
    try:
        yield
    except (IsocenterError, MemoryError):
        raise
    except Exception as error:
        log.error("a text model cannot be used", error=type(error).__name__, exc_info=error)
        raise ModelError(message) from None


class TextEncoder:
    """One encoder in memory, up to one of its layers. May be used by several threads once loaded."""

    def __init__(self, folder: Path, *, engine: str = "onnxruntime", layers: int | None = None) -> None:
        self._folder = folder
        self._engine_name = engine
        self._layers = layers
        self._engine: Engine | None = None
        self.recipe: Recipe
        self.tokenizer: Tokenizer

    def load(self, context: ModelContext) -> None:
        """Read the folder, build the graph and get the engine ready. Raises `ModelError` for a folder that cannot be used."""
        from isocenter.models._text import engine, folder, tokens

        name = self._folder.name
        with _damage(f"the configuration of the text model '{name}' is damaged or of another layout; download it again"):
            self.recipe = folder.read(self._folder)
            self.tokenizer = tokens.Tokenizer(self._folder, dict(self.recipe.config))
        if self._layers is not None and not 1 <= self._layers <= self.recipe.layers:
            raise UsageError(f"num_layers must lie between 1 and {self.recipe.layers} for this model, not {self._layers}")
        with _damage(f"the weights and the configuration of the text model '{name}' do not fit together; download it again"):
            made = engine.make(self._engine_name, self._folder, self.recipe.config, self._layers or self.recipe.layers, context)
            self._engine = made
            # What an engine only notices while it computes is better known now than at a client's request.
            self.embed(np.zeros((1, 2), np.int64), np.ones((1, 2), np.int64))
        give_back()

    @property
    def engine(self) -> str:
        """What computes, e.g. "onnxruntime float32"."""
        return self._ready().name

    @property
    def packs(self) -> bool:
        """Whether texts of different lengths may share a batch at (nearly) no cost."""
        return self._ready().packs

    @property
    def layers(self) -> int:
        """The layer whose states come out."""
        return self._layers or self.recipe.layers

    @property
    def pad(self) -> int:
        """The id that fills rows up."""
        return self.tokenizer.pad

    def rest(self) -> None:
        """Give back what is only kept for the next batch."""
        if (engine := self._engine) is not None:
            engine.rest()

    def close(self) -> None:
        """Give its memory back."""
        self._engine = None

    def cut(self, texts: Sequence[str], prompt: str | None = None) -> list[Cut]:
        """Tokens for embeddings. prompt: the name of one of the model's prompts; None for its default."""
        recipe, front = self.recipe, self._front(prompt)
        # sentence-transformers strips texts as well.
        prepared = [(front + text).strip() for text in texts]
        return self._known(self.tokenizer.encode([t.lower() for t in prepared] if recipe.lower else prepared, recipe.max_tokens))

    def left_out(self, prompt: str | None = None) -> int:
        """How many tokens at a text's start the pooling leaves out: those of the prompt, for models that were trained so."""
        front = self._front(prompt)
        if not front or self.recipe.include_prompt:
            return 0
        (cut,) = self.tokenizer.encode([front.lower() if self.recipe.lower else front], self.recipe.max_tokens)
        # The end's special token is not the prompt's.
        return len(cut.ids) - (cut.ids[-1:] == (self.tokenizer.sep,))

    def _front(self, prompt: str | None) -> str:
        recipe = self.recipe
        if prompt is not None and prompt not in recipe.prompts:
            raise UsageError(f"this model has no such prompt; it has: {', '.join(recipe.prompts) or 'none'}")
        return recipe.prompts[prompt] if prompt is not None else recipe.default_prompt

    def cut_for_score(self, texts: Sequence[str]) -> list[Cut]:
        """Tokens for BERTScore: stripped, and for RoBERTa's tokenizer with a space in front, as the package does."""
        front = " " if self.recipe.config["model_type"] == "roberta" else ""
        return self._known(self.tokenizer.encode([front + t.strip() if t.strip() else "" for t in texts], self.recipe.model_tokens))

    def _known(self, cuts: list[Cut]) -> list[Cut]:
        """Raises `ModelError` where the tokenizer knows tokens that the weights have no vector for."""
        rows = int(self.recipe.config["vocab_size"])
        if any(max(cut.ids, default=0) >= rows for cut in cuts):
            raise ModelError("the text model's tokenizer and weights do not belong together: it has tokens that they have no vector for")
        return cuts

    def framed(self, ids: Sequence[int]) -> Cut:
        """Token ids that a client made itself, with the special tokens at the ends, cut at the limit."""
        from isocenter.models._text.tokens import Cut

        tokenizer = self.tokenizer
        if any(not 0 <= i < int(self.recipe.config["vocab_size"]) for i in ids):
            raise UsageError(f"token ids must lie between 0 and {int(self.recipe.config['vocab_size']) - 1} for this model")
        inner = [i for i in ids if i not in (tokenizer.cls, tokenizer.sep)]
        room = self.recipe.max_tokens - 2
        front, back = ([i] if i is not None else [] for i in (tokenizer.cls, tokenizer.sep))
        return Cut((*front, *inner[:room], *back), len(inner) > room)

    def embed(self, ids: NDArray[np.int64], mask: NDArray[np.int64], left_out: int = 0) -> list[Any]:
        """Pooled vectors (float32), one a row, without its first `left_out` tokens; not normalised yet: see `finished`."""
        from isocenter.models._text.folder import pool

        states = self._ready().run(ids, mask)
        if left_out:
            mask = mask.copy()
            mask[:, :left_out] = 0
        pooled = pool(states, mask, self.recipe.pooling)
        for dense in self.recipe.dense:
            pooled = dense(pooled)
        return list(pooled)

    def score(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> list[Any]:
        """Unit vectors of each row's tokens, (tokens, size) float32, without the padding."""
        states = self._ready().run(ids, mask)
        states /= np.maximum(np.linalg.norm(states, axis=-1, keepdims=True), 1e-12)
        return [row[:length].copy() for row, length in zip(states, mask.sum(axis=1), strict=True)]

    def finished(self, vectors: Sequence[Any], *, normalize: bool | None = None) -> NDArray[np.float32]:
        """Vectors (texts, size) as the model's configuration wants them; normalize: to unit length or not, whatever that says."""
        stacked = np.asarray(np.stack(vectors), np.float32)
        if self.recipe.normalize if normalize is None else normalize:
            stacked = stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12)
        return stacked

    def _ready(self) -> Engine:
        if self._engine is None:
            raise ModelError("the text model is not loaded")
        return self._engine
