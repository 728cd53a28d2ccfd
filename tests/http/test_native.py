"""The native API, and models without prompts through every face that takes them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from isocenter.core.geometry import Grid
from isocenter.core.settings import Settings
from isocenter.http.app import create_app
from isocenter.io import nifti
from tests.http.conftest import dicom_series, zipped
from tests.http.test_monailabel import parts
from tests.models import onnx_networks as nets

RNG = np.random.default_rng(0)
#: Values 0, 1 and 2 in blocks: what the network calls background, low and high.
VALUES = np.kron(RNG.integers(0, 3, (4, 5, 6)), np.ones((6, 5, 4))).astype(np.int16)
AFFINE = np.array([[0, -0.8, 0, 10], [0.9, 0, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """An application with one installed network, which rounds values, beside a folder that cannot be used."""
    home = tmp_path_factory.mktemp("native")
    configuration = nets.config(3, patch_size=[16, 16, 16])
    configuration["dataset_parameters"] |= {"class_names": {"1": "Low", "2": "High Thing"}, "synonyms": {"top": "high_thing"}}
    nets.folder(home / "models" / "levels", nets.pointwise(3), {**configuration, "version": "1.4", "description": "Rounds values"})
    nets.folder(home / "models" / "for-ct", nets.pointwise(3), nets.config(3, normalization_schemes=["CTNormalization"]))
    nets.folder(home / "models" / "pointer", b"version https://git-lfs.github.com/spec/v1\n" + b" " * 100, nets.config(3))
    with TestClient(create_app(Settings(home=home, decoders=0)), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture(scope="module")
def scan() -> bytes:
    return nifti.write(VALUES, Grid.from_affine_ras(AFFINE, VALUES.shape))


def segment(client: TestClient, file: bytes | None = None, **fields: Any) -> Any:
    files = {"file": ("scan.nii.gz", file)} if file is not None else None
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
    return client.post("/api/v1/segment", files=files, data=texts)


def mask_of(data: bytes) -> NDArray[Any]:
    """As (z, y, x)."""
    image = nib.Nifti1Image.from_bytes(__import__("gzip").decompress(data))
    assert np.allclose(image.affine, AFFINE)
    return np.asarray(image.dataobj).T


def test_models_are_listed_with_what_cannot_be_used(native: TestClient) -> None:
    answer = native.get("/api/v1/models").json()
    levels = next(m for m in answer["models"] if m["id"] == "levels")
    assert (levels["task"], levels["version"], levels["description"]) == ("segment", "1.4", "Rounds values")
    assert [(label["value"], label["name"]) for label in levels["labels"]] == [(1, "low"), (2, "high_thing")]
    assert len(levels["weights_sha256"]) == 64
    assert [(m["id"], "Git LFS" in m["reason"]) for m in answer["unavailable"]] == [("pointer", True)]
    assert {m["task"] for m in native.get("/api/v1/models", params={"task": "segment"}).json()["models"]} == {"segment"}
    assert native.get("/api/v1/models/levels").json() == levels
    assert native.get("/api/v1/models/nothing").status_code == 404
    assert "Git LFS" in native.get("/api/v1/models/pointer").json()["detail"]


def test_a_model_without_prompts(native: TestClient, scan: bytes) -> None:
    answer = segment(native, scan, model="levels")
    assert answer.status_code == 200, answer.text
    assert np.array_equal(mask_of(answer.content), VALUES)
    sha = native.get("/api/v1/models/levels").json()["weights_sha256"]
    assert (answer.headers["x-isocenter-model"], answer.headers["x-isocenter-version"], answer.headers["x-isocenter-weights"]) == (
        "levels",
        "1.4",
        sha,
    )
    provenance = json.loads(answer.headers["x-isocenter-provenance"])
    assert provenance["labels"] == {"low": 1, "high_thing": 2}
    assert any("float32" in note for note in provenance["notes"])


def test_chosen_labels_and_words(native: TestClient, scan: bytes) -> None:
    for wanted in ("high thing", "top", "thing, high"):
        kept = mask_of(segment(native, scan, model="levels", labels=[wanted]).content)
        assert np.array_equal(kept, np.where(VALUES == 2, 2, 0))
        said = mask_of(segment(native, scan, model="levels", prompts=[{"type": "text", "text": wanted}]).content)
        assert np.array_equal(said, VALUES == 2)
    for both in (["high thing", "low"], ["low", "high thing"]):
        order = [0, both.index("low") + 1, both.index("high thing") + 1]
        for typed in ([json.dumps(both)], both, [json.dumps([both[0]]), both[1]]):  # one JSON list; words; both ways in repeated fields
            answer = native.post("/api/v1/segment", files={"file": ("a.nii.gz", scan)}, data={"model": "levels", "prompts": typed})
            assert np.array_equal(mask_of(answer.content), np.choose(VALUES, order))
    unknown = segment(native, scan, model="levels", prompts=["liver"])
    assert unknown.status_code == 400
    assert "low, high_thing" in unknown.json()["detail"]


def test_facts_and_an_address(native: TestClient, scan: bytes) -> None:
    answer = segment(native, scan, model="levels", answer="json", format="nrrd").json()
    assert [(m["name"], m["voxels"]) for m in answer["labels"]] == [("low", int((VALUES == 1).sum())), ("high_thing", int((VALUES == 2).sum()))]
    assert answer["labels"][0]["volume_mm3"] == pytest.approx((VALUES == 1).sum() * 0.8 * 0.9 * 2.5, rel=1e-4)
    assert (answer["model"], answer["version"]) == ("levels", "1.4")
    file = native.get(answer["mask_url"])
    assert file.content.startswith(b"NRRD")
    assert len(file.content) == answer["bytes"]
    assert native.get(answer["mask_url"].replace("mask_", "task_")).status_code == 404


def test_a_scan_is_sent_once(native: TestClient, scan: bytes) -> None:
    sent = native.post("/api/v1/volumes", files={"file": ("scan.nii.gz", scan)}, data={"modality": "MR"})
    assert sent.status_code == 201
    key = sent.json()["key"]
    assert sent.json()["voxels"] == list(VALUES.shape[::-1])
    assert sent.json()["modality"] == "MR"
    assert native.get(f"/api/v1/volumes/{key}").json() == sent.json()
    for _ in range(2):
        assert np.array_equal(mask_of(segment(native, volume=key, model="levels").content), VALUES)
    assert segment(native, volume=key).headers["x-isocenter-model"] == "levels"  # the first one is for CT
    other = native.post("/api/v1/volumes", files={"file": ("scan.nii.gz", scan)}, data={"modality": "CT"}).json()
    assert (other["key"] != key, other["modality"]) == (True, "CT")
    assert segment(native, volume=other["key"]).headers["x-isocenter-model"] == "for-ct"
    assert segment(native, volume="0" * 32, model="levels").status_code == 404


def test_a_click(native: TestClient, scan: bytes) -> None:
    z, y, x = (int(v) for v in np.argwhere(VALUES == 2)[0])
    answer = segment(native, scan, prompts=[{"type": "point", "xyz": [x, y, z]}])
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-isocenter-model"] == "geodesic"
    assert mask_of(answer.content)[z, y, x] == 1


def test_dicom_comes_back_as_dicom(native: TestClient) -> None:
    archive = zipped(dicom_series(VALUES))
    answer = native.post(
        "/api/v1/segment", files={"file": ("series.zip", archive)}, data={"model": "levels", "format": "dicom-seg", "answer": "file"}
    )
    assert answer.status_code == 200, answer.text
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(io.BytesIO(answer.content))
    assert dataset.Modality == "SEG"
    assert [item.SegmentLabel for item in dataset.SegmentSequence] == ["low", "high_thing"]


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({"model": "nothing"}, 404, "nothing"),
        ({"model": "pointer"}, 503, "Git LFS"),
        ({"model": "levels", "options": {"stepsize": 1}}, 400, "stepsize"),
        ({"model": "levels", "options": "[1]"}, 400, "JSON object"),
        ({"model": "levels", "options": {"step_size": 0}}, 400, "step_size"),
        ({"model": "levels", "prompts": "{"}, 400, "JSON"),
        ({"model": "levels", "prompts": '{"type": "text"}'}, 400, "list"),
        ({"model": "levels", "prompts": [{"type": "circle"}]}, 400, "type"),
        ({"model": "levels", "prompts": [{"type": "point", "xyz": [0, 0, 0]}]}, 400, "levels"),
        ({"prompts": [{"type": "point", "xyz": [0, 0, 1e300]}]}, 400, "finite"),
        ({"prompts": [{"type": "point", "xyz": [99, 0, 0]}]}, 400, "outside"),
        ({"prompts": [{"type": "box", "from": [0, 0, 0], "to": "x"}]}, 400, "two corners"),
        ({"prompts": [{"text": "liver", "positive": False}]}, 400, "a text says what is meant"),
        ({"prompts": [{"point": [-1, 0, 0]}]}, 400, "outside the image"),
        ({"model": "levels", "labels": '["low", 3]'}, 400, "labels"),
        ({"model": "levels", "format": "exe"}, 400, "format"),
        ({"model": "levels", "format": "dicom-seg"}, 400, "DICOM"),
        ({"model": "levels", "answer": "post"}, 400, "answer"),
        ({"model": "levels", "threshold": "much"}, 400, "threshold"),
        ({"model": "levels", "prompts": ["low"], "threshold": "7"}, 400, "threshold"),
        ({"model": "levels", "promts": ["low"]}, 400, "no field 'promts'; there are: file, volume, "),
        ({"model": "levels", "volume": "0" * 32}, 400, "either a file or the key"),
    ],
)
def test_what_cannot_be_answered(native: TestClient, scan: bytes, fields: dict[str, Any], status: int, word: str) -> None:
    answer = segment(native, scan, **fields)
    assert answer.status_code == status, answer.text
    assert word in answer.json()["detail"]


def test_a_request_without_a_scan(native: TestClient) -> None:
    assert "`file`" in segment(native, model="levels").json()["detail"]
    assert native.post("/api/v1/volumes", data={"modality": "CT"}).status_code == 422


@pytest.mark.parametrize(
    "route", ["/api/v1/segment", "/api/v1/volumes", "/infer/segmentation", "/infer/levels", "/api/biomedparse/v1/predict-2d", "/api/v1/dicom/upload"]
)
def test_a_second_file_is_refused(native: TestClient, scan: bytes, route: str) -> None:
    """A series sent slice by slice: one of its slices must not be answered for the whole."""
    slices = [("file", (f"{k}.dcm", data)) for k, data in enumerate(dicom_series(VALUES))]
    fields = {} if route in ("/api/v1/segment", "/api/v1/volumes") else {"prompts": "low", "params": json.dumps({"nninter": "init"})}
    answer = native.post(route, files=slices, data=fields)
    assert answer.status_code == 400, answer.text
    assert "send one file" in answer.json()["detail"]
    beside = native.post(route, files={"file": ("a.nii.gz", scan), "image": ("b.nii.gz", scan)}, data=fields)
    assert ("no field 'image'" in beside.text) == (route in ("/api/v1/segment", "/api/v1/volumes"))


def test_monai_label_lists_and_runs_it(native: TestClient, scan: bytes) -> None:
    entry = native.get("/info/").json()["models"]["levels"]
    assert (entry["type"], entry["labels"], entry["dimension"]) == ("segmentation", {"low": 1, "high_thing": 2}, 3)
    for path in ("/infer/levels", "/monai/infer/levels"):
        answer = native.post(path, files={"file": ("scan.nii.gz", scan)}, data={"params": json.dumps({"step_size": 1.0})}, params={"output": "all"})
        head, image = parts(answer)
        assert np.array_equal(mask_of(image), VALUES)
        assert (head["model"], head["version"], head["label_names"]) == ("levels", "1.4", {"low": 1, "high_thing": 2})
        assert len(head["weights_sha256"]) == 64
    only = native.post("/infer/levels", files={"file": ("scan.nii.gz", scan)}, data={"params": '{"texts": ["low"]}'}, params={"output": "image"})
    assert np.array_equal(mask_of(only.content), VALUES == 1)


def test_biomedparse_answers_by_label_names(native: TestClient, scan: bytes) -> None:
    answer = native.post(
        "/api/biomedparse/v1/predict-3d-nifti",
        files={"file": ("scan.nii.gz", scan)},
        data={"prompts": ["top", "low"]},
        params={"model": "levels", "return_heatmap": "true"},
    ).json()
    for result, value in zip(answer["results"], (2, 1), strict=True):
        with np.load(io.BytesIO(native.get(result["mask_url"]).content)) as stored:
            assert np.array_equal(stored["seg"], value == VALUES)
        assert (result["model"], result["version"], len(result["weights_sha256"])) == ("levels", "1.4", 64)


def test_the_command_line_needs_no_prompt(scan: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_cli_segment import run

    monkeypatch.setenv("MODELS_PATH", str(tmp_path / "models"))
    configuration = nets.config(3, patch_size=[16, 16, 16])
    nets.folder(tmp_path / "models" / "levels", nets.pointwise(3), configuration)
    (tmp_path / "scan.nii.gz").write_bytes(scan)
    code, out, err = run("segment", "-i", tmp_path / "scan.nii.gz", "-m", "levels", "-o", tmp_path / "out", "--option", "step_size=1")
    assert code == 0, err
    assert "class_2" in out
    assert np.array_equal(mask_of((tmp_path / "out" / "mask.nii.gz").read_bytes()), VALUES)
    facts = json.loads((tmp_path / "out" / "measurements.json").read_text())
    assert facts["provenance"]["settings"] == {"step_size": 1}
    assert facts["provenance"]["weights_sha256"]
    code, out, _ = run("segment", "-i", tmp_path / "scan.nii.gz", "-m", "levels", "--label", "class 1", "--json", "-o", tmp_path / "one.nii.gz")
    assert [entry["name"] for entry in json.loads(out)["labels"]] == ["class_1"]
    for arguments, word in (
        (("--option", "step_size"), "KEY=VALUE"),
        (("--label", "liver"), "class_1"),
        (("--text", "class 1", "--label", "x"), "prompt"),
    ):
        code, _, err = run("segment", "-i", tmp_path / "scan.nii.gz", "-m", "levels", *arguments, "-o", tmp_path / "bad")
        assert code == 2
        assert word in err
    assert run("segment", "-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "bad")[0] == 2
