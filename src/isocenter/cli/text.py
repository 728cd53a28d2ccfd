"""`isocenter embed` and `isocenter score`: texts in JSONL and CSV files to vectors and to scores."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isocenter.cli.console import err
from isocenter.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from isocenter.textservice import TextService

EMBED_EXAMPLES = ("isocenter embed reports.jsonl --output vectors.jsonl", "isocenter embed reports.csv --column impression --output vectors.npy")
SCORE_EXAMPLES = (
    "isocenter score pairs.csv --output scores.csv",
    "isocenter score pairs.jsonl --candidate generated --reference written --no-bertscore",
)
#: Texts that are handed to the service at a time.
_CHUNK = 100
#: A line longer than this is not a report.
csv.field_size_limit(16 * 1024 * 1024)

Source = Annotated[Path, typer.Argument(help="A .jsonl file (an object a line) or a .csv file with a header.", exists=True, dir_okay=False)]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write: .jsonl, .csv, or for vectors .npy; standard output by default.")]
Model = Annotated[str, typer.Option("--model", help="An installed text model; the settings' default without it.")]


def embed(
    source: Source, output: Output = None, column: Annotated[str, typer.Option(help="The field that holds the text.")] = "text", model: Model = ""
) -> None:
    """Turn each text of a file into a vector."""
    rows = _read(source, column)
    if output is not None and output.suffix == ".csv":
        raise UsageError("vectors are written as .jsonl or .npy")
    vectors: list[list[float]] = []
    with _service() as texts:
        name, future = texts.embedder(model)
        encoder = future.result()
        for part in _progress([row[column] for row in rows], "Embedding"):
            vectors.extend(texts.answer(texts.embed(name, encoder, part)).vectors.tolist())
    if output is not None and output.suffix == ".npy":
        import numpy as np

        np.save(output, np.asarray(vectors, np.float32))
        return
    _write([{**row, "embedding": vector, "model": name} for row, vector in zip(rows, vectors, strict=True)], output)


def score(
    source: Source,
    output: Output = None,
    candidate: Annotated[str, typer.Option(help="The field that holds the generated text.")] = "candidate",
    reference: Annotated[str, typer.Option(help="The field that holds the reference.")] = "reference",
    model: Model = "",
    bertscore: Annotated[bool, typer.Option(help="Compute BERTScore, which needs an installed text model.")] = True,
    idf: Annotated[bool, typer.Option("--idf", help="Weigh tokens by how rare they are in the file's references.")] = False,
) -> None:
    """Score generated texts against references: BERTScore, ROUGE-L, BLEU, chrF, and findings that differ."""
    from isocenter.analysis import report_metrics

    rows = _read(source, candidate, reference)
    results: list[dict[str, Any]] = []
    for part in _progress(rows, "Comparing"):
        for row in part:
            found = report_metrics.compare(row[candidate], row[reference])
            differences = found.pop("clinical")["differences"]
            results.append({**row, **found, "differences": differences})
    if bertscore:
        _add_bertscore(results, candidate, reference, model, idf)
    _write(results, output)


def _add_bertscore(results: list[dict[str, Any]], candidate: str, reference: str, model: str, idf: bool) -> None:
    with _service() as texts:
        name, future = texts.scorer(model)
        encoder = future.result()
        # Rarity is that of the whole file, so with it the file is one job.
        for part in _progress(results, "BERTScore", len(results) if idf else _CHUNK):
            job = texts.score(name, encoder, [r[candidate] for r in part], [r[reference] for r in part], idf=idf)
            scores = texts.answer(job)
            for row, triple in zip(part, scores.triples, strict=True):
                # What cannot be computed is null, which JSON has, and not NaN, which it has not.
                values = [v if math.isfinite(v) else None for v in triple]
                row |= {**dict(zip(("precision", "recall", "f1"), values, strict=True)), "hash": scores.code}


@contextmanager
def _service() -> Iterator[TextService]:
    from isocenter.cli.chosen import settings
    from isocenter.textservice import TextService

    made = TextService(settings())
    try:
        yield made
    finally:
        made.close()


def _progress(items: Sequence[Any], what: str, size: int = _CHUNK) -> Iterator[Sequence[Any]]:
    """The items in parts, with a bar on a terminal."""
    from rich.progress import track

    parts = [items[i : i + size] for i in range(0, len(items), max(1, size))]
    yield from track(parts, what, console=err(), disable=not sys.stderr.isatty())


def _read(source: Path, *columns: str) -> list[dict[str, Any]]:
    """The rows of a file, each with these columns as text."""
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            if source.suffix.lower() == ".csv":
                rows: list[Any] = list(csv.DictReader(file))
            elif source.suffix.lower() in (".jsonl", ".ndjson"):
                rows = [json.loads(line) for line in file if line.strip()]
            else:
                raise UsageError("the file must end in .jsonl or .csv")
    except (ValueError, csv.Error):
        raise InputError(f"{source.name} cannot be read as UTF-8 {source.suffix[1:].upper()}") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or any(not isinstance(row.get(column), str) for column in columns):
            raise InputError(f"{source.name}: row {number} has no text in {' or '.join(repr(c) for c in columns)}; name the field with an option")
    return rows


def _write(rows: list[dict[str, Any]], output: Path | None) -> None:
    if output is not None and output.suffix == ".csv":
        with output.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows({k: json.dumps(v, ensure_ascii=False) if isinstance(v, list | dict) else v for k, v in row.items()} for row in rows)
        return
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if output is None:
        typer.echo(lines, nl=False)
    else:
        output.write_text(lines, encoding="utf-8")
