"""`template`: the narrative without weights, sentences filled in from the case alone."""

from __future__ import annotations

from dataclasses import dataclass

from isocenter.analysis.case import Case
from isocenter.analysis.response.visit import Category, Response

NAME = "template"
VERSION = "1"
DISCLAIMER = "Research use only, not for diagnosis or treatment; needs a physician's review."

_WORDS = {
    Category.CR: "complete response",
    Category.PR: "partial response",
    Category.SD: "stable disease",
    Category.PD: "progressive disease",
    Category.NE: "not evaluable",
    Category.NON: "neither complete response nor progression",
}


@dataclass(frozen=True)
class Narrative:
    """The five parts of a narrative, in words. model: what wrote it."""

    key_findings: str
    uncertainty_statement: str
    recist_trajectory: str
    trend: str
    data_quality: str
    model: str = f"{NAME} {VERSION}"
    disclaimer: str = DISCLAIMER

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Titles and texts, in order."""
        return [
            ("Key findings", self.key_findings),
            ("Response over time", self.recist_trajectory),
            ("Trend", self.trend),
            ("Uncertainty", self.uncertainty_statement),
            ("Quality of the data", self.data_quality),
        ]


def write(case: Case) -> Narrative:
    """Tell a case. Numbers are rounded as the report rounds them; what is not known is said to be so."""
    return Narrative(_findings(case), _uncertainty(case), _trajectory(case), _trend(case), _quality(case))


def _last_seen(case: Case) -> str:
    return [v.timepoint.timepoint_id for v in case.visits if v.found is not None][-1]


def _findings(case: Case) -> str:
    scans = [v for v in case.visits if v.found is not None]
    name = _last_seen(case)
    here = case.at(name)
    tracks = len(case.graph.tracks)
    text = f"{tracks} lesion{'s' if tracks != 1 else ''} followed over {len(scans)} scan{'s' if len(scans) != 1 else ''}. "
    if not here:
        return text + f"At the last scan ({name}) none is seen."
    largest = max(here, key=lambda lesion: lesion.longest_mm or 0)
    volume = case.volume_at(name)
    text += f"At the last scan ({name}) {len(here)} {'are' if len(here) != 1 else 'is'} seen"
    text += f", {volume / 1000:.2f} ml in all" if volume is not None else ""
    if largest.longest_mm and largest.short_axis_mm:
        text += f"; the largest is {largest.track}, {largest.longest_mm:.1f} mm by {largest.short_axis_mm:.1f} mm"
    fresh = sorted({lesion.track for lesion in case.lesions if lesion.is_new})
    return text + (f". New since the baseline: {', '.join(fresh)}." if fresh else ". No new lesion was found.")


def _one(response: Response) -> str:
    change = f" ({response.percent_baseline:+.1f} % since the baseline)" if response.percent_baseline is not None else ""
    return f"day {response.day:g} {_WORDS[response.category]}{change}"


def _trajectory(case: Case) -> str:
    responses = case.responses.get("recist_1.1", ())
    if not responses:
        return "There is one visit only, so no response can be told."
    start = next((r.baseline for r in responses if r.baseline is not None), None)
    told = "; ".join(_one(r) for r in responses)
    text = f"Sum of target diameters at baseline {start:.1f} mm; {told}." if start is not None else f"There are no target lesions. D{told[1:]}."
    return text + (f" Best overall response, confirmed: {_WORDS[case.best_overall]}." if case.best_overall else "")


def _trend(case: Case) -> str:
    total = next((g for g in case.growth if g.track == "total"), None)
    if total is None or total.growth is None:
        return "Growth cannot be told: " + ("; ".join(total.reasons) if total else "there are no volumes") + "."
    known = [(day, volume) for day, volume in zip(total.days, total.volumes_mm3, strict=True) if volume is not None]
    (before, was), (day, now) = known[-2:]
    if was and now:
        change = 100 * (now / was - 1)
        word = "grew" if change > 10 else "shrank" if change < -10 else "hardly changed"
        text = f"Between day {before:g} and day {day:g} the volume of all lesions {word} ({change:+.0f} %)."
    else:
        seen = "no lesion is seen" if not now else f"{now / 1000:.2f} ml are seen"
        text = f"On day {day:g} {seen}; on day {before:g} {'there was none' if not was else f'it was {was / 1000:.2f} ml'}."
    if total.forecast is not None:
        path = total.forecast
        text += (
            f" Forecast for day {path.days[-1]:g}: {path.median_mm3[-1] / 1000:.2f} ml "
            f"({100 * path.level:.0f} % interval {path.low_mm3[-1] / 1000:.2f} to {path.high_mm3[-1] / 1000:.2f} ml)."
        )
    return text


def _uncertainty(case: Case) -> str:
    here = [lesion for lesion in case.at(_last_seen(case)) if lesion.sd_mm is not None]
    if not here:
        return "No diameter is known at the last scan." if case.at(_last_seen(case)) else "There is nothing to measure at the last scan."
    worst = max(lesion.sd_mm or 0 for lesion in here)
    text = f"Diameters at the last scan have a standard deviation of up to {worst:.1f} mm."
    if case.chances:
        chances = case.chances[-1]
        first = max(chances, key=lambda c: chances[c])
        last = case.responses["recist_1.1"][-1].category
        text += f" With these errors the last category, {_WORDS[last]}, has a probability of {100 * chances.get(last, 0.0):.0f} %"
        text += "." if first == last else f"; {_WORDS[first]} is more likely ({100 * chances[first]:.0f} %)."
    # Where growth cannot be told, the reasons are of that.
    effects = [reason for g in case.growth if g.track == "total" and g.growth is not None for reason in g.reasons]
    return text + (f" On treatment: {'; '.join(effects)}." if effects else "")


def _quality(case: Case) -> str:
    missing = [v.timepoint.timepoint_id for v in case.visits if v.found is None]
    text = "All visits have a usable scan. "
    if missing:
        text = f"{len(missing)} visit{'s' if len(missing) != 1 else ''} without a usable scan ({', '.join(missing)}). "
    if case.inevaluable:
        order = [v.timepoint.timepoint_id for v in case.visits]
        told = [f"{track} at {visit}" for visit, track in sorted(case.inevaluable, key=lambda one: (order.index(one[0]), one[1]))]
        text += f"Not assessable, as a reader said: {', '.join(told)}. "
    cut = sorted({lesion.track for lesion in case.lesions if lesion.touches_border})
    if cut:
        text += f"Cut off by the edge of a scan, so sizes are least values: {', '.join(cut)}. "
    unsure = sorted({lesion.track for lesion in case.lesions if lesion.confidence is not None and lesion.confidence < 0.8})
    if unsure:
        return text + f"To be checked, the link between visits is not certain: {', '.join(unsure)}."
    linked = any(lesion.confidence is not None for lesion in case.lesions)
    return text + "All lesions were found again with confidence." if linked else text.strip()
