"""The command line: `isocenter COMMAND`.

Exit codes: 0 done, 1 failed, 2 usage, 3 unreadable input, 4 model unavailable, 5 out of memory, 8 partly done. What is
asked for goes to standard output, everything else to standard error. Command modules are light; what a command needs is
imported when it runs.
"""

from __future__ import annotations

import errno
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from isocenter.cli import batch, changes, clean, convert, deidentify, demo, doctor, listen, models, segment, text, track, worker
from isocenter.cli.console import examples, fail
from isocenter.core.errors import IsocenterError, MemoryLimitError


class _Commands(TyperGroup):
    """The commands; turns the program's own errors into one line and an exit code."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that was asked for. `serve` takes its flags from the settings, which are only read for it."""
        if args[:1] == ["serve"]:
            from isocenter.cli.serve import command, without_others

            self.commands["serve"] = command()
            args = ["serve", *without_others(args[1:])]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except IsocenterError as error:
            fail(error.message)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read the output has enough of it
                raise
            where = f" ({error.filename})" if error.filename else ""
            fail(f"the system refused it: {error.strerror or type(error).__name__}{where}")
            raise typer.Exit(1) from None
        except MemoryError:
            fail("there is not enough memory for this; close other programs or use a smaller scan")
            raise typer.Exit(MemoryLimitError.exit_code) from None


app = typer.Typer(
    name="isocenter",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 unreadable input, 4 model unavailable, 5 out of memory, 8 partly done.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from isocenter.runtime.environment import version

        typer.echo(f"isocenter {version('isocenter')}")
        raise typer.Exit


@app.callback()
def isocenter(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and exit."),
) -> None:
    """Segment CT, MR and pictures by clicking or by typing, on this machine and nowhere else.

    Start with [bold]isocenter demo[/bold]. Research use only; not a medical device.
    """


app.command("demo", epilog=examples(demo.EXAMPLES))(demo.demo)


@app.command("serve")
def _serve() -> None:
    """Serve all protocols on one or several ports."""


app.command("worker", epilog=examples(worker.EXAMPLES))(worker.worker)
app.command("listen", epilog=examples(listen.EXAMPLES))(listen.listen)
app.command("segment", epilog=examples(segment.EXAMPLES))(segment.segment)
app.command("batch", epilog=examples(batch.EXAMPLES))(batch.batch)
app.command("convert", epilog=examples(convert.EXAMPLES))(convert.convert)
app.command("deidentify", epilog=examples(deidentify.EXAMPLES))(deidentify.deidentify)
app.command("track", epilog=examples(track.EXAMPLES))(track.track)
app.command("changes", epilog=examples(changes.EXAMPLES))(changes.changes)
app.add_typer(models.app, name="models", epilog=examples(models.EXAMPLES))
app.command("embed", epilog=examples(text.EMBED_EXAMPLES))(text.embed)
app.command("score", epilog=examples(text.SCORE_EXAMPLES))(text.score)
app.command("doctor", epilog=examples(doctor.EXAMPLES))(doctor.doctor)
app.command("clean", epilog=examples(clean.EXAMPLES))(clean.clean)


def main() -> None:
    """Entry point of the program `isocenter`."""
    # Windows consoles and some containers still default to an encoding without "³".
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app()
