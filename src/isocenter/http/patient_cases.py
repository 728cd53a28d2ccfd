"""What follows from a patient's visits: lesions, response, growth, what-if, what is alike; and readers' corrections, which change it.

Nothing here segments anything again.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query

from isocenter.analysis import case_json, case_response
from isocenter.core.errors import NotFoundError, UsageError
from isocenter.http.patient_answers import (
    Asker,
    Correction,
    GoBack,
    LesionId,
    Limit,
    NewTherapy,
    PatientId,
    Skip,
    Therapy,
    TimepointId,
    Twins,
    event_answer,
    lesion_answer,
    measurement_answer,
    response_answer,
    scenario_answer,
    version_answer,
)
from isocenter.patients import audit
from isocenter.patients.service import Change, Patients
from isocenter.patients.similar import RADIOMICS, Likeness

router = APIRouter(prefix="/api/v1/patients/{patient_id}", tags=["Patients"])
Track = Annotated[str, Query(max_length=64, description="A track (L1, L2), or `total`: all lesions together.")]
Some = Annotated[str | None, Query(max_length=64)]
Criteria = Annotated[
    list[str] | None,
    Query(
        max_length=10,
        description="One of recist_1.1, volumetric, irecist, mrecist, rano; repeatable. By default the first two and those of the patient's options.",
    ),
]
Nearest = Annotated[int, Query(ge=1, le=100)]
Version = Annotated[int, Path(ge=0, le=2**31 - 1)]
Rank = Annotated[Literal["graph", "vector"], Query(description="With the lesion's neighbours in the graph, or by its own vector alone.")]
_Kind = Annotated[str, Query(max_length=100, pattern=r"^[A-Za-z0-9._-]+$", description="Whose vectors: `radiomics-1`, or a network's.")]


@router.get("/lesions")
async def lesions(
    twins: Twins, patient_id: PatientId, timepoint_id: Some = None, track: Some = None, skip: Skip = 0, limit: Limit = 100
) -> dict[str, Any]:
    """Lesions at every visit, as corrected."""
    known = await asyncio.to_thread(twins.known, patient_id)
    found = [k for k in known.case.lesions if timepoint_id in (None, k.timepoint_id) and track in (None, k.track)]
    return {"data": [lesion_answer(k, known) for k in found[skip : skip + limit]], "count": len(found), "notes": list(known.case.notes)}


@router.get("/lesions/{timepoint_id}/{lesion_id}")
async def lesion(twins: Twins, patient_id: PatientId, timepoint_id: TimepointId, lesion_id: LesionId) -> dict[str, Any]:
    """One lesion at one visit."""
    known = await asyncio.to_thread(twins.known, patient_id)
    found = next((k for k in known.case.at(timepoint_id) if k.lesion_id == lesion_id), None)
    if found is None:
        raise NotFoundError("there is no such lesion at this visit")
    return lesion_answer(found, known)


@router.get("/graph")
async def graph(twins: Twins, patient_id: PatientId) -> dict[str, Any]:
    """Who is who: lesions by visit, links with their confidence, events, tracks and what readers call them."""
    known = await asyncio.to_thread(twins.known, patient_id)
    return {**known.case.graph.as_dict(), "names": dict(known.names)}


@router.get("/measurements")
async def measurements(twins: Twins, patient_id: PatientId, skip: Skip = 0, limit: Limit = 100) -> dict[str, Any]:
    """Sizes of every lesion at every visit, with their errors, and whether a reader set them."""
    known = await asyncio.to_thread(twins.known, patient_id)
    found = known.case.lesions
    return {"data": [measurement_answer(k, known) for k in found[skip : skip + limit]], "count": len(found), "notes": list(known.case.notes)}


# Treatment


@router.get("/therapies")
async def therapies(twins: Twins, patient_id: PatientId) -> dict[str, Any]:
    """Courses of treatment, by their first day."""
    found = (await asyncio.to_thread(_edits, twins, patient_id)).therapies
    return {"data": [vars(t) for t in found], "count": len(found)}


def _edits(twins: Patients, patient_id: str) -> Any:
    from isocenter.patients.cases import edits_of

    return edits_of(twins.records, twins.records.get(patient_id))


@router.post("/therapies", status_code=201)
async def add_therapy(twins: Twins, who: Asker, patient_id: PatientId, therapy: NewTherapy) -> dict[str, Any]:
    """Add a course; growth and what-if follow it. Returns the new version of the corrections."""

    def work() -> dict[str, Any]:
        there = {t.therapy_id for t in _edits(twins, patient_id).therapies}
        name = therapy.therapy_id or next(f"therapy-{n}" for n in range(1, len(there) + 2) if f"therapy-{n}" not in there)
        if name in there:
            raise UsageError(f"there is a therapy '{name}' already; change it with PUT")
        change = Change("put_therapy", therapy=therapy.event(name))
        return {"therapy_id": name, **version_answer(twins.correct(patient_id, change, who, reason=therapy.reason))}

    return await asyncio.to_thread(work)


@router.put("/therapies/{therapy_id}")
async def set_therapy(twins: Twins, who: Asker, patient_id: PatientId, therapy_id: TimepointId, therapy: Therapy) -> dict[str, Any]:
    """Change a course (or add it under this id)."""
    change = Change("put_therapy", therapy=therapy.event(therapy_id))
    return version_answer(await asyncio.to_thread(lambda: twins.correct(patient_id, change, who, reason=therapy.reason)))


@router.delete("/therapies/{therapy_id}")
async def delete_therapy(twins: Twins, who: Asker, patient_id: PatientId, therapy_id: TimepointId) -> dict[str, Any]:
    """Take a course out. The versions before still have it."""
    change = Change("delete_therapy", therapy_id=therapy_id)
    return version_answer(await asyncio.to_thread(lambda: twins.correct(patient_id, change, who)))


# What follows


@router.get("/response")
async def response(twins: Twins, patient_id: PatientId, criterion: Criteria = None) -> dict[str, Any]:
    """RECIST 1.1 and the other criteria at every visit, with each rule's section and the probability of each category."""
    asked = criterion or []
    case_response.check(asked)
    return response_answer((await asyncio.to_thread(twins.known, patient_id, asked)).case, asked)


