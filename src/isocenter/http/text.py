"""The text service's wires: the GPU bridge's own, OpenAI's and text-embeddings-inference's embeddings, and report metrics."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import pydantic_core
from fastapi import APIRouter, Request
from fastapi.responses import Response

from isocenter.analysis import report_metrics
from isocenter.core.errors import BusyError, CancelledError, UsageError
from isocenter.http.mailbox import Mailbox, settle
from isocenter.http.text_requests import EmbedRequest, OpenAiRequest, ReportRequest, ScoreRequest, check, described, invalid, read
from isocenter.models import text as models
from isocenter.textservice import Embeddings, Job, Scores, TextService

router = APIRouter(tags=["Text"])
T = TypeVar("T")
UNEQUAL = "candidates and references must have equal length"
LEFT = "the client closed the connection"


#: Characters of texts that are tokenised on the event loop itself: a fraction of a millisecond, less than a change of threads costs under load.
SHORT = 2000
#: Vectors that are written out on the event loop itself.
FEW = 4
#: Seconds after which a request's client is watched, so that work for one that left is dropped; most are answered sooner.
WATCH = 0.05


# A plain call: the framework takes as long to solve a dependency as a small request's own work does.
def _service(request: Request) -> TextService:
    service: TextService = request.app.state.text
    return service


def _json(content: Any) -> Response:
    # Written by pydantic's own serialiser: several times faster on vectors than the standard library's.
    return Response(pydantic_core.to_json(content, inf_nan_mode="null"), media_type="application/json")


async def _thread(texts: TextService, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(texts.pool, work)


async def _either(texts: TextService, here: bool, work: Callable[[], T]) -> T:
    """Small work at once, anything longer in a thread."""
    return work() if here else await _thread(texts, work)


async def _loaded(request: Request, future: Future[T]) -> T:
    """The model, once it is loaded. Who leaves meanwhile is let go; the load goes on, since others may wait for it."""
    if not future.done():
        waiter = _mailbox(request).waiter(future)
        watching = asyncio.create_task(_gone(request, waiter))
        try:
            await waiter
        finally:
            watching.cancel()
        if not future.done():
            raise CancelledError(LEFT)
    return future.result()


def _short(items: Iterable[Any]) -> bool:
    total = 0
    for item in items:
        total += len(item)
        if total > SHORT:
            return False
    return True


def _mailbox(request: Request) -> Mailbox:
    state = request.app.state
    if not hasattr(state, "mailbox"):
        state.mailbox = Mailbox(asyncio.get_running_loop())
    mailbox: Mailbox = state.mailbox
    return mailbox


async def _gone(request: Request, waiter: asyncio.Future[None]) -> None:
    """Ends the wait when the client has left; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    settle(waiter)


async def _answer(request: Request, texts: TextService, here: bool, begin: Callable[[], Job[T]]) -> T:
    """Begin a job and wait for it: 503 when nothing of it has begun in time, dropped when its client leaves.

    here: the job is small, so beginning and ending it needs no thread.
    """
    job = await _either(texts, here, begin)
    future = job.ticket.future
    waiter = _mailbox(request).waiter(future)
    loop = asyncio.get_running_loop()
    watching: list[asyncio.Task[None]] = []

    def late() -> None:
        try:
            texts.late(job)
        except BusyError as error:
            settle(waiter, error)

    timers = [
        loop.call_later(WATCH, lambda: watching.append(loop.create_task(_gone(request, waiter)))),
        loop.call_later(texts.settings.text_wait, late),
    ]
    try:
        await waiter
        if not future.done() or future.cancelled():
            raise CancelledError(LEFT)
        results = future.result()
        return await _either(texts, here, lambda: job.finish(results))
    finally:
        for timer in timers:
            timer.cancel()
        for task in watching:
            task.cancel()
        texts.end(job)


async def _embed(request: Request, texts: TextService, model: str, items: list[Any], **how: Any) -> tuple[str, Embeddings]:
    name, future = texts.embedder(model)
    encoder = await _loaded(request, future)
    return name, await _answer(request, texts, _short(items), lambda: texts.embed(name, encoder, items, **how))


async def _score(request: Request, texts: TextService, asked: ScoreRequest) -> tuple[str, Scores]:
    name, future = texts.scorer(asked.model_type or "", asked.lang, asked.num_layers)
    encoder = await _loaded(request, future)

    def begin() -> Job[Scores]:
        return texts.score(name, encoder, asked.candidates, asked.references, idf=asked.idf, rescale=asked.rescale_with_baseline, language=asked.lang)

    return name, await _answer(request, texts, _short([*asked.candidates, *asked.references]), begin)


@router.post("/bertscore", openapi_extra=described(ScoreRequest))
async def bertscore(request: Request) -> Response:
    """BERTScore of each candidate against its reference."""
    texts = _service(request)
    asked = await read(request, ScoreRequest, texts.settings)
    check(texts.settings, candidates=asked.candidates, references=asked.references)
    if len(asked.candidates) != len(asked.references):
        raise UsageError(UNEQUAL)
    name, scores = await _score(request, texts, asked)
    columns = [[triple[k] for triple in scores.triples] for k in range(3)]
    body = {"precision": columns[0], "recall": columns[1], "f1": columns[2], "model": name, "hash": scores.code}
    return _json(body | ({"truncated": scores.truncated} if scores.truncated else {}))


