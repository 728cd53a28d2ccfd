"""MONAI Label's protocol, generation 2 (OHIF-AI): a series with each click in, `params` and a mask out.

Every route answers at its path and under `/monai` too. The mask travels as a NIfTI of (Z, Y, X) with identity affine, as
this generation's viewers read it; `result_space: "world"` in `params` asks for the image's true geometry instead.
"""

from __future__ import annotations

import json
import time
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray

from isocenter.core.errors import PromptError, UsageError
from isocenter.core.geometry import onto
from isocenter.core.model import ModelSpec, Task
from isocenter.core.prompts import Box, Lasso, Scribble, rasterise, union
from isocenter.core.provenance import RESEARCH_USE
from isocenter.core.segmentation import Segmentation
from isocenter.core.volume import Volume
from isocenter.http import monai_params as wire
from isocenter.http.body import Form, read_form
from isocenter.http.context import Context, Here, owner_of
from isocenter.http.multipart import new_boundary, params_and_image
from isocenter.http.operations import VERSION
from isocenter.io import write
from isocenter.io.upload import Upload
from isocenter.io.wire_mask import WireMask
from isocenter.service import Clicked

router = APIRouter(tags=["MONAI Label"])

#: The version of MONAI Label whose protocol this is; its clients look at it.
PROTOCOL = "0.8.5"
_NUMBERS = {"spleen": 1, "kidney_right": 2, "kidney_left": 3, "gallbladder": 4, "liver": 5, "stomach": 6, "aorta": 7, "trachea": 43}
_NO_IMAGE = "Neither Image nor File not Session ID input is provided"
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "params": {"type": "string", "example": '{"nninter": "init"}'},
                        "file": {"type": "string", "format": "binary"},
                        "label": {"type": "string", "format": "binary"},
                    },
                }
            }
        },
    }
}


class Output(StrEnum):
    """What the answer holds."""

    IMAGE = "image"
    JSON = "json"
    ALL = "all"
    DICOM_SEG = "dicom_seg"


@router.get("/info/")
async def info(here: Here) -> dict[str, Any]:
    """The server's models and labels: only what the engines behind them can produce."""
    specs = here.service.models()
    models = {name: entry for spec in specs for name, entry in _entries(spec, specs)}
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


def _entries(spec: ModelSpec, specs: list[ModelSpec]) -> list[tuple[str, dict[str, Any]]]:
    if spec.task is Task.SCRIBBLES:
        config = {**spec.options, "device": list(spec.devices)}
        return [(spec.id, {"type": "scribbles", "labels": {"region": 1}, "dimension": 3, "description": spec.description, "config": config})]
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
        file = form.files.get("file")
        if model == "segmentation" and params.mode == "reset":
            # Answered without looking at the image, which may be long gone.
            here.service.forget(owner)
            return JSONResponse({})
        if file is None:
            raise _no_image(image, session_id)
        scribbles = next((s for s in here.service.models() if s.id == model and s.task is Task.SCRIBBLES), None)
        if scribbles is not None:
            return await _scribbles(here, scribbles, params, file, form, output)
        if model != "segmentation":
            known = [name for s in here.service.models() for name, _ in _entries(s, here.service.models())]
            raise HTTPException(404, f"no model '{model[:60]}' here; there are: {', '.join(known)}")
        if params.mode == "":
            raise UsageError('params must hold "nninter": "init", "reset", or a mode such as "sam3" (KeyError: \'nninter\')')
        volume = await here.read(lambda: here.service.open(file))
        if params.mode == "init":
            await here.infer(lambda: here.service.prepare(volume))
            here.service.forget(owner, volume)
            return JSONResponse({})
        return await _answer(here, volume, params, owner, output)


def _no_image(image: str, session_id: str) -> HTTPException:
    if session_id:
        return HTTPException(404, f"Session ({session_id}) Not Found")
    if image:
        return HTTPException(404, "Image NOT Found; this server keeps no datastore, send the series as the form field `file`")
    return HTTPException(400, _NO_IMAGE)


