"""One suite over every backend: SQLite and PostgreSQL, a folder and S3, each the real thing."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO

from isocenter.core.phantom import phantom
from isocenter.core.settings import Settings
from isocenter.jobs.backend import Backend
from isocenter.jobs.queue import Queue
from isocenter.service import Service
from isocenter.store.database import Database, url_of
from tests.http.conftest import dicom_series
from tests.jobs import servers

_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Postgres]:
    with servers.postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Swift]:
    with servers.swift(tmp_path_factory.mktemp("swift")) as server:
        yield server


def new_database(postgres: servers.Postgres) -> str:
    """The URL of an empty database on a server."""
    name = f"jobs{next(_NUMBERS)}"
    url = url_of(Settings(database_url=postgres.url("postgres")))
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return postgres.url(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.db"
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(url_of(Settings(database_url=database_url)))
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def queue(database: Database) -> Queue:
    return Queue(database, lease=30)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """SQLite and a folder, with leases that end soon."""
    return Settings(home=tmp_path / "home", job_lease=1.0, min_free_bytes=0)


@pytest.fixture
def backend(settings: Settings) -> Iterator[Backend]:
    """By the settings, which a module may have of its own."""
    made = Backend(settings)
    yield made
    made.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """What does the work of jobs, without any network's weights."""
    made = Service(Settings(home=tmp_path_factory.mktemp("service"), decoders=0))
    yield made
    made.close()


@pytest.fixture(scope="module")
def images() -> list[Dataset]:
    """A chest CT of 24 slices, of somebody with a name."""
    return [dcmread(DicomBytesIO(data)) for data in dicom_series(phantom((24, 48, 48)).volume.array.astype("int16"), patient="Jane^Doe")]


@pytest.fixture
def collected() -> Iterator[None]:
    """What the test left to the collector is collected here, and not in another one."""
    yield
    gc.collect()
