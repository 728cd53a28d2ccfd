"""What a report says, in words and rows: the same for the page and for the PDF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from isocenter.analysis.case import NO_SCAN, Case, MeasuredVisit
from isocenter.analysis.case_growth import TrackGrowth
from isocenter.analysis.report import figures, judged
from isocenter.analysis.response.visit import Category
from isocenter.core.patient import Identity, Lesion

#: Said at the top of every report.
WARNING = "Research use only. Not a medical device; not for diagnosis or treatment. Measurements were made by software and need a physician's review."
LEGEND = (
    "± sd: standard deviation of the longest diameter (above: of the sum); manual, automatic and scan-rescan parts. "
    "Link: confidence that it is the same lesion as at the visit before. Calipers: blue longest, pink short axis; yellow the lesion's "
    "outline, grey that of others on the slice; white bar 10 mm."
)
#: How a lesion was found, in words.
METHODS = {"model": "model", "given": "mask given", "clicks": "clicks", "drawn": "reader's figures"}
#: What a reader said of a lesion that could not be assessed.
NOT_EVALUABLE = "not evaluable"
#: Lesions whose growth is drawn, the largest first.
MOST_PLOTS = 6


@dataclass(frozen=True)
class Shot:
    """One lesion at one visit. png: None where there is no picture; text then says why the lesion has no size, if it has none."""

    visit: str
    text: str
    png: bytes | None


@dataclass(frozen=True)
class Track:
    """A lesion over all visits."""

    name: str
    what: str
    shots: tuple[Shot, ...]


def identity_words(identity: Identity | None) -> list[str]:
    """Name, number, birth date and sex, as far as they are known and wanted."""
    if identity is None:
        return []
    born = f"born {identity.birth_date.isoformat()}" if identity.birth_date else ""
    return [word for word in (identity.name, identity.patient_id and f"ID {identity.patient_id}", born, identity.sex) if word]


def number(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """A number as reports round it, empty where it is not known."""
    return "" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def percent(value: float | None) -> str:
    """A change in percent, with its sign; no line may end within it."""
    return "" if value is None else f"{value:+.1f}\N{NO-BREAK SPACE}%"


def rows(case: Case) -> list[dict[str, str]]:
    """The table of responses: a row a visit."""
    responses = {r.day: (r, chances) for r, chances in zip(case.responses.get("recist_1.1", ()), case.chances or [{}] * 999, strict=False)}
    spreads = {r.day: sd for r, sd in zip(case.responses.get("recist_1.1", ()), case.sums_sd_mm, strict=False)}
    first = next((v.timepoint.timepoint_id for v in case.visits if v.found is not None), None)
    told = []
    for visit in case.visits:
        name = visit.timepoint.timepoint_id
        here = [lesion for lesion in case.at(name) if lesion.is_target]
        spread = case.baseline_sd_mm if name == first else spreads.get(visit.timepoint.day)
        response, chances = responses.get(visit.timepoint.day, (None, {}))
        total = response.sum if response else None
        if name == first and here:
            total = sum((le.short_axis_mm if le.is_node else le.longest_mm) or 0 for le in here)
        told.append(
            {
                "visit": f"{name} {visit.timepoint.scan_date.isoformat()}" if visit.timepoint.scan_date else name,
                "day": f"{visit.timepoint.day:g}",
                "lesions": str(len(case.at(name))) if visit.found is not None else unseen(visit),
                "sum": number(total),
                "sd": number(spread),
                "baseline": percent(response.percent_baseline if response else None),
                "nadir": percent(response.percent_nadir if response else None),
                "category": str(response.category) if response else "",
                "colour": figures.CATEGORY_COLOURS[response.category] if response else "",
                "ink": figures.ink(figures.CATEGORY_COLOURS[response.category]) if response else "",
                "chances": likely(chances),
                "why": "; ".join(response.reasons) if response else ("baseline" if name == first else visit.reason or ""),
            }
        )
    return told


def likely(chances: Mapping[Category, float]) -> str:
    """Categories by how likely they are, the most likely first; below half a percent they are not worth a line."""
    told = sorted(((c, p) for c, p in chances.items() if p >= 0.005), key=lambda pair: -pair[1])
    return ", ".join(f"{c}\N{NO-BREAK SPACE}{100 * p:.0f}\N{NO-BREAK SPACE}%" for c, p in told)


def unseen(visit: MeasuredVisit) -> str:
    """Of a visit without lesions to look at: there was no scan, or none that could be used."""
    return NO_SCAN if visit.reason == NO_SCAN else "not usable"


def role(lesion: Lesion) -> str:
    """What a lesion is for RECIST."""
    return "target" if lesion.is_target else "new" if lesion.is_new else "non-target"


def tracks(case: Case, thumbnail: Callable[[Lesion], bytes | None]) -> list[Track]:
    """Every track with its pictures, and a word at each visit that shows none of it."""
    made = []
    for name in case.graph.tracks:
        lesions = [lesion for lesion in case.lesions if lesion.track == name]
        here = {lesion.timepoint_id: lesion for lesion in lesions}
        kept_out = {lesion.timepoint_id for lesion in case.unseen if lesion.track == name}
        shots = []
        for visit in case.visits:
            lesion = here.get(visit.timepoint.timepoint_id)
            if lesion is None:
                why = NOT_EVALUABLE if visit.timepoint.timepoint_id in kept_out else "not seen" if visit.found is not None else unseen(visit)
                shots.append(Shot(visit.timepoint.timepoint_id, why, None))
                continue
            size = f"{number(lesion.longest_mm) or '?'} x {number(lesion.short_axis_mm) or '?'} mm"
            if lesion.volume_mm3 is not None:
                size += f", {number(lesion.volume_mm3 / 1000, 2)}\N{NO-BREAK SPACE}ml"
            size = size if lesion.evaluable else NOT_EVALUABLE
            shots.append(Shot(lesion.timepoint_id, size, thumbnail(lesion)))
        first = lesions[0]
        what = ", ".join(w for w in (role(first), first.organ or "", "lymph node" if first.is_node else "") if w)
        made.append(Track(case.called(name), what, tuple(shots)))
    return made


def lesion_rows(case: Case) -> list[dict[str, str]]:
    """The table of lesions: each lesion over its visits, one lesion after the other."""
    order = {name: k for k, name in enumerate(case.graph.tracks)}
    return [lesion_row(lesion) for lesion in sorted(case.lesions, key=lambda lesion: order[lesion.track])]


def best_words(case: Case) -> str:
    """Both best overall responses in a line; one where they are the same."""
    told = list(judged.best(case))
    if len({b.category for b in told}) == 1:
        return f"best overall response {told[0].category}, confirmed or not"
    return f"best overall response, confirmed: {told[0].category}; without confirmation: {told[-1].category}"


def others(case: Case) -> tuple[list[str], list[list[str]]]:
    """Categories by the criteria beside RECIST 1.1: the table's head, and a row a visit. Without rows where there is none but the volumetric one."""
    known = [one for one in judged.judgements(case) if one.criterion != "RECIST 1.1"]
    names = list(dict.fromkeys(one.criterion for one in known))
    if len(names) < 2:
        return [], []
    by_visit = {(one.day, one.criterion): one.category for one in known}
    days = {v.timepoint.day: v.timepoint.timepoint_id for v in case.visits}
    rows = [[days[day], f"{day:g}", *(by_visit.get((day, name), "") for name in names)] for day in dict.fromkeys(one.day for one in known)]
    return ["Visit", "Day", *(name[0].upper() + name[1:] if name[0] not in "im" else name for name in names)], rows


