"""The GPU bridge's wire, replayed as its TypeScript client uses it, and the two other shapes of embeddings; the real MiniLM answers."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import uuid
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from isocenter.core.model import ModelContext
from isocenter.core.settings import Settings
from isocenter.http.app import create_app
from isocenter.textservice import TextService

TEXTS = ["No pleural effusion.", "The heart is of normal size.", "", "No pleural effusion.", "Left lower lobe opacity, 12 mm."]
JSON = {"Content-Type": "application/json"}


def application(home: Path, minilm: Path | None, **settings: Any) -> TestClient:
    models = (f"all-MiniLM-L6-v2={minilm}",) if minilm else ()
    chosen = {"text_engine": "onnxruntime", "text_wait": 60, "text_bertscore_model": "all-MiniLM-L6-v2", **settings}
    return TestClient(create_app(Settings(home=home, decoders=0, text_models=models, **chosen)), base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def client(home: Path, minilm: Path) -> Iterator[TestClient]:
    with application(home, minilm) as client:
        yield client


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server without any text model."""
    with application(tmp_path_factory.mktemp("bare"), None) as client:
        yield client


def service(client: TestClient) -> TextService:
    made: TextService = client.app.state.text  # type: ignore[attr-defined]
    return made


def test_health_info_and_status_have_the_documents_shapes(client: TestClient) -> None:
    assert client.get("/health", headers=JSON).json() == {"status": "ok", "device": "cpu"}
    client.post("/embed", json={"texts": ["a"]})
    client.post("/bertscore", json={"candidates": ["a"], "references": ["a b"]})
    info = client.get("/info", headers=JSON).json()
    assert list(info) == ["device", "device_name", "vram_total_mb", "vram_used_mb", "pytorch_version", "cuda_version", "loaded_models"]
    assert (info["device"], info["device_name"], info["vram_total_mb"], info["cuda_version"]) == ("cpu", "cpu", None, None)
    assert info["loaded_models"] == ["bertscore:all-MiniLM-L6-v2", "embed:all-MiniLM-L6-v2"]
    assert client.get("/status", headers=JSON).json() == {
        "queue": {"max_concurrent": 2, "in_flight": 0, "available_slots": 2, "waiting_estimate": 0},
        "active_jobs": [],
    }
    assert client.get("/info/").json()["name"].startswith("MONAILabel"), "the slash still makes it MONAI Label's"


