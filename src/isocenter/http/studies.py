"""Studies: upload a DICOM archive once, and run as many jobs on it as wanted."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from isocenter.http import bodies
from isocenter.http.body import read_form
from isocenter.http.errors import missing
from isocenter.http.job_answers import SeriesAnswer, StudyAnswer, StudyPage, series_answer, study_answer
from isocenter.http.jobdesk import Desk

router = APIRouter(prefix="/api/v1/studies", tags=["Studies"])
StudyId = Annotated[str, Path(max_length=64, pattern=r"^[0-9A-Za-z.\-]+$")]
_BODY = bodies.form_of(["file"], file=bodies.FILE)


@router.post("", status_code=201, openapi_extra=_BODY)
async def upload(request: Request, desk: Desk) -> StudyAnswer:
    """Keep a ZIP of one DICOM study. The same bytes sent again are the same study."""
    async with read_form(request, desk.settings) as form:
        file = bodies.one_file(form)
        if file is None:
            raise missing("file")
        return study_answer(await asyncio.to_thread(desk.studies.add, file))


@router.get("")
async def page(desk: Desk, skip: Annotated[int, Query(ge=0, le=2**31)] = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> StudyPage:
    """Studies, newest first, and how many there are in all."""
    found, count = await asyncio.to_thread(desk.studies.page, skip=skip, limit=limit)
    return StudyPage(data=[study_answer(s) for s in found], count=count)


@router.get("/{study_id}")
async def get(desk: Desk, study_id: StudyId) -> StudyAnswer:
    """One study."""
    return study_answer(await asyncio.to_thread(desk.studies.get, study_id))


@router.get("/{study_id}/series")
async def series(desk: Desk, study_id: StudyId) -> list[SeriesAnswer]:
    """The series of a study."""
    study = await asyncio.to_thread(desk.studies.get, study_id)
    return [series_answer(s) for s in study.series]


@router.get("/{study_id}/series/{series_id}/metadata")
async def metadata(desk: Desk, study_id: StudyId, series_id: StudyId) -> dict[str, Any]:
    """Technical attributes of a series' first image, by DICOM keyword; none names a person."""
    study = await asyncio.to_thread(desk.studies.get, study_id)
    return study.find(series_id).facts.metadata


@router.delete("/{study_id}", status_code=204)
async def delete(desk: Desk, study_id: StudyId) -> None:
    """Forget a study. 409 while a job of it waits or runs. Its file goes with the last job that was made from it."""
    await asyncio.to_thread(desk.studies.delete, study_id)
