"""Plots of a case: SVG that can stand in a page, PNG for a PDF."""

from __future__ import annotations

import io
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from html import escape
from itertools import cycle
from typing import Any

import numpy as np

from isocenter.analysis.case import Case
from isocenter.analysis.case_growth import TrackGrowth
from isocenter.analysis.growth.scenarios import Scenario
from isocenter.analysis.response.visit import Category

#: Colours that stay apart for most colour-blind readers (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
CATEGORY_COLOURS = {
    Category.CR: "#009E73",
    Category.PR: "#56B4E9",
    Category.SD: "#999999",
    Category.PD: "#D55E00",
    Category.NE: "#DDDDDD",
    Category.NON: "#BBBBBB",
}


def ink(colour: str) -> str:
    """The colour of words on a coloured ground: black or white, whichever stands out more (relative luminance by WCAG 2.2)."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#000000" if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else "#ffffff"


#: Characters of a name in a plot.
_LONGEST_NAME = 24


@cache
def _letters() -> frozenset[int]:
    """What DejaVu Sans, which matplotlib brings, has letters for."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf").get_charmap())


def writable(text: str) -> str:
    """A text as plots and the PDF can write it: what these letters lack, or what runs from right to left, is left out as "[…]".

    Neither joins letters nor turns them around, so Arabic would come out as other words; the page and the data have the text as it is.
    """
    known = _letters()
    marks = ["\0" if ord(c) not in known or unicodedata.bidirectional(c) in {"R", "AL", "AN"} else c for c in text]
    return re.sub(r"\0(?:[\0\s]*\0)?", "[…]", "".join(marks))


def short_name(case: Case, track: str) -> str:
    """A track's name where room is short: without the reader's words where these are long, or cannot be written."""
    name = case.called(track)
    return name if len(name) <= _LONGEST_NAME and writable(name) == name else track


@dataclass(frozen=True)
class Plot:
    """A plot that is drawn when it is known how. width, height: inches."""

    figure: Any
    width: float
    height: float

    def svg(self, words: str = "") -> str:
        """SVG text, the same each time for one case: no date, and no ids but those that it refers to. words: said to who cannot see it."""
        import matplotlib as mpl

        buffer = io.StringIO()
        with mpl.rc_context({"svg.hashsalt": "isocenter", "svg.fonttype": "none", "font.family": "sans-serif"}):
            self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
        return text.replace("<svg ", f'<svg role="img" aria-label="{escape(words)}" ', 1) if words else text

    def png(self, dpi: int = 220) -> bytes:
        """PNG, `dpi` pixels an inch."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
        return buffer.getvalue()


def _axes(width: float = 7.2, height: float = 3.0) -> tuple[Any, Plot]:
    """Axes to draw on, and the plot that they belong to."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return axes, Plot(figure, width, height)


def _treatments(axes: Any, case: Case, end: float) -> None:
    """Grey bands where something was given."""
    for k, therapy in enumerate(case.patient.therapies):
        stop = min(therapy.end_day if therapy.end_day is not None else end, end)
        if stop > therapy.start_day:
            axes.axvspan(therapy.start_day, stop, color="#000000", alpha=0.07, label="treatment" if k == 0 else None, lw=0)


def spider(case: Case) -> Plot:
    """Change of each target's diameter and of their sum since the baseline, in percent."""
    axes, plot = _axes()
    days = [v.timepoint.day for v in case.visits if v.found is not None]
    _treatments(axes, case, max(days))
    for colour, track in zip(cycle(COLOURS), case.targets, strict=False):
        sizes = {k.timepoint_id: k.short_axis_mm if k.is_node else k.longest_mm for k in case.lesions if k.track == track}
        sizes |= {k.timepoint_id: None for k in case.unseen if k.track == track}
        # A lesion that is not seen on a scan has no diameter left; one that could not be measured or assessed leaves a gap.
        points = [(v.timepoint.day, sizes.get(v.timepoint.timepoint_id, 0.0)) for v in case.visits if v.found is not None]
        begin = next((n for n, (_, size) in enumerate(points) if size), None)
        if begin is not None:
            first = float(points[begin][1] or 1.0)
            known = [(day, 100 * (size / first - 1)) for day, size in points[begin:] if size is not None]
            axes.plot(*zip(*known, strict=True), "o-", color=colour, label=short_name(case, track), lw=1.5, ms=4)
    responses = case.responses.get("recist_1.1", ())
    total = [(r.day, r.percent_baseline) for r in responses if r.percent_baseline is not None]
    if total:
        start = next(v.timepoint.day for v in case.visits if v.found is not None)
        x, y = zip(*[(start, 0.0), *total], strict=True)
        axes.plot(x, y, "s--", color="black", label="sum", lw=2, ms=5)
    # Progression counts from the smallest sum, so its limit is no category here.
    for level, text in ((-30, "PR"), (20, "+20 %")):
        axes.axhline(level, color="#888888", lw=0.8, ls=":")
        axes.text(1.0, level, f" {text}", transform=axes.get_yaxis_transform(), va="center", fontsize=8, color="#555555")
    axes.axhline(0, color="black", lw=0.6)
    axes.set(xlabel="day", ylabel="change since baseline (%)")
    _legend(axes, fontsize=8, ncols=4)
    return plot


