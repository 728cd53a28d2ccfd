"""The seam between the queue and what jobs are about: a handler is given an input and answers with files and facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from isocenter.core import errors
from isocenter.core.model import Run
from isocenter.jobs.table import Job
from isocenter.store.database import Database
from isocenter.store.objects import Objects


@dataclass(frozen=True)
class JobInput:
    """A job as its handler sees it.

    files: the inputs by name, their content checked; not to be changed. folder: empty, for whatever the handler needs
    while it works; gone afterwards. database, objects: where the job came from, for what outlives it.
    """

    job: Job
    files: Mapping[str, Path]
    folder: Path
    database: Database
    objects: Objects

    @property
    def request(self) -> Mapping[str, Any]:
        """What was asked for."""
        return self.job.request


@dataclass(frozen=True)
class Product:
    """A file that a job made: its bytes, or where they lie in the job's folder."""

    name: str
    data: bytes | Path
    media_type: str = "application/octet-stream"


@dataclass(frozen=True)
class JobResult:
    """What a job made. facts: plain data, kept with the job. seconds: by stage."""

    products: tuple[Product, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


#: Works on a job. Long ones call `run.check` between their steps, and so are cancelled, timed and watched. Any
#: `IsocenterError` that it raises ends the job with that error's sentence.
Handler: TypeAlias = Callable[[JobInput, Run], JobResult]

#: The error code of a failed job, by the most specific class of its error.
CODES: Mapping[type[Exception], str] = {
    errors.LimitError: "limit",
    errors.GeometryError: "geometry",
    errors.UnsupportedError: "unsupported",
    errors.InputError: "input",
    errors.PromptError: "prompt",
    errors.UsageError: "usage",
    errors.ModelError: "model",
    errors.MemoryLimitError: "memory",
    errors.DeadlineError: "timeout",
    errors.NotFoundError: "not_found",
    errors.StoreError: "store",
    errors.IsocenterError: "failed",
}


def code_of(error: errors.IsocenterError) -> str:
    """The code of an error. Beside these there are "timeout", "worker_lost" and "internal"."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
