"""What commands print with: tables and progress on a terminal, plain lines elsewhere, JSON when asked for."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from isocenter.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from isocenter.core.model import Run

#: Width of tables that go into a file or a pipe, where nothing tells it.
_PLAIN_WIDTH = 120


def out() -> Console:
    """Standard output."""
    return _console(stderr=False)


def err() -> Console:
    """Standard error."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Made anew each time: tests and callers replace the streams.
    return Console(file=stream, width=None if stream.isatty() else _PLAIN_WIDTH, highlight=False, soft_wrap=False)


def examples(lines: Sequence[str]) -> str:
    """Lines to try, as the end of a command's help; an empty line is what keeps them apart there."""
    return "\n\n".join(("[bold]Examples[/bold]", *(line.replace("[", "\\[") for line in lines)))


def emit(data: Any) -> None:
    """Print facts as JSON on standard output."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def check_folder(folder: Path) -> None:
    """Raise `UsageError` where nothing can be written in a folder, which may have to be made first."""
    from isocenter.store.places import refusal

    if reason := refusal(folder):
        raise UsageError(f"{reason}; choose another --output")


def fail(message: str) -> None:
    """Say on standard error what went wrong."""
    _say("Error:", "bold red", message)


def note(message: str) -> None:
    """Say on standard error what the user should know."""
    _say("Note:", "yellow", message)


def _say(word: str, style: str, message: str) -> None:
    if not sys.stderr.isatty():
        typer.echo(f"{word} {message}", err=True)
        return
    from rich.text import Text

    err().print(Text.assemble((word, style), " ", message))


@contextmanager
def working(message: str) -> Iterator[None]:
    """Show that something runs, on a terminal only."""
    console = err()
    if console.is_terminal:
        with console.status(message + " ..."):
            yield
    else:
        yield


@contextmanager
def step(message: str, *, quiet: bool = False) -> Iterator[None]:
    """As `working`; elsewhere than on a terminal one plain line when it is done. quiet: nothing at all."""
    if quiet:
        yield
        return
    started = time.perf_counter()
    with working(message):
        yield
    if not sys.stderr.isatty():
        typer.echo(f"{message}: {time.perf_counter() - started:.2f} s", err=True)


@contextmanager
def watched(message: str, *, quiet: bool = False) -> Iterator[Run]:
    """As `step`, for a call that takes a `Run`: on a terminal a bar that fills as the model says how far it is."""
    from isocenter.core.model import QUIET, Run

    console = err()
    if quiet or not console.is_terminal:
        with step(message, quiet=quiet):
            yield QUIET
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(message + " ...", total=1.0)

        def tell(fraction: float, what: str) -> None:
            bar.update(task, completed=fraction, description=what or message)

        yield Run(progress=tell)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "", numbers: Sequence[int] = (), whole: Sequence[int] = (), indent: int = 0
) -> None:
    """Print a table; the columns `numbers` are aligned to the right, those in `whole` are never broken into lines."""
    from rich import box
    from rich.padding import Padding
    from rich.table import Table

    console = out()
    grid = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2, show_edge=False)
    for index, column in enumerate(columns):
        grid.add_column(column, justify="right" if index in numbers else "left", overflow="fold", no_wrap=index in whole)
    for row in rows:
        grid.add_row(*row)
    console.print(Padding(grid, (0, 0, 0, indent), expand=False))
