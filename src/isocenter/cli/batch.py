"""`isocenter batch`: a folder of studies through one model, one after the other, and a report of them all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isocenter.cli.console import err, fail, table
from isocenter.cli.segment import PARTLY_DONE, Format, options_of
from isocenter.core.errors import IsocenterError, ModelError, PromptError, StoreError, UsageError

if TYPE_CHECKING:
    from isocenter.cli._studies import Found
    from isocenter.core.model import ModelSpec, Run
    from isocenter.service import Service

EXAMPLES = (
    "isocenter batch studies/ -m model18cls -o out",
    "isocenter batch studies/ -m tissue --label lungs --label liver -o out",
    "isocenter batch archives/ -m my-nnunet --option use_tta=true --format dicom-seg -o out",
)
#: What is known of a finished study; written last, so that a study without it has to be done again.
RECORD = "measurements.json"
#: Studies in the table that is printed.
_SHOWN = 40
#: Seconds after which the tables are brought up to date while the batch runs.
_EVERY = 10.0

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Each folder, ZIP archive or scan directly in it is one study.")]
Model = Annotated[str, typer.Option("--model", "-m", metavar="NAME", help="Which model; isocenter models lists them.")]
Out = Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="A folder for masks, pictures, measurements and the report.")]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="NAME", help="Keep only this structure. Repeatable.")]
Options = Annotated[list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the model. Repeatable.")]
Modality = Annotated[str | None, typer.Option(metavar="CT|MR|...", help="What the scans are, where their files do not say.")]
MaskFormat = Annotated[Format, typer.Option("--format", metavar="|".join(Format), help="Format of the masks.")]
Again = Annotated[bool, typer.Option("--again", help="Do also those again that are done.")]


def batch(
    folder: Folder,
    model: Model,
    out: Out = Path("isocenter-output"),
    label: Labels = None,
    option: Options = None,
    modality: Modality = None,
    form: MaskFormat = Format.NIFTI,
    again: Again = False,
) -> None:
    """Segment many studies with one model, and write a report.

    Each study gets a folder with its mask, preview.png and measurements.json. The report (report.xlsx, report.csv and
    structures.csv) has each study's status, volumes in mm³ and bounding boxes whose first and last voxels are both inside.

    Started again, it goes on where it stopped: what is done with the same model and options is kept, what failed or
    changed is done again.

    Exit code 8: some studies could not be done; the report says why. 1: none could.
    """
    from isocenter.cli import _report
    from isocenter.cli._studies import studies_in
    from isocenter.cli.chosen import settings
    from isocenter.service import Service

    studies = studies_in(folder, out)
    service = Service(settings())
    records: list[dict[str, Any]] = []
    try:
        options = options_of(option or ())
        spec = _checked(service, model, label or (), options)
        asked = {
            "model": spec.id,
            "version": spec.version,
            "weights": spec.weights_sha256,
            "labels": _words(spec, label or ()),  # in order: where words overlap, earlier ones win
            "options": options,
            "modality": modality,
            "format": form.value,
        }
        with _writing(out), _progress(len(studies)) as progress:
            out.mkdir(parents=True, exist_ok=True)
            written = time.monotonic()
            try:
                for study in studies:
                    record = None if again else _done(study, asked, out / study.name)
                    kept = record is not None
                    record = record or _attempt(service, spec, study, asked, out / study.name, progress.begin(study.name))
                    records.append(record)
                    progress.end(study.name, record, kept=kept)
                    if time.monotonic() - written > _EVERY:
                        _report.write_csv(out, records)
                        written = time.monotonic()
            finally:
                # Also when somebody stops it: what is done is reported, and the next start goes on from there.
                _report.write_csv(out, records)
                _report.write_xlsx(out, records)
    finally:
        service.close()
    _summarise(records, out)


def _checked(service: Service, model: str, labels: Sequence[str], options: dict[str, Any]) -> ModelSpec:
    """The model, if it can work on scans alone and knows the structures."""
    from isocenter.core import naming
    from isocenter.core.model import Task

    spec = service.registry.spec(model)
    if spec.task is not Task.SEGMENT and not (spec.task is Task.TEXT and spec.labels):
        raise PromptError(f"the model '{spec.id}' needs to be told where to look; take one that finds its structures by itself (isocenter models)")
    for name in labels:
        naming.label_of(name, spec.labels, spec.synonyms)
    known = {*spec.options, "threshold"} if spec.task is Task.TEXT else set(spec.options)
    if unknown := sorted(set(options) - known):
        raise UsageError(f"the model '{spec.id}' has no option '{unknown[0]}'; it has: {', '.join(sorted(known)) or 'none'}")
    threshold = options.get("threshold", 0.5)
    if spec.task is Task.TEXT and (isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1):
        raise UsageError("threshold must be a number from 0 to 1")
    return spec


def _words(spec: ModelSpec, labels: Sequence[str]) -> list[str]:
    """The structures to ask for; none named to a model that takes no words means all."""
    from isocenter.core.model import Task
    from isocenter.core.parts import side_by_side

    return list(labels) or ([known.name for known in side_by_side(spec.labels)] if spec.task is Task.TEXT else [])


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """A disk that cannot be written to ends the batch: no study after it would fare better."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "unknown reason"
        raise StoreError(f"{out} cannot be written to ({reason}); see to it and start again: what is done is kept") from None


