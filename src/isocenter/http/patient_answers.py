"""Patients' requests and answers: what may be asked, and a case as the API tells it, by the names of the data model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from blake3 import blake3
from fastapi import Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from isocenter.analysis.case import Case
from isocenter.analysis.decisions import ACTIONS
from isocenter.analysis.growth.scenarios import Scenario
from isocenter.core.patient import Lesion, TherapyEvent
from isocenter.core.provenance import RESEARCH_USE
from isocenter.http.context import owner_of
from isocenter.http.job_answers import stamp
from isocenter.patients.audit import AuditEvent, Who
from isocenter.patients.cases import Known
from isocenter.patients.records import PatientRow, Version, VisitRow
from isocenter.patients.service import Patients
from isocenter.patients.stories import Text

BASE = "/api/v1/patients"
_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
PatientId = Annotated[str, Path(pattern=_ID)]
TimepointId = Annotated[str, Path(pattern=_ID)]
LesionId = Annotated[str, Path(pattern=_ID)]
Skip = Annotated[int, Query(ge=0, le=2**31)]
Limit = Annotated[int, Query(ge=1, le=1000)]


async def _patients(request: Request) -> Patients:
    """The patients of this server; made at the first question, since the database may come later than the server."""
    state = request.app.state
    if getattr(state, "patients", None) is None:
        state.patients = Patients(state.context.service, state.jobs.backend)
    found: Patients = state.patients
    return found


Twins = Annotated[Patients, Depends(_patients)]


async def _who(request: Request) -> Who:
    """Who asks, for the audit log: a hash of their key, of address and program; nothing that names a person."""
    headers = request.headers
    key = headers.get("x-api-key", "") or headers.get("authorization", "").partition(" ")[2].strip()
    asked = request.app.state.jobs.settings.api_key is not None
    if not asked or not key:
        return Who("local", owner_of(request))
    hashed = blake3(key.encode("utf-8", "surrogatepass"), derive_key_context="isocenter audit user").hexdigest()[:16]
    return Who(f"key-{hashed}", owner_of(request))


Asker = Annotated[Who, Depends(_who)]


class Strict(BaseModel):
    """A body in which nothing is overlooked."""

    model_config = ConfigDict(extra="forbid")


class NewPatient(Strict):
    """A patient without visits, or one made from an uploaded study."""

    patient_id: str | None = Field(None, pattern=_ID, description="A pseudonym of your own; a random one by default. Never a name.")
    study_id: str | None = Field(None, max_length=64, description="An uploaded study to begin with.")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="How scans are measured and judged: model, labels, least_mm3, registration, criteria, immunotherapy, embedder "
        "(see docs/patients.md).",
    )
    patient_fields: dict[str, str] = Field(
        default_factory=dict, description="patient_id, name, birth_date, sex: kept apart, and told only with `patient_fields=true`."
    )


class NewTimepoint(Strict):
    """One visit. With a scan in `file` or `study_id`, its lesions are measured by a job; with neither it counts as not evaluated."""

    timepoint_id: str | None = Field(None, pattern=_ID)
    day: float | None = Field(None, ge=-1e5, le=1e5, description="Days after the first visit.")
    scan_date: str | None = Field(None, pattern=r"^\d{4}-\d{2}-\d{2}$")
    modality: str | None = Field(None, max_length=16)
    series_uid: str | None = Field(None, max_length=64)
    clicks: list[list[tuple[int, int, int]]] = Field(
        default_factory=list, max_length=200, description="Voxels [x, y, z] in each lesion, a list a lesion, where there is no mask and no model."
    )
    new_lesions: bool | None = Field(None, description="Whether there are unequivocally new lesions, where a reader decided that.")
    assessment: dict[str, str] = Field(
        default_factory=dict,
        description="What no image says: non_targets (CR, NON-CR/NON-PD, PD, NE); for RANO flair, clinical (better, stable, worse), "
        "steroids (the same, or none) and enhancement, where there is new one (in field, outside field).",
    )
    replace: bool = Field(False, description="Make a visit of this id anew.")
    study_id: str | None = Field(None, max_length=64)


Node = Annotated[tuple[str, str], Field(description="[timepoint_id, lesion_id]")]


class Correction(Strict):
    """One decision of a reader about a case."""

    action: str = Field(max_length=32, description=f"One of: {', '.join(ACTIONS)}.")
    lesion: Node | None = Field(None, description="[timepoint_id, lesion_id]; all but `assess` are of a lesion.")
    other: Node | None = Field(None, description="The other lesion of a link, or the one that is merged into `lesion`.")
    name: str | None = Field(None, max_length=100, description="For rename; empty takes the name away.")
    target: bool | None = Field(None, description="For role: a target, not a target, or null for what the rules say.")
    figures: dict[str, float | None] | None = Field(None, description="For measurement: longest_mm, short_axis_mm, volume_mm3; null undoes.")
    others: list[Node] = Field(
        default_factory=list, max_length=50, description="For split: all that `lesion` became at the next visit; for coalesce: all that it came from."
    )
    at: str | None = Field(None, pattern=_ID, description="A visit. For not_evaluable and evaluable, by default the lesion's own; for assess.")
    assessment: dict[str, str | bool | None] | None = Field(
        None, description="For assess: new_lesions, non_targets, flair, clinical, steroids, enhancement; null takes one back."
    )
    reason: str = Field("", max_length=500)
    version: int | None = Field(None, ge=0, le=2**31 - 1, description="The version that was seen; 409 where it is not the newest any more.")


class GoBack(Strict):
    """Why a version is gone back to."""

    reason: str = Field("", max_length=500)


class Therapy(Strict):
    """A course of treatment, in days as visits have them. dose: relative to the usual one."""

    therapy_type: str = Field(min_length=1, max_length=100)
    start_day: float = Field(ge=-1e5, le=1e5)
    end_day: float | None = Field(None, ge=-1e5, le=1e5)
    dose: float = Field(1.0, ge=0, le=100)
    onset_days: float = Field(0.0, ge=0, le=1e4)
    decay_per_day: float = Field(0.0, ge=0, le=10)
    reason: str = Field("", max_length=500)

    def event(self, therapy_id: str) -> TherapyEvent:
        """As the record keeps it."""
        return TherapyEvent(therapy_id, self.therapy_type, self.start_day, self.end_day, self.dose, self.onset_days, self.decay_per_day)


class NewTherapy(Therapy):
    """A course of treatment with an id of one's own, or the next free one."""

    therapy_id: str | None = Field(None, pattern=_ID)


