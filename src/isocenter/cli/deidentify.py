"""`isocenter deidentify`: DICOM images without their patients."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from isocenter.cli.console import emit, note
from isocenter.core.errors import InputError, UsageError

EXAMPLES = (
    "isocenter deidentify export/ shared/",
    "isocenter deidentify export/ shared/ --key study_7.key",
)
PIXELS = "Pixels were not looked at: names that are burned into an image are still there."


def deidentify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A DICOM file, or a folder of them.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder for what is made: a folder a patient, a folder a series.")],
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Secret key; made when it is not there. Default: deidentify.key in ISOCENTER_HOME.")
    ] = None,
    burned_in: Annotated[bool, typer.Option("--burned-in", help="Take images that say that identity is burned into their pixels, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Take the patient out of DICOM headers, by the standard's basic profile (PS3.15 Annex E); pixels are not cleaned.

    Names and numbers become pseudonyms, dates move by one shift a patient, UIDs are replaced so that references still hold,
    and free texts keep only words that are nobody's name. With the same key it all comes out the same again.
    """
    from isocenter.cli.chosen import settings
    from isocenter.io.deidentify import Deidentifier, clean_folder, key_of

    if not source.exists():
        raise InputError("there is no such file or folder")
    if target.resolve() == source.resolve() or target.resolve().is_relative_to(source.resolve()):
        raise UsageError("OUT must not lie in IN")
    chosen = settings()
    place = key or chosen.home / "deidentify.key"
    place.parent.mkdir(parents=True, exist_ok=True)
    refused: Counter[str] = Counter()
    patients: set[str] = set()
    written = 0
    for made in clean_folder(source, Deidentifier(key_of(place)), chosen, burned_in=burned_in):
        if isinstance(made, InputError):
            refused[made.message] += 1
            continue
        folder = target / made.pseudonym / made.series
        folder.mkdir(parents=True, exist_ok=True)
        (folder / made.name).write_bytes(made.data)
        patients.add(made.pseudonym)
        written += 1
    if as_json:
        emit({"written": written, "patients": sorted(patients), "refused": dict(refused), "key": str(place), "pixels": PIXELS})
    else:
        typer.echo(f"{target}: {written} images of {len(patients)} patient{'s' if len(patients) != 1 else ''}; key: {place}")
        for reason, count in refused.items():
            note(f"{count} left out: {reason}")
        note(PIXELS)
    if refused:
        raise typer.Exit(8 if written else InputError.exit_code)
