"""Multipart answers as MONAI Label's old clients read them."""

from __future__ import annotations

import secrets

from fastapi.responses import Response


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
