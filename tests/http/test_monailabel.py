"""MONAI Label's generation 2, read the way its viewers read it."""

from __future__ import annotations

import gzip
import json
import re
import struct
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from isocenter.core.geometry import Grid
from isocenter.core.phantom import Phantom
from isocenter.io import nifti
from tests.http.conftest import dicom_series, zipped


def infer(
    client: TestClient, file: bytes, params: dict[str, Any], *, name: str = "series.zip", path: str = "/infer/segmentation", **query: str
) -> Any:
    return client.post(path, files={"file": (name, file)}, data={"params": json.dumps(params)}, params=query)


def parts(answer: Any) -> tuple[dict[str, Any], bytes]:
    """A naive client: the boundary is what follows `boundary=`; headers end at the first empty line."""
    assert answer.status_code == 200, answer.text
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert "content-encoding" not in answer.headers
    boundary = answer.headers["content-type"].split("boundary=")[1]
    assert re.fullmatch("[0-9a-f]{32}", boundary)
    pieces = answer.content.split(b"--" + boundary.encode())
    assert len(pieces) == 4
    assert pieces[3] == b"--\r\n"
    params_head, params_body = pieces[1].split(b"\r\n\r\n")
    image_head, image_body = pieces[2].split(b"\r\n\r\n")
    assert b'name="params"' in params_head
    assert image_head.index(b'name="image"') < image_head.index(b"filename=")
    return json.loads(params_body), image_body.removesuffix(b"\r\n")


def voxels(image: bytes) -> NDArray[np.uint8]:
    """The viewer's reader: dim0 is Z, one byte a voxel, first axis fastest. Returns (z, y, x)."""
    raw = gzip.decompress(image)
    assert struct.unpack_from("<i", raw)[0] == 348
    _, nz, ny, nx = struct.unpack_from("<4h", raw, 40)
    assert struct.unpack_from("<f", raw, 108)[0] == 352
    return np.frombuffer(raw, np.uint8, offset=352).reshape((nz, ny, nx), order="F")


def inside(mask: NDArray[np.bool_]) -> tuple[int, int, int]:
    """A voxel (x, y, z) deep in a mask."""
    from scipy.ndimage import distance_transform_edt

    z, y, x = np.unravel_index(int(np.argmax(distance_transform_edt(mask))), mask.shape)
    return int(x), int(y), int(z)


@pytest.fixture(scope="module")
def series(ct: Phantom) -> bytes:
    return zipped(dicom_series(ct.volume.array.astype(np.int16)))


@pytest.mark.parametrize("prefix", ["", "/monai"])
def test_up_and_info(client: TestClient, prefix: str) -> None:
    assert client.get(f"{prefix}/").json() == {"status": "UP"}
    info = client.get(f"{prefix}/info/").json()
    assert list(info)[:5] == ["name", "description", "version", "labels", "models"]
    assert not info.get("config")
    assert isinstance(info["labels"], list)
    assert "liver" in info["labels"]
    assert info["models"]["segmentation"]["labels"]["liver"] == 5
    assert info["models"]["segmentation"]["type"] == "segmentation"
    for name in ("Histogram+GraphCut", "GMM+GraphCut"):
        assert info["models"][name]["type"] == "scribbles"
    assert client.get(f"{prefix}/auth/").status_code == 404


def test_init_click_and_reset(client: TestClient, ct: Phantom, series: bytes) -> None:
    assert infer(client, series, {"nninter": "init"}).text == "{}"
    point = list(inside(ct.masks["liver"]))
    answer = infer(client, series, {"nninter": "sam3", "pos_points": [point], "neg_points": []}, output="all")
    assert b"prompt_info" in answer.content[:500]
    params, image = parts(answer)
    assert next(iter(params)) == "prompt_info"
    assert params["prompt_info"] == {"pos_points": [point]}
    assert params["flipped"] is False
    assert re.fullmatch(r"nninter_pred_\d{14}", params["label_name"])
    assert params["nninter_elapsed"] >= 0
    assert params["model"] == "geodesic"
    mask = voxels(image)
    assert mask.shape == ct.volume.shape
    assert mask[point[2], point[1], point[0]] == 1
    assert set(np.unique(mask)) == {0, 1}
    assert infer(client, series, {"nninter": "reset"}).text == "{}"
    again = voxels(parts(infer(client, series, {"nninter": True, "pos_points": [point]}))[1])
    assert np.array_equal(again, mask), "the same click on a fresh session gives the same mask"


