"""`isocenter segment`: one scan and some prompts in; a mask, a picture of it and its measurements out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isocenter.cli.console import check_folder, emit, fail, note, step, table, watched
from isocenter.core.errors import InputError, UnknownPromptError, UsageError

if TYPE_CHECKING:
    from isocenter.core.model import Run
    from isocenter.core.prompts import Prompt
    from isocenter.core.segmentation import Segmentation
    from isocenter.core.volume import Volume
    from isocenter.service import Service

PARTLY_DONE = 8
EXAMPLES = (
    "isocenter segment -i ct.nii.gz -o out --text liver --text lungs",
    "isocenter segment -i dicom_folder/ -o liver.nii.gz --point 210,260,40 --negative 150,300,40",
    'isocenter segment -i mr.nii.gz -m Histogram+GraphCut --scribble "60,70,20 90,75,20" --negative-scribble "20,20,20 20,90,20"',
    "isocenter segment -i photo.png --box 40,30,0,120,110,0 --format png",
    "isocenter segment -i t1.nii.gz -m model18cls --label thalamus --label hippocampus",
    "isocenter segment --queue -i dicom_folder/ --text liver --format dicom-seg",
    "ISOCENTER_API_KEY=secret isocenter segment --queue --server https://gpu.hospital.example -i ct.nii.gz --text lungs -o out",
)


#: Formats of images and masks that are none of ours: not meant as a folder's name.
_OTHERS = (".mha", ".mhd", ".nhdr", ".hdr", ".img", ".mgz", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gz", ".zip", ".npy", ".json")


class Format(StrEnum):
    """Formats of masks."""

    NIFTI = "nii.gz"
    PLAIN_NIFTI = "nii"
    NRRD = "nrrd"
    SEG_NRRD = "seg.nrrd"
    NPZ = "npz"
    PNG = "png"
    DICOM_SEG = "dicom-seg"

    @property
    def suffix(self) -> str:
        """File name extension."""
        return ".dcm" if self is Format.DICOM_SEG else f".{self.value}"


def _prompt(metavar: str | None, text: str) -> Any:
    return typer.Option(metavar=metavar, help=f"{text} Repeatable.", rich_help_panel="Prompts")


_LINE = '"X,Y,Z X,Y,Z ..."'
Source = Annotated[Path | None, typer.Option("--input", "-i", metavar="PATH", help="A file, or a folder of DICOM files.")]
Out = Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="A folder, or the mask's file name.")]
Texts = Annotated[list[str] | None, _prompt("WORDS", "What to find, such as liver.")]
Points = Annotated[list[str] | None, _prompt("X,Y,Z", "A click on the structure.")]
Negatives = Annotated[list[str] | None, _prompt("X,Y,Z", "A click on what does not belong to it.")]
Boxes = Annotated[list[str] | None, _prompt("X0,Y0,Z0,X1,Y1,Z1", "Two corners around it, both inside.")]
Scribbles = Annotated[list[str] | None, _prompt(_LINE, "A line on it.")]
NegativeScribbles = Annotated[list[str] | None, _prompt(_LINE, "A line beside it.")]
Lassos = Annotated[list[str] | None, _prompt(_LINE, "An outline in one slice.")]
NegativeLassos = Annotated[list[str] | None, _prompt(_LINE, "An outline of what does not belong to it.")]
Mask = Annotated[Path | None, typer.Option(metavar="FILE", help="A mask to start from, on the image's grid.", rich_help_panel="Prompts")]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="NAME", help="Which model; isocenter models lists them. Those that take nothing need no prompt."),
]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="NAME", help="Without prompts: keep only this structure. Repeatable.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="An option of a model that needs no prompt, or of one for scribbles. Repeatable."),
]
Threshold = Annotated[float, typer.Option(min=0, max=1, metavar="0..1", help="Words only: how probable a voxel must be.")]
Modality = Annotated[str | None, typer.Option(metavar="CT|MR|...", help="What the scan is, where its file does not say.")]
Window = Annotated[str | None, typer.Option(metavar="WIDTH/LEVEL", help="Of a picture of a CT: the window in HU that it was made with.")]
SeriesUid = Annotated[str | None, typer.Option(metavar="UID", help="Which DICOM series, where there are several.")]
MaskFormat = Annotated[
    Format | None, typer.Option("--format", metavar="|".join(Format), help="Format of the mask.", show_default="by the output's name, else nii.gz")
]
_QUEUE = "As a job"
Queue = Annotated[bool, typer.Option("--queue", help="Have a worker do it, and wait for it.", rich_help_panel=_QUEUE)]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Whose.", show_default="the job table of the settings, which a server on this machine shares", rich_help_panel=_QUEUE
    ),
]
JobId = Annotated[str | None, typer.Option("--job", metavar="ID", help="Wait for a job that was queued before.", rich_help_panel=_QUEUE)]
Priority = Annotated[int, typer.Option(min=0, max=9, help="9 is the most urgent.", rich_help_panel=_QUEUE)]
Json = Annotated[bool, typer.Option("--json", help="Print the measurements as JSON.")]


def segment(
    source: Source = None,
    out: Out = Path("isocenter-output"),
    text: Texts = None,
    point: Points = None,
    negative: Negatives = None,
    box: Boxes = None,
    scribble: Scribbles = None,
    negative_scribble: NegativeScribbles = None,
    lasso: Lassos = None,
    negative_lasso: NegativeLassos = None,
    mask: Mask = None,
    model: Model = None,
    label: Labels = None,
    option: Options = None,
    threshold: Threshold = 0.5,
    modality: Modality = None,
    window: Window = None,
    series_uid: SeriesUid = None,
    form: MaskFormat = None,
    queue: Queue = False,
    server: Server = None,
    job: JobId = None,
    priority: Priority = 5,
    as_json: Json = False,
) -> None:
    """Segment a scan or picture by words, by clicks, or by a model that needs neither.

    Writes the mask, preview.png and measurements.json.

    X, Y, Z are voxel indices as the image's own file counts them, from 0.

    Words make one label each; clicks, boxes and lines make one mask together.

    An empty mask is an answer (exit code 0). A word that no model understands is not: the others are answered (8).

    With --queue a worker does it, here or at --server; Ctrl-C stops the waiting, not the job.
    """
    from isocenter.cli.prompts import Typed, initial_mask

    typed = Typed(text or (), point or (), negative or (), box or (), scribble or (), negative_scribble or (), lasso or (), negative_lasso or ())
    prompts = typed.parse()
    if not queue and (server is not None or job is not None):
        raise UsageError("--server and --job go with --queue")
    if source is None and job is None:
        raise UsageError("name the scan with --input")
    if job is not None:
        _show(*_queued(source or Path(), out, form, {}, server, job, as_json), as_json)
        return
    if not prompts and mask is None and model is None:
        raise UsageError(
            "say what to segment: --text liver, --point x,y,z, --box, --scribble, --lasso or --mask, or --model with one that needs no "
            'prompt; see "isocenter segment --help"'
        )
    prompted = bool(prompts) or mask is not None
    if prompted and (label or (option and (model is None or queue))):
        raise UsageError("--label and --option go with a model that needs no prompts; leave the prompts out")
    if queue:
        if mask is not None:
            raise UsageError("--mask does not go with --queue")
        request = _request(prompts, model, label, option, threshold) | {"modality": modality, "window": window, "series_uid": series_uid}
        _show(*_queued(source or Path(), out, form, request | {"priority": priority}, server, None, as_json), as_json)
        return
    target, suffix = _target(out, form)
    from isocenter.cli.chosen import settings
    from isocenter.core.model import Task
    from isocenter.io import write
    from isocenter.service import Service

    service = Service(settings())
    try:
        if model is not None:
            known = service.registry.spec(model)  # a name that is not known is said before the scan is read
            if option and prompted and known.task is not Task.SCRIBBLES:
                raise UsageError(f"'{model}' takes no --option where there are prompts; models of scribbles do")
        with step("Reading the scan", quiet=as_json):
            volume = _read(service, source or Path(), series_uid, modality, window)
        if mask is not None:
            from isocenter.core.prompts import MaskPrompt

            prompts.insert(0, MaskPrompt(initial_mask(mask, volume, lambda path: _read(service, path))))
        # What cannot be written is said before anybody waits for it.
        write.check(volume, suffix)
        check_folder(target.parent)
        with watched("Segmenting", quiet=as_json) as run:
            if prompts or model is None:
                result, unknown = _answer(service, volume, prompts, threshold, model, options_of(option or ()), run)
            else:
                result, unknown = service.label(volume, model=model, options=options_of(option or ()), labels=label, run=run), {}
        with step("Writing", quiet=as_json):
            facts = _facts(result, volume, unknown)
            written = _write(result, volume, target, suffix, facts)
    finally:
        service.close()
    for reason in unknown.values():
        fail(reason)
    _show(facts, written, as_json)
    if unknown:
        raise typer.Exit(PARTLY_DONE)


def _show(facts: dict[str, Any], written: dict[str, str], as_json: bool) -> None:
    if as_json:
        emit({**facts, "files": written})
    else:
        _report(facts, written)


def _queued(
    source: Path, out: Path, form: Format | None, request: dict[str, Any], server: str | None, job: str | None, quiet: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    from isocenter.cli import _queued as queued

    target, suffix = _target(out, form)
    if job is None and not source.exists():
        raise InputError(f"there is no file or folder {source}")
    return queued.run(source, target, suffix, request, server=server, job_id=job, quiet=quiet)


def _request(
    prompts: Sequence[Prompt], model: str | None, labels: Sequence[str] | None, options: Sequence[str] | None, threshold: float
) -> dict[str, Any]:
    """What a job is asked for; a model that needs no prompts takes its labels as words."""
    from isocenter.core.plain_prompts import plain_prompts

    words = {"threshold": threshold} if threshold != 0.5 else {}
    return {"model": model, "prompts": [*plain_prompts(prompts), *(labels or ())], "parameters": options_of(options or ()) | words}


def _target(out: Path, form: Format | None) -> tuple[Path, str]:
    """The mask's path and its extension: `out` is a file when it ends like one, else a folder."""
    by_length = sorted(Format, key=lambda f: -len(f.suffix))  # .seg.nrrd before .nrrd
    named = next((f for f in by_length if out.name.lower().endswith(f.suffix)), None)
    if named is None and not out.is_dir() and out.suffix.lower() in _OTHERS:
        raise UsageError(f"a mask cannot be written as {out.suffix}; use {', '.join(f.suffix for f in Format)}, or name a folder")
    if named is None or out.is_dir():
        suffix = (form or Format.NIFTI).suffix
        return out / f"mask{suffix}", suffix
    if form is not None and form is not named:
        raise UsageError(f"the output is called {out.name}, but --format says {form.value}")
    return out, named.suffix


