"""`isocenter convert`: any scan that can be read, written as NIfTI, NRRD or picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isocenter.cli.console import check_folder, emit, note, step
from isocenter.core.errors import UsageError

EXAMPLES = (
    "isocenter convert -i dicom_folder/ -o ct.nii.gz",
    "isocenter convert -i export.zip -o ct.nrrd --series-uid 1.2.840.113619",
    "isocenter convert -i slice.dcm -o slice.png",
)
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".npz", ".png")


def convert(
    source: Annotated[Path, typer.Option("--input", "-i", metavar="PATH", help="A file, or a folder of DICOM files.")],
    target: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help=f"What to write: a name that ends in {', '.join(SUFFIXES)}.")],
    modality: Annotated[str | None, typer.Option(metavar="CT|MR|...", help="What the scan is, where its file does not say.")] = None,
    series_uid: Annotated[str | None, typer.Option(metavar="UID", help="Which DICOM series, where there are several.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was read and written as JSON.")] = False,
) -> None:
    """Convert a scan: DICOM, NIfTI, NRRD, MetaImage or picture in; NIfTI, NRRD, NPZ or picture out.

    Voxels and geometry stay as they are. A picture (.png) is drawn of a single slice, or of the three middle planes.
    """
    suffix = next((s for s in SUFFIXES if target.name.lower().endswith(s)), None)
    if target.name.lower().endswith(".seg.nrrd"):
        raise UsageError("a file called .seg.nrrd holds a segmentation, not a scan; end its name in .nrrd")
    if suffix is None:
        raise UsageError(f"the output must end in {', '.join(SUFFIXES)}, not be called {target.name}")
    from isocenter.cli.chosen import settings
    from isocenter.io import door, preview, write

    check_folder(target.parent)
    with step("Reading", quiet=as_json):
        volume = door.read_path(source, limits=settings(), series_uid=series_uid, modality=modality)
    with step("Writing", quiet=as_json):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(preview.png(volume, None) if suffix == ".png" else write.encode_image(volume, suffix))
    z, y, x = volume.shape
    if as_json:
        facts = {"voxels": [x, y, z], "spacing_mm": list(volume.spacing), "orientation": volume.grid.orientation, "modality": volume.modality}
        emit({**facts, "unit": volume.unit, "series_uid": volume.source.series_uid, "notes": list(volume.source.notes), "file": str(target)})
        return
    for sentence in volume.source.notes:
        note(sentence)
    spacing = " x ".join(f"{s:.4g}" for s in volume.spacing)
    typer.echo(f"{target}: {x} x {y} x {z} voxels of {spacing} mm, {volume.grid.orientation}, {volume.modality or 'modality unknown'}")
