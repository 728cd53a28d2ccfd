"""Places that something is to be written in: whether it can be, before the work is done, and files that appear whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def refusal(folder: Path) -> str | None:
    """Why nothing can be written in a folder, which may have to be made first; None where it can."""
    there = next((f for f in (folder, *folder.absolute().parents) if f.exists()), folder)
    if not there.is_dir():
        return f"{there} is a file, so nothing can be written in it"
    return None if os.access(there, os.W_OK | os.X_OK) else f"nothing may be written in {there}"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place once it is complete, and is gone if it does not get so far."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