def test_clicks_build_on_each_other_and_can_be_taken_back(client: TestClient, ct: Phantom, series: bytes) -> None:
    point, away = list(inside(ct.masks["liver"])), list(inside(ct.masks["spleen"]))
    one = {"nninter": "sam3", "pos_points": [point], "clientSessionID": "undo"}
    first = voxels(parts(infer(client, series, one))[1])
    second = voxels(parts(infer(client, series, {**one, "neg_points": [away]}))[1])
    assert second[away[2], away[1], away[0]] == 0
    back = voxels(parts(infer(client, series, one))[1])
    assert np.array_equal(back, first)


def test_a_series_shown_the_other_way_round(client: TestClient, ct: Phantom, series: bytes) -> None:
    """Instance numbers run against the positions: the viewer counts z from the other end, the mask does not."""
    backwards = zipped(dicom_series(ct.volume.array.astype(np.int16), reverse_numbers=True))
    x, y, z = inside(ct.masks["liver"])
    straight = voxels(parts(infer(client, series, {"nninter": "sam3", "pos_points": [[x, y, z]]}))[1])
    params, image = parts(infer(client, backwards, {"nninter": "sam3", "pos_points": [[x, y, ct.volume.shape[0] - 1 - z]]}))
    assert params["flipped"] is True
    assert params["prompt_info"] == {"pos_points": [[x, y, ct.volume.shape[0] - 1 - z]]}
    assert np.array_equal(voxels(image), straight)


def test_every_way_to_write_a_prompt(client: TestClient, ct: Phantom, ct_nifti: bytes) -> None:
    x, y, z = inside(ct.masks["liver"])
    requests: list[dict[str, Any]] = [
        {"pos_boxes": [[x - 5, y - 5, x + 5, y + 5, z]]},
        {"pos_boxes": [[[x - 5, y - 5, z], [x + 5, y + 5, z]]]},
        {"prompt_info": [{"type": "box", "data": {"pointType": "click", "slice": z, "x": x - 5, "y": y - 5, "width": 11, "height": 11}}]},
        {"pos_scribbles": [[[x - 3, y, z], [x + 3, y, z]]]},
        {"pos_lassos": [[[x - 3, y - 3, z], [x + 3, y - 3, z], [x + 3, y + 3, z], [x - 3, y + 3, z]]]},
        {
            "prompt_info": [
                {"type": "point", "data": {"pointType": "click", "slice": z, "x": x, "y": y}},
                {"type": "other", "data": {"x": 1, "y": 1, "slice": 1}},
            ]
        },
    ]
    masks = []
    for request in requests:
        params, image = parts(infer(client, ct_nifti, {"nninter": "sam3", **request}, name="ct.nii.gz"))
        masks.append(voxels(image))
        assert masks[-1][z, y, x] == 1, request
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], masks[2])
    assert params["prompt_info"] == {"pos_points": [[x, y, z]]}


def test_a_click_on_a_nifti_is_the_files_own_index(client: TestClient) -> None:
    """A bright block in a volume whose axes point every other way."""
    array = np.random.default_rng(0).normal(0, 5, (20, 24, 28)).astype(np.int16)
    array[4:9, 5:11, 6:13] += 200
    affine = np.array([[0, -2.0, 0, 3], [0, 0, 1.5, 4], [-1, 0, 0, 5], [0, 0, 0, 1]])
    file = nifti.write(array, Grid.from_affine_ras(affine, array.shape))
    _, image = parts(infer(client, file, {"nninter": "sam3", "pos_points": [[9, 8, 6]]}, name="odd.nii.gz"))
    mask = voxels(image).astype(bool)
    truth = array > 100
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.8
    assert not (mask & ~truth).any(), "a wrong axis would put it elsewhere"


def test_two_patients_in_equally_named_folders_are_never_mixed(client: TestClient, ct: Phantom, series: bytes) -> None:
    other = ct.volume.array.astype(np.int16)[:, :, ::-1].copy()
    mirrored = zipped(dicom_series(other, patient="two"))
    x, y, z = inside(ct.masks["liver"])
    params = {"nninter": "sam3", "pos_points": [[x, y, z]]}
    masks = [voxels(parts(infer(client, file, params, name="same.zip"))[1]) for file in (series, mirrored, series, mirrored)]
    assert np.array_equal(masks[0], masks[2])
    assert np.array_equal(masks[1], masks[3])
    assert not np.array_equal(masks[0], masks[1])


