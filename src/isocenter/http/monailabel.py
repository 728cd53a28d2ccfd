"""MONAI Label's protocol, generation 2 (OHIF-AI): a series with each click in, `params` and a mask out.

Every route answers at its path and under `/monai` too. The mask travels as a NIfTI of (Z, Y, X) with identity affine, as
this generation's viewers read it; `result_space: "world"` in `params` asks for the image's true geometry instead.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response

from isocenter.core.errors import UsageError
from isocenter.core.model import ModelSpec, Task
from isocenter.core.provenance import RESEARCH_USE
from isocenter.http import bodies, monai_auto, monai_clicks, monai_scribbles
from isocenter.http import monai_params as wire
from isocenter.http.body import read_form
from isocenter.http.context import Here, owner_of
from isocenter.http.multipart import Output
from isocenter.http.operations import VERSION

router = APIRouter(tags=["MONAI Label"])

#: The version of MONAI Label whose protocol this is; its clients look at it.
PROTOCOL = "0.8.5"
_NUMBERS = {"spleen": 1, "kidney_right": 2, "kidney_left": 3, "gallbladder": 4, "liver": 5, "stomach": 6, "aorta": 7, "trachea": 43}
_NO_IMAGE = "Neither Image nor File not Session ID input is provided"
_FORM = bodies.form_of([], params={**bodies.TEXT, "example": '{"nninter": "init"}'}, file=bodies.FILE, label=bodies.FILE)


@router.get("/info/")
async def info(here: Here) -> dict[str, Any]:
    """The server's models and labels: only what the engines behind them can produce."""
    specs = here.service.models()
    models = entries(specs)
    return {
        "name": f"MONAILabel - Radiology ({PROTOCOL})",
        "description": f"Isocenter {VERSION}. {RESEARCH_USE}",
        "version": PROTOCOL,
        "labels": list(models["segmentation"]["labels"]) if "segmentation" in models else [],
        "models": models,
        "trainers": {},
        "strategies": {},
        "scoring": {},
        "train_stats": {},
        "datastore": {"objects": {}, "total": 0, "completed": 0, "label_tags": {}},
        "server": {"name": "Isocenter", "version": VERSION},
    }


def entries(specs: list[ModelSpec]) -> dict[str, dict[str, Any]]:
    """The models of `/info/` by the names that this protocol calls them."""
    return {name: entry for spec in specs for name, entry in _entries(spec, specs)}


def _entries(spec: ModelSpec, specs: list[ModelSpec]) -> list[tuple[str, dict[str, Any]]]:
    if spec.task is Task.SCRIBBLES:
        config = {**spec.options, "device": list(spec.devices)}
        return [(spec.id, {"type": "scribbles", "labels": {"region": 1}, "dimension": 3, "description": spec.description, "config": config})]
    if spec.task is Task.SEGMENT:
        return [(spec.id, monai_auto.entry(spec))]
    if spec.task is Task.INTERACTIVE and not any(s.task is Task.INTERACTIVE for s in specs[: specs.index(spec)]):
        names = [label.name for s in specs if s.task is Task.TEXT for label in s.labels]
        engines = ", ".join(s.id for s in specs if s.task in (Task.INTERACTIVE, Task.TEXT))
        description = f"Clicks, boxes, scribbles and lassos, and words on CT (engines: {engines})"
        entry = {"type": "segmentation", "labels": _numbered(names), "dimension": 3, "description": description, "config": {"largest_cc": False}}
        return [("segmentation", entry)]
    return []


def _numbered(names: list[str]) -> dict[str, int]:
    """Label numbers: the protocol's own where it has the name, else from 100 up."""
    free = iter(range(100, 1000))
    return {name: _NUMBERS.get(name) or next(free) for name in names}


@router.post("/infer/{model:path}", openapi_extra=_FORM, response_model=None)
async def infer(
    request: Request,
    here: Here,
    model: str,
    image: Annotated[str, Query(max_length=256)] = "",
    session_id: Annotated[str, Query(max_length=256)] = "",
    output: Output | None = None,
) -> Response:
    """Start ("init"), click, or start anew ("reset"): which one `nninter` in the form field `params` says."""
    async with read_form(request, here.service.settings) as form:
        params = wire.parse(form.text("params", "{}"))
        owner = owner_of(request, params.client)
        file = form.file("file")
        if model == "segmentation" and params.mode == "reset":
            # Nothing is decoded for it; without a file that was seen before, all of this client's work is dropped.
            here.service.forget(owner, here.service.known(file.digest, file.suffix) if file else None)
            return JSONResponse({})
        if file is None:
            raise _no_image(image, session_id)
        named = next((s for s in here.service.models() if s.id == model), None)
        if named is not None and named.task is Task.SCRIBBLES:
            return await monai_scribbles.answer(here, named, params, file, form, output)
        if named is not None and named.task is Task.SEGMENT:
            return await monai_auto.answer(here, named, params, file, output)
        if model != "segmentation":
            raise HTTPException(404, f"no model '{model[:60]}' here; there are: {', '.join(entries(here.service.models()))}")
        if params.mode == "":
            raise UsageError('params must hold "nninter": "init", "reset", or a mode such as "sam3" (KeyError: \'nninter\')')
        volume = await here.read(lambda: here.service.open(file))
        if params.mode == "init":
            await here.infer(lambda: here.service.prepare(volume))
            here.service.forget(owner, volume)
            return JSONResponse({})
        return await monai_clicks.answer(here, volume, params, owner, output)


def _no_image(image: str, session_id: str) -> HTTPException:
    if session_id:
        return HTTPException(404, f"Session ({session_id}) Not Found")
    if image:
        return HTTPException(404, "Image NOT Found; this server keeps no datastore, send the series as the form field `file`")
    return HTTPException(400, _NO_IMAGE)