class Telling(Strict):
    """Who tells a case. report: by the largest model, from a longer prompt; else by the smallest, at once."""

    model: str | None = Field(None, max_length=128, description="A model of language, or `template`; by default what is installed.")
    report: bool = True


class Question(Strict):
    """A free question on a case."""

    question: str = Field(min_length=1, max_length=500)
    model: str | None = Field(None, max_length=128)


def patient_answer(patient: PatientRow, *, fields: bool = False) -> dict[str, Any]:
    """A patient by pseudonym; who it is only where that was asked for."""
    answer = {
        "patient_id": patient.id,
        "created_at": stamp(patient.created),
        "changed_at": stamp(patient.changed),
        "version": patient.version,
        "revision": patient.revision,
        "options": dict(patient.options),
        "url": f"{BASE}/{patient.id}",
        "disclaimer": RESEARCH_USE,
    }
    return {**answer, "patient_fields": dict(patient.private)} if fields else answer


def visit_answer(row: VisitRow) -> dict[str, Any]:
    """A visit. lesions: how many were measured, null where there was no scan that could be used; reason says why."""
    lesions, found = row.measured.get("lesions"), row.registration
    base = f"{BASE}/{row.patient_id}/timepoints/{row.timepoint_id}"
    return {
        "timepoint_id": row.timepoint_id,
        "patient_id": row.patient_id,
        "day": row.day,
        "scan_date": row.scan_date,
        "modality": row.modality,
        "lesions": None if lesions is None else len(lesions),
        "reason": row.measured.get("reason"),
        "new_lesions": row.measured.get("new_lesions"),
        "assessment": row.measured.get("assessment") or {},
        "notes": list(row.measured.get("notes") or ()),
        "registration": None if found is None else {k: found[k] for k in ("accepted", "reason", "alike", "overlap") if k in found},
        "files": [{"name": f.name, "bytes": f.bytes, "media_type": f.media_type, "url": f"{base}/files/{f.name}"} for f in row.files],
        "job_id": row.job_id,
    }


