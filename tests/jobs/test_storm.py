"""Worker processes killed and stopped at random: every job ends exactly once. `python -m benchmarks.jobs kill` is the long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.jobs import storm
from tests.jobs.conftest import new_database
from tests.jobs.servers import Postgres, Server


def test_on_sqlite(tmp_path: Path) -> None:
    result = storm(tmp_path, 200, seconds=0.12, lease=1.0, limit=240, attacks=12)
    assert result.ends == {"completed": 200}, str(result)
    assert (result.wrong, result.left) == (0, 0), str(result)
    assert result.killed + result.stopped > 3, str(result)


def test_on_postgresql_and_celery(tmp_path: Path, postgres: Postgres, redis: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", new_database(postgres))
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{redis.port}/1")
    result = storm(tmp_path, 200, seconds=0.2, lease=1.5, limit=240, celery=True, attacks=5)
    assert result.ends == {"completed": 200}, f"{result}\n{(tmp_path / 'workers.log').read_text()[-3000:]}"
    assert (result.wrong, result.left) == (0, 0), str(result)
    assert result.killed + result.stopped > 0, str(result)