def _read(service: Service, path: Path, series_uid: str | None = None, modality: str | None = None, window: str | None = None) -> Volume:
    if not path.exists():
        raise InputError(f"there is no file or folder {path}")
    return service.open_path(path, series_uid=series_uid, modality=modality, window=window)


def options_of(typed: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE pairs; a value that is JSON (a number, true, a list) is that, any other a word."""
    found: dict[str, Any] = {}
    for pair in typed:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"an option is written KEY=VALUE, not '{pair[:60]}'")
        try:
            found[key.strip()] = json.loads(value)
        except ValueError:
            found[key.strip()] = value.strip()
    return found


def _answer(
    service: Service, volume: Volume, prompts: Sequence[Prompt], threshold: float, model: str | None, options: dict[str, Any], run: Run
) -> tuple[Segmentation, dict[str, str]]:
    """The answer, and the words that could not be understood with the reason. Fails when none could."""
    from isocenter.core.model import Task
    from isocenter.core.prompts import Text

    if model is not None and service.registry.spec(model).task is Task.SCRIBBLES:
        return _separate(service, volume, prompts, model, options), {}
    try:
        return service.segment(volume, prompts, threshold=threshold, model=model, run=run), {}
    except UnknownPromptError:
        if len(prompts) < 2:
            raise
    unknown: dict[str, str] = {}
    for prompt in prompts:
        if isinstance(prompt, Text):
            try:
                service.find(volume, [prompt.text], threshold=threshold, model=model)
            except UnknownPromptError as error:
                unknown[prompt.text] = error.message
    known = [p for p in prompts if not (isinstance(p, Text) and p.text in unknown)]
    if not known:
        raise UnknownPromptError(next(iter(unknown.values())))
    return service.segment(volume, known, threshold=threshold, model=model, run=run), unknown


def _separate(service: Service, volume: Volume, prompts: Sequence[Prompt], model: str, options: dict[str, Any]) -> Segmentation:
    """A scribble model's answer; a box bounds the mask."""
    from isocenter.core.prompts import Box

    boxes = [p for p in prompts if isinstance(p, Box)]
    if len(boxes) > 1:
        raise UsageError(f"{model} takes one box at most")
    drawn = [p for p in prompts if not isinstance(p, Box)]
    return service.separate(volume, drawn, roi=boxes[0] if boxes else None, options=options, model=model)


def _write(result: Segmentation, volume: Volume, target: Path, suffix: str, facts: dict[str, Any]) -> dict[str, str]:
    """Write mask, picture and measurements; returns their paths."""
    from isocenter.io import preview, write

    target.parent.mkdir(parents=True, exist_ok=True)
    stem = "" if target.name == f"mask{suffix}" else target.name[: -len(suffix)] + "_"
    picture, table_ = target.parent / f"{stem}preview.png", target.parent / f"{stem}measurements.json"
    target.write_bytes(write.encode(result, suffix, volume))
    picture.write_bytes(preview.png(volume, result))
    table_.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"mask": str(target), "preview": str(picture), "measurements": str(table_)}


