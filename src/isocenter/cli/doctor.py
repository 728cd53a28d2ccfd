"""`isocenter doctor`: one table of what this machine offers and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from isocenter.cli.console import emit, out, table

if TYPE_CHECKING:
    from isocenter.core.settings import Settings
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
    facts = [*environment.facts(chosen.home, chosen.host, chosen.ports, chosen.min_free_bytes), *_runtime(chosen), *_models(chosen), *_stores(chosen)]
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


def _runtime(chosen: Settings) -> list[Fact]:
    """Profile, memory for models, and where each model would run."""
    from isocenter.models.registry import Registry
    from isocenter.runtime import facts
    from isocenter.runtime.environment import Fact, State
    from isocenter.runtime.fleet import Fleet
    from isocenter.runtime.options import Options

    try:
        return facts.facts(Fleet(Options.of(chosen)), Registry.of(chosen).specs.values())
    except Exception as error:  # a broken library or driver must not take the doctor down with it
        return [
            Fact(
                "Devices",
                f"cannot be asked ({type(error).__name__})",
                State.BROKEN,
                "install torch and the driver again, or set ISOCENTER_DEVICE=cpu",
            )
        ]


def _models(chosen: Settings) -> list[Fact]:
    """The models that can answer here, one line for each that is here and cannot, and what unfinished installations hold."""
    from isocenter.models.registry import Registry
    from isocenter.runtime.environment import Fact, State
    from isocenter.store import weights

    try:
        here = Registry.of(chosen)
        names, broken, texts = list(here.specs), here.broken, here.texts
    except Exception as error:  # a broken installation must not take the doctor down with it
        return [Fact("Models", f"cannot be listed ({type(error).__name__})", State.BROKEN, "install again: pip install --force-reinstall isocenter")]
    facts = []
    if chosen.models_path is not None and not chosen.models_path.is_dir():
        facts.append(Fact("Models path", f"{chosen.models_path} is no folder", State.BROKEN, "set ISOCENTER_MODELS_PATH to the one that holds them"))
    facts.append(Fact("Models", ", ".join(names)) if names else Fact("Models", "none", State.BROKEN, "install again: pip install isocenter"))
    if texts:
        facts.append(Fact("Text models", ", ".join(text.id for text in texts)))
    for model in broken.values():
        # One that somebody chose for a task is missed by every request for it; any other only by those who name it.
        state = State.BROKEN if model.task is not None else State.NOTE
        facts.append(Fact(f"Model {model.id}", f"cannot be used: {model.reason}", state))
    if left := weights.unfinished(chosen.home / "models"):
        value = ", ".join(f"{name} ({size / 1e6:.0f} MB so far)" for name, size in left.items())
        facts.append(Fact("Unfinished", value, State.NOTE, "isocenter models pull NAME goes on with it, isocenter models remove NAME drops it"))
    return facts


def _stores(chosen: Settings) -> list[Fact]:
    """What is held, and how much of it: nothing is made or changed by looking."""
    from isocenter.core.errors import IsocenterError
    from isocenter.jobs import retention
    from isocenter.runtime.environment import Fact, State, size

    facts = [Fact(f"Held: {t.what}", f"{t.gone + t.stays}, {size(t.gone_bytes + t.stays_bytes)}") for t in retention.folders(chosen, dry=True)]
    try:
        held = retention.held(chosen)
    except IsocenterError as error:
        return [*facts, Fact("Job table", error.message, State.BROKEN, "see DATABASE_URL, POSTGRES_* and MINIO_*, and whether those servers run")]
    facts += _services(chosen)
    if held is None:
        return [*facts, Fact("Job table", "none yet; the first server or worker makes it")]
    return [*facts, *(Fact(f"Held: {what}", f"{count}, {size(bytes_)}") for what, count, bytes_ in held)]


def _services(chosen: Settings) -> list[Fact]:
    """Whether the broker and the object store answer, where there are such."""
    from isocenter.core.errors import NotFoundError, StoreError
    from isocenter.runtime.environment import Fact, State
    from isocenter.store.objects import open_objects

    facts = []
    if chosen.redis_url:
        from isocenter.jobs import celery_app

        well = celery_app.answers(chosen)
        remedy = "" if well else "see REDIS_URL, and whether that server runs; until then workers look for jobs every few seconds"
        facts.append(Fact("Redis", "answers" if well else "cannot be reached", State.OK if well else State.BROKEN, remedy))
    if chosen.minio_endpoint:
        try:
            open_objects(chosen).size("0" * 64)  # there is none such, and only who answers can say so
        except NotFoundError:
            facts.append(Fact("Object store", "answers"))
        except StoreError as error:
            facts.append(Fact("Object store", error.message, State.BROKEN, "see MINIO_*, and whether that server runs"))
    return facts
