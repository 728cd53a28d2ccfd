"""Addresses from which an S3 server hands out an object for a while, under a file name: Amazon's signature, version 4, in a query.

obstore signs addresses too, but cannot add what the answer's headers shall be, and a download would be called by its digest. The rules
are those of the S3 API reference, "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)".
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit


def presigned(
    address: str,
    *,
    access_key: str,
    secret_key: str,
    region: str,
    seconds: int,
    query: dict[str, str] | None = None,
    now: datetime | None = None,
) -> str:
    """The signed form of an object's address, good for a GET within `seconds`.

    address: scheme, host and path, the path as it is and not percent-encoded. query: further parameters, such as
    `response-content-type`, which are signed too.
    """
    parts = urlsplit(address)
    when = now or datetime.now(UTC)
    stamp, day = when.strftime("%Y%m%dT%H%M%SZ"), when.strftime("%Y%m%d")
    scope = f"{day}/{region}/s3/aws4_request"
    asked = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{access_key}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": "host",
        **(query or {}),
    }
    path = quote(parts.path or "/", safe="/-_.~")
    canonical = "&".join(sorted(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in asked.items()))
    # As clients send it: in small letters, without the port that its scheme implies.
    host = parts.netloc.lower().removesuffix({"http": ":80", "https": ":443"}.get(parts.scheme, ""))
    request = "\n".join(("GET", path, canonical, f"host:{host}", "", "host", "UNSIGNED-PAYLOAD"))
    signed = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{secret_key}".encode()
    for step in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, step.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, signed.encode(), hashlib.sha256).hexdigest()
    return f"{parts.scheme}://{host}{path}?{canonical}&X-Amz-Signature={signature}"
