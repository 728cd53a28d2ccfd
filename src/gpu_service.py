"""Drop-in for the GPU bridge service: `uvicorn gpu_service:app --port 8765`, `python gpu_service.py`, `python -m gpu_service`.

It is the whole Isocenter server; its environment variables are the bridge's own (docs/text.md) beside Isocenter's.
"""

from __future__ import annotations

from isocenter.cli.chosen import settings
from isocenter.core.errors import UsageError
from isocenter.core.settings import Settings
from isocenter.http.app import create_app

#: The bridge listened here, on all addresses.
HOST, PORT = "0.0.0.0", 8765  # noqa: S104 - used only with a key, or where the settings allow strangers


def _settings() -> Settings:
    try:
        return settings()
    except UsageError as error:
        raise SystemExit(f"gpu_service: {error.message}") from None


def _bridged(chosen: Settings) -> Settings:
    """The bridge's port, and its address where strangers may come; what was set stays."""
    changes: dict[str, object] = {}
    if "ports" not in chosen.model_fields_set:
        changes["ports"] = (PORT,)
    if "host" not in chosen.model_fields_set and (chosen.api_key or chosen.insecure or chosen.container):
        changes["host"] = HOST
    return chosen.model_copy(update=changes)


def main() -> None:
    """Serve on the bridge's port: to everybody with a key or where that was asked for, else to this machine only."""
    from isocenter.http import server

    try:
        server.run(_bridged(_settings()))
    except UsageError as error:
        raise SystemExit(f"gpu_service: {error.message}") from None


if __name__ == "__main__":
    main()
else:
    app = create_app(_settings())
