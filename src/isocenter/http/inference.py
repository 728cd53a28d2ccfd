"""The ONNX inference service's protocol (`/api/v1/login`, `/dicom`, `/inference`), over the same studies, models and jobs.

Its keys, statuses and sentences are kept. The token that a login hands out is the API key itself, so the guard needs no
second kind of secret; without a key any login succeeds.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from isocenter import jobservice
from isocenter.core.errors import ConflictError, InputError, LimitError, NotFoundError, StoreError, UsageError
from isocenter.core.model import ModelSpec
from isocenter.http import bodies
from isocenter.http import inference_answers as answers
from isocenter.http.body import read_form
from isocenter.http.context import owner_of
from isocenter.http.errors import missing
from isocenter.http.inference_answers import Submission
from isocenter.http.jobdesk import Desk, JobDesk
from isocenter.http.jobs import download_of
from isocenter.io.upload import Upload
from isocenter.jobs.series import find_series
from isocenter.jobs.studies import Study
from isocenter.jobs.table import Job, State

router = APIRouter(prefix="/api/v1", tags=["Inference service"])
T = TypeVar("T")
Id = Annotated[str, Path(max_length=64, pattern=r"^[0-9A-Za-z.\-]+$")]
Skip = Annotated[int, Query(ge=0, le=2**31)]
Limit = Annotated[int, Query(ge=1, le=1000)]
#: Sentences of `Studies.add` that the protocol has too; any other is put behind its own.
_OWN = ("No DICOM files found in ZIP archive", "DICOM file missing StudyInstanceUID", "DICOM file missing SeriesInstanceUID")
_LOGIN = bodies.form_of(
    ["username", "password"], "application/x-www-form-urlencoded", username=bodies.TEXT, password={**bodies.TEXT, "description": "The API key."}
)
_UPLOAD = bodies.form_of(["file"], file=bodies.FILE)
_SUBMIT = {"requestBody": {"required": True, "content": {"application/json": {"schema": Submission.model_json_schema()}}}}


@router.post("/login/access-token", openapi_extra=_LOGIN)
async def login(request: Request, desk: Desk) -> dict[str, str]:
    """A token for the API key, sent as the password of whatever user."""
    async with read_form(request, desk.settings) as form:
        for name in ("username", "password"):
            if name not in form.fields:
                raise missing(name)
        given = form.text("password")
    key = desk.settings.api_key
    if key and not hmac.compare_digest(given.encode("utf-8", "replace"), key.encode()):
        raise HTTPException(400, "Incorrect email or password")
    return {"access_token": key or "open", "token_type": "bearer"}


@router.get("/utils/health-check/")
async def health_check() -> bool:
    """The server is up."""
    return True


@router.get("/dicom/health")
async def dicom_health(desk: Desk) -> dict[str, str]:
    """Whether studies can be stored."""
    if not await asyncio.to_thread(desk.writable):
        raise HTTPException(503, "DICOM service unavailable", {"Retry-After": "5"})
    return {"status": "healthy", "service": "DICOMService"}


@router.post("/dicom/upload", openapi_extra=_UPLOAD)
async def upload(request: Request, desk: Desk) -> dict[str, Any]:
    """Keep a ZIP of one DICOM study. The same bytes sent again are the same study."""
    try:
        async with read_form(request, desk.settings) as form:
            file = form.file("file")
            if file is None:
                raise missing("file")
            if file.suffix != ".zip":
                raise HTTPException(400, "File must be a ZIP archive")
            return answers.study_answer(await _run("DICOM", lambda: _add(desk, file)))
    except LimitError as error:
        if error.limit != "max_upload_bytes":
            raise HTTPException(400, f"Failed to process DICOM ZIP: {error.message}") from None
        raise HTTPException(400, f"ZIP file too large: {request.headers.get('content-length', f'more than {error.value}')} bytes") from None


def _add(desk: JobDesk, file: Upload) -> Study:
    try:
        return desk.studies.add(file, named=True)
    except InputError as error:
        raise HTTPException(400, error.message if error.message in _OWN else f"Failed to process DICOM ZIP: {error.message}") from None


@router.get("/dicom/studies")
async def studies(desk: Desk, skip: Skip = 0, limit: Limit = 100) -> list[dict[str, Any]]:
    """Studies, newest first."""
    found, _ = await _run("DICOM", lambda: desk.studies.page(skip=skip, limit=limit))
    return [answers.study_answer(s) for s in found]


@router.get("/dicom/studies/{study_id}")
async def study(desk: Desk, study_id: Id) -> dict[str, Any]:
    """One study."""
    return answers.study_answer(await _run("DICOM", lambda: desk.studies.get(study_id)))


@router.delete("/dicom/studies/{study_id}")
async def delete_study(desk: Desk, study_id: Id) -> dict[str, str]:
    """Forget a study."""
    await _run("DICOM", lambda: desk.studies.delete(study_id))
    return {"message": "Study deleted successfully"}


@router.get("/dicom/series/{series_id}/metadata")
async def series_metadata(desk: Desk, series_id: Id) -> dict[str, Any]:
    """Technical attributes of a series' first image, by DICOM keyword; none names a person."""
    return answers.metadata_answer(*await _run("DICOM", lambda: find_series(desk.backend, desk.studies, series_id)))


