"""A picture sent over a protocol, and the mask that comes back."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image


def png(picture: NDArray[np.uint8]) -> bytes:
    """The picture as a file."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "png")
    return data.getvalue()


def found(web: TestClient, picture: NDArray[np.uint8], word: str, model: str) -> NDArray[np.bool_]:
    """What BiomedParse's protocol finds for a word."""
    asked = {"prompts": word, "model": model}
    answer = web.post("/api/biomedparse/v1/predict-2d", files={"file": ("a.png", png(picture), "image/png")}, params=asked)
    assert answer.status_code == 200, answer.text[:300]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json()["results"][0]["mask"])))) > 0


def labelled(web: TestClient, picture: NDArray[np.uint8], **asked: str) -> NDArray[Any]:
    """The label map that the native API gives."""
    answer = web.post("/api/v1/segment", files={"file": ("a.png", png(picture), "image/png")}, data={**asked, "format": "npz"})
    assert answer.status_code == 200, answer.text[:300]
    with np.load(io.BytesIO(answer.content)) as arrays:
        return np.asarray(arrays[arrays.files[0]][0])
