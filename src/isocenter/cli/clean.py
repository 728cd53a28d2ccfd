"""`isocenter clean`: removes what is too old or too much, and says what went and what stays."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from isocenter.cli.console import emit, note, step, table

EXAMPLES = (
    "isocenter clean --dry-run",
    "ISOCENTER_JOB_KEEP=7d ISOCENTER_UPLOAD_KEEP_BYTES=50000000000 isocenter clean",
    "isocenter clean --json",
)


def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Remove jobs, uploads, results and caches that are older or more than the settings allow.

    A server does the same by itself every half hour (ISOCENTER_ARTIFACT_SWEEP). The limits: ISOCENTER_JOB_KEEP, _JOB_KEEP_BYTES,
    _UPLOAD_KEEP, _UPLOAD_KEEP_BYTES, _ARTIFACT_TTL, _ARTIFACT_BYTES, _AUDIT_KEEP, _CACHE_KEEP; 0 is never. The order in which the
    prompts of a session came, kept for servers that share a database, goes by ISOCENTER_SESSION_TTL.

    What a waiting, running or kept job needs never goes. Sessions and decoded scans lie in the server's memory and end by
    ISOCENTER_SESSION_TTL, _SESSION_CACHE_BYTES and _VOLUME_CACHE_BYTES.
    """
    from isocenter.cli.chosen import settings
    from isocenter.jobs import retention
    from isocenter.jobs.backend import Backend

    backend = Backend(settings())
    try:
        with step("Looking" if dry_run else "Cleaning", quiet=as_json):
            tallies = retention.sweep(backend, dry=dry_run)
    finally:
        backend.close()
    if as_json:
        emit({"dry_run": dry_run, "kinds": [asdict(t) for t in tallies]})
        return
    rows = [(t.what, _held(t.gone, t.gone_bytes), _held(t.stays, t.stays_bytes), t.rule) for t in tallies]
    rows.append(("all", _held(sum(t.gone for t in tallies), sum(t.gone_bytes for t in tallies)), "", ""))
    table(("What", "Would go" if dry_run else "Went", "Stays", "Goes when"), rows, numbers=(1, 2))
    if dry_run:
        note("nothing was removed; leave out --dry-run to remove it")


def _held(count: int, size: int) -> str:
    """How many there are and how much that is."""
    return f"{count:,}".replace(",", " ") + (f" ({size / 1e6:,.1f} MB)".replace(",", " ") if size else "")
