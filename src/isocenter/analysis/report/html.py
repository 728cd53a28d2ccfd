"""The report as one HTML page: nothing is fetched, and every text in it is escaped."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isocenter.analysis.case import Case
from isocenter.analysis.report import figures
from isocenter.analysis.uncertainty import ScanError
from isocenter.core.patient import Identity, Lesion

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
#: Lesions whose growth is drawn, the largest first.
_MOST_PLOTS = 6


def render(
    case: Case,
    narrative: Sequence[tuple[str, str]],
    narrative_source: str,
    *,
    thumbnail: Callable[[Lesion], bytes | None] = lambda _: None,
    provenance: Mapping[str, str] | None = None,
    identity: Identity | None = None,
) -> str:
    """The page. narrative: titles and texts, in order; narrative_source: what wrote them. thumbnail: PNG of a lesion.

    identity: who the patient is, where the page shall say so.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    days = [v.timepoint.day for v in case.visits]
    responses = case.responses.get("recist_1.1", ())
    drawn = sorted((g for g in case.growth if g.growth is not None), key=lambda g: (g.track != "total", -max(v or 0 for v in g.volumes_mm3)))
    total = next((g for g in case.growth if g.track == "total" and g.scenarios), None)
    volumetric = ", ".join(f"day {r.day:g} {r.category}" for r in case.responses.get("volumetric", ()))
    return environment.from_string(
        _TEMPLATE.read_text(encoding="utf-8")
    ).render(
        patient=case.patient,
        identity=" · ".join(identity_words(identity)),
        visits=case.visits,
        span=f"{max(days) - min(days):g}",
        best=str(case.best_overall) if case.best_overall else "",
        narrative=narrative,
        narrative_source=narrative_source,
        rows=_rows(case),
        volumetric=volumetric,
        # The plots are made here from numbers and names that matplotlib escapes.
        spider=Markup(figures.spider(case)) if responses and case.targets else "",  # noqa: S704
        waterfall=Markup(figures.waterfall(case)) if responses and case.targets else "",  # noqa: S704
        tracks=[_track(case, name, thumbnail) for name in case.graph.tracks],
        lesions=[_lesion(lesion) for lesion in case.lesions],
        growth=[{"svg": Markup(figures.growth(case, g)), "caption": _caption(g)} for g in drawn[:_MOST_PLOTS]],  # noqa: S704
        scenarios=Markup(figures.scenarios(case, total)) if total and len(total.scenarios) > 1 else "",  # noqa: S704
        notes=[*case.notes, *(f"{v.timepoint.timepoint_id}: {n}" for v in case.visits for n in v.notes), *_growth_notes(case)],
        provenance=list({**(provenance or {}), "Scan-rescan error": ScanError().source}.items()),
    )


def identity_words(identity: Identity | None) -> list[str]:
    """Name, number, birth date and sex, as far as they are known and wanted."""
    if identity is None:
        return []
    born = f"born {identity.birth_date.isoformat()}" if identity.birth_date else ""
    return [word for word in (identity.name, identity.patient_id and f"ID {identity.patient_id}", born, identity.sex) if word]


def _number(value: float | None, digits: int = 1, sign: bool = False) -> str:
    return "" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def _rows(case: Case) -> list[dict[str, str]]:
    responses = {r.day: (r, chances) for r, chances in zip(case.responses.get("recist_1.1", ()), case.chances or [{}] * 999, strict=False)}
    first = next((v.timepoint.timepoint_id for v in case.visits if v.found is not None), None)
    rows = []
    for visit in case.visits:
        name = visit.timepoint.timepoint_id
        here = [lesion for lesion in case.at(name) if lesion.is_target]
        spread = sum((lesion.sd_mm or 0) ** 2 for lesion in here) ** 0.5
        response, chances = responses.get(visit.timepoint.day, (None, {}))
        total = response.sum if response else sum((le.short_axis_mm if le.is_node else le.longest_mm) or 0 for le in here) if name == first else None
        rows.append(
            {
                "visit": name,
                "day": f"{visit.timepoint.day:g}",
                "lesions": str(len(case.at(name))) if visit.found is not None else "no scan",
                "sum": _number(total),
                "sd": _number(spread) if here else "",
                "baseline": _number(response.percent_baseline, 1, True) + " %" if response and response.percent_baseline is not None else "",
                "nadir": _number(response.percent_nadir, 1, True) + " %" if response and response.percent_nadir is not None else "",
                "category": str(response.category) if response else "",
                "colour": figures.CATEGORY_COLOURS[response.category] if response else "",
                "chances": ", ".join(f"{c} {100 * p:.0f} %" for c, p in chances.items()),
                "why": "; ".join(response.reasons) if response else ("baseline" if name == first else visit.reason or ""),
            }
        )
    return rows


def _role(lesion: Lesion) -> str:
    return "target" if lesion.is_target else "new" if lesion.is_new else "non-target"


def _track(case: Case, name: str, thumbnail: Callable[[Lesion], bytes | None]) -> dict[str, Any]:
    lesions = [lesion for lesion in case.lesions if lesion.track == name]
    shots = []
    for lesion in lesions:
        png = thumbnail(lesion)
        size = f"{_number(lesion.longest_mm)} x {_number(lesion.short_axis_mm)} mm, {_number((lesion.volume_mm3 or 0) / 1000, 2)} ml"
        shots.append({"visit": lesion.timepoint_id, "text": size, "png": base64.b64encode(png).decode() if png else ""})
    first = lesions[0]
    what = ", ".join(w for w in (_role(first), first.organ or "", "lymph node" if first.is_node else "") if w)
    return {"name": name, "what": what, "shots": shots}


def _lesion(lesion: Lesion) -> dict[str, str]:
    return {
        "visit": lesion.timepoint_id,
        "track": lesion.track,
        "role": _role(lesion),
        "organ": lesion.organ or "",
        "longest": _number(lesion.longest_mm),
        "short": _number(lesion.short_axis_mm),
        "sd": _number(lesion.sd_mm),
        "volume": _number(lesion.volume_mm3 / 1000, 2) if lesion.volume_mm3 is not None else "",
        "mean": f"{_number(lesion.mean, 0)} {lesion.unit}" if lesion.mean is not None else "",
        "method": lesion.method,
        "link": _number(lesion.confidence, 2),
    }


def _caption(track: Any) -> str:
    weighed = ", ".join(f"{f.curve.name.replace('_', ' ')} {100 * f.weight:.0f} %" for f in track.growth.fits if f.weight >= 0.05)
    name = "All lesions together" if track.track == "total" else track.track
    return f"{name}: {weighed}."


def _growth_notes(case: Case) -> list[str]:
    notes: dict[str, None] = {}
    for track in case.growth:
        for text in (*track.reasons, *(track.growth.notes if track.growth else ()), *(track.forecast.notes if track.forecast else ())):
            notes[text] = None
    return list(notes)
