"""Drop-in for the GPU bridge service: `uvicorn gpu_service:app --port 8765`, `python gpu_service.py`, `python -m gpu_service`.

It is the whole Isocenter server; its environment variables are the bridge's own (docs/text.md) beside Isocenter's.
"""

from __future__ import annotations

from isocenter.core.settings import Settings
from isocenter.http.app import create_app

#: The bridge listened here, on all addresses.
HOST, PORT = "0.0.0.0", 8765  # noqa: S104 - refused below without a key unless the user says otherwise
app = create_app(Settings())


def main() -> None:
    """Serve on the bridge's port: to everybody with a key or where that was asked for, else to this machine only."""
    from isocenter.http import server

    chosen = Settings()
    if "ports" not in chosen.model_fields_set:
        chosen = chosen.model_copy(update={"ports": (PORT,)})
    if "host" not in chosen.model_fields_set and (chosen.api_key or chosen.insecure or chosen.container):
        chosen = chosen.model_copy(update={"host": HOST})
    server.run(chosen)


if __name__ == "__main__":
    main()
