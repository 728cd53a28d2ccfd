"""Every number that a text about a case may hold, with what it is, whose, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from isocenter.analysis.case import Case

#: The first visit with a scan, as `Fact.since` of what changed from there on; the least sum of all before, likewise.
NADIR = "nadir"


@dataclass(frozen=True)
class Fact:
    """A number of the case.

    kind: "size", "volume", "product", "intensity" (of a lesion; volume of all where `lesion` is empty), "sum" (of targets),
    "change" (a difference of these), "percent" (the same, relative), "chance" (of the category `about`), "error" (a standard
    deviation), "day", "span" (between two visits), "level" (of an interval), "dose". about: which axis a size is ("longest", "short",
    "3d"), which figure a change is of ("size", "volume", "sum"), a category, or the day of a forecast. unit: mm, mm2, ml, hu, day, % or "".
    visit: where it was measured, the later one of a change; since: the earlier one. ahead: a forecast, which a text must call one.
    scenario: what-if that it belongs to, which the text must name. limit: it is a limit of an interval, not the middle.
    """

    kind: str
    value: float
    unit: str
    lesion: str = ""
    visit: str = ""
    since: str = ""
    about: str = ""
    scenario: str = ""
    ahead: bool = False
    limit: bool = False


def facts(case: Case) -> list[Fact]:
    """All of them. Volumes are in ml."""
    return [*_days(case), *_lesions(case), *_volumes(case), *_sums(case), *_chances(case), *_ahead(case)]


def _days(case: Case) -> Iterator[Fact]:
    days = {v.timepoint.timepoint_id: v.timepoint.day for v in case.visits}
    for name, day in days.items():
        yield Fact("day", day, "day", visit=name)
    for (first, a), (second, b) in combinations(days.items(), 2):
        yield Fact("span", abs(b - a), "day", visit=second, since=first)
    for therapy in case.patient.therapies:
        yield Fact("day", therapy.start_day, "day", about="treatment")
        if therapy.end_day is not None:
            yield Fact("day", therapy.end_day, "day", about="treatment")
            yield Fact("span", therapy.end_day - therapy.start_day, "day", about="treatment")
        yield Fact("dose", therapy.dose, "", about="treatment")


def _lesions(case: Case) -> Iterator[Fact]:
    for k in case.lesions:
        sizes = (("longest", k.longest_mm), ("short", k.short_axis_mm), ("3d", k.max_3d_diameter_mm))
        yield from (Fact("size", v, "mm", k.track, k.timepoint_id, about=about) for about, v in sizes if v is not None)
        others = (("error", k.sd_mm, "mm"), ("product", k.who_product_mm2, "mm2"), ("intensity", k.mean, "hu"))
        yield from (Fact(kind, v, unit, k.track, k.timepoint_id) for kind, v, unit in others if v is not None)
    order = [v.timepoint.timepoint_id for v in case.visits]
    for track in case.graph.tracks:
        seen = {k.timepoint_id: k for k in case.lesions if k.track == track}
        longest = [(v, seen[v].longest_mm) for v in order if v in seen]
        short = [(v, seen[v].short_axis_mm) for v in order if v in seen]
        for axis in (longest, short):
            yield from _changes("size", [(v, size) for v, size in axis if size], track, "mm")


def _volumes(case: Case) -> Iterator[Fact]:
    order = [v.timepoint.timepoint_id for v in case.visits if v.found is not None]
    for track in ("", *case.graph.tracks):
        series = []
        for visit in order:
            here = [k for k in case.at(visit) if not track or k.track == track]
            if case.assessed(visit, track) and (not track or here):
                series.append((visit, sum(k.volume_mm3 or 0.0 for k in here) / 1000))
        yield from (Fact("volume", volume, "ml", track, visit) for visit, volume in series)
        yield from _changes("volume", series, track, "ml")


def _sums(case: Case) -> Iterator[Fact]:
    """Sums of the targets' diameters, by the days of their visits."""
    responses = case.responses.get("recist_1.1", ())
    names = {v.timepoint.day: v.timepoint.timepoint_id for v in case.visits}
    first = next((v.timepoint.timepoint_id for v in case.visits if v.found is not None), "")
    start = next((r.baseline for r in responses if r.baseline is not None), None)
    series = [(first, start)] if start is not None else []
    series += [(names.get(r.day, ""), r.sum) for r in responses if r.sum is not None]
    yield from (Fact("sum", value, "mm", visit=visit) for visit, value in series)
    yield from _changes("sum", series, "", "mm")
    for r in responses:
        visit = names.get(r.day, "")
        if r.nadir is not None:
            lowest = next((v for v, value in series if value == r.nadir), "")
            yield Fact("sum", r.nadir, "mm", visit=lowest, about=NADIR)
            if r.sum is not None:
                yield Fact("change", r.sum - r.nadir, "mm", visit=visit, since=NADIR, about="sum")
        for since, percent in ((first, r.percent_baseline), (NADIR, r.percent_nadir)):
            if percent is not None:
                yield Fact("percent", percent, "%", visit=visit, since=since, about="sum")


def _changes(about: str, series: list[tuple[str, float]], lesion: str, unit: str) -> Iterator[Fact]:
    for (since, before), (visit, after) in combinations(series, 2):
        yield Fact("change", after - before, unit, lesion, visit, since, about)
        if before:
            yield Fact("percent", 100 * (after / before - 1), "%", lesion, visit, since, about)


def _chances(case: Case) -> Iterator[Fact]:
    names = {v.timepoint.day: v.timepoint.timepoint_id for v in case.visits}
    for response, chances in zip(case.responses.get("recist_1.1", ()), case.chances, strict=False):
        for category, chance in chances.items():
            yield Fact("chance", 100 * chance, "%", visit=names.get(response.day, ""), about=str(category))


def _ahead(case: Case) -> Iterator[Fact]:
    """Forecasts, and what scenarios come to; every point of a scenario's curve would let nearly any volume pass."""
    for track in case.growth:
        lesion = "" if track.track == "total" else track.track
        if track.forecast is not None:
            path = track.forecast
            yield Fact("level", 100 * path.level, "%", ahead=True)
            yield from (Fact("day", float(day), "day", ahead=True) for day in path.days)
            for curve, limit in ((path.median_mm3, False), (path.low_mm3, True), (path.high_mm3, True)):
                told = zip(path.days, curve, strict=True)
                yield from (Fact("volume", float(v) / 1000, "ml", lesion, about=f"{float(day):g}", ahead=True, limit=limit) for day, v in told)
        for scenario in track.scenarios:
            ends = ((scenario.median_mm3[-1], False), (scenario.low_mm3[-1], True), (scenario.high_mm3[-1], True))
            yield from (Fact("volume", float(v) / 1000, "ml", lesion, scenario=scenario.name, limit=limit) for v, limit in ends)
            yield Fact("level", 100 * scenario.level, "%", scenario=scenario.name)
            yield Fact("day", float(scenario.days[-1]), "day", scenario=scenario.name)
