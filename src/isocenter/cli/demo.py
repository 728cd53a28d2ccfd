"""`isocenter demo`: the flags of the demonstration; what it does is in `isocenter.demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "isocenter demo",
    "isocenter demo --once",
    "isocenter demo --input my_ct.nii.gz",
)


def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop when everything was shown, as when standard input is no terminal.")] = False,
    source: Annotated[
        Path | None, typer.Option("--input", "-i", metavar="PATH", help="A scan of your own (file or folder of DICOM files) instead of the phantom.")
    ] = None,
    folder: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where masks and pictures are written to.")] = Path(
        "isocenter-demo"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the server listens; another port is taken when this one is in use.")] = 8000,
) -> None:
    """Show what Isocenter does, on a made-up CT whose truth is known: words and clicks over HTTP, masks, pictures.

    Starts the server, segments, writes the masks and a picture of them, and stays up for you to try.
    """
    from isocenter.demo import run

    run(source=source, folder=folder, port=port, stay=not once and sys.stdin is not None and sys.stdin.isatty())