def test_words_and_outputs(client: TestClient, ct: Phantom, series: bytes) -> None:
    params, image = parts(infer(client, series, {"nninter": True, "texts": ["lungs"]}))
    assert params["label_name"] == "lungs"
    assert params["model"] == "tissue"
    mask = voxels(image).astype(bool)
    assert 2 * (mask & ct.masks["lungs"]).sum() / (mask.sum() + ct.masks["lungs"].sum()) > 0.9
    point = list(inside(ct.masks["liver"]))
    request = {"nninter": "sam3", "pos_points": [point]}
    assert infer(client, series, request, output="json").json()["prompt_info"] == {"pos_points": [point]}
    plain = infer(client, series, request, output="image")
    assert plain.headers["content-disposition"].endswith('.nii.gz"')
    assert voxels(plain.content)[point[2], point[1], point[0]] == 1
    seg = infer(client, series, request, output="dicom_seg")
    assert seg.headers["content-type"] == "application/dicom"
    assert seg.content[128:132] == b"DICM"


def test_true_geometry_on_request(client: TestClient, ct: Phantom, ct_nifti: bytes) -> None:
    import nibabel

    point = list(inside(ct.masks["liver"]))
    answer = infer(client, ct_nifti, {"nninter": "sam3", "pos_points": [point], "result_space": "world"}, name="ct.nii.gz", output="image")
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    assert image.shape == ct.volume.shape[::-1]
    assert np.allclose(image.affine, ct.volume.grid.affine_ras, atol=1e-4)


@pytest.mark.parametrize("model", ["Histogram+GraphCut", "GMM+GraphCut"])
def test_scribbles_in_a_label_map(client: TestClient, ct: Phantom, ct_nifti: bytes, model: str) -> None:
    x, y, z = inside(ct.masks["liver"])
    label = np.zeros(ct.volume.shape, np.uint8)
    label[z, y, x - 3 : x + 4] = 3
    label[z - 6 : z + 7, y - 14, x - 14 : x + 15] = 2
    label[z - 6 : z + 7, y + 14, x - 14 : x + 15] = 2
    files = {"file": ("ct.nii.gz", ct_nifti), "label": ("label.nii.gz", nifti.write(label, ct.volume.grid))}
    params = {"result_extension": ".nrrd", "result_dtype": "uint8"}
    answer = client.post(f"/infer/{model.replace('+', '%2B')}", files=files, data={"params": json.dumps(params)}, params={"output": "image"})
    assert answer.status_code == 200, answer.text
    assert answer.content.startswith(b"NRRD")
    raw = client.post(
        f"/infer/{model.replace('+', '%2B')}", files={**files, "label": ("label.bin", label.tobytes())}, data={"params": json.dumps(params)}
    )
    assert raw.status_code == 200, raw.text
    assert json.loads(raw.content.split(b"\r\n\r\n")[1].split(b"\r\n")[0])["label_names"] == {"region": 1}


@pytest.mark.parametrize(
    ("params", "status", "words"),
    [
        ({}, 400, "nninter"),
        ({"nninter": "sam3"}, 400, "no prompts"),
        ({"nninter": "sam3", "pos_points": [[1, 2]], "neg_points": "x"}, 400, "neg_points"),
        ({"nninter": "sam3", "pos_points": [["a", 1, 2]]}, 400, "three finite numbers"),
        ({"nninter": "sam3", "pos_points": [[1, 2, 4000]]}, 400, "outside the image"),
        ({"nninter": "sam3", "pos_boxes": [[1, 2, 3]]}, 400, "box"),
        ({"nninter": "sam3", "pos_points": [[1, 2, 3]], "image": "/etc/passwd", "result_extension": "../x"}, 400, "result_extension"),
        ({"nninter": True, "texts": ["flux capacitor"]}, 400, "liver"),
    ],
)
def test_refusals(client: TestClient, ct_nifti: bytes, params: dict[str, Any], status: int, words: str) -> None:
    answer = infer(client, ct_nifti, params, name="ct.nii.gz")
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]


def test_refusals_without_an_image(client: TestClient, ct_nifti: bytes) -> None:
    assert client.post("/infer/segmentation", data={"params": "{}"}).json() == {"detail": "Neither Image nor File not Session ID input is provided"}
    assert client.post("/infer/segmentation?session_id=abc").json() == {"detail": "Session (abc) Not Found"}
    assert client.post("/infer/segmentation?image=/etc/passwd").status_code == 404
    assert infer(client, ct_nifti, {"nninter": "init"}, name="ct.nii.gz", path="/infer/unknown").status_code == 404
    answer = client.post("/infer/segmentation", files={"file": ("ct.nii.gz", ct_nifti)}, data={"params": "{not json"})
    assert answer.status_code == 400
    broken = infer(client, ct_nifti[: len(ct_nifti) // 2], {"nninter": "init"}, name="ct.nii.gz")
    assert broken.status_code == 400
    assert client.post("/infer/segmentation?output=nothing", files={"file": ("ct.nii.gz", ct_nifti)}).status_code == 422
