"""Jobs: submit a scan, watch it, stop it, take the files away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from blake3 import blake3
from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from isocenter import jobservice
from isocenter.core.errors import IsocenterError, NotFoundError, UsageError
from isocenter.http import bodies, native_fields
from isocenter.http.body import Form, read_form
from isocenter.http.context import owner_of
from isocenter.http.job_answers import JobAnswer, JobPage, JobRequest, job_answer
from isocenter.http.jobdesk import Desk, JobDesk
from isocenter.io.upload import Upload
from isocenter.jobs.studies import Study
from isocenter.jobs.table import Job, State, Stored

router = APIRouter(prefix="/api/v1/jobs", tags=["Jobs"])
#: Seconds between two looks at a job that somebody watches.
_LOOK = 0.25

JobId = Annotated[str, Path(max_length=64)]
Key = Annotated[
    str | None, Header(alias="Idempotency-Key", max_length=128, description="A name for this submission: sent again, it gives the same job.")
]
_FORM = bodies.form_of(
    ["file"],
    file=bodies.FILE,
    job={**bodies.TEXT, "description": "The request as JSON; the fields below are for what a command line can type."},
    model=bodies.TEXT,
    prompts={"type": "array", "items": bodies.TEXT, "description": "Words, or JSON lists of prompts; repeatable."},
    formats={"type": "array", "items": bodies.TEXT},
    priority={"type": "integer"},
    modality=bodies.TEXT,
)
_CONTENT = {**_FORM["requestBody"]["content"], "application/json": {"schema": JobRequest.model_json_schema()}}


@router.post("", status_code=201, openapi_extra={"requestBody": {"content": _CONTENT}})
async def submit(request: Request, response: Response, desk: Desk, idempotency_key: Key = None) -> JobAnswer:
    """Queue a segmentation of an uploaded file (multipart) or of a study that is here already (JSON).

    201 for a new job; 200 where the same was submitted before, by its Idempotency-Key or by being equal within a minute.
    """
    if desk.draining:
        raise HTTPException(503, "the server is stopping; try again in a moment", {"Retry-After": "5"})
    owner = owner_of(request)
    key = None if idempotency_key is None else blake3(f"{owner}\0{idempotency_key}".encode()).hexdigest()
    if request.headers.get("content-type", "").startswith("application/json"):
        asked = bodies.parsed(JobRequest, await bodies.json_bytes(request))
        job, made = await asyncio.to_thread(_of_study, desk, asked, key, owner)
    else:
        async with read_form(request, desk.settings) as form:
            asked = _typed(form)
            upload = bodies.one_file(form)
            job, made = await asyncio.to_thread(_of_upload, desk, asked, upload, key, owner)
    response.status_code = 201 if made else 200
    return job_answer(job)


@router.get("")
async def page(
    desk: Desk,
    skip: Annotated[int, Query(ge=0, le=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    status: Annotated[list[State] | None, Query(description="Only jobs in these states; repeatable.")] = None,
    model: Annotated[str | None, Query(max_length=128)] = None,
    study_id: Annotated[str | None, Query(max_length=64)] = None,
) -> JobPage:
    """Jobs, newest first, and how many there are in all."""
    found, count = await asyncio.to_thread(
        desk.backend.queue.page, skip=skip, limit=limit, states=status or (), model=_clean(model), study_id=_clean(study_id)
    )
    return JobPage(data=[job_answer(j, result=False) for j in found], count=count)


@router.get("/{job_id}")
async def get(desk: Desk, job_id: JobId) -> JobAnswer:
    """One job, with its measurements once it is completed."""
    return job_answer(await _get(desk, job_id))


async def _found(desk: Desk, job_id: JobId) -> Job:
    """The job of a path, looked up before an answer begins."""
    return await _get(desk, job_id)


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def events(desk: Desk, job: Annotated[Job, Depends(_found)]) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: the job whenever it changes, as `progress`, and once as `end`."""
    last: tuple[Any, ...] = ()
    while True:
        now = (job.state, job.fence, job.progress, job.message)
        if now != last or job.ended:
            answer = job_answer(job, result=False).model_dump(mode="json")
            yield ServerSentEvent(data=answer, event="end" if job.ended else "progress", id=f"{job.fence}-{job.progress:.4f}")
        if job.ended or desk.draining:
            return
        last = now
        await asyncio.sleep(_LOOK)
        try:
            job = await _get(desk, job.id)
        except IsocenterError:
            return  # deleted, or the table is away: who watches asks again


@router.get("/{job_id}/audit")
async def audit(desk: Desk, job_id: JobId) -> list[dict[str, Any]]:
    """What happened to a job, in order; also to one that was deleted."""
    found = await asyncio.to_thread(desk.backend.queue.events, _clean(job_id) or "")
    if not found:
        raise NotFoundError("Job not found")
    return [event.as_dict() for event in found]


@router.post("/{job_id}/cancel")
async def cancel(desk: Desk, job_id: JobId) -> JobAnswer:
    """Stop a job: at once where it waits, within one tile of its model where it runs. 409 where it has ended."""
    return job_answer(await asyncio.to_thread(desk.backend.queue.cancel, _clean(job_id) or ""))


