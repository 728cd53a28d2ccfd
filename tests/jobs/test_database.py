"""What a PostgreSQL database must be, said before anything is kept in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from isocenter.cli import app
from isocenter.core.errors import UsageError
from isocenter.core.settings import Settings
from isocenter.store.database import Database, url_of
from tests.jobs import servers
from tests.ports import free_port


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding_is_refused_in_words(encoding: str, postgres: servers.Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQL_ASCII gave a TypeError out of a library; LATIN1 would refuse a word of a user's, one day."""
    name = f"of_{encoding.lower()}"
    engine = sa.create_engine(url_of(Settings(database_url=postgres.url("postgres"))), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"))
    engine.dispose()
    database = Database(url_of(Settings(database_url=postgres.url(name))))
    for _ in range(2):
        with pytest.raises(UsageError, match=f"{encoding}, where UTF8 is needed.*ENCODING 'UTF8'"):
            database.migrate()
    database.close()
    monkeypatch.setenv("DATABASE_URL", postgres.url(name))
    told = CliRunner().invoke(app, ["worker"])
    assert told.exit_code == UsageError.exit_code
    assert "ENCODING 'UTF8'" in " ".join(told.output.split())


def test_a_server_says_so_and_ends(postgres: servers.Postgres, tmp_path: Path) -> None:
    engine = sa.create_engine(url_of(Settings(database_url=postgres.url("postgres"))), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("CREATE DATABASE of_bytes ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"))
    engine.dispose()
    env = {**os.environ, "DATABASE_URL": postgres.url("of_bytes"), "ISOCENTER_HOME": str(tmp_path), "ISOCENTER_DECODERS": "0"}
    command = [sys.executable, "-m", "isocenter", "serve", "--port", str(free_port())]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == UsageError.exit_code
    assert "ENCODING 'UTF8'" in " ".join(done.stderr.splitlines()[-3:])
    assert "Traceback" not in done.stderr
