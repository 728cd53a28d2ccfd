"""`isocenter doctor`: one table of what this machine offers and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from isocenter.cli.console import emit, out, table

if TYPE_CHECKING:
    from isocenter.runtime.environment import Fact

EXAMPLES = (
    "isocenter doctor",
    "isocenter doctor --json",
)
_MARKS = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "broken": "[bold red]broken[/bold red]"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False) -> None:
    """Check this machine: Python, memory, GPU, disk, packages, models, ports; each fault with its remedy.

    Exits with 1 when something keeps Isocenter from working.
    """
    from rich.markup import escape

    from isocenter.cli.chosen import settings
    from isocenter.runtime import environment

    chosen = settings()
    facts = [*environment.facts(chosen.home, chosen.host, chosen.ports), _models()]
    broken = any(fact.state is environment.State.BROKEN for fact in facts)
    if as_json:
        emit({"healthy": not broken, "facts": [fact.as_dict() for fact in facts]})
    else:
        rows = []
        for fact in facts:
            remedy = f"\n[bold]-> {escape(fact.remedy)}[/bold]" if fact.remedy else ""
            rows.append((escape(fact.name), _MARKS[fact.state], escape(fact.value) + remedy))
        table(("Check", "State", "Found"), rows)
        out().print("\nSomething is broken; see above." if broken else "\nAll that Isocenter needs is here.")
    raise typer.Exit(1 if broken else 0)


def _models() -> Fact:
    """The models that can answer here."""
    from isocenter.models import registry
    from isocenter.runtime.environment import Fact, State

    try:
        names = list(registry.specs())
    except Exception as error:  # a broken plug-in must not take the doctor down with it
        return Fact(
            "Models", f"cannot be listed ({type(error).__name__})", State.BROKEN, "remove the package that adds the broken model, or install again"
        )
    if not names:
        return Fact("Models", "none", State.BROKEN, "install again: pip install isocenter")
    return Fact("Models", ", ".join(names))
