"""`isocenter serve`: the server. Its flags are the settings, one for one."""

from __future__ import annotations

import inspect
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from isocenter.cli.chosen import settings
from isocenter.cli.console import note
from isocenter.core.settings import Limits, Settings

#: Flags whose name is not the setting's own.
_NAMES = {"ports": "--port", "cors_origins": "--cors-origin", "open_faces": "--open-face", "allowed_hosts": "--allowed-host"}
#: Numbers that may be written with a unit.
_WORDS = {"idle_exit", "job_keep", "upload_keep", "audit_keep", "cache_keep"}
_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
EXAMPLES = ("isocenter serve", "isocenter serve --port 8000 --port 8002", "ISOCENTER_API_KEY=secret isocenter serve --host 0.0.0.0")
_HELP = """Serve all protocols on one or several ports, from one process.

Every flag is a setting; each is also read from the environment variable named with it, and from .env in this folder.
"""


def command() -> Any:
    """The command, with a flag for each setting."""
    # Plain help: forty flags in rich's boxes leave eighteen columns for what they mean.
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    app.command("serve", help=_HELP, epilog="\n\n".join(("Examples:", *EXAMPLES)))(_with_flags(_serve))
    built = typer.main.get_command(app)
    built.context_settings = {"help_option_names": ["-h", "--help"]}
    return built


#: Flags of `monailabel start_server` that have nothing to say here, and how many values each takes.
_OTHERS = {"--app": 1, "-a": 1, "--studies": 1, "-s": 1, "--conf": 2, "-c": 2}


def without_others(args: list[str]) -> list[str]:
    """Arguments without those that only MONAI Label knows, so that its command lines start this server as they are."""
    kept: list[str] = []
    left = 0
    for word in args:
        if left:
            left -= 1
        elif word.split("=")[0] in _OTHERS:
            note(f"{word} changes nothing here: scans come by upload, and all models that are installed are served")
            left = _OTHERS[word.split("=")[0]] - ("=" in word)
        else:
            kept.append(word)
    return kept


def _serve(**given: Any) -> None:
    chosen = settings(**{name: value for name, value in given.items() if value is not None and value != []})
    if chosen.pull:
        from isocenter.cli.models import fetch_missing

        fetch_missing(chosen)
    from isocenter.http import server

    server.run(chosen)


def _with_flags(function: Any) -> Any:
    """`function(**values)` as a function that names every setting as a parameter, the limits last; that is what typer reads."""
    parameters = []
    for name, info in sorted(Settings.model_fields.items(), key=lambda field: field[0] in Limits.model_fields):
        kind, several = _kind(info)
        kind = str if name in _WORDS else kind
        option = typer.Option(
            *([_flag(name, kind, info.default), "-p"] if name == "ports" else [_flag(name, kind, info.default)]),
            help=_help(name, info),
            metavar=_METAVARS.get(kind),
            show_default=False,
        )
        annotation = Annotated[list[kind] | None if several else kind | None, option]  # type: ignore[valid-type]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    def flags(**given: Any) -> None:
        function(**given)

    flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flags.__annotations__ = {p.name: p.annotation for p in parameters}
    return flags


def _kind(info: FieldInfo) -> tuple[Any, bool]:
    """The type of one value, and whether there may be several."""
    kind: Any = info.annotation
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is tuple:
        return get_args(kind)[0], True
    if get_origin(kind) is Literal or kind in (str, int, float, bool, Path):
        return kind, False
    return str, False


def _flag(name: str, kind: Any, default: Any) -> str:
    """The flag's name; a switch that is on by default has only the form that turns it off."""
    flag = _NAMES.get(name, "--" + name.replace("_", "-"))
    return f" /--no-{flag[2:]}" if kind is bool and default else flag


def _help(name: str, info: FieldInfo) -> str:
    variables = [f"ISOCENTER_{name.upper()}"]
    if info.validation_alias is not None:
        variables = [str(choice) for choice in getattr(info.validation_alias, "choices", []) if str(choice) != name]
    text = (info.description or "").replace("`", "")
    if name == "api_key":
        text += " Better set the variable: flags can be read by others on this machine."
    if name in _NAMES:
        text += " Repeatable."
    default = _default(info)
    return f"{text} [{' or '.join(variables)}{f'; default {default}' if default else ''}]"


def _default(info: FieldInfo) -> str:
    """The default as text, empty for none."""
    value = info.default
    if value is None or value is PydanticUndefined or value == ():
        return ""
    if isinstance(value, tuple):
        return ", ".join(str(v) for v in value)
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
