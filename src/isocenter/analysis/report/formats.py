"""The registry of outputs: one entry a format, for the command line, the HTTP API and the documentation alike."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from isocenter.analysis.case_json import as_dict
from isocenter.analysis.report import html, tables
from isocenter.analysis.report.told import Told
from isocenter.core.errors import UsageError

#: Names and bytes of files, one after the other, so that only one is held at a time.
Files = Iterator[tuple[str, bytes]]


@dataclass(frozen=True)
class Format:
    """One kind of output. place: its file, or the folder of its files, one or two a visit. media_type: of each of them.

    write: its files, by names below the output's folder.
    """

    name: str
    place: str
    media_type: str
    words: str
    write: Callable[[Told], Files]

    @property
    def several(self) -> bool:
        """Whether it may write more than one file."""
        return self.place.endswith("/")


def _json(told: Told) -> Files:
    uids = {track: told.tracking_uid(track) for track in told.case.graph.tracks}
    facts = {**as_dict(told.case), "tracking_uids": uids, "narrative": asdict(told.story)}
    if told.identity is not None:
        born = told.identity.birth_date
        facts["patient"] = {**asdict(told.identity), "birth_date": born.isoformat() if born else None}
    yield "case.json", json.dumps(facts, indent=1, allow_nan=False).encode()


def _csv(told: Told) -> Files:
    yield "measurements.csv", tables.measurements(told).encode()


def _responses(told: Told) -> Files:
    yield "response.csv", tables.responses(told).encode()


def _html(told: Told) -> Files:
    yield "report.html", html.render(told).encode()


def _pdf(told: Told) -> Files:
    from isocenter.analysis.report import pdf

    yield "report.pdf", pdf.render(told)


def _fhir(told: Told) -> Files:
    from isocenter.analysis.report import fhir

    yield "fhir.json", json.dumps(fhir.bundle(told), indent=1, allow_nan=False).encode()


def _seg(told: Told) -> Files:
    from isocenter.analysis.report import dicom

    for visit, segmentation, _ in dicom.objects(told, reports=False):
        if segmentation is not None:
            yield f"dicom/{visit}_seg.dcm", segmentation


def _sr(told: Told) -> Files:
    from isocenter.analysis.report import dicom

    for visit, segmentation, report in dicom.objects(told, reports=True):
        # A report refers to the lesions' SEG, so it never goes alone.
        if segmentation is not None:
            yield f"dicom/{visit}_seg.dcm", segmentation
        if report is not None:
            yield f"dicom/{visit}_sr.dcm", report


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("json", "case.json", "application/json", "everything as data", _json),
        Format("csv", "measurements.csv", "text/csv", "one row a lesion and visit", _csv),
        Format("response", "response.csv", "text/csv", "response as CSV: one row a criterion and visit", _responses),
        Format("html", "report.html", "text/html", "the report; stands alone", _html),
        Format("pdf", "report.pdf", "application/pdf", "the report as PDF", _pdf),
        Format("fhir", "fhir.json", "application/fhir+json", "FHIR R4 bundle: a DiagnosticReport and its Observations", _fhir),
        Format("seg", "dicom/", "application/dicom", "DICOM SEG of every visit that came as DICOM", _seg),
        Format("sr", "dicom/", "application/dicom", "DICOM SR (TID 1500) of every visit that came as DICOM, with its SEG", _sr),
    )
}
#: What is written when nobody says.
DEFAULT = ("json", "csv", "response", "html")


def chosen(names: Sequence[str]) -> tuple[Format, ...]:
    """Formats by their names; "all" is all of them, none the default. Raises `UsageError` for others."""
    wanted = list(FORMATS) if "all" in names else list(dict.fromkeys(names)) or list(DEFAULT)
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown:
        raise UsageError(f"there is no format {unknown[0][:32]!r}; there are {', '.join(FORMATS)} and all")
    return tuple(FORMATS[name] for name in wanted if not (name == "seg" and "sr" in wanted))


@dataclass(frozen=True)
class OneFile:
    """An answer to send: a file, or a ZIP archive of several."""

    name: str
    media_type: str
    data: bytes


def one_file(told: Told, name: str) -> OneFile:
    """A case in one format as a single file. Raises `UsageError` for unknown formats and what the format cannot say."""
    (kind,) = chosen([name])
    if not kind.several:
        ((file, data),) = kind.write(told)
        return OneFile(file, kind.media_type, data)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file, data in kind.write(told):
            # A fixed time: the same case gives the same archive.
            archive.writestr(zipfile.ZipInfo(file.rsplit("/", 1)[-1]), data, zipfile.ZIP_DEFLATED)
    return OneFile(f"{name}.zip", "application/zip", buffer.getvalue())
