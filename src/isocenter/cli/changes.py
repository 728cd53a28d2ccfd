"""`isocenter changes`: what is new, has grown, shrunk or gone between two MR scans of one patient."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from isocenter.cli.console import emit, note, table, watched

EXAMPLES = (
    "isocenter changes january/flair.nii.gz june/flair.nii.gz -o changes/",
    "isocenter changes january_dicom/ june_dicom/ -o changes/ --region brain.nii.gz",
)


class Alignment(StrEnum):
    """What --registration takes."""

    RIGID = "rigid"
    AFFINE = "affine"


def changes(
    earlier: Annotated[Path, typer.Argument(metavar="EARLIER", help="The first scan: a file, or a folder of DICOM files.")],
    later: Annotated[Path, typer.Argument(metavar="LATER", help="The second scan of the same patient.")],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where mask, figures and picture go.")],
    region: Annotated[
        Path | None, typer.Option(help="A mask of where to look, such as the brain, on the grid of either scan. Without: deeper than 5 mm.")
    ] = None,
    any_brightness: Annotated[bool, typer.Option("--any", help="Any change, not only of what is brighter than the tissue around it.")] = False,
    registration: Annotated[Alignment, typer.Option(help="How the scans are aligned.")] = Alignment.RIGID,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Find what changed between two MR scans (FLAIR, T2) of one patient, without masks of their lesions.

    Writes changes.nii.gz (on LATER's grid: 1 new, 2 grown, 3 shrunk, 4 gone), changes.json with the size of each part, and
    changes.png. Small and faint changes are missed: see docs/track.md.
    """
    from isocenter.analysis.tracking.register import Freedom
    from isocenter.cli.chosen import settings
    from isocenter.followup import changes as looking
    from isocenter.followup.files import save
    from isocenter.io import door

    limits = settings()
    with watched("Looking for changes", quiet=as_json) as run:
        before, after = (door.read_path(path, limits=limits, modality=None) for path in (earlier, later))
        mask = None if region is None else door.read_path(region, limits=limits)
        found = looking.compare(before, after, region=mask, bright=not any_brightness, freedom=Freedom(registration.value), run=run)
    for name in looking.FILES:
        save(out / name, found.file(name))
    if as_json:
        emit(found.as_dict())
        return
    for sentence in found.notes:
        note(sentence)
    rows = [
        (f"change-{k}", p.kind, f"{p.size.volume_mm3 / 1000:.2f}", f"{p.size.longest_mm:.1f}", f"{p.noise:+.0f}", str(p.size.slice_index + 1))
        for k, p in enumerate(found.parts, start=1)
    ]
    if rows:
        table(("Part", "What", "Volume (ml)", "Longest (mm)", "Difference (sd)", "Slice"), rows, numbers=(2, 3, 4, 5))
    else:
        typer.echo("No change was found.")
    for name in looking.FILES:
        typer.echo(str(out / name))
