"""Multipart answers as MONAI Label's old clients read them."""

from __future__ import annotations

import json
import secrets
from enum import StrEnum
from typing import Any

from fastapi.responses import JSONResponse, Response


class Output(StrEnum):
    """What the answer holds."""

    IMAGE = "image"
    JSON = "json"
    ALL = "all"
    DICOM_SEG = "dicom_seg"


def new_boundary() -> str:
    """32 hexadecimal digits."""
    return secrets.token_hex(16)


def params_and_image(params: bytes, image: bytes, *, filename: str, content_type: str, boundary: str) -> Response:
    """A part "params" (JSON) and a part "image", in this order, with a Content-Length and an unquoted boundary.

    `image` should contain neither the boundary nor an empty line (CR LF CR LF): clients split the body at both.
    """
    body = b"".join(
        (
            f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n'.encode(),
            params,
            f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{filename}"\r\n'.encode(),
            f"Content-Type: {content_type}\r\n\r\n".encode(),
            image,
            f"\r\n--{boundary}--\r\n".encode(),
        )
    )
    return Response(body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"})


def respond(head: dict[str, Any], body: bytes, output: Output | None, extension: str, boundary: str) -> Response:
    """The answer in the form that `output` asks for: params alone, the file alone, or both."""
    if output is Output.JSON:
        return JSONResponse(head)
    if output is Output.DICOM_SEG:
        return Response(body, media_type="application/dicom")
    kind = "application/gzip" if extension == ".nii.gz" else "application/octet-stream"
    name = f"tmp{boundary[:8]}{extension}"
    if output is Output.IMAGE:
        return Response(body, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
    return params_and_image(json.dumps(head).encode(), body, filename=name, content_type=kind, boundary=boundary)
