"""Patients over time: patients and their visits. What follows from them is in `patient_cases`, what is told in `patient_stories`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from blake3 import blake3
from fastapi import APIRouter, HTTPException, Path, Query, Request, Response

from isocenter.core.errors import ConflictError, UsageError
from isocenter.http import bodies
from isocenter.http.job_answers import job_answer
from isocenter.http.jobdesk import Desk
from isocenter.http.jobs import Key, download_of
from isocenter.http.patient_answers import (
    Asker,
    Limit,
    NewPatient,
    NewTimepoint,
    PatientId,
    Skip,
    TimepointId,
    Twins,
    patient_answer,
    visit_answer,
)
from isocenter.jobs.table import Job
from isocenter.patients.job import VisitFacts
from isocenter.patients.records import PatientRow
from isocenter.patients.service import pseudonym

router = APIRouter(prefix="/api/v1/patients", tags=["Patients"])
Fields = Annotated[bool, Query(description="Also who the patient is, as far as that was kept. Asking is noted in the audit log.")]
_STUDY = "A ZIP: study.json with its files, one BIDS subject, or one patient's DICOM files."
_NEW = bodies.described(NewPatient, "patient", file=_STUDY)
_VISIT = bodies.described(
    NewTimepoint, "timepoint", file="One scan: DICOM as a ZIP or a file, NIfTI, NRRD.", mask="A label map of its lesions, on the scan's grid."
)


def _job(job: Job) -> dict[str, Any]:
    """The job of a submission, and where to watch it."""
    return {**job_answer(job).model_dump(mode="json"), "url": f"/api/v1/jobs/{job.id}", "events_url": f"/api/v1/jobs/{job.id}/events"}


@router.post("", status_code=201, openapi_extra=_NEW)
async def create(request: Request, twins: Twins, desk: Desk, who: Asker, idempotency_key: Key = None) -> dict[str, Any]:
    """A patient: without visits (JSON), or from a whole study, sent as `file` or named as `study_id`, which a job then measures.

    The answer's `job` has an address for its progress, step by step. A pseudonym in the study is not used; give one as
    `patient_id`, or take the random one.
    """
    if desk.draining:
        raise HTTPException(503, "the server is stopping; try again in a moment", {"Retry-After": "5"})
    key = None if idempotency_key is None else blake3(f"{who.session_id}\0{idempotency_key}".encode()).hexdigest()
    async with bodies.read(request, NewPatient, "patient", desk.settings) as (asked, form):
        file = form.files.get("file")

        def work() -> tuple[PatientRow, Job | None]:
            source = file if file is not None else desk.studies.get(asked.study_id) if asked.study_id else None
            name = asked.patient_id or pseudonym(key)
            try:
                patient = twins.create(who, name, private=asked.patient_fields, options=asked.options)
            except ConflictError:
                if key is None:
                    raise
                patient = twins.records.get(name)  # sent again
            return patient, None if source is None else twins.submit(patient.id, source, who, key=key)[0]

        patient, job = await asyncio.to_thread(work)
    return {**patient_answer(patient), "job": None if job is None else _job(job)}


@router.get("")
async def page(twins: Twins, skip: Skip = 0, limit: Limit = 100) -> dict[str, Any]:
    """Patients, newest first, by pseudonym, and how many there are in all."""
    found, count = await asyncio.to_thread(twins.records.page, skip=skip, limit=limit)
    return {"data": [patient_answer(p) for p in found], "count": count}


@router.get("/{patient_id}")
async def get(twins: Twins, who: Asker, patient_id: PatientId, patient_fields: Fields = False) -> dict[str, Any]:
    """One patient and its visits. notes: what a reader of its case should know, slips included."""

    def work() -> dict[str, Any]:
        patient = twins.records.get(patient_id)
        if patient_fields:
            twins.records.noted(patient_id, who, "read_patient_fields")
        visits = [visit_answer(v) for v in twins.records.visits(patient_id)]
        return {**patient_answer(patient, fields=patient_fields), "timepoints": visits, "notes": twins.notes(patient_id)}

    return await asyncio.to_thread(work)


@router.put("/{patient_id}/patient-fields")
async def set_fields(twins: Twins, who: Asker, patient_id: PatientId, fields: dict[str, str]) -> dict[str, Any]:
    """Keep who the patient is: patient_id, name, birth_date, sex. Told only when asked for, and never logged."""
    return patient_answer(await asyncio.to_thread(twins.set_private, patient_id, fields, who))


@router.put("/{patient_id}/options")
async def set_options(twins: Twins, who: Asker, patient_id: PatientId, options: dict[str, Any]) -> dict[str, Any]:
    """How the patient's scans are measured from now on, and by which criteria the case is judged; what was measured stays."""
    return patient_answer(await asyncio.to_thread(twins.set_options, patient_id, options, who))


