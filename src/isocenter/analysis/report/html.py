"""The report as one HTML page: nothing is fetched, and every text in it is escaped."""

from __future__ import annotations

import base64
from pathlib import Path

from isocenter.analysis.report import content, figures
from isocenter.analysis.report.told import Told
from isocenter.analysis.uncertainty import ScanError

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def render(told: Told) -> str:
    """The page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    case = told.case
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)

    def svg(plot: figures.Plot, words: str) -> Markup:
        # Made here from numbers and names that matplotlib escapes, and words that `Plot` does.
        return Markup(plot.svg(words))  # noqa: S704

    total, judged = content.scenarios(case), bool(case.responses.get("recist_1.1") and case.targets)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        patient=case.patient,
        identity=" · ".join(content.identity_words(told.identity)),
        span=content.span(case),
        treatments=content.treatments(case),
        best=content.best_words(case) if case.best_overall else "",
        warning=content.WARNING,
        legend=content.LEGEND,
        narrative=told.story.parts,
        narrative_source=told.source,
        rows=content.rows(case),
        others=content.others(case),
        volumetric=content.volumetric(case),
        spider=svg(figures.spider(case), "Spider plot: change of targets since the baseline in percent; the table has the figures") if judged else "",
        waterfall=svg(figures.waterfall(case), "Waterfall plot: best change of each target in percent") if judged else "",
        tracks=content.tracks(case, told.thumbnail),
        picture=lambda png: base64.b64encode(png).decode(),
        lesions=content.lesion_rows(case),
        growth=[
            {"svg": svg(figures.growth(case, g), f"Growth plot: volume over days. {content.caption(g)}"), "caption": content.caption(g)}
            for g in content.drawn(case)
        ],
        scenarios=svg(figures.scenarios(case, total), "What-if plot: median volume of all lesions over days, by scenario") if total else "",
        notes=content.notes(case),
        provenance=list({**told.facts, "Scan-rescan error": ScanError().source}.items()),
    )
