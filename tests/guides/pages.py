"""Pages for people who type commands: what stands on them, and whether it would work here.

A page's tables put what was typed elsewhere beside what is typed here ("the same" where nothing changes). What needs another
machine (Docker, a cloud, root) is looked up instead of run: files, services, build arguments, variables, flags.
"""

from __future__ import annotations

import ast
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from typing import Any

import click
import typer
import yaml

from isocenter.cli import app
from isocenter.core.settings import Settings
from tests.conftest import ROOT

#: Programs of other people, whose use is not looked into.
SYSTEM = {
    "aws", "az", "cat", "cd", "chmod", "cp", "crontab", "df", "echo", "file", "gcloud", "git", "head", "journalctl", "lsof", "mkdir", "newgrp",
    "nginx", "npm", "New-NetFirewallRule", "Register-ScheduledTask", "Unregister-ScheduledTask", "nvidia-ctk", "nvidia-smi", "pg_dump", "pg_restore",
    "psql", "python3", "sh", "source", "ssh", "sqlite3", "sudo", "systemctl", "tar", "ufw", "uptime", "useradd", "usermod", "apt", "apt-get", "watch",
    "winget", "rsync", "scp", "createdb", "powercfg", "brew", "install", "caddy", "htpasswd", "chown", "mc", "launchctl", "Set-Service", "tee",
}  # fmt: skip
#: Hosts of the pages' examples, which stand for a server of ours.
OURS = re.compile(r"https?://(?:localhost|127\.0\.0\.1|<VM_IP>|<INSTANCE_IP>)(?::\d+)?")
_FENCE = re.compile(r"^[ \t]*```(\w*)\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_TWO_WORDS = {"compose"}


class WrongLineError(AssertionError):
    """A line of a page that would not work."""


def blocks(text: str, *languages: str) -> list[str]:
    """Fenced blocks in one of the languages."""
    return [body for language, body in _FENCE.findall(text) if language in languages]


def lines(block: str) -> list[str]:
    """Commands of a block, one a line: comments left out, continued lines put together."""
    whole = re.sub(r"\\\n\s*", " ", block)
    found = (re.sub(r"\s+#\s.*$", "", line.strip()) for line in whole.splitlines())
    return [re.sub(r"\s+", " ", line) for line in found if line and not line.startswith("#")]


def spans(cell: str) -> list[str]:
    """What stands between backticks."""
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`]+)`", cell)]


def rows(text: str) -> Iterator[tuple[str, str]]:
    """(there, here) of each row of such tables."""
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] if line.startswith("|") else []
        if cells[:2] == ["there", "here"]:
            inside = True
        elif not cells:
            inside = False
        elif inside and not set(cells[0]) <= set("-: "):
            assert len(cells) == 2, line
            yield cells[0], cells[1]


def typed_here(text: str) -> list[str]:
    """All that a page says to type here: in its blocks, in its right columns, and what stays the same."""
    found = [line for block in blocks(text, "bash", "powershell", "cmd") for line in lines(block)]
    for there, here in rows(text):
        found += spans(here)
        if here.startswith("the same"):
            found += spans(there)
    return [span for span in found if "…" not in span]


@cache
def variables() -> frozenset[str]:
    """Names of variables that the program reads."""
    known = {f"ISOCENTER_{name.upper()}" for name in Settings.model_fields} | {"ISOCENTER_TEST_DATA", "HF_TOKEN", "HF_ENDPOINT"}
    for info in Settings.model_fields.values():
        known |= {str(choice) for choice in getattr(info.validation_alias, "choices", []) if str(choice).isupper()}
    return frozenset(known)


#: Variables that others read: drivers, compose files, the platforms.
OTHERS = {
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "DTT_DB_PASSWORD", "KAGGLE_KERNEL_RUN_TYPE", "COMPOSE_FILE",
    "PGPASSWORD", "EXTRAS",
}  # fmt: skip


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def services(*files: str) -> dict[str, dict[str, Any]]:
    """The services of compose files, merged as Docker does by name."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        if not (ROOT / file).is_file():
            raise WrongLineError(f"there is no {file}")
        found |= yaml.safe_load((ROOT / file).read_text())["services"]
    return found


def check(line: str, *, mention: bool = False) -> None:
    """Raise `WrongLineError` for a line that could not work here. Text that is no command passes.

    mention: a command that is spoken of may lack its arguments.
    """
    words = _command(line.split(" && ")[0])
    while words and re.fullmatch(r"[A-Z][A-Z0-9_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        if name not in variables() | OTHERS:
            raise WrongLineError(f"nobody reads {name}")
        if name in variables() and value and "$" not in value and "://" not in value and not words:
            _settings(name, value)
    if not words:
        return
    program, rest = words[0], words[1:]
    checker = CHECKERS.get(program.rpartition("/")[2])
    if checker:
        try:
            checker(rest)
        except WrongLineError as error:
            if not (mention and "MissingParameter" in str(error)):
                raise
    elif re.fullmatch(r"[A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9]", program) and not rest and program not in variables() | OTHERS:
        raise WrongLineError(f"nobody reads {program}")


def is_command(line: str) -> bool:
    """Whether a line of a block is one that `check` looks into or knows to be another program's."""
    words = [w for w in _command(line) if not re.fullmatch(r"[A-Z][A-Z0-9_]+=.*", w)] or ["echo"]
    return words[0].rpartition("/")[2] in {*CHECKERS, *SYSTEM, "curl", "pytest"}


def _command(line: str) -> list[str]:
    """The words of a line's first program, without `sudo` and its user."""
    words = _words(line.split(" | ")[0])
    if len(words) > 1 and words[0] == "sudo":
        words = words[3:] if words[1] == "-u" else words[1:]
    return words


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, posix="\\" not in line)
    except ValueError:
        return []


