"""`isocenter models`: what can answer here, what could, and how to install it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isocenter.cli import _model_facts as facts
from isocenter.cli.console import emit, examples, fail, note, out, table, working

if TYPE_CHECKING:
    from isocenter.core.settings import Settings
    from isocenter.models.registry import Registry

EXAMPLES = (
    "isocenter models",
    "isocenter models --all",
    "isocenter models info tissue",
    "isocenter models pull model18cls",
    "isocenter models add network.onnx --config config.json",
)
_LIST = ("isocenter models list", "isocenter models list --all", "isocenter models list --json")
_INFO = ("isocenter models info tissue", "isocenter models info nninteractive --json")
_PULL = (
    "isocenter models pull model18cls",
    "isocenter models pull nninteractive --accept-license",
    "HF_TOKEN=hf_... isocenter models pull sam3 medsiglip",
    "isocenter models pull totalseg_fast --from /mnt/weights",
    "isocenter models pull medsam --from https://mirror.example.org/models",
)
_VERIFY = ("isocenter models verify", "isocenter models verify model18cls --json")
_ADD = (
    "isocenter models add liver.onnx --config config.json",
    "isocenter models add liver.onnx --name liver-2026",
    "isocenter models add MedSAM2_latest.pt --family sam2 --name medsam2",
    "isocenter models add nnUNet_results/Dataset003_Liver/nnUNetTrainer__nnUNetPlans__3d_fullres --name liver",
)
_REMOVE = ("isocenter models remove model18cls", "isocenter models remove liver --yes")

app = typer.Typer(rich_markup_mode="rich")
Json = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]
All = Annotated[bool, typer.Option("--all", help="Also what the catalog knows and is not installed.")]


@app.callback(invoke_without_command=True)
def models(ctx: typer.Context, as_json: Json = False, everything: All = False) -> None:
    """List the models that can answer here; install others from the catalog or from your own files."""
    if ctx.invoked_subcommand is None:
        show(as_json, everything)


@app.command("list", epilog=examples(_LIST))
def list_(as_json: Json = False, everything: All = False) -> None:
    """List the models: those that can answer here, those that are here and cannot, and with --all the catalog."""
    show(as_json, everything)


@app.command(epilog=examples(_INFO))
def info(name: Annotated[str, typer.Argument(help="The model's name, as in the list.")], as_json: Json = False) -> None:
    """Tell all that is known of one model, installed or not."""
    from isocenter.models import catalog

    here = _installed()
    text = next((t for t in here.texts if t.id == name), None)
    if name in here.specs:
        known = facts.of_spec(here.specs[name]) | facts.installation(here, name)
    elif name in here.broken:
        known = facts.of_broken(here, name) | facts.installation(here, name)
    elif text is not None:
        known = facts.of_text(name, text.entry) | facts.installation(here, name)
    elif name in catalog.entries():
        known = facts.of_entry(catalog.entry(name))
    else:
        here.spec(name)
        return
    if as_json:
        emit(known)
        return
    from rich.markup import escape

    rows = [(key.replace("_", " "), escape(facts.shown(key, value))) for key, value in known.items() if value not in ("", None, (), [], {}, 0)]
    table(("About", name), rows)
    if known["state"] == "available":
        out().print(f"\nNot installed: [bold]isocenter models pull {escape(name)}[/bold]")


@app.command(epilog=examples(_PULL))
def pull(
    names: Annotated[list[str], typer.Argument(help="Names out of the catalog; see isocenter models --all.")],
    place: Annotated[str, typer.Option("--from", metavar="FOLDER|URL", help="Take the files from here instead of from their publisher.")] = "",
    accept: Annotated[bool, typer.Option("--accept-license", help="Agree to licences that forbid commercial use.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Install again what is installed already.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch and install models of the catalog: resumed where it broke off, checked, converted where needed.

    HF_TOKEN is the token for models whose publisher wants an account; HF_ENDPOINT a mirror of Hugging Face.
    """
    from isocenter.cli._installing import install

    results = install(names, models=home(), place=place, accept=accept, again=again, quiet=as_json)
    if as_json:
        emit(results)
    if any(result["reason"] for result in results):
        raise typer.Exit(4)


@app.command(epilog=examples(_VERIFY))
def verify(names: Annotated[list[str] | None, typer.Argument(help="Installed models; all by default.")] = None, as_json: Json = False) -> None:
    """Compare the files of installed models with what was installed and with their published hashes.

    Exits with 1 when a file is missing or has changed.
    """
    from rich.markup import escape

    from isocenter.core.errors import UnknownModelError
    from isocenter.store import weights

    folders = {folder.id: folder for folder in facts.folders(_installed())}
    if unknown := [name for name in names or () if name not in folders]:
        raise UnknownModelError(f"'{unknown[0][:60]}' is not installed here; installed are: {', '.join(folders) or 'none'}")
    checked = []
    for model in names or sorted(folders):
        record = folders[model].record
        if record is None:
            checked.append((model, weights.Checked("", "unrecorded", "put there by hand, so there is nothing to compare with: isocenter models add")))
            continue
        with working(f"Hashing {model}"):
            checked.extend((model, one) for one in weights.verify(folders[model].path, record))
    bad = any(one.state in ("missing", "changed") for _, one in checked)
    if as_json:
        emit({"unchanged": not bad, "files": [{"model": model, **asdict(one)} for model, one in checked]})
    elif not checked:
        out().print("No models are installed.")
    else:
        marks = {"ok": "[green]ok[/green]", "unrecorded": "[yellow]unrecorded[/yellow]"}
        rows = [(escape(m), escape(c.name), marks.get(c.state, f"[bold red]{c.state}[/bold red]"), facts.size(c.bytes), c.note) for m, c in checked]
        table(("Model", "File", "State", "Size", "What was found"), rows, numbers=(3,), whole=(0, 2, 3))
    raise typer.Exit(1 if bad else 0)