@router.get("/growth")
async def growth(twins: Twins, patient_id: PatientId, track: Track = "total") -> dict[str, Any]:
    """Growth models by weight, and the forecast, of one track or of all lesions together."""
    found = await asyncio.to_thread(lambda: twins.cases.growth(twins.known(patient_id).case, track))
    return case_json.growth_dict(found)


@router.get("/timepoints/{timepoint_id}/growth")
async def growth_at(twins: Twins, patient_id: PatientId, timepoint_id: TimepointId) -> dict[str, Any]:
    """Growth and forecast as they could be told at a visit, from those up to it: of all lesions together, then of each track."""
    visits, found = await asyncio.to_thread(lambda: twins.cases.growth_at(twins.known(patient_id).case, timepoint_id))
    return {"timepoint_id": timepoint_id, "visits": list(visits), "growth": [case_json.growth_dict(track) for track in found]}


@router.get("/scenarios")
async def scenarios(
    twins: Twins,
    patient_id: PatientId,
    name: Annotated[list[str] | None, Query(max_length=30, description="Such as `natural_history` or `treatment_holiday_4-8w`; repeatable.")] = None,
    track: Track = "total",
) -> dict[str, Any]:
    """What if the treatment had been another one. By default all kinds there are."""
    found = await asyncio.to_thread(lambda: twins.cases.scenarios(twins.known(patient_id).case, name or (), track))
    return {"track": track, "data": [scenario_answer(s) for s in found], "count": len(found)}


# What is alike


def _alike(alike: Likeness) -> dict[str, Any]:
    rows = [{"patient_id": a.patient_id, "similarity": round(a.similarity, 6), **a.facts} for a in alike.found]
    return {"data": rows, "count": len(rows), "search": alike.how}


@router.get("/similar")
async def similar(twins: Twins, patient_id: PatientId, k: Nearest = 10, embedding: _Kind = RADIOMICS) -> dict[str, Any]:
    """Patients whose lesions look alike, are as many and change alike."""
    found = await asyncio.to_thread(lambda: twins.similar.cases(twins.known(patient_id), k=k, kind=embedding))
    return _alike(found)


@router.get("/lesions/{timepoint_id}/{lesion_id}/similar")
async def similar_lesions(
    twins: Twins,
    patient_id: PatientId,
    timepoint_id: TimepointId,
    lesion_id: LesionId,
    k: Nearest = 10,
    rank: Annotated[
        Literal["graph", "vector"], Query(description="With the lesion's neighbours in the graph, or by its own vector alone.")
    ] = "graph",
    embedding: _Kind = RADIOMICS,
    same_patient: bool = False,
) -> dict[str, Any]:
    """Lesions like this one, of other patients unless `same_patient`."""
    found = await asyncio.to_thread(
        lambda: twins.similar.lesions(twins.known(patient_id), timepoint_id, lesion_id, k=k, rank=rank, kind=embedding, same_patient=same_patient)
    )
    return _alike(found)


# Corrections, and who made them


@router.get("/corrections")
async def corrections(twins: Twins, patient_id: PatientId, skip: Skip = 0, limit: Limit = 100) -> dict[str, Any]:
    """Every version of the corrections, newest first, each whole."""
    found, count = await asyncio.to_thread(twins.records.versions, patient_id, skip=skip, limit=limit)
    return {"data": [version_answer(v) for v in found], "count": count}


@router.post("/corrections", status_code=201)
async def correct(twins: Twins, who: Asker, patient_id: PatientId, asked: Correction) -> dict[str, Any]:
    """Correct the case: link or unlink lesions, say what one became or came from, merge those that are parts of one, name them, make
    them targets or not, set a figure, say what could not be assessed, delete what is no lesion.
    """
    change = Change(asked.action, asked.lesion, asked.other, asked.name, asked.target, asked.figures, tuple(asked.others), asked.at, asked.assessment)
    return version_answer(await asyncio.to_thread(lambda: twins.correct(patient_id, change, who, reason=asked.reason, base=asked.version)))


@router.post("/corrections/{version}/restore", status_code=201)
async def go_back(twins: Twins, who: Asker, patient_id: PatientId, version: Version, asked: GoBack | None = None) -> dict[str, Any]:
    """Another version, that is as this one was."""
    reason = asked.reason if asked is not None else ""
    return version_answer(await asyncio.to_thread(lambda: twins.go_back(patient_id, version, who, reason=reason)))


@router.get("/audit")
async def audit_log(twins: Twins, patient_id: PatientId, skip: Skip = 0, limit: Limit = 100) -> dict[str, Any]:
    """Who did what, oldest first; also of a patient that was deleted. `intact`: nothing of it was changed since."""
    database = twins.backend.database
    found, count = await asyncio.to_thread(lambda: audit.page(database, patient_id, skip=skip, limit=limit))
    if not count:
        raise NotFoundError("Patient not found")
    return {"data": [event_answer(e) for e in found], "count": count, "intact": await asyncio.to_thread(audit.intact, database, patient_id)}
