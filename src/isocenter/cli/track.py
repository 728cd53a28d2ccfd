"""`isocenter track`: a patient's scans over time, from a folder to a report."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isocenter.cli.console import emit, note, table, watched

if TYPE_CHECKING:
    from isocenter.analysis.case import Case

EXAMPLES = (
    "isocenter track study.json -o report/",
    "isocenter track patient_dicom/ -o report/ -m lesion_net --label tumor",
    "isocenter track bids/sub-01 -o report/ --immunotherapy",
    "isocenter track patient_dicom/ -o report/ -f pdf -f sr --identity",
)


class Registration(StrEnum):
    """What --registration takes."""

    NONE = "none"
    RIGID = "rigid"
    AFFINE = "affine"
    DEFORMABLE = "deformable"


def track(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A folder with a study.json, a BIDS subject, or one patient's DICOM files.")],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where files and the report go.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Finds the lesions of visits that have neither mask nor clicks.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Which of the model's labels are lesions; may be repeated.")] = None,
    least_mm3: Annotated[float, typer.Option(min=0, help="Smaller specks are not lesions.")] = 30.0,
    immunotherapy: Annotated[bool, typer.Option(help="Judge by iRECIST as well; the same as `--criterion irecist`.")] = False,
    criterion: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Judge by irecist, mrecist or rano as well as by RECIST 1.1; may be repeated.")
    ] = None,
    registration: Annotated[
        Registration, typer.Option(help="How scans are aligned; none: lesions are matched by a common shift. deformable takes longest.")
    ] = Registration.AFFINE,
    format_: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", metavar="NAME", help="What to write: json, csv, html, pdf, fhir, seg, sr, or all; may be repeated."),
    ] = None,
    identity: Annotated[bool, typer.Option("--identity", help="Name the patient in what is written, as the scans' DICOM headers do.")] = False,
    narrator: Annotated[
        str | None,
        typer.Option(help="Model of language that tells the case, `template` for none. By default the largest installed that fits."),
    ] = None,
    embedder: Annotated[
        str | None, typer.Option(help="Model that describes each lesion by a vector; `none` for none. By default one that is installed.")
    ] = None,
    corrections: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A reader's corrections as JSON, where the study has no study.json to hold them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the case as JSON.")] = False,
) -> None:
    """Follow a patient's lesions from visit to visit: sizes, response, growth, forecast, what-if.

    What was computed before from the same files is not computed again. Writes case.json, measurements.csv, response.csv and report.html
    (or what --format names) and, for every visit, scan, mask, measurements and what networks need, under OUTPUT/processed.
    """
    from isocenter.analysis.report import content, formats
    from isocenter.analysis.tracking.register import Freedom
    from isocenter.cli.chosen import settings
    from isocenter.io.visits import read_corrections
    from isocenter.service import Service
    from isocenter.trackservice import TrackOptions
    from isocenter.trackservice import track as follow

    kinds = formats.chosen(format_ or ())
    options = TrackOptions(
        model=model,
        labels=tuple(label or ()),
        least_mm3=least_mm3,
        immunotherapy=immunotherapy,
        criteria=tuple(criterion or ()),
        registration=None if registration is Registration.NONE else Freedom(registration.value),
        formats=tuple(kind.name for kind in kinds),
        identity=identity,
        narrator=narrator,
        embedder=embedder,
    )
    said = read_corrections(corrections) if corrections is not None else ()
    service = Service(settings())
    try:
        with watched("Following the patient", quiet=as_json) as run:
            case = follow(service, study, out, options=options, corrections=said, run=run)
    finally:
        service.close()
    if as_json:
        from isocenter.analysis.case_json import as_dict

        emit(as_dict(case))
        _whole(case)
        return
    for sentence in case.notes:
        note(sentence)
    by_day = {r.day: r for r in case.responses.get("recist_1.1", ())}
    rows = []
    for visit in case.visits:
        lesions = case.at(visit.timepoint.timepoint_id)
        response = by_day.get(visit.timepoint.day)
        volume = case.volume_at(visit.timepoint.timepoint_id)
        total = response.sum if response else (next(iter(by_day.values())).baseline if by_day and lesions else None)
        change = response.percent_baseline if response else None
        rows.append(
            (
                visit.timepoint.timepoint_id,
                f"{visit.timepoint.day:g}",
                str(len(lesions)) if visit.found is not None else content.unseen(visit),
                f"{volume / 1000:.2f}" if visit.found is not None and volume is not None else "",
                f"{total:.1f}" if total is not None else "",
                f"{change:+.1f}" if change is not None else "",
                str(response.category) if response else "baseline" if lesions else "",
            )
        )
    table(("Visit", "Day", "Lesions", "Volume (ml)", "Sum (mm)", "Change (%)", "RECIST 1.1"), rows, numbers=(1, 2, 3, 4, 5))
    tracks = []
    for track, seen in case.graph.tracks.items():
        lesions = [lesion for lesion in case.lesions if lesion.track == track]
        sizes = [f"{size:.1f}" if (size := k.short_axis_mm if k.is_node else k.longest_mm) is not None else "" for k in lesions]
        where = f"{next(iter(seen))} to {list(seen)[-1]}" if len(seen) > 1 else next(iter(seen))
        tracks.append((case.called(track), lesions[0].organ or "", content.role(lesions[0]), where, sizes[0], sizes[-1]))
    if tracks:
        table(("Lesion", "Organ", "Role", "Seen at", "First (mm)", "Last (mm)"), tracks, numbers=(4, 5))
    if case.best_overall:
        more = f" (without confirmation: {case.best_seen})" if case.best_seen not in (None, case.best_overall) else ""
        typer.echo(f"Best overall response, confirmed: {case.best_overall}{more}")
    for kind in kinds:
        typer.echo(f"{out / kind.place}: {kind.words}")
    _whole(case)


def _whole(case: Case) -> None:
    """Leave by the code for what is partly done where a scan could not be used; the notes say which, and why."""
    from isocenter.analysis.case import NO_SCAN
    from isocenter.cli.segment import PARTLY_DONE

    if any(visit.found is None and visit.reason != NO_SCAN for visit in case.visits):
        raise typer.Exit(PARTLY_DONE)
