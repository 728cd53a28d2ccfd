"""`isocenter models`: what can answer here, and with what."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isocenter.cli.console import emit, out, table

if TYPE_CHECKING:
    from isocenter.core.model import ModelSpec

EXAMPLES = ("isocenter models", "isocenter models info tissue", "isocenter models --json")

app = typer.Typer(rich_markup_mode="rich")
Json = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]


@app.callback(invoke_without_command=True)
def models(ctx: typer.Context, as_json: Json = False) -> None:
    """List the models that can answer here, and what each of them takes."""
    if ctx.invoked_subcommand is None:
        show(as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the models."""
    show(as_json)


@app.command()
def info(name: Annotated[str, typer.Argument(help="The model's name, as in the list.")], as_json: Json = False) -> None:
    """Tell all that is known of one model."""
    from isocenter.models import registry

    spec = registry.spec(name)
    facts = _facts(spec)
    if as_json:
        emit(facts)
        return
    from rich.markup import escape

    rows = [(key.replace("_", " "), escape(_plain(value))) for key, value in facts.items() if value not in ("", None, (), [], {})]
    table(("About", spec.id), rows)


def show(as_json: bool) -> None:
    """Print the list."""
    from isocenter.models import registry

    specs = list(registry.specs().values())
    if as_json:
        emit([_facts(spec) for spec in specs])
        return
    rows = [(spec.id, spec.task.value, ", ".join(spec.modalities) or "any", ", ".join(spec.prompts) or "-", spec.description) for spec in specs]
    table(("Model", "Task", "Modality", "Takes", "What it does"), rows)
    out().print("\n[dim]isocenter models info NAME tells more.[/dim]")


def _facts(spec: ModelSpec) -> dict[str, Any]:
    """A spec as plain data: labels by name, without what only the program needs."""
    facts = asdict(spec)
    facts["labels"] = [label.name for label in spec.labels]
    facts["needs_weights"] = spec.weights_bytes > 0
    facts.pop("factory")
    return {"id": facts.pop("id"), "task": spec.task.value, **facts}


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} = {v}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value)
    return str(value)
