"""Writes the pages that come from the code: `python -m docs.generate`. A test fails when they are out of date."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from isocenter.core.settings import Limits, Settings

HERE = Path(__file__).parent
INTRO = """# Settings

Each is an environment variable; `.env` in the working directory is read too, the environment wins. `isocenter serve --help` shows those
that are flags as well. Other systems' own names for a variable are understood beside Isocenter's. This page is generated from
`src/isocenter/core/settings.py` by `python -m docs.generate`.
"""


def _names(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    others = [str(c) for c in alias.choices if c not in (name, f"ISOCENTER_{name.upper()}")] if isinstance(alias, AliasChoices) else []
    return " or ".join(f"`{n}`" for n in (f"ISOCENTER_{name.upper()}", *others))


def _default(value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and value >= 1024 * 1024 and value % (1024 * 1024) == 0:
        return f"{value // (1024 * 1024)} MiB ({value})"
    if isinstance(value, tuple):
        return ", ".join(str(v) for v in value)
    return str(value)


def settings_page() -> str:
    """The text of `docs/settings.md`."""
    lines = [INTRO]
    limits = set(Limits.model_fields)
    for title, chosen in (("The server", False), ("Limits of the guarded door", True)):
        lines += [f"## {title}", "| variable | default | meaning |", "|---|---|---|"]
        for name, field in Settings.model_fields.items():
            if (name in limits) is chosen:
                lines.append(f"| {_names(name, field)} | {_default(field.default)} | {field.description} |")
        lines.append("")
    return "\n".join(lines)


PAGES = {"settings.md": settings_page}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (HERE / page).write_text(make())
