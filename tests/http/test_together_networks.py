"""Pictures of several clients in one batch of a network that finds all its structures at once: nnU-Net's 2-D configuration."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from isocenter.core.errors import UnknownPromptError, UnsupportedError, UsageError
from isocenter.core.model import Question
from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.http.app import create_app
from isocenter.service import Service
from tests.http import pictures
from tests.http.test_together import held, waits_for
from tests.models.test_nnunet import write_folder

pytest.importorskip("torch")
pytest.importorskip("nnunetv2")
RNG = np.random.default_rng(3)
#: Three of one size, one of another; noise in large grains, so that a random network has something to tell apart.
PICTURES = [np.kron(RNG.integers(1, 255, (n, m)), np.ones((6, 6))).astype(np.uint8) for n, m in ((9, 12), (9, 12), (9, 12), (10, 11))]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("together-nnunet")
    write_folder(home / "models" / "flat", dimensions=2)
    made = Service(Settings(home=home, decoders=0, slice_batch_size=6))
    yield made
    made.close()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tiles went through the network at once, time after time."""
    from isocenter.models._nnunet import predict

    seen: list[int] = []
    whole = predict._mirrored

    def counted(module: Any, x: Any, axes: tuple[int, ...]) -> Any:
        seen.append(len(x))
        return whole(module, x, axes)

    monkeypatch.setattr(predict, "_mirrored", counted)
    return seen


def test_pictures_share_passes_and_get_what_they_would_get_alone(service: Service, passes: list[int]) -> None:
    volumes = [Volume(picture[None]) for picture in PICTURES]
    alone = [service.label(volume, model="flat") for volume in volumes]
    tiles = [0, *np.cumsum(passes)]
    assert all(len(np.unique(answer.mask)) >= 2 for answer in alone)
    passes.clear()
    with held(service) as batches:
        before = batches.batches
        futures = [service.label_soon(volume, model="flat") for volume in volumes[:3]]
        words = service.find_soon(Question(volumes[3], ("the liver", "right kidney")), model="flat")
        kept = service.label_soon(volumes[0], model="flat", labels=["liver"])
    together = [future.result(120)[0] for future in futures]
    assert batches.batches == before + 1
    assert sum(passes) > tiles[-1]
    assert max(passes) == 6, "tiles of several pictures fill a pass"
    assert len(passes) < sum(passes) / 4
    for mine, one in zip(together, alone, strict=False):
        assert np.mean(mine.mask == one.mask) > 0.999
        assert (mine.provenance.model, mine.labels, mine.provenance.notes) == ("flat", one.labels, one.provenance.notes)
    values = {label.name: label.value for label in alone[3].labels}
    for finding, name in zip(words.result(120)[0].findings, ("liver", "kidney_right"), strict=True):
        assert finding.label.name == name
        assert np.mean((finding.mask != 0) == (alone[3].mask == values[name])) > 0.999
    only = kept.result(120)[0]
    assert [label.name for label in only.labels] == ["liver"]
    assert np.array_equal(only.mask != 0, together[0].mask == values["liver"])


def test_a_failing_one_fails_alone(service: Service) -> None:
    broken = PICTURES[0].astype(np.float32)
    broken[3, 3] = np.nan
    with held(service) as batches:
        before = batches.batches
        spoilt = service.label_soon(Volume(broken[None]), model="flat")
        other = service.label_soon(Volume(PICTURES[2][None], modality="CT"), model="flat")
        good = service.label_soon(Volume(PICTURES[1][None]), model="flat")
        odd = service.label_soon(Volume(PICTURES[1][None]), model="flat", options={"step": 7})
    with pytest.raises(UnsupportedError, match="finite"):
        spoilt.result(120)
    with pytest.raises(UnsupportedError, match="trained on MR"):
        other.result(120)
    with pytest.raises(UsageError, match="step"):
        odd.result(120)
    assert np.array_equal(good.result(120)[0].mask, service.label(Volume(PICTURES[1][None]), model="flat").mask)
    assert batches.batches > before + 2
    with pytest.raises(UnknownPromptError, match="kidney_left"):
        service.find_soon(Question(Volume(PICTURES[0][None]), ("moon",)), model="flat")


def test_clients_of_three_protocols_share_a_batch(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "warm", lambda self: None)
    monkeypatch.setattr(Service, "close", lambda self: None)  # the fixture's, which others go on with
    monkeypatch.setattr("isocenter.http.app.Service", lambda settings: service)
    values = {label.name: label.value for label in service.registry.spec("flat").labels}

    def predict(picture: NDArray[np.uint8]) -> NDArray[Any]:
        return pictures.found(web, picture, "liver", "flat")

    def segment(picture: NDArray[np.uint8]) -> NDArray[Any]:
        return np.asarray(pictures.labelled(web, picture, model="flat") == values["liver"])

    def infer(picture: NDArray[np.uint8]) -> NDArray[Any]:
        answer = web.post("/infer/flat?output=image", files={"file": ("a.png", pictures.png(picture), "image/png")}, data={"params": "{}"})
        assert answer.status_code == 200, answer.text[:300]
        image = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
        return np.asarray(np.asarray(image.dataobj).T.reshape(picture.shape) == values["liver"])

    with TestClient(create_app(service.settings), base_url="http://127.0.0.1") as web, ThreadPoolExecutor(3) as pool:
        with held(service) as batches:
            before = batches.batches
            waiting = [pool.submit(way, picture) for way, picture in zip((predict, segment, infer), PICTURES, strict=False)]
            waits_for(batches, 3)
        masks = [future.result(120) for future in waiting]
        assert batches.batches == before + 1
    for mask, picture in zip(masks, PICTURES, strict=False):
        alone = service.label(Volume(picture[None]), model="flat").mask[0] == values["liver"]
        assert np.mean(mask == alone) > 0.999
    assert any(mask.any() for mask in masks)