def _attempt(service: Service, spec: ModelSpec, study: Found, asked: dict[str, Any], target: Path, run: Run) -> dict[str, Any]:
    """A study's record. A study that cannot be done is one too; a model that cannot be used ends the batch."""
    from isocenter.cli._report import put

    started = time.perf_counter()
    record: dict[str, Any] = {"study": str(study.path), "batch": {**asked, "input": study.fingerprint}}
    target.mkdir(parents=True, exist_ok=True)
    (target / RECORD).unlink(missing_ok=True)
    try:
        facts = _segment(service, spec, study, asked, target, run)
    except (ModelError, UsageError) as error:
        if not isinstance(error, PromptError):
            raise  # what is wrong with the model or its options is so for every study
        reason = error.message
    except IsocenterError as error:
        reason = error.message
    except MemoryError:
        reason = "there is not enough memory for this scan"
    else:
        record = {**facts, **record, "status": "completed", "error": None, "seconds": round(time.perf_counter() - started, 2)}
        put(target / RECORD, (json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n").encode())
        return record
    return {**record, "status": "failed", "error": reason, "seconds": round(time.perf_counter() - started, 2)}


def _segment(service: Service, spec: ModelSpec, study: Found, asked: dict[str, Any], target: Path, run: Run) -> dict[str, Any]:
    """Write a study's mask and picture; returns its measurements."""
    from isocenter import jobservice
    from isocenter.cli._report import put
    from isocenter.core.model import Task
    from isocenter.core.prompts import Text
    from isocenter.io import preview, write
    from isocenter.io.uids import study_uid

    run.check(0.0, "reading")
    volume = service.open_path(study.path, modality=asked["modality"])
    run.check(0.1, "segmenting")
    if spec.task is Task.TEXT:
        words = [Text(name) for name in asked["labels"]]
        threshold = float(asked["options"].get("threshold", 0.5))
        result = service.segment(volume, words, threshold=threshold, model=spec.id, run=run)
    else:
        result = service.label(volume, model=spec.id, options=asked["options"], labels=asked["labels"], run=run)
    run.check(0.9, "writing")
    suffix = Format(asked["format"]).suffix
    put(target / f"mask{suffix}", write.encode(result, suffix, volume))
    put(target / "preview.png", preview.png(volume, result))
    return {**jobservice.describe(result, volume), "study_uid": study_uid(volume)}


def _done(study: Found, asked: dict[str, Any], target: Path) -> dict[str, Any] | None:
    """What an earlier run found, if it was asked the same of the same files, and its mask is still there."""
    try:
        record: dict[str, Any] = json.loads((target / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    wanted = json.loads(json.dumps({**asked, "input": study.fingerprint}))
    same = isinstance(record, dict) and record.get("batch") == wanted and record.get("status") == "completed"
    return record if same and (target / f"mask{Format(asked['format']).suffix}").is_file() else None


class _Progress:
    """How far the batch is: bars on a terminal, a line a study elsewhere."""

    def __init__(self, total: int, bars: Any = None) -> None:
        self._total = total
        self._bars = bars
        self._ended = 0
        if bars is not None:
            self._all = bars.add_task("studies", total=total)
            self._one = bars.add_task("", total=1.0)

    def begin(self, name: str) -> Run:
        """A study's turn."""
        from isocenter.core.model import QUIET, Run

        if self._bars is None:
            return QUIET
        self._bars.update(self._one, completed=0.0, description=name)
        return Run(progress=lambda fraction, what: self._bars.update(self._one, completed=fraction, description=f"{name}: {what}" if what else name))

    def end(self, name: str, record: dict[str, Any], *, kept: bool) -> None:
        """A study is done, or was before."""
        self._ended += 1
        how = "done before" if kept else f"{record['status']} in {record['seconds']:.1f} s"
        line = f"{self._ended}/{self._total} {name}: {how}" + (f": {record['error']}" if record["error"] else "")
        if self._bars is None:
            typer.echo(line, err=True)
            return
        self._bars.update(self._all, completed=self._ended, description=f"studies {self._ended}/{self._total}")
        if record["error"]:
            from rich.text import Text

            self._bars.console.print(Text(line))


@contextmanager
def _progress(total: int) -> Iterator[_Progress]:
    console = err()
    if not console.is_terminal:
        yield _Progress(total)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        yield _Progress(total, bars)


def _summarise(records: Sequence[dict[str, Any]], out: Path) -> None:
    """Print what came out, and end with the exit code for it."""
    from isocenter.cli._report import volume_of

    failed = [r for r in records if r["status"] != "completed"]
    rows = []
    for record in records:
        found = [entry for entry in record.get("labels", []) if entry["voxels"]]
        volume = None if record["error"] else volume_of(found)
        size = "-" if volume is None else f"{volume / 1000:.1f} ml"
        rows.append((Path(record["study"]).name, record["status"], str(len(found)) if not record["error"] else "-", size))
    table(("Study", "Status", "Structures", "Volume"), rows[:_SHOWN], title=f"Model: {records[0]['batch']['model']}", numbers=(2, 3))
    if len(rows) > _SHOWN:
        typer.echo(f"... and {len(rows) - _SHOWN} more; the report has them all")
    typer.echo(f"report:       {out / 'report.xlsx'}")
    if failed:
        fail(f"{len(failed)} of {len(records)} studies could not be done; the report says why. Start again to try them once more.")
        raise typer.Exit(PARTLY_DONE if len(failed) < len(records) else 1)