@router.delete("/{patient_id}", status_code=204)
async def delete(twins: Twins, who: Asker, patient_id: PatientId) -> None:
    """Forget a patient: visits, files, corrections, texts, vectors. The audit log stays, under the pseudonym."""
    await asyncio.to_thread(twins.delete, patient_id, who)


@router.get("/{patient_id}/timepoints")
async def timepoints(twins: Twins, patient_id: PatientId, skip: Skip = 0, limit: Limit = 100) -> dict[str, Any]:
    """A patient's visits by day."""
    found = await asyncio.to_thread(twins.records.visits, patient_id)
    return {"data": [visit_answer(v) for v in found[skip : skip + limit]], "count": len(found)}


@router.post("/{patient_id}/timepoints", status_code=201, openapi_extra=_VISIT)
async def add_timepoint(
    request: Request, response: Response, twins: Twins, desk: Desk, who: Asker, patient_id: PatientId, idempotency_key: Key = None
) -> dict[str, Any]:
    """Add a visit. With a scan (`file`, or `study_id` of an uploaded study) 202 and the job that measures it; else 201 and the visit."""
    if desk.draining:
        raise HTTPException(503, "the server is stopping; try again in a moment", {"Retry-After": "5"})
    key = None if idempotency_key is None else blake3(f"{who.session_id}\0{patient_id}\0{idempotency_key}".encode()).hexdigest()
    async with bodies.read(request, NewTimepoint, "timepoint", desk.settings) as (asked, form):
        facts = VisitFacts(**asked.model_dump(exclude={"study_id"}))

        def work() -> dict[str, Any]:
            source = form.files.get("file") or (desk.studies.get(asked.study_id) if asked.study_id else None)
            if source is None and form.files.get("mask"):
                raise UsageError("a mask goes with its scan, which is missing: send it as file, or name it as study_id")
            if source is None:
                return {"timepoint": visit_answer(twins.add_without_scan(patient_id, facts, who)), "job": None}
            job, _ = twins.submit(patient_id, source, who, visit=facts, mask=form.files.get("mask"), key=key)
            return {"timepoint": None, "job": _job(job)}

        answer = await asyncio.to_thread(work)
    response.status_code = 202 if answer["job"] else 201
    return answer


@router.get("/{patient_id}/timepoints/{timepoint_id}")
async def timepoint(twins: Twins, patient_id: PatientId, timepoint_id: TimepointId) -> dict[str, Any]:
    """One visit."""
    return visit_answer(await asyncio.to_thread(twins.records.visit, patient_id, timepoint_id))


@router.delete("/{patient_id}/timepoints/{timepoint_id}", status_code=204)
async def delete_timepoint(twins: Twins, who: Asker, patient_id: PatientId, timepoint_id: TimepointId) -> None:
    """Forget a visit and its files."""
    await asyncio.to_thread(twins.delete_visit, patient_id, timepoint_id, who)


@router.get("/{patient_id}/timepoints/{timepoint_id}/files/{name}", response_class=Response)
async def file(twins: Twins, desk: Desk, patient_id: PatientId, timepoint_id: TimepointId, name: Annotated[str, Path(max_length=64)]) -> Response:
    """A file of a visit: scan, mask, measurements, vectors, or what networks take."""
    stored = await asyncio.to_thread(twins.visit_file, patient_id, timepoint_id, name)
    return await download_of(desk, stored, f"{patient_id}_{timepoint_id}_{stored.name}")
