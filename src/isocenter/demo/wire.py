"""A client of the server, on the standard library alone: what the demonstration asks, anybody's client can."""

from __future__ import annotations

import base64
import email.parser
import email.policy
import json
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import IsocenterError

#: The longest that one answer may take.
_SECONDS = 120.0
BIOMEDPARSE = "/api/biomedparse/v1"


class RefusedError(IsocenterError):
    """The server answered with an error; `status` is HTTP's, the message the server's own."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Word:
    """A word's answer: mask (z, y, x) and how sure the model is that the structure is there."""

    prompt: str
    mask: NDArray[np.uint8]
    presence: float
    model: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Click:
    """A click's answer: the mask as the bytes of a NIfTI file, and how long the server took until the last byte came."""

    nifti: bytes
    seconds: float
    model: str


class Wire:
    """One server. Raises `RefusedError` for every answer that is an error."""

    def __init__(self, base: str, key: str | None = None) -> None:
        self.base = base
        self._headers = {"X-API-Key": key} if key else {}

    def ready(self) -> bool:
        """Whether the server is up and its kernels are compiled."""
        try:
            self._ask("/readyz", seconds=2.0)
        except (OSError, RefusedError):
            return False
        return True

    def labels(self) -> list[str]:
        """The words that the server says it understands."""
        return list(json.loads(self._ask("/info/"))["labels"])

    def find(self, scan: Path, words: Sequence[str], modality: str | None) -> list[Word]:
        """Words to masks, by BiomedParse's protocol: prompts in the form, arrays fetched afterwards."""
        query = f"?modality={urllib.parse.quote(modality)}" if modality else ""
        body = json.loads(self._post(f"{BIOMEDPARSE}/predict-3d-nifti{query}", [("prompts", w) for w in words], scan))
        found = []
        for result in body["results"]:
            name = result["mask_url"].rsplit("/", 1)[-1]
            array = json.loads(self._ask(f"{BIOMEDPARSE}/fetch-npz?name={name}&key=seg"))
            mask = np.frombuffer(base64.b64decode(array["data_base64"]), array["dtype"]).reshape(array["shape"])
            found.append(Word(result["prompt"], mask, result["presence_confidence"], result["model"], tuple(result["notes"])))
        return found

    def begin(self, scan: Path) -> None:
        """Start clicking on a scan, by MONAI Label's protocol."""
        self._post("/infer/segmentation", [("params", json.dumps({"nninter": "init"}))], scan)

    def click(self, scan: Path, prompts: Mapping[str, Any]) -> Click:
        """All clicks so far to a mask, by MONAI Label's protocol; the scan is sent along each time, as its clients do."""
        params = {"nninter": True, **prompts, "result_space": "world", "result_extension": ".nii.gz"}
        started = time.perf_counter()
        request = self._request("/infer/segmentation", [("params", json.dumps(params))], scan)
        kind, body = self._send(request, _SECONDS)
        seconds = time.perf_counter() - started
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
        parts = {part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in message.iter_parts()}
        facts, nifti = parts["params"], parts["image"]
        if not isinstance(facts, bytes) or not isinstance(nifti, bytes):
            raise RefusedError("the answer holds no mask", 200)
        return Click(nifti, seconds, json.loads(facts).get("model", ""))

    def _ask(self, path: str, seconds: float = _SECONDS) -> bytes:
        return self._send(urllib.request.Request(self.base + path, headers=self._headers), seconds)[1]  # noqa: S310 - our own server

    def _post(self, path: str, fields: Sequence[tuple[str, str]], file: Path) -> bytes:
        return self._send(self._request(path, fields, file), _SECONDS)[1]

    def _request(self, path: str, fields: Sequence[tuple[str, str]], file: Path) -> urllib.request.Request:
        """A multipart form with one file."""
        boundary = secrets.token_hex(16)
        head = "".join(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields)
        head += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file.name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        )
        body = head.encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        headers = {**self._headers, "Content-Type": f"multipart/form-data; boundary={boundary}"}
        return urllib.request.Request(self.base + path, body, headers)  # noqa: S310 - our own server

    def _send(self, request: urllib.request.Request, seconds: float) -> tuple[str, bytes]:
        """The answer's content type and body."""
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310 - our own server
                return answer.headers.get("Content-Type", ""), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode("utf-8", "replace")
            try:
                detail = json.loads(text)["detail"]
            except (ValueError, KeyError, TypeError):
                detail = text
            raise RefusedError(str(detail)[:500], error.code) from None
