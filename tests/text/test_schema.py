"""No request that fits the schema of the texts' routes brings the server to a fault of its own, with a real model behind them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings

from tests.text.test_wire import application

ROUTES = ("/bertscore", "/embed", "/v1/embeddings", "/api/v1/report-metrics", "/v1/models", "/v1/models/{name}", "/info", "/status", "/health")


@pytest.fixture(scope="module")
def client(home: Path, minilm: Path) -> Iterator[TestClient]:
    with application(home, minilm) as client:
        yield client


@pytest.mark.parametrize("route", ROUTES)
def test_no_fault(client: TestClient, route: str) -> None:
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    (operation,) = [found.ok() for found in schema.get_all_operations() if found.ok().path == route]  # type: ignore[union-attr]
    named: Any = operation

    @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=named.as_strategy())
    def ask(case: Any) -> None:
        body = case.body if isinstance(case.body, dict) else None
        assert client.request(case.method, case.formatted_path, json=body).status_code not in (500, 503)

    ask()