def _settings(name: str, value: str) -> None:
    field = next(
        (f for f, info in Settings.model_fields.items() if name in (f"ISOCENTER_{f.upper()}", *getattr(info.validation_alias, "choices", []))), None
    )
    if field is not None:
        Settings(_env_file=None, **{field: value})  # type: ignore[arg-type]


def _isocenter(words: list[str]) -> None:
    if not words:
        return
    if words[:2] == ["models", "pull"]:
        from isocenter.models import catalog

        for name in itertools.takewhile(lambda word: not word.startswith("-"), words[2:]):
            if name not in catalog.entries():
                raise WrongLineError(f"the catalog has no {name}")
    command: Any = typer.main.get_command(app)
    context = click.Context(command, info_name="isocenter")
    try:
        while hasattr(command, "resolve_command") and words and not words[0].startswith("-"):
            name, command, words = command.resolve_command(context, list(words))
            if hasattr(command, "resolve_command"):
                context = click.Context(command, info_name=name, parent=context)
        command.make_context("isocenter", list(words), parent=context)
    except Exception as error:
        told = str(getattr(error, "message", error))
        if "does not exist" not in told and not isinstance(error, click.exceptions.Exit) and type(error).__name__ != "Exit":
            raise WrongLineError(f"isocenter {' '.join(words)}: {told or type(error).__name__}") from None


def _docker(words: list[str]) -> None:
    if not words or words[0].startswith("-"):
        return
    what, rest = words[0], words[1:]
    if what == "compose":
        _compose(rest)
    elif what == "build":
        _build(rest)
    elif what == "run":
        for flag, value in itertools.pairwise(rest):
            if flag in ("-e", "--env") and value.partition("=")[0] not in variables() | OTHERS:
                raise WrongLineError(f"nobody reads {value}")
            if flag == "-p" and not re.search(rf"^EXPOSE .*\b{value.rpartition(':')[2]}\b", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
                raise WrongLineError(f"the image does not listen on {value}")
    elif what in ("exec", "port", "inspect", "logs"):
        names = {s.get("container_name") for s in services("docker-compose.server.yml").values()}
        if (named := next((w for w in rest if not w.startswith("-")), None)) not in names:
            raise WrongLineError(f"no container is called {named}")
    elif what not in ("ps", "system"):
        raise WrongLineError(f"docker {what}?")


def _compose(words: list[str]) -> None:
    files = []
    while words[:1] == ["-f"]:
        files.append(words[1])
        words = words[2:]
    if not files:
        chosen = re.search(r"^COMPOSE_FILE=(\S+)", (ROOT / ".env.example").read_text(), re.MULTILINE)
        files = chosen[1].split(":") if chosen else ["docker-compose.yml"]
    there = services(*files)
    if not words or words[0] == "version":
        return
    if words[0] not in ("up", "down", "logs", "ps", "build", "exec", "pull", "restart", "stop", "run"):
        raise WrongLineError(f"docker compose {words[0]}?")
    valued = {i + 1 for i, w in enumerate(words) if w in ("-v", "-e", "--tail")}
    named = [w for i, w in enumerate(words) if i and i not in valued and not w.startswith("-")]
    if words[0] in ("exec", "run"):
        named = named[:1]
        if not named:
            raise WrongLineError("exec where?")
    for name in named:
        if name not in there:
            raise WrongLineError(f"no service {name} in {', '.join(files)}")


def _build(words: list[str]) -> None:
    flags = list(itertools.pairwise(words))
    file = next((value for flag, value in flags if flag == "-f"), "Dockerfile")
    if not (ROOT / file).resolve().is_file() or words[-1] != ".":
        raise WrongLineError(f"there is no {file}")
    text = (ROOT / file).read_text()
    for flag, value in flags:
        if flag == "--build-arg":
            name, _, chosen = value.partition("=")
            if not re.search(rf"^ARG {name}\b", text, re.MULTILINE):
                raise WrongLineError(f"{file} takes no {name}")
            _extras(chosen)


def _extras(text: str) -> None:
    there = pyproject()["project"]["optional-dependencies"]
    for extra in filter(None, text.split(",")):
        if extra not in there:
            raise WrongLineError(f"there is no extra {extra}")


def _pip(words: list[str]) -> None:
    for word in words:
        for inside in re.findall(r"^(?:isocenter|\.)\[(.+)\]$", word):
            _extras(inside)


def _uvicorn(words: list[str]) -> None:
    module, _, name = words[0].partition(":")
    file = next((f for base in (ROOT / "src", ROOT) if (f := base / (module.replace(".", "/") + ".py")).is_file()), None)
    if file is None:
        raise WrongLineError(f"there is no module {module}")
    names = {t.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)}
    if name not in names:
        raise WrongLineError(f"{module} has no {name}")


def _python(words: list[str]) -> None:
    if words[0] == "-c":
        ast.parse(words[1])
    elif words[0] == "-m":
        if words[1].split(".")[0] not in ("benchmarks", "docs", "venv", "gpu_service", "isocenter", "pip"):
            raise WrongLineError(f"there is no module {words[1]}")
        if words[1].startswith("benchmarks.") and not (ROOT / (words[1].replace(".", "/") + ".py")).is_file():
            raise WrongLineError(f"there is no {words[1]}")
    elif not words[0].startswith("-") and not (ROOT / words[0]).is_file():
        raise WrongLineError(f"there is no {words[0]}")


def _make(words: list[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    for word in words:
        if "=" not in word and not re.search(rf"^{word}:", text, re.MULTILINE):
            raise WrongLineError(f"make knows no {word}")


CHECKERS = {"isocenter": _isocenter, "docker": _docker, "pip": _pip, "uvicorn": _uvicorn, "python": _python, "make": _make}