@router.post("/{job_id}/retry")
async def retry(desk: Desk, job_id: JobId) -> JobAnswer:
    """Start a failed or cancelled job anew. 409 for any other."""
    return job_answer(await asyncio.to_thread(desk.backend.retry, _clean(job_id) or ""))


@router.put("/{job_id}/keep")
async def keep(desk: Desk, job_id: JobId) -> JobAnswer:
    """Have a job, its scan and its results stay whatever their age; it can still be deleted by its id."""
    return job_answer(await asyncio.to_thread(desk.backend.queue.keep, _clean(job_id) or ""))


@router.delete("/{job_id}/keep")
async def let_go(desk: Desk, job_id: JobId) -> JobAnswer:
    """Have a kept job go with its age again."""
    return job_answer(await asyncio.to_thread(desk.backend.queue.keep, _clean(job_id) or "", kept=False))


@router.delete("/{job_id}", status_code=204)
async def delete(desk: Desk, job_id: JobId) -> None:
    """Forget a job that has ended, and its files."""
    await asyncio.to_thread(desk.backend.delete, _clean(job_id) or "")


@router.get("/{job_id}/artifacts/{name}", response_class=Response)
async def artifact(desk: Desk, job_id: JobId, name: Annotated[str, Path(max_length=64)]) -> Response:
    """A result file: its bytes, or a redirect to the object store where clients can reach it."""
    job = await _get(desk, job_id)
    stored = job.artifact(name)
    if stored is None:
        raise NotFoundError(f"the job has no such file; it is {job.state}" if not job.artifacts else "the job has no such file")
    return await download_of(desk, stored, f"{job.id}_{stored.name}")


async def download_of(desk: JobDesk, stored: Stored, filename: str) -> Response:
    """The answer that hands out a stored file; also for the other adapters."""
    link = await asyncio.to_thread(desk.backend.objects.link, stored.digest, name=filename, media_type=stored.media_type)
    if link is not None:
        return RedirectResponse(link, 307)
    size = await asyncio.to_thread(desk.backend.objects.size, stored.digest)
    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{filename}"', "ETag": f'"{stored.digest}"'}
    return StreamingResponse(_pieces(desk, stored.digest), media_type=stored.media_type, headers=headers)


def _pieces(desk: JobDesk, digest: str) -> Iterator[bytes]:
    yield from desk.backend.objects.read(digest)


def _of_study(desk: JobDesk, asked: JobRequest, key: str | None, owner: str) -> tuple[Job, bool]:
    if asked.study_id is None:
        raise UsageError("send a scan as the multipart field 'file', or name an uploaded study as study_id")
    return _submit(desk, asked, desk.studies.get(_clean(asked.study_id) or ""), key, owner)


def _of_upload(desk: JobDesk, asked: JobRequest, upload: Upload | None, key: str | None, owner: str) -> tuple[Job, bool]:
    if upload is None:
        return _of_study(desk, asked, key, owner)
    if upload.size == 0:
        raise UsageError("the file is empty")
    if asked.study_id is not None or asked.series_id is not None:
        raise UsageError("study_id and series_id are of a study that is here already; which series of a file is meant says series_uid")
    return _submit(desk, asked, upload, key, owner)


def _submit(desk: JobDesk, asked: JobRequest, source: Upload | Study, key: str | None, owner: str) -> tuple[Job, bool]:
    series = source.find(asked.series_id) if isinstance(source, Study) and asked.series_id else None
    request = asked.to_request(series.facts.series_uid if series else None)
    return jobservice.submit(desk.service, desk.backend, request, source, key=key, owner=owner, series_id=series.id if series else None)


async def _get(desk: JobDesk, job_id: str) -> Job:
    return await asyncio.to_thread(desk.backend.queue.get, _clean(job_id) or "")


def _clean(text: str | None) -> str | None:
    """Text that a database takes: PostgreSQL knows no NUL, and no half of a surrogate pair."""
    return None if text is None else text.replace("\0", "").encode("utf-8", "replace").decode()


def _typed(form: Form) -> JobRequest:
    """The request of a form: the field `job`, or single fields. Nothing that was asked for is passed over."""
    bodies.check_fields(form, ["file", "job", *JobRequest.model_fields])
    if "job" in form.fields:
        if len(form.fields) > 1:
            raise UsageError("the field 'job' holds the whole request; give either it or single fields")
        return bodies.parsed(JobRequest, form.text("job").encode("utf-8", "replace"))
    values: dict[str, Any] = {}
    for name, given in form.fields.items():
        if name == "prompts":
            values[name] = native_fields.plain_prompts(given)
        elif name == "formats":
            values[name] = [v.strip() for v in given if v.strip()]
        elif name in JobRequest.model_fields:
            values[name] = json.loads(given[-1]) if name == "parameters" and _is_json(given[-1]) else given[-1]
    return bodies.parsed(JobRequest, json.dumps(values, ensure_ascii=False).encode("utf-8", "replace"))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
