"""Who may speak to the server: Host names (against DNS rebinding), the API key, and which paths need none."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable

import structlog
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from isocenter.core.settings import Settings
from isocenter.http.errors import body

log = structlog.get_logger("isocenter")
#: Open even when a key is set: what load balancers and clients ask before they can know of a key.
OPEN_PATHS = {"/", "/monai", "/monai/", "/healthz", "/readyz", "/health", "/api/biomedparse/v1/health"}
OPEN_PREFIXES = ("/auth/", "/monai/auth/", "/ui/")
#: The inference service's own: its login, and its health. Its clients look for 403 where a token is wrong.
OPEN_PATHS |= {"/api/v1/login/access-token", "/api/v1/utils/health-check/", "/api/v1/inference/health", "/api/v1/dicom/health"}
TOKEN_PREFIXES = ("/api/v1/dicom/", "/api/v1/inference/")
#: Paths of the faces that `open_faces` can let keyless clients into.
FACES = {
    "biomedparse": ("/api/biomedparse/", "/files/"),
    "monai": ("/info", "/infer/", "/session/", "/datastore/", "/monai/"),
    "text": ("/info", "/status", "/bertscore", "/embed", "/v1/", "/api/v1/report-metrics"),
}


class Guard:
    """ASGI middleware that turns away requests before anything of their body is read."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._key = settings.api_key.encode() if settings.api_key else None
        self._hosts = {h.lower() for h in settings.allowed_hosts} | {"localhost", settings.host.lower()}
        # Where this program does not listen itself, as below uvicorn, nobody has said yet who may come in.
        self._unsaid = self._key is None and not (settings.insecure or settings.container)
        self._open = OPEN_PREFIXES + tuple(p for face in settings.open_faces for p in FACES.get(face, ()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        refusal = self._wrong_host(headers) or self._wrong_key(scope["path"], scope["method"], headers)
        if self._unsaid:
            self._warn_of_strangers(scope)
        await (refusal or self._app)(scope, receive, send)

    def _warn_of_strangers(self, scope: Scope) -> None:
        """Say once that somebody else than this machine came in without a key."""
        client = scope.get("client")
        if client and _is_address(client[0]) and not ipaddress.ip_address(client[0]).is_loopback:
            self._unsaid = False
            log.warning("ANYBODY WHO REACHES THIS ADDRESS CAN USE THIS SERVER: no ISOCENTER_API_KEY is set")

    def _wrong_host(self, headers: Iterable[tuple[bytes, bytes]]) -> JSONResponse | None:
        host = next((v for k, v in headers if k == b"host"), b"").decode("latin-1").lower()
        name = host[: host.find("]") + 1] if host.startswith("[") else host.split(":", 1)[0]
        # A bare address cannot be rebound to another; only names can.
        if not name or "*" in self._hosts or name in self._hosts or _is_address(name):
            return None
        return JSONResponse(
            {"detail": "this host name is not served here; if it is this server's own, list it in ISOCENTER_ALLOWED_HOSTS"}, status_code=400
        )

    def _wrong_key(self, path: str, method: str, headers: Iterable[tuple[bytes, bytes]]) -> JSONResponse | None:
        # A browser's preflight carries no key by design.
        if self._key is None or path in OPEN_PATHS or path.startswith(self._open) or method == "OPTIONS":
            return None
        given = b""
        for name, value in headers:
            if name == b"x-api-key":
                given = value
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                given = given or value[7:].strip()
        if hmac.compare_digest(given, self._key):
            return None
        if given and path.startswith(TOKEN_PREFIXES):
            return JSONResponse({"detail": "Could not validate credentials"}, 403)
        return JSONResponse(body(path, 401, "Unauthorized"), 401, {"WWW-Authenticate": "Bearer"})


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