def _facts(result: Segmentation, volume: Volume, unknown: dict[str, str]) -> dict[str, Any]:
    """What measurements.json holds."""
    from isocenter.analysis.measurements import describe_image, measure

    measured = [m.as_dict() for m in measure(result, volume)]
    failed = [{"prompt": word, "reason": reason} for word, reason in unknown.items()]
    return {
        "model": result.provenance.model,
        "labels": measured,
        "failed": failed,
        "image": describe_image(volume),
        "provenance": result.provenance.as_dict(),
    }


def _report(facts: dict[str, Any], written: dict[str, str]) -> None:
    """Print the measurements and where they were written to."""
    for sentence in facts.get("provenance", {}).get("notes", ()):
        note(sentence)
    rows = []
    for entry in facts.get("labels", ()):
        size = "empty" if not entry["voxels"] else "no scale" if entry["volume_ml"] is None else f"{entry['volume_ml']:.1f} ml"
        values = "-" if entry["mean"] is None else f"{entry['mean']:.0f} ± {entry['std']:.0f} {entry['unit']}"
        presence = "-" if entry["presence"] is None else f"{entry['presence']:.2f}"
        rows.append((entry["name"], f"{entry['voxels']:,}".replace(",", " "), size, values, presence))
    table(("Structure", "Voxels", "Volume", "Mean ± SD", "Presence"), rows, title=f"Model: {facts.get('model')}", numbers=(1, 2, 3, 4))
    for kind, path in written.items():
        typer.echo(f"{kind + ':':14}{path}")
