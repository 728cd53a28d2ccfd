"""The use-cases of the text service: embed texts, score generated against reference texts, say what is going on.

`load` and the methods that begin work block for tokenising at most and are meant for threads; what they return has a
future. Results are assembled by `Job.finish`, also in a thread.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from isocenter.core.errors import BusyError, LimitError, MemoryLimitError, ModelError
from isocenter.core.model import ModelContext
from isocenter.core.settings import Settings
from isocenter.models import text as models
from isocenter.models._text import bertscore
from isocenter.models._text.tokens import Cut
from isocenter.runtime import accelerator
from isocenter.runtime.batching import Batcher, Lane, Ticket
from isocenter.runtime.environment import usable_cores, version
from isocenter.runtime.priority import stand_back

log = structlog.get_logger("isocenter")
T = TypeVar("T")
#: Takes memory for a model on a device; the answer gives it back.
Reserve = Callable[[str, str, int], Callable[[], None]]


def _unlimited(model: str, device: str, count: int) -> Callable[[], None]:
    return lambda: None


#: Tokens of work after which freed memory is given back once nobody asks for anything.
_MUCH = 10_000


@dataclass(frozen=True)
class Embeddings:
    """vectors: (texts, size) float32. truncated: which texts lost their end. tokens: how many there were in all."""

    vectors: NDArray[np.float32]
    truncated: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Scores:
    """Precision, recall and F1 of each pair; code: the reproducibility hash; truncated: pairs with a text that lost its end."""

    triples: tuple[tuple[float, float, float], ...]
    code: str
    truncated: tuple[int, ...]


@dataclass(eq=False)
class Job(Generic[T]):
    """One request's work. finish: makes the answer of the ticket's results."""

    kind: str
    items: int
    model: str
    ticket: Ticket
    finish: Callable[[list[Any]], T]
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    @cached_property
    def id(self) -> str:
        """Made when somebody asks for it, which is seldom."""
        return str(uuid.uuid4())


class TextService:
    """All that can be done with texts. Safe to use from several threads."""

    def __init__(self, settings: Settings, *, reserve: Reserve = _unlimited) -> None:
        """reserve: (model, device, bytes) -> what gives them back; where other models use the same memory."""
        self.settings = settings
        self._reserve = reserve
        self._held: list[Callable[[], None]] = []
        self.batcher = Batcher(
            slots=settings.text_slots, token_budget=settings.text_batch_tokens, most_texts=settings.text_chunk, queue_size=settings.queue_size
        )
        self.pool = ThreadPoolExecutor(4, thread_name_prefix="tokens")
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="text-models", initializer=stand_back)
        self._loads: dict[tuple[str, int], Future[models.TextEncoder]] = {}
        self._uses: dict[tuple[str, str], Future[models.TextEncoder]] = {}
        self._jobs: dict[int, Job[Any]] = {}
        self._tokens = 0  # begun since memory was last given back
        self._lock = threading.Lock()
        self._device: str | None = None
        self._installed: tuple[list[models.Installed], float] = ([], 0.0)

    @property
    def device(self) -> str:
        """Where models run. The first question may take seconds: it loads torch where there is a card."""
        if self._device is None:
            self._device = accelerator.device(self.settings.text_device)
        return self._device

    @property
    def likely_device(self) -> str:
        """The same, at once; until a model was loaded it may name a card that turns out not to work."""
        return self._device or accelerator.likely(self.settings.text_device)

    # Which models there are.

    def installed(self) -> list[models.Installed]:
        """The models that may be asked for. Looked up at most once a second: a request takes less than reading the folders."""
        found, until = self._installed
        if time.monotonic() > until:
            found = models.installed(self.settings.home, self.settings.text_models, self.settings.models_path)
            self._installed = found, time.monotonic() + 1
        return found

    def embedder(self, name: str = "") -> tuple[str, Future[models.TextEncoder]]:
        """The name and the encoder (being loaded, once) for embeddings; no name is the default's."""
        default = self.settings.text_embedding_model
        return self._load("embed", name or default, 0, default)

    def scorer(self, name: str = "", language: str = "en", layers: int | None = None) -> tuple[str, Future[models.TextEncoder]]:
        """The same for BERTScore: without a name the default's, or for another language than English the package's model for it."""
        default = self.settings.text_bertscore_model
        chosen = name or (default if language.lower() in ("", "en") else bertscore.model_for(language))
        return self._load("bertscore", chosen, layers or self._layer(chosen), default if name else chosen)

    def _layer(self, name: str) -> int:
        """The published layer for a model, by its full or its bare name; 0, which stands for the last, where none was published."""
        known = {**{full.rsplit("/", 1)[-1]: layer for full, layer in bertscore.LAYERS.items()}, **bertscore.LAYERS}
        return known.get(name, 0)

    def _load(self, use: str, name: str, layers: int, default: str) -> tuple[str, Future[models.TextEncoder]]:
        """layers: 0 for all of them; a model that embeds and scores by the same layer is in memory once."""
        found = models.choose(self.installed(), name, expected=name == default)
        if layers and layers == models.depth(found):
            layers = 0
        with self._lock:
            future = self._loads.get((found.name, layers))
            # One that failed is tried again: its folder may have been repaired.
            if future is None or (future.done() and future.exception() is not None):
                future = self._loads[found.name, layers] = self._loading.submit(self._make, found, layers)
            self._uses[use, found.name] = future
        return name, future

    def _make(self, found: models.Installed, layers: int) -> models.TextEncoder:
        if not accelerator.present(self.device):
            raise ModelError(f"the device '{self.device}' that TORCH_DEVICE names is not there, or torch cannot use it; set another, or auto")
        give_back = self._reserve(f"{found.name} {layers}", self.device, self._bytes(found))
        try:
            encoder = self._loaded(found, layers)
        except BaseException:
            give_back()
            raise
        self._held.append(give_back)
        return encoder

    def _bytes(self, found: models.Installed) -> int:
        """About what an encoder takes: its weights in the chosen precision, and an eighth of them at work for each batch at once."""
        stored = sum(path.stat().st_size for path in found.folder.glob("*.safetensors"))
        weights = int(stored * {"float32": 1.0, "int8": 0.25}.get(self.settings.text_precision, 0.5))
        return weights + self.settings.text_slots * max(weights // 8, 32 << 20)

    def _loaded(self, found: models.Installed, layers: int) -> models.TextEncoder:
        settings, slots = self.settings, self.settings.text_slots
        engine = accelerator.engine(settings.text_engine, self.device, settings.text_precision)
        encoder = models.TextEncoder(found.folder, engine=engine, layers=layers or None)
        context = ModelContext(device=self.device, precision=settings.text_precision, threads=max(1, usable_cores() // slots), slots=slots)
        encoder.load(context)
        return encoder

    def warm(self) -> None:
        """Load the default models that are installed, so that the first request does not wait for it."""
        for begin in (self.embedder, self.scorer):
            try:
                name, future = begin()
            except ModelError:
                continue  # not installed, which is said to whoever asks for it
            try:
                future.result()
            except (ModelError, MemoryLimitError) as error:
                log.warning(f"the text model {name} is not loaded: {error.message}")
            except Exception as error:  # the rest of the server gets ready all the same
                log.error(f"the text model {name} is not loaded", error=type(error).__name__, exc_info=error)

    # Work.

    def embed(
        self,
        name: str,
        encoder: models.TextEncoder,
        texts: Sequence[str] | Sequence[Sequence[int]],
        *,
        prompt: str | None = None,
        normalize: bool | None = None,
        truncate: bool = True,
    ) -> Job[Embeddings]:
        """Begin to turn texts, or token ids that a client made itself, into vectors.

        Without truncate a text that is too long for the model raises `LimitError`.
        """
        words = [t for t in texts if isinstance(t, str)]
        if len(words) == len(texts):
            cuts, left_out = encoder.cut(words, prompt), encoder.left_out(prompt)
        else:
            cuts, left_out = [encoder.framed(t) for t in texts if not isinstance(t, str)], 0
        if not truncate and (long := _truncated(cuts)):
            raise LimitError(
                f"inputs[{long[0]}] is too long for the model; send truncate: true to cut it", limit="tokens", value=encoder.recipe.max_tokens
            )
        work = partial(encoder.embed, left_out=left_out) if left_out else encoder.embed

        def finish(results: list[Any]) -> Embeddings:
            vectors = encoder.finished(results, normalize=normalize) if results else np.zeros((0, 0), np.float32)
            return Embeddings(vectors, _truncated(cuts), sum(len(c.ids) for c in cuts))

        ticket = self.batcher.submit(Lane(("embed", id(encoder), left_out), work, encoder.pad, encoder.packs), [c.ids for c in cuts])
        return self._begun(Job("embed", len(texts), name, ticket, finish), cuts)

    def score(
        self,
        name: str,
        encoder: models.TextEncoder,
        candidates: Sequence[str],
        references: Sequence[str],
        *,
        idf: bool = False,
        rescale: bool = False,
        language: str = "en",
    ) -> Job[Scores]:
        """Begin to score candidates against references, pair by pair."""
        layer = encoder.layers
        if rescale:
            bertscore.rescale([], name, language, layer)  # refused before anything is computed
        count = len(candidates)
        cuts = encoder.cut_for_score([text for pair in zip(candidates, references, strict=True) for text in pair])

        frequencies = bertscore.idf([c.ids for c in cuts[1::2]]) if idf else None
        special = (encoder.tokenizer.cls, encoder.tokenizer.sep)
        pairs = bertscore.Pairs([bertscore.weights(c.ids, frequencies, count, special) for c in cuts])

        def finish(_: list[Any]) -> Scores:
            scores = bertscore.rescale(pairs.scores, name, language, layer) if rescale else pairs.scores
            code = bertscore.code(name, layer, idf=idf, rescaled=rescale, engine=f"isocenter={version('isocenter')}, {encoder.engine}")
            lost = {i // 2 for i in _truncated(cuts)}
            return Scores(tuple(scores), code, tuple(sorted(lost)))

        ticket = self.batcher.submit(Lane(("score", id(encoder)), encoder.score, encoder.pad, encoder.packs), [c.ids for c in cuts], pairs)
        return self._begun(Job("bertscore", count, name, ticket, finish), cuts)

    def _begun(self, job: Job[T], cuts: Sequence[Cut]) -> Job[T]:
        with self._lock:
            self._jobs[id(job)] = job
            self._tokens += sum(len(c.ids) for c in cuts)
        return job

    def late(self, job: Job[Any]) -> None:
        """Raise `BusyError` for a job of which nothing has begun, and forget it; do nothing for any other."""
        if self.batcher.drop(job.ticket, unless_started=True):
            raise BusyError("GPU busy - retry later")

    def end(self, job: Job[Any]) -> None:
        """Forget a job, finished or not; texts that only it waited for are not computed any more."""
        with self._lock:
            self._jobs.pop(id(job), None)
            much = not self._jobs and self._tokens > _MUCH
            if much:
                self._tokens = 0
        self.batcher.drop(job.ticket)
        if much:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                self.pool.submit(self._rest)

    def _rest(self) -> None:
        for future in list(self._loads.values()):
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().rest()
        models.give_back()

    def answer(self, job: Job[T]) -> T:
        """Wait for a job and assemble its answer: for callers that have a thread of their own."""
        try:
            return job.finish(job.ticket.future.result())
        finally:
            self.end(job)

    # What is going on.

    def info(self) -> dict[str, Any]:
        """Device, memory and loaded models; embedding models behind those of BERTScore."""
        with self._lock:
            ready = [f"{use}:{name}" for (use, name), f in self._uses.items() if f.done() and f.exception() is None]
        # By name of the use, BERTScore is first.
        return {**accelerator.facts(self.device), "loaded_models": sorted(ready, key=lambda entry: entry.partition(":")[0])}

    def status(self) -> dict[str, Any]:
        """The queue and the jobs in it. in_flight: requests, which share slots, so they may be more; available_slots: idle ones."""
        with self._lock:
            jobs = list(self._jobs.values())
        queue = {
            "max_concurrent": self.batcher.slots,
            "in_flight": self.batcher.in_flight,
            "available_slots": self.batcher.slots - self.batcher.busy,
            "waiting_estimate": self.batcher.waiting,
        }
        active = [
            {
                "id": job.id,
                "type": job.kind,
                "started_at": job.started.isoformat(),
                "items": job.items,
                "model": job.model,
                "progress": round(job.ticket.progress, 4),
            }
            for job in jobs
        ]
        return {"queue": queue, "active_jobs": active}

    def close(self) -> None:
        """Stop, and give the models' memory back."""
        self.batcher.close()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self._loading.shutdown(wait=True, cancel_futures=True)
        for future in self._loads.values():
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().close()
        for give_back in self._held:
            give_back()


def _truncated(cuts: Sequence[Cut]) -> tuple[int, ...]:
    return tuple(i for i, cut in enumerate(cuts) if cut.truncated)
