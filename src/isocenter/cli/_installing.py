"""Installing models from the command line: progress, consent to licences, and what came of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from isocenter.cli.console import err, note
from isocenter.core.catalog import Entry
from isocenter.models import catalog, registry
from isocenter.models._catalog import found
from isocenter.models._catalog import pull as installing
from isocenter.models._catalog.pull import Watch


def install(
    names: Sequence[str], *, models: Path, place: str = "", accept: bool = False, again: bool = False, quiet: bool = False
) -> list[dict[str, Any]]:
    """Install models of the catalog that are not here yet; what came of each. All names are looked up before anything is fetched."""
    results = []
    for entry in [catalog.entry(name) for name in names]:
        present = next((f for f in found.folders(models) if f.id == entry.id and not f.reason), None)
        if present is not None and not again:
            if not quiet:
                note(f"'{entry.id}' is installed already; --again installs it anew")
            results.append({"id": entry.id, "folder": str(present.path), "reason": installing.reason(present.path)})
            continue
        agreed = accept or _agreed(entry)
        with watching(quiet=quiet) as watch:
            done = installing.pull(entry, models, installing.source_of(entry, place, os.environ), accept=agreed, watch=watch)
        registry.default().refresh()
        if not quiet:
            if entry.note:
                note(entry.note)
            note(f"'{entry.id}' is installed" + (f", but cannot be used yet: {done.reason}" if done.reason else ""))
        results.append({"id": entry.id, "folder": str(done.folder), "reason": done.reason})
    return results


def _agreed(entry: Entry) -> bool:
    """Ask a person on a terminal to agree to a licence that forbids commercial use; nobody else is asked."""
    if entry.commercial or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    note(f"'{entry.id}' is licensed under {entry.licence}, which forbids commercial use: {entry.licence_url or entry.homepage}")
    return typer.confirm("Do you agree to it?", err=True)


@contextmanager
def watching(*, quiet: bool = False) -> Iterator[Watch]:
    """Bars on a terminal; one plain line for each file and step elsewhere."""
    console = err()
    if quiet:
        yield Watch()
    elif console.is_terminal:
        from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            tasks: dict[str, TaskID] = {}

            def file(name: str, done: int, total: int) -> None:
                if name not in tasks:
                    tasks[name] = progress.add_task(name, total=total or None)
                progress.update(tasks[name], completed=done, total=total or None)

            yield Watch(file, lambda message: progress.console.print(f"{message} ...", style="dim"))
    else:
        yield _plain()


def _plain() -> Watch:
    """One line when a file begins and one when it is here; nothing in between, for logs."""
    began: dict[str, float] = {}

    def file(name: str, done: int, total: int) -> None:
        if name not in began:
            began[name] = time.perf_counter()
            typer.echo(f"{name}: {f'{total / 1e6:.1f} MB' if total else 'fetching'}", err=True)
        if total and done >= total:
            typer.echo(f"{name}: done in {time.perf_counter() - began[name]:.1f} s", err=True)

    return Watch(file, lambda message: typer.echo(message, err=True))
