"""What changed between two visits' scans, as figures, a mask or a picture."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from isocenter.analysis.tracking.register import Freedom
from isocenter.followup.changes import FILES
from isocenter.http import bodies
from isocenter.http.context import Here
from isocenter.http.patient_answers import Asker, PatientId, Strict, Twins
from isocenter.patients import changes

router = APIRouter(prefix="/api/v1/patients/{patient_id}", tags=["Patients"])
_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Asked(Strict):
    """Two visits with MR scans."""

    earlier: str = Field(pattern=_ID, description="A visit's timepoint_id.")
    later: str = Field(pattern=_ID, description="A visit after it.")
    bright: bool = Field(True, description="Lesions are brighter than the tissue around, as on FLAIR; false for any change.")
    registration: Literal["rigid", "affine"] = "rigid"


_BODY = bodies.described(Asked, "changes", region="A mask of where to look, such as the brain, on the grid of either scan.")
_NAMES = {"json": "changes.json", "mask": "changes.nii.gz", "png": "changes.png"}


@router.post("/changes", response_class=Response, openapi_extra=_BODY)
async def between(
    request: Request,
    here: Here,
    twins: Twins,
    who: Asker,
    patient_id: PatientId,
    name: Annotated[
        Literal["json", "mask", "png"], Query(alias="format", description="Figures, a mask on the later scan's grid, or a picture.")
    ] = "json",
) -> Response:
    """Look for what is new, has grown, has shrunk or is gone between two MR scans, without masks of their lesions."""
    async with bodies.read(request, Asked, "changes", here.service.settings) as (asked, form):
        region = form.files.get("region")
        freedom = Freedom(asked.registration)
        found = await here.infer(
            lambda: changes.between(twins, patient_id, asked.earlier, asked.later, who, region=region, bright=asked.bright, freedom=freedom)
        )
    file = _NAMES[name]
    headers = {"X-Content-Type-Options": "nosniff"}
    if name != "json":
        headers["Content-Disposition"] = f'attachment; filename="{patient_id}_{asked.later}_{file}"'
    return Response(await here.read(lambda: found.file(file)), media_type=FILES[file], headers=headers)
