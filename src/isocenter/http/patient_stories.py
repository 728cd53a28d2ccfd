"""What is told of a patient: narratives, answers to questions, and reports in every format."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from isocenter.http.context import Here
from isocenter.http.patient_answers import Asker, Limit, PatientId, Question, Skip, Telling, Twins, text_answer
from isocenter.narrateservice import TEMPLATE
from isocenter.patients import stories

router = APIRouter(prefix="/api/v1/patients/{patient_id}", tags=["Patients"])


@router.get("/narrative")
async def narrative(here: Here, twins: Twins, who: Asker, patient_id: PatientId) -> dict[str, Any]:
    """The newest narrative of the case as it is; without one the template writes it now."""

    def work() -> dict[str, Any]:
        found = stories.latest(twins, patient_id)
        return text_answer(found or stories.narrate(twins, patient_id, who, model=TEMPLATE))

    return await here.read(work)


@router.post("/narrative", status_code=201)
async def tell(here: Here, twins: Twins, who: Asker, patient_id: PatientId, asked: Telling | None = None) -> dict[str, Any]:
    """Have a model of language tell the case: five parts, in which every number is one of the case's.

    What the case does not bear out is left out; `provenance.check` says what and how much. Without such a model the template tells it.
    """
    asked = asked or Telling()
    return text_answer(await here.infer(lambda: stories.narrate(twins, patient_id, who, model=asked.model, report=asked.report)))


@router.get("/narratives")
async def narratives(twins: Twins, patient_id: PatientId, skip: Skip = 0, limit: Limit = 100) -> dict[str, Any]:
    """Narratives and answers, newest first, with prompts and checks."""
    found, count = await asyncio.to_thread(lambda: stories.page(twins, patient_id, skip=skip, limit=limit))
    return {"data": [text_answer(t) for t in found], "count": count}


@router.post("/ask", status_code=201)
async def ask(here: Here, twins: Twins, who: Asker, patient_id: PatientId, asked: Question) -> dict[str, Any]:
    """Ask a free question on the case. Each is answered by itself, and what the case does not bear out is left out of the answer.

    503 with the command that installs a model of language, where there is none.
    """
    return text_answer(await here.infer(lambda: stories.ask(twins, patient_id, who, asked.question, model=asked.model)))


@router.get("/report", response_class=Response)
async def report(
    here: Here,
    twins: Twins,
    who: Asker,
    patient_id: PatientId,
    name: Annotated[str, Query(alias="format", max_length=32, description="html, json, csv and whatever `isocenter track -f` takes.")] = "html",
    patient_fields: Annotated[bool, Query(description="Name the patient in it. Asking is noted in the audit log.")] = False,
) -> Response:
    """The case as a file."""
    made = await here.read(lambda: stories.report(twins, patient_id, who, name, identity=patient_fields))
    headers = {"Content-Disposition": f'attachment; filename="{patient_id}_{made.name}"', "X-Content-Type-Options": "nosniff"}
    return Response(made.data, media_type=made.media_type, headers=headers)