def waterfall(case: Case) -> Plot:
    """Best change of each target's diameter since the baseline."""
    bars = []
    for track in case.targets:
        sizes = [lesion.short_axis_mm if lesion.is_node else lesion.longest_mm for lesion in case.lesions if lesion.track == track]
        known = [s for s in sizes if s]
        seen = {lesion.timepoint_id for lesion in (*case.lesions, *case.unseen) if lesion.track == track}
        gone = any(v.found is not None and v.timepoint.timepoint_id not in seen for v in case.visits)
        if known:
            bars.append((short_name(case, track), -100.0 if gone else 100 * (min(known[1:], default=known[0]) / known[0] - 1)))
    bars.sort(key=lambda bar: -bar[1])
    axes, plot = _axes(3.6, 3.0)
    colours = ["#D55E00" if v >= 20 else "#56B4E9" if v <= -30 else "#999999" for _, v in bars]
    drawn = axes.bar([t for t, _ in bars], [v for _, v in bars], color=colours, width=min(0.8, 0.25 * len(bars)))
    axes.bar_label(drawn, fmt="%+.0f %%", padding=2, fontsize=8)
    axes.margins(x=0.15 if len(bars) > 1 else 0.6, y=0.12)
    for level, text in ((-30, "PR"), (20, "+20 %")):
        axes.axhline(level, color="#888888", lw=0.8, ls=":")
        axes.text(1.0, level, f" {text}", transform=axes.get_yaxis_transform(), va="center", fontsize=8, color="#555555")
    axes.axhline(0, color="black", lw=0.6)
    axes.set_ylabel("best change (%)")
    return plot


def title(case: Case, track: str) -> str:
    """Whose volumes a plot shows."""
    if track == "total":
        return "All lesions together"
    organ = next((writable(k.organ) for k in case.lesions if k.track == track and k.organ), None)
    return f"{short_name(case, track)}, {organ}" if organ else short_name(case, track)


def growth(case: Case, track: TrackGrowth) -> Plot:
    """Measured volumes, what the growth laws make of them, and the forecast."""
    axes, plot = _axes()
    known = [(d, v / 1000) for d, v in zip(track.days, track.volumes_mm3, strict=True) if v]
    end = float(track.forecast.days[-1]) if track.forecast else track.days[-1]
    _treatments(axes, case, end)
    axes.set_title(title(case, track.track), fontsize=9, loc="left")
    if track.growth is not None:
        days = np.linspace(track.growth.series.days[0], track.growth.series.days[-1], 80)
        middle, low, high = track.growth.predict(days)
        axes.fill_between(days, low / 1000, high / 1000, color=COLOURS[0], alpha=0.18, lw=0)
        axes.plot(days, middle / 1000, color=COLOURS[0], lw=1.5, label="fitted laws")
    if track.forecast is not None:
        path = track.forecast
        axes.fill_between(path.days, path.low_mm3 / 1000, path.high_mm3 / 1000, color=COLOURS[1], alpha=0.18, lw=0)
        axes.plot(path.days, path.median_mm3 / 1000, "--", color=COLOURS[1], lw=1.5, label=f"forecast ({100 * path.level:.0f} % interval)")
    if known:
        axes.plot(*zip(*known, strict=True), "o", color="black", ms=5, label="measured")
    if track.growth is not None and track.growth.series.absent.any():
        series = track.growth.series
        limits = np.exp(series.u[series.absent]) / 1000
        axes.plot(series.days[series.absent], limits, "v", color="black", mfc="none", ms=6, label="not seen: below this")
        # A fit far below what can be seen says no more than that.
        axes.set_ylim(bottom=float(limits.min()) / 10)
    _volume_axis(axes)
    return plot


def changes_nothing(track: TrackGrowth) -> list[Scenario]:
    """Scenarios that leave the curve as it was: a change "from now on" of a course that is over, say."""
    return [s for s in track.scenarios if s.reason is not None]


def scenarios(case: Case, track: TrackGrowth) -> Plot:
    """Median curves of all scenarios that change anything."""
    axes, plot = _axes(7.2, 3.2)
    same = {s.name for s in changes_nothing(track)}
    for k, scenario in enumerate(track.scenarios):
        if scenario.name in same:
            continue
        own = scenario.name == "as_given"
        axes.plot(
            scenario.days,
            scenario.median_mm3 / 1000,
            color="black" if own else COLOURS[k % 7],
            lw=2.4 if own else 1.2,
            ls="-" if k < 8 else "--",
            label=scenario.name.replace("_", " "),
        )
    _treatments(axes, case, float(track.scenarios[0].days[-1]))
    axes.set_title(f"What if: {title(case, track.track).lower()}", fontsize=9, loc="left")
    _volume_axis(axes, aside=True)
    return plot


def _volume_axis(axes: Any, *, aside: bool = False) -> None:
    """Volumes by their logarithm, with plain numbers at 1, 2 and 5 times the powers of ten. aside: the legend stands beside the plot."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="day", ylabel="volume (ml)")
    if aside:
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        _legend(axes, fontsize=7, ncols=2)


def _legend(axes: Any, **how: Any) -> None:
    """Where it hides least. Said by name: left to its default, matplotlib warns on a slow machine that this takes long."""
    axes.legend(frameon=False, loc="best", **how)