@router.post("/embed", openapi_extra=described(EmbedRequest))
async def embed(request: Request) -> Response:
    """Vectors of texts. With `inputs` instead of `texts` the answer is a bare list, as text-embeddings-inference's."""
    texts = _service(request)
    asked = await read(request, EmbedRequest, texts.settings)
    if asked.inputs is not None:
        return await _tei(request, texts, asked)
    if asked.texts is None:
        raise invalid("texts", "Field required", "missing")
    check(texts.settings, texts=asked.texts)
    name, found = await _embed(request, texts, asked.model or "", asked.texts, prompt=asked.prompt_name)
    vectors = await _either(texts, len(found.vectors) <= FEW, found.vectors.tolist)
    body = {"embeddings": vectors, "model": name, "dimensions": found.vectors.shape[1] if vectors else 0}
    return _json(body | ({"truncated": found.truncated} if found.truncated else {}))


async def _tei(request: Request, texts: TextService, asked: EmbedRequest) -> Response:
    items = [asked.inputs] if isinstance(asked.inputs, str) else list(asked.inputs or [])
    check(texts.settings, inputs=items)
    normalize = True if asked.normalize is None else asked.normalize
    _, found = await _embed(request, texts, asked.model or "", items, prompt=asked.prompt_name, normalize=normalize, truncate=asked.truncate)
    return _json(found.vectors.tolist())


@router.post("/v1/embeddings", openapi_extra=described(OpenAiRequest))
async def openai_embeddings(request: Request) -> Response:
    """Vectors of a text, of texts, or of token ids, as OpenAI's route."""
    texts = _service(request)
    asked = await read(request, OpenAiRequest, texts.settings)
    items: list[Any] = [asked.input] if isinstance(asked.input, str) or (asked.input and isinstance(asked.input[0], int)) else list(asked.input)
    if not items or any(len(item) == 0 for item in items):
        raise UsageError("input must not be empty")
    check(texts.settings, input=items)
    name, found = await _embed(request, texts, asked.model, items)
    vectors = found.vectors
    if asked.dimensions is not None:
        if asked.dimensions > vectors.shape[1]:
            raise UsageError(f"dimensions must be at most {vectors.shape[1]} for this model")
        vectors = vectors[:, : asked.dimensions]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def encoded() -> list[Any]:
        if asked.encoding_format == "base64":
            return [base64.b64encode(np.asarray(v, "<f4").tobytes()).decode() for v in vectors]
        return list(vectors.tolist())

    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(await _either(texts, len(vectors) <= FEW, encoded))]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    return _json({"object": "list", "data": data, "model": name, "usage": usage})


@router.get("/health")
async def health(request: Request) -> dict[str, str]:
    """Alive, and on which device; needs no key and waits for nothing."""
    return {"status": "ok", "device": _service(request).likely_device}


@router.get("/info")
async def info(request: Request) -> Response:
    """Device, its memory (as all processes use it) and the loaded models."""
    texts = _service(request)
    return _json(await _thread(texts, texts.info))


@router.get("/status")
async def status(request: Request) -> Response:
    """What waits, what is being computed, and how far each job is."""
    return _json(_service(request).status())


@router.get("/v1/models")
async def openai_models(request: Request) -> Response:
    """The installed text models, as OpenAI's route."""
    texts = _service(request)
    found = await _thread(texts, texts.installed)
    return _json({"object": "list", "data": [_openai_model(m.name) for m in found]})


@router.get("/v1/models/{name:path}")
async def openai_model(request: Request, name: str) -> Response:
    """One of them, as OpenAI's route."""
    texts = _service(request)
    found = models.choose(await _thread(texts, texts.installed), name, expected=False)
    return _json(_openai_model(found.name))


def _openai_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "isocenter"}


@router.post("/api/v1/report-metrics", openapi_extra=described(ReportRequest))
async def report(request: Request) -> Response:
    """Generated reports against references: BERTScore, ROUGE-L, BLEU, chrF, and numbers, units, sides and negations that differ."""
    texts = _service(request)
    asked = await read(request, ReportRequest, texts.settings)
    check(texts.settings, candidates=asked.candidates, references=asked.references)
    if len(asked.candidates) != len(asked.references):
        raise UsageError(UNEQUAL)
    pairs = list(zip(asked.candidates, asked.references, strict=True))
    results: list[dict[str, Any]] = await _thread(texts, lambda: [report_metrics.compare(c, r) for c, r in pairs])
    body: dict[str, Any] = {"results": results}
    if asked.bertscore:
        wanted = ScoreRequest(candidates=asked.candidates, references=asked.references, lang=asked.lang, model_type=asked.model_type)
        name, scores = await _score(request, texts, wanted)
        for result, triple in zip(results, scores.triples, strict=True):
            result["bertscore"] = {k: v if math.isfinite(v) else None for k, v in zip(("precision", "recall", "f1"), triple, strict=True)}
        body |= {"model": name, "hash": scores.code}
    return _json(body)