def lesion_answer(lesion: Lesion, known: Known) -> dict[str, Any]:
    """A lesion at a visit, with what readers call its track."""
    corrected = sorted(known.edits.measured.get((lesion.timepoint_id, lesion.lesion_id), {}))
    return {**lesion.as_dict(), "name": known.names.get(lesion.track), "set_by_reader": corrected}


def measurement_answer(lesion: Lesion, known: Known) -> dict[str, Any]:
    """A measurement by the data model's names."""
    figures = known.edits.measured.get((lesion.timepoint_id, lesion.lesion_id), {})
    return {
        "measurement_id": f"{lesion.lesion_id}@{lesion.timepoint_id}",
        "lesion_id": lesion.lesion_id,
        "timepoint_id": lesion.timepoint_id,
        "track": lesion.track,
        "diameter_mm": lesion.short_axis_mm if lesion.is_node else lesion.longest_mm,
        "longest_mm": lesion.longest_mm,
        "short_axis_mm": lesion.short_axis_mm,
        "volume_mm3": lesion.volume_mm3,
        "sd_mm": lesion.sd_mm,
        "reliability": lesion.reliability,
        "evaluable": lesion.evaluable,
        "method": "manual" if figures else "auto",
        "reviewer": "reader" if figures else None,
        "metadata": {"found_by": lesion.method, "reasons": dict(lesion.reasons)},
    }


def response_answer(case: Case, criteria: Sequence[str] = ()) -> dict[str, Any]:
    """Response by every criterion (or those that were asked for), with the probability of each category by RECIST 1.1."""
    from isocenter.analysis.case_json import as_dict

    told = as_dict(case)
    names = (
        "targets",
        "non_targets",
        "not_evaluable",
        "response",
        "best_overall_response",
        "best_overall_response_unconfirmed",
        "response_probabilities",
        "notes",
    )
    answer = {name: told[name] for name in names}
    return {**answer, "response": {name: rows for name, rows in told["response"].items() if not criteria or name in criteria}}


def scenario_answer(scenario: Scenario) -> dict[str, Any]:
    """A what-if by the data model's names (SimulationResult). reason: why its curve is the one of what was given, null where it is another."""
    return {
        "scenario_name": scenario.name,
        "time_points": [float(d) for d in scenario.days],
        "predicted_volumes": [float(v) for v in scenario.median_mm3],
        "lower_bound": [float(v) for v in scenario.low_mm3],
        "upper_bound": [float(v) for v in scenario.high_mm3],
        "level": scenario.level,
        "parameters": {"therapies": [{**asdict(t), "end": None if t.end == float("inf") else t.end} for t in scenario.therapies]},
        "notes": list(scenario.notes),
        "reason": scenario.reason,
    }


def version_answer(version: Version) -> dict[str, Any]:
    """A version of the corrections."""
    return {
        "version": version.version,
        "at": stamp(version.at),
        "user_id": version.user_id,
        "action": version.action,
        "reason": version.reason,
        "detail": dict(version.detail),
        "edits": dict(version.edits),
    }


def event_answer(event: AuditEvent) -> dict[str, Any]:
    """A line of the audit log."""
    return {**asdict(event), "timestamp": stamp(event.timestamp)}


def text_answer(text: Text) -> dict[str, Any]:
    """A narrative or an answer, with the prompt and the check."""
    told = {"id": text.id, "patient_id": text.patient_id, "at": stamp(text.at), "revision": text.revision, "kind": text.kind, "model": text.model}
    return {**told, **dict(text.answer), "provenance": dict(text.provenance)}