@router.get("/dicom/metadata/{file_id}")
async def file_metadata(desk: Desk, file_id: Id) -> dict[str, Any]:
    """As a series' metadata, whose id stands for its first image: single images have no ids here."""
    try:
        return await series_metadata(desk, file_id)
    except NotFoundError:
        raise NotFoundError("DICOM metadata not found") from None


@router.get("/inference/health")
async def health(desk: Desk) -> dict[str, Any]:
    """Whether jobs can be taken, and by how many workers."""
    standing = await _run("Inference", desk.backend.queue.standing)
    return {"status": "healthy", "service": "InferenceService", "workers": sum(standing.workers.values())}


@router.get("/inference/models")
async def models(desk: Desk) -> list[dict[str, Any]]:
    """Models that need nothing but a scan."""
    return await asyncio.to_thread(lambda: [answers.model_answer(s) for s in answers.offered(desk.service.models())])


async def _submission(request: Request) -> Submission:
    """The body of a submission, which is not read beyond what it may hold."""
    body = await bodies.json_bytes(request)
    if b"\\u0000" in body:
        raise UsageError("the request holds a NUL character")
    try:
        return Submission.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors()]) from None


@router.post("/inference/submit", openapi_extra=_SUBMIT)
async def submit(request: Request, desk: Desk, asked: Annotated[Submission, Depends(_submission)]) -> dict[str, Any]:
    """Queue a model on an uploaded study. Sent again within a minute, it is the same job."""
    if desk.draining:
        raise HTTPException(503, "Inference service unavailable", {"Retry-After": "5"})
    owner = owner_of(request)
    return answers.job_answer(await _run("Inference", lambda: _submit(desk, asked, owner)))


def _submit(desk: JobDesk, asked: Submission, owner: str) -> Job:
    try:
        source = desk.studies.get(str(asked.study_id))
    except NotFoundError:
        raise HTTPException(400, "Study not found or access denied") from None
    try:
        series = source.find(str(asked.series_id)) if asked.series_id else None
    except NotFoundError:
        raise HTTPException(400, "Series not found in study") from None
    spec = _model(desk, asked.model_id)
    request = answers.request_of(spec, asked.parameters or {}, series.facts.series_uid if series else None)
    job, _ = jobservice.submit(desk.service, desk.backend, request, source, owner=owner, series_id=series.id if series else None)
    return job


def _model(desk: JobDesk, wanted: str) -> ModelSpec:
    for spec in answers.offered(desk.service.models()):
        if wanted in (spec.id, answers.model_id(spec.id)):
            return spec
    raise HTTPException(400, "Model not found or inactive")


@router.get("/inference/jobs")
async def jobs(desk: Desk, skip: Skip = 0, limit: Limit = 100) -> dict[str, Any]:
    """Jobs, newest first. count: how many there are in all."""
    found, count = await _run("Inference", lambda: desk.backend.queue.page(skip=skip, limit=limit, kind=jobservice.KIND))
    return {"data": [answers.job_answer(j) for j in found], "count": count}


@router.get("/inference/jobs/{job_id}")
async def job(desk: Desk, job_id: Id) -> dict[str, Any]:
    """One job."""
    return answers.job_answer(await _get(desk, job_id))


@router.delete("/inference/jobs/{job_id}")
async def cancel(desk: Desk, job_id: Id) -> dict[str, str]:
    """Stop a job: at once where it waits, within one tile of its model where it runs."""
    try:
        await _run("Inference", lambda: desk.backend.queue.cancel(job_id))
    except ConflictError as error:
        raise HTTPException(400, error.message) from None
    return {"message": "Inference job cancelled successfully"}


@router.get("/inference/jobs/{job_id}/result")
async def result(desk: Desk, job_id: Id) -> dict[str, Any]:
    """What a completed job found, and how its files are called."""
    found = answers.result_answer(await _completed(desk, job_id))
    if found is None:
        raise NotFoundError("Result not found")
    return found


@router.get("/inference/jobs/{job_id}/download", response_class=Response)
async def download(desk: Desk, job_id: Id) -> Response:
    """The mask: its bytes, or a redirect (307) to the object store where clients can reach it."""
    found = answers.mask_of(await _completed(desk, job_id))
    if found is None:
        raise NotFoundError("Result not found")
    return await download_of(desk, found[1], found[0])


@router.get("/inference/jobs/{job_id}/download-ct", response_class=Response)
async def download_ct(desk: Desk, job_id: Id) -> Response:
    """The scan on the mask's grid, as NIfTI."""
    found = answers.image_of(await _completed(desk, job_id))
    if found is None:
        raise NotFoundError("Source CT image not available for this result")
    return await download_of(desk, found[1], found[0])


async def _completed(desk: JobDesk, job_id: str) -> Job:
    found = await _get(desk, job_id)
    if found.state is not State.COMPLETED:
        raise HTTPException(400, f"Job not completed (status: {found.state})")
    return found


async def _get(desk: JobDesk, job_id: str) -> Job:
    return await _run("Inference", lambda: desk.backend.queue.get(job_id))


async def _run(service: str, work: Callable[[], T]) -> T:
    """`work` off the event loop; a store that is away is said in the protocol's words."""
    try:
        return await asyncio.to_thread(work)
    except StoreError as error:
        raise HTTPException(503, f"{service} service unavailable", {"Retry-After": str(error.retry_after)}) from None
