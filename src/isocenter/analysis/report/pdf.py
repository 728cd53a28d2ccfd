"""The report as a PDF of A4 pages, laid out by ReportLab: the same words, tables, pictures and plots as the page has.

Letters are DejaVu's, which matplotlib brings: Latin, Greek, Cyrillic and others; what it cannot write is left out as "[…]", see `figures.writable`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from isocenter.analysis.report import content, figures
from isocenter.analysis.report.told import Told
from isocenter.analysis.uncertainty import ScanError

_SANS, _BOLD = "IsocenterSans", "IsocenterSans-Bold"
_INK, _MUTED, _LINE, _SOFT, _WARN = "#1b2733", "#5b6875", "#d8dde3", "#f5f7f9", "#d55e00"
_MARGIN_MM = 16.0
#: Width between the margins of A4, points; ReportLab keeps 6 on each side.
_WIDTH = (210 - 2 * _MARGIN_MM) * 72 / 25.4 - 12
_SHOTS_A_ROW = 5
_LONGEST_CELL = 400


def render(told: Told) -> bytes:
    """The PDF. The same case gives the same bytes: no date of making, no random ids."""
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.units import mm
    from reportlab.platypus import SimpleDocTemplate

    _fonts()
    name = told.case.patient.patient_id

    def furniture(canvas: Any, _: Any) -> None:
        canvas.saveState()
        canvas.setFont(_SANS, 7)
        canvas.setFillColor(_MUTED)
        canvas.drawString(_MARGIN_MM * mm, 9 * mm, f"{name} · research use only, not a medical device")
        canvas.drawRightString(A4[0] - _MARGIN_MM * mm, 9 * mm, f"page {canvas.getPageNumber()}")
        canvas.restoreState()

    out = io.BytesIO()
    margins = {f"{side}Margin": _MARGIN_MM * mm for side in ("left", "right", "top", "bottom")}
    document = SimpleDocTemplate(
        out, pagesize=A4, title=f"{name}: report", author="Isocenter", subject="Research use only", invariant=1, lang="en", **margins
    )
    document.build(list(_flow(told)), onFirstPage=furniture, onLaterPages=furniture)
    return out.getvalue()


def _fonts() -> None:
    """Register the letters once a process."""
    import matplotlib
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    if _SANS not in pdfmetrics.getRegisteredFontNames():
        folder = f"{matplotlib.get_data_path()}/fonts/ttf"
        pdfmetrics.registerFont(TTFont(_SANS, f"{folder}/DejaVuSans.ttf"))
        pdfmetrics.registerFont(TTFont(_BOLD, f"{folder}/DejaVuSans-Bold.ttf"))
        pdfmetrics.registerFontFamily(_SANS, normal=_SANS, bold=_BOLD, italic=_SANS, boldItalic=_BOLD)


def _style(size: float, colour: str = _INK, font: str = _SANS, **rest: Any) -> Any:
    from reportlab.lib.styles import ParagraphStyle

    return ParagraphStyle("", fontName=font, fontSize=size, leading=size * 1.35, textColor=colour, **rest)


def _text(words: str, size: float = 8.5, colour: str = _INK, font: str = _SANS, **rest: Any) -> Any:
    """A paragraph of plain words; nothing in them is markup."""
    from reportlab.platypus import Paragraph

    return Paragraph(escape(figures.writable(words)), _style(size, colour, font, **rest))


def _head(words: str) -> Any:
    return _text(words, 11.5, font=_BOLD, spaceBefore=12, spaceAfter=4, keepWithNext=1)


def _flow(told: Told) -> Iterator[Any]:
    """Everything from top to bottom."""
    from reportlab.platypus import Spacer

    case = told.case
    yield _text(f"Patient {case.patient.patient_id}", 16, font=_BOLD, spaceAfter=2)
    if told.identity is not None:
        yield _text(" · ".join(content.identity_words(told.identity)), 9, font=_BOLD)
    yield _text(content.span(case), 8.5, _MUTED, spaceAfter=1)
    if case.best_overall:
        yield _text(f"By RECIST 1.1: {content.best_words(case)}", 8.5, font=_BOLD, spaceAfter=1)
    yield _text(content.treatments(case), 8.5, _MUTED, spaceAfter=4)
    yield _note(content.WARNING)
    yield _head("Summary")
    yield from (_part(title, text) for title, text in told.story.parts)
    yield _text(told.source, 7, _MUTED)
    yield _head("Response by RECIST 1.1")
    yield _responses(told)
    head, rows = content.others(case)
    if rows:
        yield _text("By other criteria", 8.5, font=_BOLD, spaceBefore=6, spaceAfter=2, keepWithNext=1)
        yield _table(head, rows, [1] * len(head), (1,))
    if line := content.volumetric(case):
        yield _text(line, 7, _MUTED, spaceBefore=3)
    if case.responses.get("recist_1.1") and case.targets:
        yield Spacer(1, 6)
        yield _side_by_side([(figures.spider(case), 0.66), (figures.waterfall(case), 0.34)])
        yield _text("Change of targets since the baseline (grey: treatment); best change of each target.", 7, _MUTED)
    yield from _lesions(told)
    yield from _growth(told)
    yield _head("Notes and provenance")
    yield from (_text(f"• {note}", 7.5, leftIndent=8, firstLineIndent=-8) for note in content.notes(case))
    facts = [*told.facts.items(), ("Scan-rescan error", ScanError().source)]
    yield Spacer(1, 4)
    yield from (_part(name, value, 7.5) for name, value in facts)


def _part(title: str, text: str, size: float = 8.5) -> Any:
    from reportlab.platypus import Paragraph

    return Paragraph(f"<b>{escape(title)}.</b> {escape(figures.writable(text))}", _style(size, spaceAfter=3))


def _note(words: str) -> Any:
    from reportlab.platypus import Table

    style = [("BACKGROUND", (0, 0), (-1, -1), _SOFT), ("LINEBEFORE", (0, 0), (0, -1), 2.5, _WARN), ("LEFTPADDING", (0, 0), (-1, -1), 8)]
    return Table([[_text(words, 8)]], colWidths=[_WIDTH], style=style)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], shares: Sequence[float], numbers: Sequence[int], extra: Sequence[Any] = ()) -> Any:
    """A table that goes on over pages with its head. shares: of the width. numbers: columns set to the right."""
    from reportlab.lib.enums import TA_RIGHT
    from reportlab.platypus import Table

    def cell(words: str, column: int, font: str) -> Any:
        words = words if len(words) <= _LONGEST_CELL else words[: _LONGEST_CELL - 1] + "…"
        return _text(words, 6.8, font=font, **({"alignment": TA_RIGHT} if column in numbers else {}))

    body = [[cell(words, k, _BOLD) for k, words in enumerate(head)], *([cell(words, k, _SANS) for k, words in enumerate(row)] for row in rows)]
    style = [
        ("BACKGROUND", (0, 0), (-1, 0), _SOFT),
        ("LINEBELOW", (0, 0), (-1, -1), 0.4, _LINE),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LEFTPADDING", (0, 0), (-1, -1), 2.5),
        ("RIGHTPADDING", (0, 0), (-1, -1), 2.5),
        ("TOPPADDING", (0, 0), (-1, -1), 2),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
        *extra,
    ]
    return Table(body, colWidths=[share * _WIDTH / sum(shares) for share in shares], repeatRows=1, style=style)


def _responses(told: Told) -> Any:
    rows = content.rows(told.case)
    names = ("visit", "day", "lesions", "sum", "sd", "baseline", "nadir", "category", "chances", "why")
    colours = [("BACKGROUND", (7, k), (7, k), row["colour"]) for k, row in enumerate(rows, start=1) if row["category"]]
    head = ("Visit", "Day", "Lesions", "Sum (mm)", "± sd (mm)", "vs baseline", "vs smallest", "Category", "How likely", "Why")
    return _table(head, [[row[name] for name in names] for row in rows], (10.5, 5, 7, 7, 6, 9, 9, 9.5, 11.5, 25), range(1, 7), colours)


def _image(png: bytes, width: float, height: float) -> Any:
    from reportlab.platypus import Image

    return Image(io.BytesIO(png), width=width, height=height)


def _side_by_side(plots: Sequence[tuple[figures.Plot, float]]) -> Any:
    """Plots in a row. The number beside each: its share of the width."""
    from reportlab.platypus import Table

    widths = [share * _WIDTH for _, share in plots]
    cells = [_image(plot.png(), width, width * plot.height / plot.width) for (plot, _), width in zip(plots, widths, strict=True)]
    style = [(f"{side}PADDING", (0, 0), (-1, -1), 0) for side in ("LEFT", "RIGHT", "TOP", "BOTTOM")]
    return Table([cells], colWidths=widths, style=[*style, ("VALIGN", (0, 0), (-1, -1), "BOTTOM")])


def _lesions(told: Told) -> Iterator[Any]:
    """Pictures of each track, then the table of all lesions."""
    from reportlab.platypus import KeepTogether, Spacer, Table

    # The heading goes with the first track: a heading's own wish to stay with what follows is lost on what is kept together.
    heading: list[Any] = [_head("Lesions")]
    edge = _WIDTH / _SHOTS_A_ROW - 6
    for track in content.tracks(told.case, told.thumbnail):
        title = _text(f"{track.name}  {track.what}", 8.5, font=_BOLD, spaceBefore=4, spaceAfter=2, keepWithNext=1)
        cells: list[list[Any]] = [
            [_image(shot.png, edge, edge) if shot.png else Spacer(edge, edge), *(_text(line, 6.3, _MUTED) for line in (shot.visit, shot.text))]
            for shot in track.shots
        ]
        cells += [[]] * (-len(cells) % _SHOTS_A_ROW)
        style = [("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (-1, -1), 0), ("RIGHTPADDING", (0, 0), (-1, -1), 6)]
        widths = [_WIDTH / _SHOTS_A_ROW] * _SHOTS_A_ROW
        strips = [Table([cells[k : k + _SHOTS_A_ROW]], colWidths=widths, style=style) for k in range(0, len(cells), _SHOTS_A_ROW)]
        yield KeepTogether([*heading, title, *strips[:1]])
        yield from strips[1:]
        heading = []
    yield from heading
    yield Spacer(1, 6)
    if not told.case.lesions:
        yield _text("No lesion was found at any visit.", 8.5)
        return
    names = ("visit", "track", "role", "organ", "longest", "short", "sd", "volume", "mean", "method", "link")
    head = ("Visit", "Lesion", "Role", "Organ", "Longest (mm)", "Short axis (mm)", "± sd (mm)", "Volume (ml)", "Mean", "Found by", "Link")
    rows = [[row[name] for name in names] for row in content.lesion_rows(told.case)]
    yield _table(head, rows, (10, 7, 10, 10, 10, 10, 6, 9, 9, 10, 6), (4, 5, 6, 7, 8, 10))
    yield _text(content.LEGEND, 7, _MUTED, spaceBefore=3)


def _growth(told: Told) -> Iterator[Any]:
    """Plots of growth, each with its words."""
    from reportlab.platypus import KeepTogether

    case, width = told.case, 0.82 * _WIDTH
    first = _head("Growth, forecast and what-if")
    plots = [(figures.growth(case, track), content.caption(track)) for track in content.drawn(case)]
    if (total := content.scenarios(case)) is not None:
        words = "What if: medians of all lesions together. Assumes that treatment acts as fitted; see notes."
        plots.append((figures.scenarios(case, total), words))
    for k, (plot, words) in enumerate(plots):
        picture = _image(plot.png(), width, width * plot.height / plot.width)
        yield KeepTogether([*([first] if k == 0 else []), picture, _text(words, 7, _MUTED, spaceAfter=6)])
    if not plots:
        yield first
        yield _text("There is nothing to draw: see the notes.", 8.5)
