"""`isocenter segment --queue`: the same request as a job, followed to its end; the results come to the same places."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from isocenter.cli._desk import Desk, LocalDesk, Seen, ServerDesk, packed
from isocenter.cli.chosen import settings
from isocenter.cli.console import note, step, watched
from isocenter.core.errors import StoreError, UsageError

#: Formats of masks as jobs call them, and their files.
_FORMATS = {
    ".nii.gz": ("nifti", "mask.nii.gz"), ".nrrd": ("nrrd", "mask.nrrd"), ".seg.nrrd": ("seg_nrrd", "mask.seg.nrrd"),
    ".npz": ("npz", "mask.npz"), ".dcm": ("dicom_seg", "mask.dcm"),
}  # fmt: skip
#: Seconds between two looks at a job, and for which a table or a server that is away is waited for.
_LOOK, _AWAY = 0.3, 120.0
_pause = time.sleep


def run(
    source: Path, target: Path, suffix: str, request: Mapping[str, Any], *, server: str | None, job_id: str | None, quiet: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Submit, wait, fetch; returns what measurements.json holds and where the files lie.

    job_id: of a job that was submitted before, in place of a new one. Raises what the job failed with.
    """
    if suffix not in _FORMATS:
        raise UsageError("jobs make no pictures of masks: choose another --format, or leave --queue out")
    chosen = settings()
    desk: Desk = ServerDesk(server, chosen.api_key) if server else LocalDesk(chosen)
    try:
        if job_id is None:
            with step("Sending the scan", quiet=quiet):
                asked = {**request, "formats": [_FORMATS[suffix][0], "preview", "measurements"]}
                key = uuid.uuid4().hex
                job = packed(source, lambda path: desk.submit(path, asked, key))
            if not quiet:
                note(f"queued as {job.id}")
        else:
            job = desk.look(job_id)
        if not quiet and not job.ended and (why := desk.idle()):
            note(why)
        try:
            job = _followed(desk, job, quiet)
        except KeyboardInterrupt:
            place = f" --server {server}" if server else ""
            note(f"the job goes on; its results: isocenter segment --queue{place} --job {job.id} -o {target}")
            raise typer.Exit(130) from None
        job.check()
        with step("Fetching", quiet=quiet):
            return _fetched(desk, job, target, suffix)
    finally:
        desk.close()


def _followed(desk: Desk, job: Seen, quiet: bool) -> Seen:
    """The job once it has ended."""
    until = time.monotonic() + _AWAY
    with watched("Waiting for the job", quiet=quiet) as watch:
        while not job.ended:
            watch.progress(job.progress, job.message or ("waiting for a worker" if job.status == "pending" else "working"))
            _pause(_LOOK)
            try:
                job = desk.look(job.id)
                until = time.monotonic() + _AWAY
            except StoreError:
                if time.monotonic() > until:
                    raise
        watch.progress(1.0, "done")
    return job


def _fetched(desk: Desk, job: Seen, target: Path, suffix: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the mask, its picture and its measurements, named as without a queue."""
    mask = _FORMATS[suffix][1]
    if mask not in job.artifacts:
        raise UsageError(f"the job made no {suffix.lstrip('.')} file, but {', '.join(sorted(job.artifacts))}; see --format and --output")
    stem = "" if target.name == f"mask{suffix}" else target.name[: -len(suffix)] + "_"
    places = {"mask": (mask, target)}
    for kind, name in (("preview", "preview.png"), ("measurements", "measurements.json")):
        if name in job.artifacts:
            places[kind] = (name, target.parent / f"{stem}{name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {}
    for name, place in places.values():
        data = desk.fetch(job, name)
        place.write_bytes(data)
        if name == "measurements.json":
            facts = json.loads(data)
    return {**facts, "job": job.id}, {kind: str(place) for kind, (_, place) in places.items()}
