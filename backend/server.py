"""Drop-in for the BiomedParse backend's start: `uvicorn backend.server:app`. It is the whole Isocenter server."""

from __future__ import annotations

from isocenter.cli.chosen import settings
from isocenter.http.app import create_app

app = create_app(settings())
