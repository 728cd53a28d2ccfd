"""The settings of this call: flags over environment over `.env`, with one sentence for what is wrong in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isocenter.core.errors import UsageError

if TYPE_CHECKING:
    from isocenter.core.settings import Settings


def settings(**flags: Any) -> Settings:
    """The settings, `flags` first. Raises `UsageError` that names the setting; its value, perhaps a key, is not repeated."""
    from pydantic import ValidationError

    from isocenter.core.settings import Settings

    try:
        return Settings(**flags)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        raise UsageError(f"{name}: {first['msg']}") from None