def test_embeddings_equal_sentence_transformers(client: TestClient, minilm: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    answer = client.post("/embed", json={"texts": TEXTS}).json()
    assert list(answer) == ["embeddings", "model", "dimensions"]
    assert (answer["model"], answer["dimensions"], len(answer["embeddings"])) == ("all-MiniLM-L6-v2", 384, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = library.SentenceTransformer(str(minilm), device="cpu").encode(TEXTS)
    found = np.array(answer["embeddings"])
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() >= 0.9999
    np.testing.assert_array_equal(found[0], found[3])


def test_bertscore_has_the_documents_shape(client: TestClient) -> None:
    body = {"candidates": ["no effusion", "", "clear lungs"], "references": ["No effusion", "x", "the heart"], "lang": "en", "model_type": ""}
    answer = client.post("/bertscore", json=body).json()
    assert list(answer)[:4] == ["precision", "recall", "f1", "model"]
    assert answer["f1"][0] == pytest.approx(1, abs=1e-5)
    assert answer["f1"][1] == 0
    assert answer["f1"][2] < 0.9
    assert answer["hash"].startswith("all-MiniLM-L6-v2_L6_no-idf")


def test_empty_lists(client: TestClient) -> None:
    assert client.post("/embed", json={"texts": [], "model": ""}).json() == {"embeddings": [], "model": "all-MiniLM-L6-v2", "dimensions": 0}
    answer = client.post("/bertscore", json={"candidates": [], "references": []})
    assert answer.status_code == 200
    assert (answer.json()["precision"], answer.json()["f1"]) == ([], [])
    body = {"candidates": ["clear"], "references": ["clear"], "idf": True}
    assert client.post("/bertscore", json=body).json()["precision"] == [None], "what is not a number is null in JSON"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/embed", {"texts": ["x"] * 101}, "Value error, texts array length 101 exceeds max batch size of 100"),
        ("/embed", {"texts": ["x", "secret" * 2000]}, "Value error, texts[1] length 12000 exceeds max text length of 10000"),
        (
            "/bertscore",
            {"candidates": ["x"] * 200, "references": ["x"] * 200},
            "Value error, candidates array length 200 exceeds max batch size of 100",
        ),
        (
            "/bertscore",
            {"candidates": ["x"], "references": ["secret" * 2000]},
            "Value error, references[0] length 12000 exceeds max text length of 10000",
        ),
        ("/embed", {}, "Field required"),
        ("/embed", {"texts": "secret"}, "Input should be a valid array"),
        ("/embed", {"texts": [1]}, "Input should be a valid string"),
        ("/bertscore", {"candidates": ["secret"]}, "Field required"),
    ],
)
def test_422_in_the_documents_words_without_the_texts(client: TestClient, path: str, body: dict[str, Any], message: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"] == message
    assert set(answer.json()["detail"][0]) == {"type", "loc", "msg"}
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("path", "raw", "status"),
    [
        ("/bertscore", b'{"candidates": ["a"], "references": ["a", "b"]}', 400),
        ("/embed", b'{"texts": ["a\\ud800"]}', 422),
        ("/embed", b'{"texts": ["a\\u0000b", "\xf0\x9f\x98\x80"]}', 200),
        ("/embed", b"", 422),
        ("/embed", b"[" * 100_000, 422),
        ("/embed", b"\xff\xfe", 422),
        ("/embed", b'{"texts": ["' + b"x" * 30_000_000 + b'"]}', 413),
        ("/embed", b'{"texts": ["a"], "model": "../../etc/passwd"}', 400),
        ("/embed", b'{"texts": ["a"], "model": "someone/else"}', 404),
        ("/embed", b'{"texts": ["a"], "model": 5}', 422),
        ("/embed", b'{"texts": ["a"], "prompt_name": "query"}', 400),
        ("/bertscore", b'{"candidates": ["a"], "references": ["a"], "num_layers": 99}', 400),
        ("/bertscore", b'{"candidates": ["a"], "references": ["a"], "rescale_with_baseline": true}', 400),
        ("/v1/embeddings", b'{"input": [], "model": ""}', 400),
        ("/v1/embeddings", b'{"input": ["a", ""], "model": ""}', 400),
        ("/v1/embeddings", b'{"input": [99999999], "model": ""}', 400),
        ("/v1/embeddings", b'{"input": "a", "dimensions": 385}', 400),
        ("/v1/embeddings", b'{"input": [true]}', 422),
        ("/api/v1/report-metrics", b'{"candidates": ["a"], "references": []}', 400),
    ],
)
def test_what_is_wrong_is_the_clients_fault_and_says_so(client: TestClient, path: str, raw: bytes, status: int) -> None:
    answer = client.post(path, content=raw, headers=JSON)
    assert answer.status_code == status, answer.text[:300]
    if path == "/bertscore" and b'"b"' in raw:
        assert answer.json() == {"detail": "candidates and references must have equal length"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"texts": [1] * 50_000}),
        ("/embed", {"inputs": [1] * 50_000}),
        ("/bertscore", {"candidates": [None] * 50_000, "references": [None] * 50_000}),
        ("/v1/embeddings", {"input": [5] * 100_001}),
        ("/v1/embeddings", {"input": [["a"] * 50_000]}),
    ],
)
def test_what_is_wrong_in_every_place_is_told_once(client: TestClient, path: str, body: dict[str, Any]) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert len(answer.content) < 2000, "an error for each of them would be megabytes, and seconds of the event loop"


