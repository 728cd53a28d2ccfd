"""The settings of this call: flags over environment over `.env`, with one sentence for what is wrong in them."""

from __future__ import annotations

import os
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
        raise UsageError(f"{_written(name)}: {first['msg'].removeprefix('Value error, ')}") from None


def _written(name: str) -> str:
    """A setting's name, behind the variable of another system that it was read from."""
    from pydantic import AliasChoices

    from isocenter.core.settings import Settings

    for field in Settings.model_fields.values():
        names = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else ()
        if name in names and name not in os.environ and (other := next((str(n) for n in names if str(n) in os.environ), None)):
            return f"{other} ({name})"
    return name