async def _answer(here: Context, volume: Volume, params: wire.Params, owner: str, output: Output | None) -> Response:
    """A click's or a text's answer in the form that `output` asks for."""
    boundary = new_boundary()
    avoid = (b"\r\n\r\n", boundary.encode())
    want_image = output is not Output.JSON
    prompts = params.prompts(volume.shape[0], flipped=volume.source.flipped)
    if not prompts and not params.texts:
        raise PromptError("no prompts: give pos_points, pos_boxes, pos_scribbles, pos_lassos or texts")

    def click() -> tuple[dict[str, Any], bytes]:
        started = time.perf_counter()
        with here.service.click(volume, prompts, owner=owner) as clicked:
            elapsed = time.perf_counter() - started
            clicked.session.state["stale"] = union(clicked.session.state.get("stale"), clicked.changed)
            body = _encode_click(clicked, volume, params, output, avoid) if want_image else b""
            stages = {**clicked.provenance.seconds, "encode": round(time.perf_counter() - started - elapsed, 4)}
            head = _head(params, volume, elapsed, "sam2_pred" if params.sam else "nninter_pred")
            return {**head, "model": clicked.provenance.model, "latencies": stages, "notes": list(clicked.provenance.notes)}, body

    def text() -> tuple[dict[str, Any], bytes]:
        started = time.perf_counter()
        found = here.service.find(volume, params.texts[:1])
        finding = found.findings[0]
        elapsed = time.perf_counter() - started
        result = Segmentation(finding.mask, volume.grid, (finding.label,), found.provenance, {finding.label.name: finding.presence})
        head = {**_head(params, volume, elapsed, ""), "voxtell_elapsed": round(elapsed, 4), "label_name": params.texts[0]}
        facts = {"model": found.provenance.model, "presence_confidence": finding.presence, "notes": list(found.provenance.notes)}
        return {**head, **facts}, _encode(result, volume, params, output, avoid) if want_image else b""

    head, body = await here.infer(click if prompts else text)
    return _respond(head, body, output, params.extension if params.world else ".nii.gz", boundary)


def _head(params: wire.Params, volume: Volume, elapsed: float, prefix: str) -> dict[str, Any]:
    """The keys that clients look for; `prompt_info` must come first."""
    return {
        "prompt_info": params.echo,
        "sam_elapsed" if params.sam else "nninter_elapsed": round(elapsed, 4),
        "flipped": volume.source.flipped,
        "label_name": f"{prefix}_{time.strftime('%Y%m%d%H%M%S')}",
    }


def _encode_click(clicked: Clicked, volume: Volume, params: wire.Params, output: Output | None, avoid: tuple[bytes, ...]) -> bytes:
    if params.world or output is Output.DICOM_SEG:
        from isocenter.core.terminology import label

        return _encode(Segmentation(clicked.mask, volume.grid, (label("region"),), clicked.provenance), volume, params, output, avoid)
    # The copy in the wire's axis order stays with the session; only what changed since it was last sent is turned again.
    state = clicked.session.state
    if "wire" not in state:
        state["wire"] = WireMask(volume.shape)
    wire_mask: WireMask = state["wire"]
    if (stale := state.pop("stale", None)) is not None:
        wire_mask.update(clicked.mask, stale)
    return wire_mask.gz(avoid=avoid)


def _encode(result: Segmentation, volume: Volume, params: wire.Params, output: Output | None, avoid: tuple[bytes, ...]) -> bytes:
    if output is Output.DICOM_SEG:
        if not volume.source.headers:
            raise UsageError("DICOM SEG format is not supported in a non-DICOM datastore")
        return write.encode(result, ".dcm", volume)
    if params.world:
        return write.encode(result, params.extension, volume)
    whole = WireMask(volume.shape)
    whole.update(result.mask, Box((0, 0, 0), volume.shape))
    return whole.gz(avoid=avoid)


