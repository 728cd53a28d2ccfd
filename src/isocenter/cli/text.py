"""`isocenter embed` and `isocenter score`: texts in JSONL and CSV files to vectors and to scores.

Files are read twice, to find what is wrong before anything is computed, and are never in memory as a whole.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isocenter.cli.console import check_folder, err
from isocenter.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from isocenter.textservice import Embeddings, Job, Scores, TextService

EMBED_EXAMPLES = (
    "isocenter embed reports.jsonl --output vectors.jsonl",
    "isocenter embed reports.csv --column impression --output vectors.npy",
    "zcat reports.jsonl.gz | isocenter embed - > vectors.jsonl",
)
SCORE_EXAMPLES = (
    "isocenter score pairs.csv --output scores.csv",
    "isocenter score pairs.jsonl --candidate generated --reference written --no-bertscore",
)
#: Texts that are handed to the service at a time.
_CHUNK = 100
#: Parts that are begun before the oldest is waited for, so that no slot runs dry at a part's end.
_AHEAD = 2
#: A line longer than this is not a report.
csv.field_size_limit(16 * 1024 * 1024)

Source = Annotated[
    Path,
    typer.Argument(
        help="A .jsonl file (an object a line) or a .csv file with a header; - for JSONL from standard input.",
    ),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write: .jsonl, .csv, or for vectors .npy; standard output by default.")]
Model = Annotated[str, typer.Option("--model", help="An installed text model; the settings' default without it.")]
Row = dict[str, Any]


def embed(
    source: Source, output: Output = None, column: Annotated[str, typer.Option(help="The field that holds the text.")] = "text", model: Model = ""
) -> None:
    """Turn each text of a file into a vector."""
    if output is not None and output.suffix.lower() == ".csv":
        raise UsageError("vectors are written as .jsonl or .npy")
    _check_output(output, (".jsonl", ".ndjson", ".npy"))
    with _table(source, column) as table, _service() as texts:
        name, future = texts.embedder(model)
        encoder = future.result()

        def begin(part: Sequence[Row]) -> Job[Embeddings]:
            return texts.embed(name, encoder, [row[column] for row in part])

        found = _progress(_in_turn(texts, _parts(table.rows()), begin), table.count, "Embedding")
        if output is not None and output.suffix.lower() == ".npy":
            _write_vectors((answer.vectors for _, answer in found), table.count, output)
            return
        rows = ({**row, "embedding": v, "model": name} for part, answer in found for row, v in zip(part, answer.vectors.tolist(), strict=True))
        _write(rows, [], output)


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
    _check_output(output, (".jsonl", ".ndjson", ".csv"))
    with _table(source, candidate, reference) as table, _service() as texts:
        # Rarity is that of the whole file, so with it the file is one part.
        parts = _parts(table.rows(), max(1, table.count) if idf and bertscore else _CHUNK)
        if bertscore:
            name, future = texts.scorer(model)
            encoder = future.result()

            def begin(part: Sequence[Row]) -> Job[Scores]:
                return texts.score(name, encoder, [r[candidate] for r in part], [r[reference] for r in part], idf=idf)

            scored: Iterator[tuple[list[Row], Scores | None]] = _in_turn(texts, parts, begin)
        else:
            scored = ((part, None) for part in parts)
        found = _progress(scored, table.count, "Comparing")
        _write((row for part, scores in found for row in _compared(part, candidate, reference, scores)), table.fields, output)


def _compared(part: Sequence[Row], candidate: str, reference: str, scores: Scores | None) -> Iterator[Row]:
    from isocenter.analysis import report_metrics

    for i, row in enumerate(part):
        found = report_metrics.compare(row[candidate], row[reference])
        differences = found.pop("clinical")["differences"]
        result = {**row, **found, "differences": differences}
        if scores is not None:
            # What cannot be computed is null, which JSON has, and not NaN, which it has not.
            values = [v if math.isfinite(v) else None for v in scores.triples[i]]
            result |= {**dict(zip(("precision", "recall", "f1"), values, strict=True)), "hash": scores.code}
        yield result


@contextmanager
def _service() -> Iterator[TextService]:
    from isocenter.cli.chosen import settings
    from isocenter.textservice import TextService

    made = TextService(settings())
    try:
        yield made
    finally:
        made.close()


def _parts(rows: Iterator[Row], size: int = _CHUNK) -> Iterator[list[Row]]:
    while part := list(islice(rows, size)):
        yield part


def _in_turn(texts: TextService, parts: Iterator[list[Row]], begin: Callable[[Sequence[Row]], Job[Any]]) -> Iterator[tuple[list[Row], Any]]:
    """Each part and its answer, the parts behind it begun already."""
    begun: deque[tuple[list[Row], Job[Any]]] = deque()
    for part in parts:
        begun.append((part, begin(part)))
        if len(begun) > _AHEAD:
            first, job = begun.popleft()
            yield first, texts.answer(job)
    for part, job in begun:
        yield part, texts.answer(job)


def _progress(found: Iterator[tuple[list[Row], Any]], count: int, what: str) -> Iterator[tuple[list[Row], Any]]:
    """The same, with a bar on a terminal."""
    from rich.progress import Progress

    with Progress(console=err(), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=count)
        for part, answer in found:
            yield part, answer
            bar.advance(task, len(part))


# Files.


@dataclass(frozen=True)
class _Table:
    """A file whose rows all have their texts. fields: all that any row has, in order; of a .jsonl file too."""

    path: Path
    delimiter: str | None
    count: int
    fields: list[str]

    def rows(self) -> Iterator[Row]:
        return _rows(self.path, self.path.name, self.delimiter)


@contextmanager
def _table(source: Path, *columns: str) -> Iterator[_Table]:
    """The file, read through once. Raises `InputError` that names the first row in which something is wrong."""
    if str(source) == "-":
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "standard input.jsonl"
            with path.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            yield _checked(path, "standard input", columns)
    elif source.is_file():
        yield _checked(source, source.name, columns)
    else:
        raise UsageError(f"there is no file {source}")


def _checked(path: Path, name: str, columns: Sequence[str]) -> _Table:
    delimiter = None
    if path.suffix.lower() == ".csv":
        delimiter = _delimiter(path, name, columns)
    elif path.suffix.lower() not in (".jsonl", ".ndjson"):
        raise UsageError("the file must end in .jsonl or .csv")
    count, fields = 0, dict[str, None]()
    for count, row in enumerate(_rows(path, name, delimiter), start=1):
        if not isinstance(row, dict) or any(not isinstance(row.get(column), str) for column in columns):
            raise InputError(f"{name}: row {count} has no text in {' or '.join(repr(c) for c in columns)}; name the field with an option")
        fields.update(dict.fromkeys(row))
    return _Table(path, delimiter, count, list(fields))


def _delimiter(path: Path, name: str, columns: Sequence[str]) -> str:
    """The one with which the header has the columns: spreadsheets write a semicolon where the comma stands in numbers."""
    with _opened(path, name) as file:
        header = file.readline()
    return next((d for d in (",", ";", "\t") if set(columns) <= set(next(csv.reader([header], delimiter=d), []))), ",")


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError:
        raise InputError(f"{name} is not UTF-8; save it in that encoding") from None
    except csv.Error as error:
        raise InputError(f"{name} cannot be read as CSV: {error}") from None


def _rows(path: Path, name: str, delimiter: str | None) -> Iterator[Row]:
    with _opened(path, name) as file:
        if delimiter is not None:
            for row in csv.DictReader(file, delimiter=delimiter):
                row.pop(None, None)  # cells beyond the header's last
                yield row
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    raise InputError(f"{name}: line {number} is not JSON") from None


def _check_output(output: Path | None, endings: Sequence[str]) -> None:
    """Raise `UsageError` before anything is computed for a file that could not be written."""
    if output is None:
        return
    if output.suffix.lower() not in endings:
        raise UsageError(f"the output must end in {' or '.join(endings)}, not '{output.suffix}'")
    if output.is_dir():
        raise UsageError(f"{output} is a folder; name a file")
    check_folder(output.parent)
    output.parent.mkdir(parents=True, exist_ok=True)


def _write_vectors(parts: Iterator[Any], count: int, output: Path) -> None:
    """vectors: (texts, size) float32 each, to one array on disk, which need not fit into memory."""
    import numpy as np

    from isocenter.store.places import whole

    with whole(output) as path:
        array, done = None, 0
        for vectors in parts:
            if array is None:
                array = np.lib.format.open_memmap(path, "w+", np.float32, (count, vectors.shape[1]))
            array[done : done + len(vectors)] = vectors
            done += len(vectors)
        if array is None:
            with path.open("wb") as file:
                np.save(file, np.zeros((0, 0), np.float32))
        else:
            array.flush()


def _write(rows: Iterator[Row], fields: Sequence[str], output: Path | None) -> None:
    if output is None:
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=False))
        return
    from isocenter.store.places import whole

    with whole(output) as path, path.open("w", encoding="utf-8", newline="") as file:
        if output.suffix.lower() != ".csv":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        writer: csv.DictWriter[str] | None = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, list(dict.fromkeys([*fields, *row])))
                writer.writeheader()
            writer.writerow({k: json.dumps(v, ensure_ascii=False) if isinstance(v, list | dict) else v for k, v in row.items()})