def lesion_row(lesion: Lesion) -> dict[str, str]:
    """A row of the table of lesions."""
    return {
        "visit": lesion.timepoint_id,
        "track": lesion.track,
        "role": role(lesion),
        "organ": lesion.organ or "",
        "longest": number(lesion.longest_mm),
        "short": number(lesion.short_axis_mm),
        "sd": number(lesion.sd_mm),
        "volume": number(lesion.volume_mm3 / 1000, 2) if lesion.volume_mm3 is not None else "",
        "mean": f"{number(lesion.mean, 0)} {lesion.unit}" if lesion.mean is not None else "",
        "method": METHODS.get(lesion.method, lesion.method) if lesion.evaluable else NOT_EVALUABLE,
        "link": number(lesion.confidence, 2),
    }


def caption(track: TrackGrowth) -> str:
    """Which growth laws fit, and how they are weighed."""
    fits = track.growth.fits if track.growth else ()
    weighed = ", ".join(f"{f.curve.name.replace('_', ' ')} {100 * f.weight:.0f} %" for f in fits if f.weight >= 0.05)
    name = "All lesions together" if track.track == "total" else track.track
    return f"{name}: {weighed}."


def growth_notes(case: Case) -> list[str]:
    """What growth, forecast and scenarios assume, each said once."""
    notes: dict[str, None] = {}
    for track in case.growth:
        for text in (*track.reasons, *(track.growth.notes if track.growth else ()), *(track.forecast.notes if track.forecast else ())):
            notes[text] = None
    if (total := scenarios(case)) is not None and (same := figures.changes_nothing(total)):
        by_reason: dict[str, list[str]] = {}
        for one in same:
            by_reason.setdefault(one.reason or "", []).append(one.name.replace("_", " "))
        for reason, names in by_reason.items():
            notes[f"what-if: {', '.join(names)} gives the curve of what was given: {reason}"] = None
    return list(notes)