@app.command(epilog=examples(_ADD))
def add(
    path: Annotated[Path, typer.Argument(help="An .onnx file, the folder of an nnU-Net, a transformers model, ..., or a checkpoint.")],
    config: Annotated[Path | None, typer.Option("--config", help="The network's config.json, where it does not lie beside it.")] = None,
    name: Annotated[str, typer.Option("--name", help="What the model is to be called; by default as the file or folder.")] = "",
    family: Annotated[str, typer.Option("--family", help="Of a checkpoint as first published: sam (also MedSAM), sam2 (also MedSAM2).")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="In place of an installed model of this name.")] = False,
    as_json: Json = False,
) -> None:
    """Make a network of your own a served model; it is copied, and loaded once to see that it fits."""
    from isocenter.cli._installing import watching
    from isocenter.models._catalog.add import add as install_own

    with watching(quiet=as_json) as watch:
        done = install_own(path, home(), name=name, config=config, family=family, replace_old=replace, watch=watch)
    _installed().refresh()
    if as_json:
        emit({"id": done.entry.id, "family": done.entry.family, "folder": str(done.folder)})
    else:
        out().print(f"Added [bold]{done.entry.id}[/bold]: isocenter models info {done.entry.id}")


@app.command(epilog=examples(_REMOVE))
def remove(
    names: Annotated[list[str], typer.Argument(help="Installed models.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete installed models, and what an installation that did not end has left."""
    from isocenter.core.errors import UnknownModelError, UsageError
    from isocenter.store import weights

    here = _installed()
    for model in names:
        folder = next((f for f in facts.folders(here) if f.id == model), None)
        if folder is not None and folder.path.parent != home():
            raise UsageError(f"'{model}' lies in the folder of the setting models_path, which is yours to change")
        if folder is None and not weights.holds(home(), model):
            raise UnknownModelError(f"'{model[:60]}' is not installed here; installed are: {', '.join(f.id for f in facts.folders(here)) or 'none'}")
        if not yes and not typer.confirm(f"Delete the model '{model}'?", err=True):
            raise typer.Exit(1)
        freed = weights.remove(home(), folder.path.name if folder else model)
        here.refresh()
        note(f"'{model}' is removed; {facts.size(freed)} are free again")


def _installed() -> Registry:
    """What is installed here. Wrong settings are refused, as by every other command; where nothing is set, nothing is imported to see it."""
    from isocenter.models import registry

    if os.path.isfile(".env") or any(name.startswith("ISOCENTER_") and name != "ISOCENTER_HOME" for name in os.environ):
        from isocenter.cli.chosen import settings

        settings()
    return registry.default()


def home() -> Path:
    """The folder that models are installed in."""
    return _installed().places[-1]


def show(as_json: bool, everything: bool) -> None:
    """Print the list."""
    from rich.markup import escape

    from isocenter.models import catalog

    here = _installed()
    texts = [facts.of_text(t.id, t.entry) for t in here.texts]
    broken = [facts.of_broken(here, name) for name in here.broken]
    ready = [facts.of_spec(spec) for spec in here.specs.values()]
    known = {fact["id"] for fact in (*ready, *texts, *broken)} | {folder.id for folder in facts.folders(here)}
    rest = [facts.of_entry(e) for e in catalog.entries().values() if e.id not in known]
    if as_json:
        emit([*ready, *texts, *broken, *(rest if everything else ())])
        return
    rows = [(f["id"], f["task"], ", ".join(f["modalities"]) or "any", ", ".join(f["prompts"]) or "-", f["description"]) for f in (*ready, *texts)]
    table(("Model", "Task", "Modality", "Takes", "What it does"), [[escape(cell) for cell in row] for row in rows], whole=(0, 1))
    if broken:
        out().print("\n[bold red]Here, but they cannot be used:[/bold red]")
        table(("Model", "Why"), [(escape(f["id"]), escape(f["reason"])) for f in broken], whole=(0,))
    if everything:
        out().print("\n[bold]In the catalog, not installed:[/bold]")
        table(("Model", "Task", "Licence", "Size", "What it does"), [_catalog_row(f) for f in rest], numbers=(3,), whole=(0, 1, 3))
        out().print("\n[dim]isocenter models pull NAME installs one; a * wants an account (HF_TOKEN), a ! forbids commercial use.[/dim]")
    else:
        out().print(f"\n[dim]isocenter models info NAME tells more; --all lists {len(rest)} others that can be installed.[/dim]")


def _catalog_row(known: Mapping[str, Any]) -> list[str]:
    from rich.markup import escape

    marks = ("*" if known["gated"] else "") + ("" if known["commercial"] else "!")
    row = (known["id"], known["task"], known["licence"] + marks, facts.size(known["bytes"]), known["description"])
    return [escape(cell) for cell in row]


def fetch_missing(settings: Settings) -> None:
    """Install what `pull` names and is not here yet, before a server opens its port. Raises what keeps a model from being had."""
    from isocenter.cli._installing import install

    for result in install(settings.pull, models=settings.home / "models", accept=settings.accept_license):
        if result["reason"]:
            fail(f"'{result['id']}' is installed, but cannot be used: {result['reason']}")
