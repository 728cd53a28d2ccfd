"""The catalog: networks that are known by name, whether they are installed or not.

TOML files in `_catalog/entries`: a file is one entry, or several that share what stands above them.
"""

from __future__ import annotations

import difflib
import tomllib
from functools import lru_cache
from importlib.resources import files

from isocenter.core.catalog import Entry
from isocenter.core.errors import UnknownModelError


@lru_cache(maxsize=1)
def entries() -> dict[str, Entry]:
    """All entries by id, in the order of their names."""
    found = {}
    for file in sorted(files("isocenter.models._catalog").joinpath("entries").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            shared = tomllib.loads(file.read_text(encoding="utf-8"))
            for own in shared.pop("entry", [{}]):
                entry = Entry.read({**shared, **own})
                found[entry.id] = entry
    return found


def entry(name: str) -> Entry:
    """The entry of this id, or of this Hugging Face repository. Raises `UnknownModelError` with what is near."""
    known = entries()
    if name in known:
        return known[name]
    for candidate in known.values():
        if name == candidate.repository:
            return candidate
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or list(known)
    raise UnknownModelError(f"the catalog has no model '{name[:60]}'; {'near it are' if len(near) <= 3 else 'there are'}: {', '.join(near)}")
