"""What the doctor says of the servers and folders that were configured, when they are well and when they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from isocenter.cli import app
from tests.jobs import servers
from tests.ports import free_port


def states(monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, tuple[str, str]]:
    """By check: its state, and what was found with the remedy."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    told = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    return {f["name"]: (f["state"], f"{f['value']} {f['remedy']}") for f in told["facts"]}


@pytest.mark.usefixtures("collected")
def test_servers_that_answer(redis: servers.Server, swift: servers.Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3 = {"MINIO_ENDPOINT": f"127.0.0.1:{swift.port}", "MINIO_ACCESS_KEY": "test:tester", "MINIO_SECRET_KEY": "testing"}
    (tmp_path / "weights").mkdir()
    more = {"REDIS_URL": f"redis://127.0.0.1:{redis.port}/0", "MODELS_PATH": str(tmp_path / "weights")}
    found = states(monkeypatch, ISOCENTER_HOME=str(tmp_path), MINIO_BUCKET_NAME="never-made", **s3, **more)
    assert (found["Redis"][0], found["Object store"][0], found["Disk"][0]) == ("ok", "ok", "ok")
    assert "Models path" not in found
    refused = states(monkeypatch, MINIO_SECRET_KEY="guessed")["Object store"]
    assert (refused[0], "refuses the access key" in refused[1]) == ("broken", True)


def test_what_is_away_is_named_with_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = f"127.0.0.1:{free_port()}"
    found = states(
        monkeypatch,
        ISOCENTER_HOME=str(tmp_path),
        ISOCENTER_MIN_FREE_BYTES=str(10**18),
        REDIS_URL=f"redis://:secret@{away}/0",
        MINIO_ENDPOINT=away,
        MINIO_ACCESS_KEY="key",
        MINIO_SECRET_KEY="secret",
        MODELS_PATH=str(tmp_path / "gone"),
    )
    for check, word in (("Redis", "REDIS_URL"), ("Object store", "MINIO_"), ("Models path", "ISOCENTER_MODELS_PATH"), ("Disk", "MIN_FREE_BYTES")):
        state, told = found[check]
        assert (check, state, word in told) == (check, "broken", True)
        assert "secret" not in told
