"""A patient's visits in a folder: a `study.json`, a BIDS data set, or DICOM series with their dates.

Nothing of the folder but what is listed here is read, and nothing outside of it: paths in a `study.json` stay within.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from isocenter.core.errors import InputError, LimitError, UnsupportedError
from isocenter.core.patient import ASSESSMENT, Decision, TherapyEvent, check_id
from isocenter.core.settings import Limits
from isocenter.io import visits_dicom

_MOST_VISITS = 500
_MOST_JSON = 4 * 1024 * 1024
_MOST_NAME = 100
_MOST_DAYS = 100_000
_MOST_OTHERS = 50
#: What an image is, by the end of its name (BIDS 1.10, MRI and PET; CT as BEP 024 has it). Others say nothing.
_BIDS_MR = (
    "T1w", "T2w", "T2starw", "PDw", "PDT2", "FLAIR", "inplaneT1", "inplaneT2", "UNIT1", "angio", "bold", "sbref", "dwi", "T1map", "T2map", "M0map",
)  # fmt: skip
_BIDS_SUFFIXES = {"ct": "CT", "pet": "PT", **dict.fromkeys(_BIDS_MR, "MR")}


@dataclass(frozen=True)
class VisitFiles:
    """Where one visit's scan is. image: a file or a DICOM folder, None for a visit without a scan; series_uid within it.

    mask: a label map on the image's grid. clicks: one list of voxel positions (x, y, z) for each lesion.
    files: those of the image alone, where others may lie beside them.
    boxes: first and last voxel (x, y, z, x, y, z), both inside, around further lesions. assessment: what no image says, by `core.patient.ASSESSMENT`.
    """

    id: str
    day: float
    scan_date: date | None
    image: Path | None
    series_uid: str | None = None
    modality: str | None = None
    mask: Path | None = None
    clicks: tuple[tuple[tuple[int, int, int], ...], ...] = ()
    new_lesions: bool | None = None
    boxes: tuple[tuple[int, int, int, int, int, int], ...] = ()
    assessment: dict[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @property
    def marks(self) -> int:
        """How many lesions were marked; 0 where a mask has them."""
        return 0 if self.mask is not None else len(self.clicks) + len(self.boxes)


@dataclass(frozen=True)
class StudyFiles:
    """A patient's visits by day, and what a `study.json` says beside them. organs, nodes: by label value of the masks.

    names: what readers call lesions, by visit and lesion; the whole track is called so. corrections: of readers, in their order.
    """

    patient_id: str
    visits: tuple[VisitFiles, ...]
    therapies: tuple[TherapyEvent, ...] = ()
    organs: dict[int, str] = field(default_factory=dict)
    nodes: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()
    names: dict[tuple[str, str], str] = field(default_factory=dict)
    corrections: tuple[Decision, ...] = ()


def read(folder: Path, limits: Limits) -> StudyFiles:
    """The study in a folder, or the one that a `study.json` describes. Raises `InputError` for anything that does not fit."""
    if folder.is_file() and folder.suffix == ".json":
        return _from_json(folder, limits)
    if not folder.is_dir():
        raise InputError("there is no such folder")
    if (folder / "study.json").is_file():
        return _from_json(folder / "study.json", limits)
    subjects = sorted(p for p in folder.glob("sub-*") if p.is_dir())
    if folder.name.startswith("sub-") and any(folder.glob("ses-*")):
        subjects = [folder]
    if subjects:
        if len(subjects) > 1:
            raise UnsupportedError(f"this data set holds {len(subjects)} subjects; give the folder of one: {', '.join(s.name for s in subjects[:5])}")
        return _from_bids(subjects[0])
    return _from_dicom(folder, limits)


def _from_json(file: Path, limits: Limits) -> StudyFiles:
    told = _json(file, "study.json")
    try:
        study = _told(told, file.parent)
        sure = told.get("one_patient", False)
    except KeyError as missing:
        raise InputError(f"study.json lacks {missing}") from None
    except (TypeError, ValueError, AttributeError):
        raise InputError("study.json has values of the wrong kind; see docs/track.md for its form") from None
    if not isinstance(sure, bool):
        raise InputError("one_patient is true or false")
    if not sure:
        _check_listed(study.visits, limits)
    return study


def _json(file: Path, what: str) -> Any:
    if file.stat().st_size > _MOST_JSON:
        raise LimitError(f"{what} is too large", limit="4 MiB", value=_MOST_JSON)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{what} is no JSON") from None


def _told(told: dict[str, Any], folder: Path) -> StudyFiles:
    rows = told["visits"]
    if not isinstance(rows, list) or not 0 < len(rows) <= _MOST_VISITS:
        raise InputError(f"study.json lists between 1 and {_MOST_VISITS} visits")
    dates = [_date(row.get("date")) for row in rows]
    if all(d is not None for d in dates):
        first = min(d for d in dates if d is not None)
        days = [float((d - first).days) for d in dates if d is not None]
    else:
        if any("day" not in row for row in rows):
            raise InputError("every visit needs a date (YYYY-MM-DD), or every visit a day after the first")
        first = None
        days = [float(row["day"]) for row in rows]
    visits = []
    for k, (row, day, when) in enumerate(zip(rows, days, dates, strict=True)):
        clicks = tuple(tuple((int(x), int(y), int(z)) for x, y, z in lesion) for lesion in row.get("clicks", []))
        boxes = tuple(_box(box) for box in row.get("boxes", []))
        image, mask = (_inside(folder, row.get(name)) for name in ("image", "mask"))
        name = check_id(str(row.get("id", f"visit-{k + 1}")), "a visit's id")
        if mask is not None and (clicks or boxes):
            raise InputError(f"visit {k + 1} has a mask, and clicks or boxes too; give its lesions in one way")
        new = row.get("new_lesions")
        if new not in (None, True, False):
            raise InputError("new_lesions is true, false or null")
        facts = image, row.get("series_uid"), row.get("modality"), mask, clicks, new, boxes, assessment_of(row.get("assessment", {}))
        visits.append(VisitFiles(name, day, when, *facts))
    therapies = []
    for k, row in enumerate(told.get("therapies", [])):
        start, end = (_day(row.get(name), first) for name in ("start", "end"))
        if start is None:
            raise InputError("every therapy needs a start: a day, or a date where visits have dates")
        therapies.append(
            TherapyEvent(
                str(row.get("id", f"therapy-{k + 1}")),
                str(row["type"]),
                start,
                end,
                float(row.get("dose", 1)),
                float(row.get("onset_days", 0)),
                float(row.get("decay_per_day", 0)),
            )
        )
    labels = told.get("labels", {})
    organs = {int(value): str(facts.get("organ", "")) for value, facts in labels.items()}
    nodes = frozenset(int(value) for value, facts in labels.items() if facts.get("node"))
    study = _study(check_id(str(told["patient_id"]), "a patient's id"), visits, tuple(therapies), organs, nodes)
    known = {v.id for v in visits}
    return replace(study, names=_names(told.get("names", []), known), corrections=_decisions(told.get("corrections", [])))


def assessment_of(said: Mapping[str, Any]) -> dict[str, str]:
    """What a person says of a visit. Raises `InputError` for anything that is not in `ASSESSMENT`."""
    for name, value in said.items():
        if name not in ASSESSMENT or value not in ASSESSMENT[name]:
            allowed = "; ".join(f"{key}: {', '.join(words)}" for key, words in ASSESSMENT.items())
            raise InputError(f"an assessment that is none; there are {allowed}")
    return dict(said)


def read_corrections(file: Path) -> tuple[Decision, ...]:
    """Corrections in a file of their own: a JSON list, or an object that has one as `corrections`. Raises `InputError`."""
    if not file.is_file():
        raise InputError("there is no such file of corrections")
    told = _json(file, "the file of corrections")
    try:
        return _decisions(told.get("corrections", []) if isinstance(told, dict) else told)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError("the file of corrections has values of the wrong kind; see docs/track.md for its form") from None


def _decisions(rows: list[dict[str, Any]]) -> tuple[Decision, ...]:
    """Corrections as `POST .../corrections` takes them. Raises `InputError`, naming the one that is wrong; unknown lesions are found later."""
    if not isinstance(rows, list):
        raise InputError("corrections are a list")
    return tuple(_decision(k, row) for k, row in enumerate(rows, start=1))


def _decision(k: int, row: dict[str, Any]) -> Decision:
    allowed = {"action", "lesion", "other", "others", "name", "target", "figures", "at", "assessment", "reason"}
    if not isinstance(row, dict) or not isinstance(row.get("action"), str) or set(row) - allowed:
        raise InputError(f"correction {k}: it has an action, and of {', '.join(sorted(allowed - {'action'}))} what that needs")
    others = row.get("others", [])
    if not isinstance(others, list) or len(others) > _MOST_OTHERS:
        raise InputError(f"correction {k}: others is a list of at most {_MOST_OTHERS} lesions")
    pairs = [row.get("lesion"), row.get("other"), *others]
    if not all(pair is None or (isinstance(pair, list) and len(pair) == 2 and all(isinstance(v, str) for v in pair)) for pair in pairs):
        raise InputError(f'correction {k}: a lesion is named as ["visit", "lesion"], as measurements.csv has them')
    name, target, figures = row.get("name"), row.get("target"), row.get("figures")
    numbers = figures is None or (isinstance(figures, dict) and all(v is None or isinstance(v, int | float) for v in figures.values()))
    if not (name is None or isinstance(name, str)) or not (target is None or isinstance(target, bool)) or not numbers:
        raise InputError(f"correction {k}: a name is text, a target true, false or null, and figures are numbers by name")
    at, said = row.get("at"), row.get("assessment")
    told = said is None or (isinstance(said, dict) and all(v is None or isinstance(v, str | bool) for v in said.values()))
    if not (at is None or isinstance(at, str)) or not told or None in others:
        raise InputError(f"correction {k}: at is a visit, an assessment is words by name, and others are lesions")
    lesion, other, *parts = (None if pair is None else (pair[0], pair[1]) for pair in pairs)
    return Decision(row["action"], lesion, other, name, target, figures, tuple(p for p in parts if p is not None), at, said)


def _names(rows: list[list[str]], known: set[str]) -> dict[tuple[str, str], str]:
    """Names of lesions, as `[visit, lesion, name]`."""
    names = {}
    for visit, lesion, name in rows:
        text = " ".join(str(name).split())
        if str(visit) not in known:
            raise InputError("a name in study.json is of a visit that is not listed")
        if not 0 < len(text) <= _MOST_NAME or not text.isprintable():
            raise InputError(f"a lesion's name has 1 to {_MOST_NAME} printable characters")
        names[str(visit), check_id(str(lesion), "a lesion's id")] = text
    return names


def _study(
    patient: str,
    visits: list[VisitFiles],
    therapies: tuple[TherapyEvent, ...] = (),
    organs: dict[int, str] | None = None,
    nodes: frozenset[int] = frozenset(),
    notes: tuple[str, ...] = (),
) -> StudyFiles:
    """Visits by day; days begin at 0. Raises `InputError` for two visits on one day or of one name."""
    visits = sorted(visits, key=lambda v: v.day)
    days = [*(v.day for v in visits), *(t.start_day for t in therapies), *(t.end_day for t in therapies if t.end_day is not None)]
    if any(abs(day) > _MOST_DAYS for day in days):  # what is no number is refused by its own rule
        raise InputError(f"a day lies within {_MOST_DAYS:,} days of the first visit")
    if len({v.day for v in visits}) != len(visits):
        raise InputError("two visits are on one day; keep one of them, or give them different days")
    if len({v.id for v in visits}) != len(visits):
        raise InputError("two visits have one id")
    if len({t.therapy_id for t in therapies}) != len(therapies):
        raise InputError("two therapies have one id")
    if len({(t.therapy_type, t.start_day, t.end_day) for t in therapies}) != len(therapies):
        raise InputError("one course of treatment is listed twice, which would count as twice its dose; list it once, with its dose")
    return StudyFiles(patient, tuple(visits), therapies, organs or {}, nodes, notes)


def _box(values: list[int]) -> tuple[int, int, int, int, int, int]:
    a, b, c, d, e, f = (int(v) for v in values)
    if a > d or b > e or c > f or min(a, b, c) < 0:
        raise InputError("a box in study.json is [x, y, z, x, y, z]: its first and its last voxel")
    return a, b, c, d, e, f


def _inside(folder: Path, name: object) -> Path | None:
    if name is None:
        return None
    path = (folder / str(name)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError("a path in study.json leads out of its folder")
    if not path.exists():
        raise InputError("a file or folder that study.json names is not there")
    return path


def _date(text: object) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(str(text)[:10])
    except ValueError:
        raise InputError("dates are written as YYYY-MM-DD") from None


def _day(value: object, first: date | None) -> float | None:
    if value is None or isinstance(value, int | float):
        return None if value is None else float(value)
    when = _date(value)
    if when is None or first is None:
        raise InputError("therapies may have dates only where all visits have them; give days otherwise")
    return float((when - first).days)


# BIDS


def _from_bids(subject: Path) -> StudyFiles:
    """Sessions of one BIDS subject: the one image of each, `*_mask` or `*_dseg` beside it (or under `derivatives`) as mask."""
    sessions = sorted(p for p in subject.glob("ses-*") if p.is_dir())
    if not sessions:
        raise InputError("this BIDS subject has no sessions (ses-*): one visit only, nothing to follow")
    dates = _bids_dates(subject)
    visits = []
    for k, session in enumerate(sessions):
        files = sorted([*session.rglob("*.nii.gz"), *session.rglob("*.nii")])
        derived = sorted(subject.parent.glob(f"derivatives/*/{subject.name}/{session.name}/**/*.nii*"))
        masks = [f for f in [*files, *derived] if re.search(r"_(mask|dseg)\.nii", f.name)]
        images = [f for f in files if f not in masks]
        if len(images) > 1:
            raise UnsupportedError(f"{session.name} holds {len(images)} images; name the one to use in a study.json")
        if len(masks) > 1:
            raise UnsupportedError(f"{session.name} has {len(masks)} masks; name the one to use in a study.json")
        when = dates.get(session.name)
        digits = re.sub(r"\D", "", session.name)
        if when is None and not digits:
            raise InputError(f"no date is known for {session.name}: add acq_time to {subject.name}_sessions.tsv, or number sessions by day")
        visits.append((session.name, when, float(digits or k), images[0] if images else None, masks[0] if masks else None))
    known = [when for _, when, *_ in visits if when is not None]
    notes: tuple[str, ...] = ()
    if len(known) not in (0, len(visits)):
        raise InputError("some sessions have a date and some have none")
    if not known:
        notes = ("sessions have no dates; the numbers in their names are taken as days",)
    first = min(known) if known else None
    made = [
        VisitFiles(name, float((when - first).days) if when and first else day, when, image, None, _bids_modality(image), mask)
        for name, when, day, image, mask in visits
    ]
    return _study(check_id(subject.name, "a subject's name"), made, notes=notes)


def _bids_modality(image: Path | None) -> str | None:
    return _BIDS_SUFFIXES.get(image.name.partition(".")[0].rpartition("_")[2]) if image is not None else None


def _bids_dates(subject: Path) -> dict[str, date]:
    table = subject / f"{subject.name}_sessions.tsv"
    if not table.is_file() or table.stat().st_size > _MOST_JSON:
        return {}
    with table.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    found = {}
    for row in rows:
        when = row.get("acq_time") or row.get("date")
        if row.get("session_id") and when and when != "n/a":
            parsed = _date(when)
            if parsed is not None:
                found[str(row["session_id"])] = parsed
    return found


# DICOM


def _from_dicom(folder: Path, limits: Limits) -> StudyFiles:
    """One visit a day, with the series of most images on it. Raises `UnsupportedError` where a second patient is found."""
    patient, days = visits_dicom.series_by_day(visits_dicom.images(_files(folder), limits))
    visits, notes = [], []
    if not any(when for when, _ in days.values()):
        notes.append("the images have no dates; their days from an event are taken, the first as day 0")
    for day, (when, series) in days.items():
        uid = max(series, key=lambda s: (len(series[s]), s))
        if len(series) > 1:
            notes.append(f"day {day:g}: {len(series)} series, the one with most images was taken ({len(series[uid])})")
        parents = {image.file.parent for image in series[uid]}
        place = parents.pop() if len(parents) == 1 else folder
        own = tuple(image.file for image in series[uid])
        visits.append(VisitFiles(f"day-{day:g}", day, when, place, uid, series[uid][0].modality or None, files=own))
    return _study(patient, visits, notes=tuple(notes))


def _files(place: Path) -> list[Path]:
    return sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]


def _check_listed(visits: Sequence[VisitFiles], limits: Limits) -> None:
    """Raises `UnsupportedError` where the DICOM images of a list of visits are of two patients."""
    places = dict.fromkeys((v.image, v.series_uid) for v in visits if v.image is not None)
    found = (image for place, uid in places for image in visits_dicom.images(_files(place), limits) if uid in (None, image.series))
    visits_dicom.check_one_patient(found, listed=True)