def span(case: Case) -> str:
    """How many visits there are, over which time."""
    days = [v.timepoint.day for v in case.visits]
    dates = [v.timepoint.scan_date for v in case.visits if v.timepoint.scan_date]
    when = f" ({min(dates).isoformat()} to {max(dates).isoformat()})" if len(dates) > 1 else f" ({dates[0].isoformat()})" if dates else ""
    if len(days) == 1:
        return f"1 visit{when}"
    return f"{len(days)} visits over {max(days) - min(days):g} days{when}"


def treatments(case: Case) -> str:
    """What was given, and when."""
    told = [
        f"{t.therapy_type}, day {t.start_day:g} {f'to {t.end_day:g}' if t.end_day is not None else 'on'}{f', dose {t.dose:g}' if t.dose != 1 else ''}"
        for t in case.patient.therapies
    ]
    return f"Treatment: {'; '.join(told) or 'none is known'}"


def drawn(case: Case) -> list[TrackGrowth]:
    """Whose growth is drawn: all together, then the largest."""
    known = [g for g in case.growth if g.growth is not None]
    known.sort(key=lambda g: (g.track != "total", -max(v or 0 for v in g.volumes_mm3)))
    return known[:MOST_PLOTS]


def scenarios(case: Case) -> TrackGrowth | None:
    """All lesions together, where there is more than one scenario to draw."""
    return next((g for g in case.growth if g.track == "total" and len(g.scenarios) > 1), None)


def volumetric(case: Case) -> str:
    """The response by volume, in a line."""
    told = ", ".join(f"day {r.day:g} {r.category}" for r in case.responses.get("volumetric", ()))
    if not told:
        return ""
    return f"By volume: {told}. There is no standard for volumes; limits are those of a ball whose diameter falls by 30 % or grows by 20 %."


def notes(case: Case) -> list[str]:
    """What its reader should know; what is true of several visits is said once."""
    by_text: dict[str, list[str]] = {}
    for visit in case.visits:
        for text in visit.notes:
            by_text.setdefault(text, []).append(visit.timepoint.timepoint_id)
    visits = [f"{'all visits' if 1 < len(names) == len(case.visits) else ', '.join(names)}: {text}" for text, names in by_text.items()]
    return [*case.notes, *visits, *growth_notes(case)]