def test_lists_are_counted_before_they_are_read(client: TestClient) -> None:
    """Five million lists of one token hold the event loop for ten seconds; brackets in texts are none of them."""
    answer = client.post("/v1/embeddings", content=b'{"input": [' + b"[1]," * 100_000 + b"[1]]}", headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"] == "the body has more than 100000 lists and objects in it"
    texts = ["[" * 9_000, *(f'[{k}] said \\ "[' + "[{" * 2_500 for k in range(25))]
    assert client.post("/embed", json={"texts": texts}).status_code == 200


def test_100_texts_of_10_000_characters(client: TestClient) -> None:
    answer = client.post("/embed", json={"texts": [f"finding {i} " * 900 for i in range(100)]})
    assert answer.status_code == 200
    assert answer.json()["truncated"] == list(range(100)), "cut as the model card says, and said so"


def test_without_a_model_the_answer_is_how_to_install_one(bare: TestClient) -> None:
    for path, body in (("/embed", {"texts": ["a"]}), ("/bertscore", {"candidates": ["a"], "references": ["a"]})):
        answer = bare.post(path, json=body)
        assert answer.status_code == 503
        assert "isocenter models pull all-MiniLM-L6-v2" in answer.json()["detail"]
    assert bare.get("/v1/models").json() == {"object": "list", "data": []}


def test_keys(home: Path, minilm: Path) -> None:
    with application(home, minilm, api_key="k") as client:
        assert client.get("/health").json()["status"] == "ok"
        for path in ("/info", "/status", "/docs"):
            assert client.get(path).json() == {"detail": "Unauthorized"}
        assert client.get("/v1/models").status_code == 401
        assert client.post("/embed", json={"texts": ["a"]}).status_code == 401
        assert client.post("/embed", json={"texts": ["a"]}, headers={"X-API-Key": "k"}).status_code == 200


class Gate:
    """Holds up the loaded encoder's work."""

    def __init__(self, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = service(client).embedder()[1].result()
        work = encoder.embed
        self.entered, self.open = threading.Semaphore(0), threading.Event()

        def held(ids: Any, mask: Any) -> Any:
            self.entered.release()
            assert self.open.wait(60)
            return work(ids, mask)

        monkeypatch.setattr(encoder, "embed", held)


def test_busy_status_and_the_clients_retry(home: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with application(home, minilm, text_slots=1, text_wait=0.2) as client:
        gate = Gate(client, monkeypatch)
        answers: list[Any] = []
        first = threading.Thread(target=lambda: answers.append(client.post("/embed", json={"texts": ["a b c", "b " * 200]})))
        first.start()
        assert gate.entered.acquire(timeout=60)
        busy = client.post("/embed", json={"texts": ["something else"]})
        assert (busy.status_code, busy.json(), busy.headers["Retry-After"]) == (503, {"detail": "GPU busy - retry later"}, "5")
        status = client.get("/status").json()
        assert status["queue"] == {"max_concurrent": 1, "in_flight": 1, "available_slots": 0, "waiting_estimate": 0}
        (job,) = status["active_jobs"]
        assert list(job) == ["id", "type", "started_at", "items", "model", "progress"]
        assert (job["type"], job["items"], job["model"], job["progress"]) == ("embed", 2, "all-MiniLM-L6-v2", 0)
        assert uuid.UUID(job["id"]).version == 4
        assert datetime.fromisoformat(job["started_at"]).utcoffset() is not None
        assert client.get("/healthz").status_code == 200
        gate.open.set()
        first.join(60)
        assert answers[0].status_code == 200
        assert client.get("/status").json()["active_jobs"] == []
        assert client.post("/embed", json={"texts": ["something else"]}).status_code == 200


def leaving(client: TestClient, body: dict[str, Any], left: threading.Event) -> Any:
    """A request to /embed, begun, whose client closes the connection once `left` is set; a future."""
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        await asyncio.to_thread(left.wait, 60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/embed", "raw_path": b"/embed"}
    scope |= {"query_string": b"", "root_path": "", "scheme": "http", "headers": [(b"host", b"127.0.0.1")]}
    scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {}}
    assert client.portal is not None
    return client.portal.start_task_soon(client.app, scope, receive, send)


def test_a_client_that_leaves_takes_its_work_along(home: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with application(home, minilm, text_slots=1, text_chunk=1, text_wait=60) as client:
        gate = Gate(client, monkeypatch)
        texts = service(client)
        before = texts.batcher.batches
        left = threading.Event()
        running = leaving(client, {"texts": [f"text {i}" for i in range(20)]}, left)
        assert gate.entered.acquire(timeout=60)
        left.set()
        running.result(60)
        queue = {"max_concurrent": 1, "in_flight": 0, "available_slots": 0, "waiting_estimate": 0}
        assert texts.status() == {"queue": queue, "active_jobs": []}, "nobody's batch still holds the slot"
        gate.open.set()
        assert client.post("/embed", json={"texts": ["after"]}).status_code == 200
        assert texts.status()["queue"]["available_slots"] == 1
        assert texts.batcher.batches - before == 2


def test_clients_that_leave_while_a_model_is_loaded_leave_nothing_behind(home: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would all begin when it is there, and fill the queue for those who stayed."""
    from isocenter.models.text import TextEncoder

    loading, loaded = threading.Event(), threading.Event()
    load = TextEncoder.load

    def held(self: TextEncoder, context: ModelContext) -> None:
        loading.set()
        assert loaded.wait(60)
        load(self, context)

    monkeypatch.setattr(TextEncoder, "load", held)
    monkeypatch.setattr(TextService, "warm", lambda self: None)
    with application(home, minilm) as client:
        left = threading.Event()
        leavers = [leaving(client, {"texts": [f"text {i}"]}, left) for i in range(3)]
        assert loading.wait(60)
        left.set()
        for leaver in leavers:
            leaver.result(60)
        assert not service(client).embedder()[1].done(), "it is loaded for whoever comes next"
        loaded.set()
        assert client.post("/embed", json={"texts": ["after"]}).status_code == 200
        assert service(client).batcher.batches == 1


def test_simultaneous_first_requests_load_a_model_once(home: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isocenter.models.text import TextEncoder

    loads = []
    load = TextEncoder.load

    def counted(self: TextEncoder, context: ModelContext) -> None:
        loads.append(1)
        load(self, context)

    monkeypatch.setattr(TextEncoder, "load", counted)
    monkeypatch.setattr(TextService, "warm", lambda self: None)
    with application(home, minilm) as client:
        codes: list[int] = []
        threads = [threading.Thread(target=lambda: codes.append(client.post("/embed", json={"texts": ["a"]}).status_code)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert codes == [200] * 8
    assert loads == [1]


def test_the_shape_of_text_embeddings_inference(client: TestClient) -> None:
    alone = client.post("/embed", json={"inputs": "No effusion.", "normalize": True, "truncate": False}).json()
    assert (len(alone), len(alone[0])) == (1, 384)
    raw, unit = (np.array(client.post("/embed", json={"inputs": ["No effusion."], "normalize": n}).json()[0]) for n in (False, True))
    assert np.linalg.norm(raw) > 1.5
    np.testing.assert_allclose(raw / np.linalg.norm(raw), unit, atol=1e-6)
    refused = client.post("/embed", json={"inputs": ["word", "word " * 1000]})
    assert (refused.status_code, refused.json()["detail"]) == (
        413,
        "inputs[1] is too long for the model; send truncate: true to cut it; the limit is tokens = 256",
    )
    assert client.post("/embed", json={"inputs": ["word " * 1000], "truncate": True}).status_code == 200


def test_the_openai_client(client: TestClient) -> None:
    openai = pytest.importorskip("openai")
    httpx = pytest.importorskip("httpx2")

    def forward(request: Any) -> Any:
        sent = client.request(request.method, request.url.path, content=request.content, headers=dict(request.headers))
        return httpx.Response(sent.status_code, content=sent.content, headers={"content-type": "application/json"})

    api = openai.OpenAI(
        api_key="none", base_url="http://127.0.0.1/v1", http_client=httpx.Client(transport=httpx.MockTransport(forward)), max_retries=0
    )
    try:
        assert [m.id for m in api.models.list()] == ["all-MiniLM-L6-v2"]
        expected = client.post("/embed", json={"texts": TEXTS[:2]}).json()["embeddings"]
        # The client asks for base64 by itself and decodes it.
        for how in ({}, {"encoding_format": "float"}):
            made = api.embeddings.create(model="all-MiniLM-L6-v2", input=TEXTS[:2], **how)
            np.testing.assert_allclose([d.embedding for d in made.data], expected, atol=1e-6)
            assert made.usage.prompt_tokens == made.usage.total_tokens > 5
        encoder = service(client).embedder()[1].result()
        ids = list(encoder.cut([TEXTS[0]])[0].ids)
        for tokens in (ids, [ids], ids[1:-1]):
            made = api.embeddings.create(model="all-MiniLM-L6-v2", input=tokens)
            np.testing.assert_allclose(made.data[0].embedding, expected[0], atol=1e-6)
        short = api.embeddings.create(model="all-MiniLM-L6-v2", input=TEXTS[0], dimensions=64).data[0].embedding
        assert len(short) == 64
        assert np.linalg.norm(short) == pytest.approx(1, abs=1e-6)
        assert api.models.retrieve("all-MiniLM-L6-v2").id == "all-MiniLM-L6-v2"
        wrong: list[tuple[Any, Any, str]] = [
            (openai.NotFoundError, lambda: api.embeddings.create(model="gpt-none", input="a"), "no text model 'gpt-none' is installed here"),
            (openai.NotFoundError, lambda: api.models.retrieve("gpt-none"), "no text model 'gpt-none' is installed here"),
            (openai.BadRequestError, lambda: api.embeddings.create(model="", input=[]), "input must not be empty"),
            (openai.UnprocessableEntityError, lambda: api.embeddings.create(model="", input=["a"] * 101), "exceeds max batch size of 100"),
        ]
        for kind, ask, words in wrong:
            with pytest.raises(kind) as refused:
                ask()
            # What the client shows to people is what lies under `error`.
            assert words in refused.value.body["message"]
    finally:
        api.close()


def test_base64_is_little_endian_float32(client: TestClient) -> None:
    body = {"input": "No effusion.", "model": "all-MiniLM-L6-v2"}
    packed = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    plain = client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), np.array(plain, "<f4"))


def test_the_bridges_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "TORCH_DEVICE": ("text_device", "cuda:1"),
        "MODEL_BERTSCORE": ("text_bertscore_model", "a/b"),
        "MODEL_EMBED": ("text_embedding_model", "c"),
        "GPU_MAX_CONCURRENT": ("text_slots", 3),
        "GPU_EMBED_BATCH": ("text_chunk", 4),
        "GPU_MAX_BATCH_SIZE": ("text_max_items", 5),
        "GPU_MAX_TEXT_LENGTH": ("text_max_length", 6),
        "API_KEY": ("api_key", "k"),
    }
    for variable, (_, value) in names.items():
        monkeypatch.setenv(variable, str(value))
    read = Settings()
    assert {name: getattr(read, name) for name, _ in names.values()} == dict(names.values())