def _respond(head: dict[str, Any], body: bytes, output: Output | None, extension: str, boundary: str) -> Response:
    if output is Output.JSON:
        return JSONResponse(head)
    if output is Output.DICOM_SEG:
        return Response(body, media_type="application/dicom")
    kind = "application/gzip" if extension == ".nii.gz" else "application/octet-stream"
    name = f"tmp{boundary[:8]}{extension}"
    if output is Output.IMAGE:
        return Response(body, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
    return params_and_image(json.dumps(head).encode(), body, filename=name, content_type=kind, boundary=boundary)


async def _scribbles(here: Context, spec: ModelSpec, params: wire.Params, file: Upload, form: Form, output: Output | None) -> Response:
    """Scribbles as MONAI Label's clients send them: a label map beside the image, or lines in `params`."""
    volume = await here.read(lambda: here.service.open(file))
    label = form.files.get("label")
    boundary = new_boundary()

    def work() -> tuple[dict[str, Any], bytes]:
        foreground, background = _lines(params, volume)
        if label is not None:
            values = _label_map(here, label, volume)
            bg_value, fg_value = _scribble_values(params)
            foreground, background = foreground | (values == fg_value), background | (values == bg_value)
        result = here.service.separate(volume, foreground, background, roi=_roi(params), options=params.options, model=spec.id)
        head = {"label_names": {"region": 1}, "latencies": dict(result.provenance.seconds), "model": spec.id, "notes": list(result.provenance.notes)}
        return head, b"" if output is Output.JSON else _true_geometry(result, volume, params, output)

    head, body = await here.infer(work)
    return _respond(head, body, output, params.extension, boundary)


def _true_geometry(result: Segmentation, volume: Volume, params: wire.Params, output: Output | None) -> bytes:
    return write.encode(result, ".dcm" if output is Output.DICOM_SEG else params.extension, volume)


def _lines(params: wire.Params, volume: Volume) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Scribbles and lassos in `params`, painted."""
    painted = np.zeros((2, *volume.shape), dtype=bool)
    for prompt in params.prompts(volume.shape[0], flipped=volume.source.flipped):
        if not isinstance(prompt, Scribble | Lasso):
            raise PromptError("this model takes scribbles and lassos; points and boxes go to the model 'segmentation'")
        painted[0 if prompt.positive else 1][tuple(rasterise(prompt, volume.shape).T)] = True
    return painted[0], painted[1]


def _label_map(here: Context, label: Upload, volume: Volume) -> NDArray[np.generic]:
    """The scribbles' label map in the image's axes. `.bin` is raw bytes, first axis (x) fastest."""
    if label.suffix == ".bin":
        if label.size != volume.grid.voxels:
            raise PromptError(f"label holds {label.size} bytes, the image {volume.grid.voxels} voxels")
        return np.frombuffer(label.file.read(), dtype=np.uint8).reshape(volume.shape)
    drawn = here.service.open(label)
    return onto(drawn.array, drawn.grid, volume.grid)


def _scribble_values(params: wire.Params) -> tuple[int, int]:
    """Label values of background and foreground scribbles: by `label_info`, else 2 and 3."""
    values = {"background_scribbles": 2, "foreground_scribbles": 3}
    for entry in params.raw.get("label_info") or []:
        if isinstance(entry, dict) and entry.get("name") in values and isinstance(entry.get("id"), int):
            values[entry["name"]] = entry["id"]
    return values["background_scribbles"], values["foreground_scribbles"]


def _roi(params: wire.Params) -> Box | None:
    """`roi` = [i0, i1, j0, j1, k0, k1] in voxels, ends not included; [] and absent are none."""
    roi = params.raw.get("roi")
    if not roi:
        return None
    if not isinstance(roi, list) or len(roi) != 6 or not all(isinstance(v, int | float) and abs(v) < 1e9 for v in roi):
        raise PromptError("roi must be [i0, i1, j0, j1, k0, k1]")
    i0, i1, j0, j1, k0, k1 = (int(v) for v in roi)
    return Box((k0, j0, i0), (k1, j1, i1))
