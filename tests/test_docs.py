"""Docs that a test keeps true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import PAGES
from isocenter.core.settings import Settings

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", PAGES)
def test_generated_pages_are_up_to_date(page: str) -> None:
    assert (ROOT / "docs" / page).read_text() == PAGES[page](), "run: make docs"


@pytest.mark.parametrize(
    "page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]]
)
def test_links_and_variables_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
    known = {f"ISOCENTER_{name.upper()}" for name in Settings.model_fields} | {"ISOCENTER_TEST_DATA"}
    assert set(re.findall(r"ISOCENTER_[A-Z_]+[A-Z]", text)) <= known


def test_settings_read_other_systems_names_and_prefer_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("BP_TMP_TTL=11\nISOCENTER_PORTS=8000,8002\nAPI_KEY=from-file\n")
    monkeypatch.setenv("API_KEY", "from-environment")
    settings = Settings()
    assert (settings.artifact_ttl, settings.ports, settings.api_key) == (11, (8000, 8002), "from-environment")
    monkeypatch.setenv("ISOCENTER_ARTIFACT_TTL", "12")
    assert Settings().artifact_ttl == 12
    assert Settings(ports=9000).ports == (9000,)
