"""Shared fixtures. Real scans come from `ISOCENTER_TEST_DATA`; tests that need them are skipped by name without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent
#: The same examples everywhere and always, and no verdict that depends on how fast a machine is.
settings.register_profile("same", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")
DATA = Path(os.environ.get("ISOCENTER_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State of the program under test lies in a temporary folder, but for compiled kernels, which runs share."""
    folder = tmp_path_factory.mktemp("home")
    os.environ["ISOCENTER_HOME"] = str(folder)
    os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".pytest_cache" / "kernels"))
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real scans."""
    if not DATA.is_dir():
        pytest.skip(f"needs the real scans (ISOCENTER_TEST_DATA={DATA} is absent)")
    return DATA
