"""Pictures of several clients in one batch: each gets its own answer, as if it had been alone, and its own failure."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from isocenter.answers import Found
from isocenter.core.errors import BusyError, UnsupportedError, UsageError
from isocenter.core.model import ModelContext, Question
from isocenter.core.prompts import Point
from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.http.app import create_app
from isocenter.models import sam3
from isocenter.models._sam.features import Prepared
from isocenter.runtime.slices import Batches
from isocenter.service import Service
from tests.http.pictures import labelled, png
from tests.models import sam_networks
from tests.models.test_biomedparse import CODE, NAME, write_weights

torch = pytest.importorskip("torch")
PHANTOM = Path(__file__).parent.parent / "data" / "sam_phantom"


def block(corner: tuple[int, int], shape: tuple[int, int] = (60, 90), bright: int = 220) -> NDArray[np.uint8]:
    """A picture that can be told from others: where it is bright."""
    grey = np.full(shape, 20, np.uint8)
    grey[corner[0] : corner[0] + 24, corner[1] : corner[1] + 24] = bright
    return grey


#: Different sizes, different places; in the last one nothing is bright enough to exist.
PICTURES = [block((4, 50)), block((30, 8)), block((20, 20), (80, 70)), block((2, 2), (50, 50)), block((10, 10), bright=120)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """BiomedParse's stand-in, with colours that would show a neighbour that is another client's."""
    home = tmp_path_factory.mktemp("together")
    mixing = {"model.backbone.weight": torch.tensor([0.5, 0.3, 0.2]).reshape(1, 3, 1, 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BP3D_CODE", str(CODE))
        patch.setenv("BP3D_CKPT", str(write_weights(home / NAME, **mixing)))
        made = Service(Settings(home=home, decoders=0, slice_batch_size=4))
        yield made
        made.close()


@contextmanager
def held(service: Service) -> Iterator[Batches]:
    """Whatever is asked inside gathers until the block ends."""
    gate = threading.Event()
    blocked = service.runtime.submit(lambda: gate.wait(120))
    try:
        yield service.runtime._batches
    finally:
        gate.set()
        blocked.result(60)


def ask(service: Service, picture: NDArray[Any], *prompts: str, threshold: float = 0.5) -> Future[list[Found]]:
    return service.find_soon(Question(Volume(picture[None]), prompts, threshold))


def alike(a: Found, b: Found) -> None:
    for mine, alone in zip(a.findings, b.findings, strict=True):
        assert mine.prompt == alone.prompt
        assert mine.presence == pytest.approx(alone.presence, abs=1e-5)
        assert mine.mask.shape == alone.mask.shape
        np.testing.assert_allclose(mine.probability.astype(int), alone.probability, atol=1)
        assert np.count_nonzero(mine.mask != alone.mask) <= 1e-3 * mine.mask.size
        assert mine.notes == alone.notes


def test_each_gets_what_it_would_get_alone(service: Service) -> None:
    words = [("bright",), ("bright",), ("dark", "bright"), ("bright",), ("bright",)]
    with held(service) as batches:
        before = batches.batches
        answers = [
            ask(service, picture, *asked, threshold=0.4 if n == 3 else 0.5) for n, (picture, asked) in enumerate(zip(PICTURES, words, strict=True))
        ]
    found = [answer.result(120)[0] for answer in answers]
    assert batches.batches == before + 1
    for n, (one, picture, asked) in enumerate(zip(found, PICTURES, words, strict=True)):
        alike(one, service.find(Volume(picture[None]), asked, threshold=0.4 if n == 3 else 0.5))
        inside, mask = picture > 128, one.findings[-1].mask[0] != 0
        if n < 4:
            assert 2 * (mask & inside).sum() / (mask.sum() + inside.sum()) > 0.97
            assert one.findings[-1].presence > 0.9
        else:
            assert not mask.any()
            assert one.findings[0].presence < 0.1, "existence is each picture's own"
    assert found[3].provenance.settings["threshold"] == 0.4


def test_a_failing_one_fails_alone_and_who_left_or_came_too_late_is_left_out(service: Service) -> None:
    broken = PICTURES[0].astype(np.float32)
    broken[3, 3] = np.nan
    options = service.runtime.options
    with held(service):
        good = [ask(service, PICTURES[0], "bright")]
        spoilt = ask(service, broken, "bright")
        nameless = ask(service, PICTURES[2], "x" * 400)
        left = ask(service, PICTURES[3], "bright")
        service.runtime.options = replace(options, lease_seconds=0.0)
        late = ask(service, PICTURES[3], "bright")
        service.runtime.options = options
        good += [ask(service, PICTURES[1], "bright")]
        assert left.cancel()
    for future, picture in zip(good, PICTURES, strict=False):
        alike(future.result(120)[0], service.find(Volume(picture[None]), ["bright"]))
    with pytest.raises(UnsupportedError, match="finite"):
        spoilt.result(60)
    with pytest.raises(UsageError, match="characters"):
        nameless.result(60)
    with pytest.raises(BusyError):
        late.result(60)
    assert left.cancelled()


def test_a_batch_that_nobody_waits_for_any_more_stops(service: Service) -> None:
    with held(service):
        futures = [ask(service, picture, "bright") for picture in PICTURES[:2]]
    # Whether it has begun or not: nobody gets an answer, and the model goes on with the next ones.
    for future in futures:
        future.cancel()
    assert ask(service, PICTURES[1], "bright").result(120)[0].findings[0].mask.any()


def test_without_a_gain_each_is_computed_by_itself(service: Service) -> None:
    """A processor computes several pictures no faster than one by one, so nobody waits for the others there."""
    options, batches = service.runtime.options, service.runtime._batches
    service.runtime.options = replace(options, batch=0)
    before = batches.batches
    try:
        assert service.runtime.together(service.registry.spec("biomedparse")) == 1
        assert ask(service, PICTURES[0], "bright").result(120)[0].findings[0].mask.any()
    finally:
        service.runtime.options = options
    assert batches.batches == before


def waits_for(batches: Batches, count: int) -> None:
    deadline = time.monotonic() + 120
    while sum(len(lane.tickets) for lane in list(batches._lanes.values())) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def client(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(Service, "warm", lambda self: None)
    monkeypatch.setattr(Service, "close", lambda self: None)  # the fixture's, which others go on with
    monkeypatch.setattr("isocenter.http.app.Service", lambda settings: service)
    with TestClient(create_app(service.settings), base_url="http://127.0.0.1") as client:
        yield client


def test_clients_of_predict_2d_and_of_the_native_api_share_a_batch(service: Service, client: TestClient) -> None:
    def predict(picture: NDArray[np.uint8]) -> NDArray[Any]:
        answer = client.post("/api/biomedparse/v1/predict-2d", files={"file": ("a.png", png(picture), "image/png")}, params={"prompts": "bright"})
        (result,) = answer.json()["results"]
        assert result["model"] == "biomedparse"
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(result["mask"]))))

    def segment(picture: NDArray[np.uint8]) -> NDArray[Any]:
        return labelled(client, picture, prompts='["bright"]', model="biomedparse")

    ways = [predict, segment, predict, segment]
    with ThreadPoolExecutor(4) as pool:
        with held(service) as batches:
            before = batches.batches
            waiting = [pool.submit(way, picture) for way, picture in zip(ways, PICTURES, strict=False)]
            waits_for(batches, 4)
        for future, picture in zip(waiting, PICTURES, strict=False):
            mask, inside = future.result(120) > 0, picture > 128
            assert 2 * (mask & inside).sum() / (mask.sum() + inside.sum()) > 0.97
        assert batches.batches == before + 1


def test_sam_3_reads_each_ones_words_on_its_own_picture(tmp_path: Path) -> None:
    folder = sam_networks.save(sam_networks.build("sam3"), tmp_path / "sam3")
    model = sam3.Sam3Text()
    model.load(ModelContext(spec=sam3.offer(folder)[1], threads=1))
    asked = [("liver",), ("left kidney", "lung"), ("the lesion",)]
    questions = [Question(Volume(picture[None]), words, 0.3) for picture, words in zip(PICTURES, asked, strict=False)]
    for findings, question in zip(model.find_pictures(questions), questions, strict=True):
        alone = model.find(question.volume, question.prompts, threshold=0.3)
        for mine, one in zip(findings, alone, strict=True):
            assert (mine.prompt, mine.notes) == (one.prompt, one.notes)
            np.testing.assert_allclose(mine.probability.astype(int), one.probability, atol=1)
            assert mine.presence == pytest.approx(one.presence, abs=1e-5)
            assert one.probability.any()
    model.close()


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("together-sam")
    shutil.copytree(PHANTOM, home / "models" / "sam-phantom")
    made = Service(Settings(home=home, decoders=0, slice_batch_size=4, default_models=("interactive=sam-phantom",)))
    yield made
    made.close()


def test_clients_pictures_are_seen_by_sam_in_one_pass(clicks: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI Label's clicks on pictures of different people: seen together, answered one by one, as without the others."""
    monkeypatch.setattr(Service, "warm", lambda self: None)
    monkeypatch.setattr(Service, "close", lambda self: None)
    monkeypatch.setattr("isocenter.http.app.Service", lambda settings: clicks)
    passes: list[int] = []
    spec = clicks.registry.spec("sam-phantom")
    with clicks.runtime.lease(spec) as lease:
        net = type(lease.model._net)
    encode = net.encode

    def counted(self: Any, pixels: Any, network: Any) -> Any:
        passes.append(len(pixels))
        return encode(self, pixels, network)

    monkeypatch.setattr(net, "encode", counted)
    places = [(16, 62), (42, 20), (32, 32)]

    def post(number: int) -> Any:
        y, x = places[number]
        params = {"nninter": "sam", "pos_points": [[x, y, 0]], "neg_points": [], "result_space": "world", "client_id": f"client-{number}"}
        return web.post(
            "/infer/segmentation?output=image", data={"params": json.dumps(params)}, files={"file": ("a.png", png(PICTURES[number]), "image/png")}
        )

    with TestClient(create_app(clicks.settings), base_url="http://127.0.0.1") as web, ThreadPoolExecutor(3) as pool:
        with held(clicks) as batches:
            waiting = [pool.submit(post, number) for number in range(3)]
            waits_for(batches, 3)
        together = [future.result(120) for future in waiting]
        assert [answer.status_code for answer in together] == [200] * 3
        assert passes == [3], "no client's own pass, and none twice"
    for number, answer in enumerate(together):
        mask = np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj).T
        y, x = places[number]
        with clicks.runtime.lease(spec) as lease:
            alone = lease.model.begin(Prepared(Volume(PICTURES[number][None])))
            alone.add([Point((0, y, x))])
        assert np.count_nonzero((mask.reshape(alone.mask.shape) != 0) != (alone.mask != 0)) <= 1e-3 * mask.size
        assert mask.any()


def test_features_are_those_of_the_slice_alone(clicks: Service) -> None:
    spec = clicks.registry.spec("sam-phantom")
    volumes = [Volume(np.stack([picture, picture[::-1]])) for picture in PICTURES[:3]]
    with clicks.runtime.lease(spec) as lease:
        together = [Prepared(volume) for volume in volumes]
        lease.model.look([(prepared, [Point((1, 30, 30))]) for prepared in together])
        for prepared, volume in zip(together, volumes, strict=True):
            alone = Prepared(volume)
            lease.model.look([(alone, [Point((1, 30, 30))])])
            ((key, mine),) = prepared._kept.items()
            ((same, ours),) = alone._kept.items()
            assert key == same
            assert key[0] == 1
            assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(mine, ours, strict=True))
        held_before = [prepared.nbytes for prepared in together]
        lease.model.look([(prepared, [Point((1, 10, 10))]) for prepared in together])
        assert [prepared.nbytes for prepared in together] == held_before, "what was seen is not looked at again"
