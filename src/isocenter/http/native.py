"""The native API: models, volumes and segmentations under `/api/v1`.

Arrays are never sent as JSON: a mask comes as a file of the format asked for, on the image's own grid, with what made it in
headers; or as facts in JSON with the address to fetch the file from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response

from isocenter.analysis.measurements import describe_image, measure
from isocenter.answers import label_map
from isocenter.core.errors import UsageError
from isocenter.core.model import ModelSpec, Question, Task
from isocenter.core.prompts import Box, Text
from isocenter.core.segmentation import Segmentation
from isocenter.core.volume import Volume
from isocenter.http import bodies, native_fields
from isocenter.http.body import Form, read_form
from isocenter.http.context import Context, Here
from isocenter.http.errors import missing
from isocenter.io import write

router = APIRouter(prefix="/api/v1", tags=["Isocenter"])

_HOW = {"modality": bodies.TEXT, "series_uid": bodies.TEXT, "window": bodies.TEXT}
_FILE = {"file": bodies.FILE}
_KINDS = {".nii.gz": "application/gzip", ".nii": "application/octet-stream", ".png": "image/png", ".dcm": "application/dicom"}
#: Headers may not grow without bound.
_MOST_HEADER = 4096


@router.get("/models")
async def models(here: Here, task: Annotated[Task | None, Query(description="Only models of this task.")] = None) -> dict[str, Any]:
    """The models that can answer here; `unavailable` says what is installed and cannot be used, and why."""
    listed = await here.read(here.service.models)
    broken = await here.read(lambda: here.service.registry.broken)
    return {
        "models": [_facts(spec) for spec in listed if task in (None, spec.task)],
        "unavailable": [{"id": b.id, "reason": b.reason} for b in broken.values()],
    }


@router.get("/models/{model:path}")
async def model_info(here: Here, model: str) -> dict[str, Any]:
    """All that is known of one model."""
    return _facts(await here.read(lambda: here.service.registry.spec(model)))


def _facts(spec: ModelSpec) -> dict[str, Any]:
    return {
        "id": spec.id,
        "version": spec.version,
        "task": spec.task.value,
        "description": spec.description,
        "modalities": list(spec.modalities),
        "dimensions": list(spec.dimensions),
        "prompts": list(spec.prompts),
        "labels": [{"value": label.value, "name": label.name, "colour": label.colour} for label in spec.labels],
        "options": dict(spec.options),
        "licence": spec.licence,
        "citation": spec.citation,
        "weights_sha256": spec.weights_sha256,
        "weights_bytes": spec.weights_bytes,
        "fallback": spec.fallback,
    }


@router.post("/volumes", status_code=201, openapi_extra=bodies.form_of(["file"], **_FILE, **_HOW))
async def upload(request: Request, here: Here) -> dict[str, Any]:
    """Send a scan once; later requests name its `key`. It is kept while memory allows, and a key that is gone gets 404."""
    async with read_form(request, here.service.settings) as form:
        bodies.check_fields(form, [*_FILE, *_HOW])
        file = bodies.one_file(form)
        if file is None:
            raise missing("file")
        how = _how(form)
        key, volume = await here.read(lambda: here.service.keep(file, **how))
    return {"key": key, **_image(volume)}


@router.get("/volumes/{key}")
async def volume_info(here: Here, key: str) -> dict[str, Any]:
    """What is known of a scan that was sent before."""
    return {"key": key, **_image(here.service.kept(key))}


def _image(volume: Volume) -> dict[str, Any]:
    return {**describe_image(volume), "notes": list(volume.source.notes)}


_FIELDS: dict[str, Any] = {
    **_FILE,
    "volume": {**bodies.TEXT, "description": "In place of `file`: the key of a scan that was sent before."},
    "model": {**bodies.TEXT, "description": "Model id. Without prompts: a model that needs none (the first one, by default)."},
    "prompts": {
        **bodies.TEXT,
        "description": "JSON list (places: voxel indices [x, y, z]) or a word; repeatable.",
        "example": native_fields.EXAMPLE,
    },
    "labels": {**bodies.TEXT, "description": "JSON list of the labels to keep, of a model that needs no prompts.", "example": '["thalamus"]'},
    "options": {**bodies.TEXT, "description": "JSON object of the model's own options.", "example": "{}"},
    "threshold": {"type": "number", "default": 0.5},
    "format": {**bodies.TEXT, "default": "nii.gz", "description": "nii.gz, nii, nrrd, seg.nrrd, npz, png or dicom-seg."},
    "answer": {**bodies.TEXT, "default": "file", "enum": ["file", "json"], "description": "The mask itself, or facts and its address."},
    **_HOW,
}


@router.post("/segment", openapi_extra=bodies.form_of([], **_FIELDS), response_model=None)
async def segment(request: Request, here: Here) -> Response:
    """Segment a scan by words, clicks and lines, or by a model that needs no prompts."""
    async with read_form(request, here.service.settings) as form:
        bodies.check_fields(form, _FIELDS)
        asked = _Asked(form)
        volume = await _volume(here, form)
        result = await asked.answered(here, volume)
        data = await here.read(lambda: write.encode(result, asked.suffix, volume))
        if not asked.as_json:
            return _file(result, data, asked.suffix)
        name = await here.read(lambda: here.service.artifacts.put("mask", data, asked.suffix))
        facts = await here.read(lambda: [m.as_dict() for m in measure(result, volume)])
        origin = result.provenance
        return JSONResponse(
            {
                "model": origin.model,
                "version": origin.version,
                "weights_sha256": origin.weights_sha256,
                "labels": facts,
                "mask_url": f"/files/{name}",
                "bytes": len(data),
                "expires_seconds": here.service.settings.artifact_ttl,
                "image": _image(volume),
                "provenance": origin.as_dict(),
            }
        )


class _Asked:
    """What a request for a segmentation asks for. Raises `UsageError` for fields that cannot be meant."""

    def __init__(self, form: Form) -> None:
        self.model = form.text("model") or None
        self.prompts = native_fields.prompts(form.fields.get("prompts", []))
        self.options = native_fields.json_object(form.text("options"), "options")
        self.labels = native_fields.names(form.fields.get("labels", []))
        self.suffix = write.suffix_of({"dicom-seg": "dcm"}.get(form.text("format", "nii.gz"), form.text("format", "nii.gz")))
        answer = form.text("answer", "file")
        if answer not in ("file", "json"):
            raise UsageError("answer must be file or json")
        self.as_json = answer == "json"
        try:
            self.threshold = float(form.text("threshold", "0.5"))
        except ValueError:
            raise UsageError("threshold must be a number of 0 to 1") from None

    async def answered(self, here: Context, volume: Volume) -> Segmentation:
        """The mask; what a picture can share with those of other clients is computed with them."""
        words = tuple(p.text for p in self.prompts if isinstance(p, Text))
        if words and len(words) == len(self.prompts) and volume.shape[0] == 1:
            asked = await here.read(lambda: here.service.find_soon(Question(volume, words, self.threshold), model=self.model))
            (found,) = await here.wait(asked)
            return await here.read(lambda: label_map(volume, found))
        if not self.prompts:
            everything = await here.read(lambda: here.service.label_soon(volume, model=self.model, options=self.options, labels=self.labels))
            return (await here.wait(everything))[0]
        if not words and (looked := await here.read(lambda: self._look(here, volume))) is not None:
            await here.wait(looked)
        return await here.infer(lambda: self.answer(here, volume))

    def _look(self, here: Context, volume: Volume) -> Future[list[None]] | None:
        registry = here.service.registry
        spec = registry.spec(self.model) if self.model else registry.first(Task.INTERACTIVE)
        return here.service.look_soon(volume, self.prompts, spec.id) if spec.task is Task.INTERACTIVE else None

    def answer(self, here: Context, volume: Volume) -> Segmentation:
        """Blocks; for an inference thread."""
        service = here.service
        if self.model is not None and service.registry.spec(self.model).task is Task.SCRIBBLES:
            boxes = [p for p in self.prompts if isinstance(p, Box)]
            if len(boxes) > 1:
                raise UsageError(f"{self.model} takes one box at most, the region to stay in")
            drawn = [p for p in self.prompts if not isinstance(p, Box)]
            return service.separate(volume, drawn, roi=boxes[0] if boxes else None, options=self.options, model=self.model)
        return service.segment(volume, self.prompts, threshold=self.threshold, model=self.model, options=self.options)


def _how(form: Form) -> dict[str, str | None]:
    return {name: form.text(name)[:256] or None for name in _HOW}


async def _volume(here: Context, form: Form) -> Volume:
    file, key = bodies.one_file(form), form.text("volume")
    if file is not None and key:
        raise UsageError("give either a file or the key of a scan that was sent before as `volume`, not both")
    if file is not None:
        how = _how(form)
        return await here.read(lambda: here.service.open(file, **how))
    if not key:
        raise HTTPException(400, "send the scan as the form field `file`, or name one that was sent before in `volume`")
    return here.service.kept(key)


def _file(result: Segmentation, data: bytes, suffix: str) -> Response:
    return Response(
        data,
        media_type=_KINDS.get(suffix, "application/octet-stream"),
        headers={"Content-Disposition": f'attachment; filename="mask{suffix}"', **headers(result)},
    )


def headers(result: Segmentation) -> Mapping[str, str]:
    """What made a mask, for whoever gets only the file."""
    origin = result.provenance
    facts = {key: value for key, value in origin.as_dict().items() if key not in ("prompts", "settings")}
    facts["labels"] = {label.name: label.value for label in result.labels}
    text = json.dumps(facts)
    found = {
        "X-Isocenter-Model": origin.model,
        "X-Isocenter-Version": origin.version,
        "X-Isocenter-Weights": origin.weights_sha256 or "none",
        **({"X-Isocenter-Provenance": text} if len(text) <= _MOST_HEADER else {}),
    }
    return {name: value.encode("ascii", "replace").decode() for name, value in found.items()}
