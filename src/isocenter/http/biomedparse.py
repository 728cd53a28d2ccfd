"""BiomedParse's protocol: words and a picture or volume in, masks out, as its existing clients send and read it.

Prompts come as query parameters or as form fields; both count, in this order. Arrays are [D, H, W] = (z, y, x).
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable
from concurrent.futures import Future
from typing import Annotated, TypeVar

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import FileResponse

from isocenter.answers import Found
from isocenter.core.errors import InputError, IsocenterError
from isocenter.core.model import Finding, Question
from isocenter.core.volume import Volume
from isocenter.http import bodies
from isocenter.http.biomedparse_answers import Answer2D, Answer3D, Array, Health, Result2D, Result3D
from isocenter.http.body import Form, read_form
from isocenter.http.context import Context, Here
from isocenter.http.errors import missing
from isocenter.io import npz, picture
from isocenter.io.upload import Upload

T = TypeVar("T")
router = APIRouter(prefix="/api/biomedparse/v1", tags=["BiomedParse"])
files = APIRouter(tags=["BiomedParse"])

Prompts = Annotated[list[str] | None, Query(description="What to find, such as `liver`; repeatable. Form fields of this name count too.")]
Threshold = Annotated[float, Query(ge=0, le=1, allow_inf_nan=False, description="A voxel is in the mask when its probability is larger.")]
Heatmap = Annotated[bool, Query(description="Also return the probabilities, 0..255.")]
SliceBatch = Annotated[int | None, Query(ge=1, le=1024, description="Slices per network call; taken by networks only.")]
Modality = Annotated[str | None, Query(max_length=16, description="DICOM modality of an input that does not say, such as `CT`.")]
Window = Annotated[str | None, Query(max_length=32, description="`W/L` in HU: what black to white of a picture stands for, with `modality=CT`.")]
SeriesUid = Annotated[str | None, Query(max_length=64, description="Which DICOM series, where the archive holds several.")]
Model = Annotated[
    str | None,
    Query(max_length=128, description="Model id; the default is the first that takes words. One that takes none answers by the names of its labels."),
]

_BODY = bodies.form_of(["file"], file=bodies.FILE, prompts={"type": "array", "items": bodies.TEXT})


@router.get("/health", response_model_exclude_none=True)
async def health(here: Here) -> Health:
    """Whether the service is up, and whether it computes on a GPU; `degraded` when the model that was chosen for words cannot answer."""
    problem = await here.read(here.service.problem)
    return Health(status="degraded" if problem else "healthy", gpu_available=any(d != "cpu" for d in here.service.runtime.devices), problem=problem)


@router.post("/predict-2d", openapi_extra=_BODY)
async def predict_2d(
    request: Request,
    here: Here,
    prompts: Prompts = None,
    threshold: Threshold = 0.5,
    return_heatmap: Heatmap = False,
    modality: Modality = None,
    window: Window = None,
    model: Model = None,
) -> Answer2D:
    """Find structures in one PNG, JPEG or single-frame DICOM."""
    async with read_form(request, here.service.settings) as form:
        file, words = _inputs(form, prompts)

        def ask() -> Future[list[Found]]:
            volume = here.service.open(file, modality=modality, window=window)
            if volume.shape[0] != 1:
                raise InputError("Expected a single picture (PNG, JPEG or single-frame DICOM); volumes go to predict-3d-nifti or predict-3d-dicom")
            return here.service.find_soon(Question(volume, tuple(words), threshold), model=model)

        asked = await here.read(ask)
        (found,) = await _known(here.wait(asked), "2D inference failed")
        results = await here.read(lambda: [_result_2d(f, found, return_heatmap) for f in found.findings])
        return Answer2D(status="success", results=results)


@router.post("/predict-3d-nifti", openapi_extra=_BODY)
async def predict_3d_nifti(
    request: Request,
    here: Here,
    prompts: Prompts = None,
    threshold: Threshold = 0.5,
    return_heatmap: Heatmap = False,
    slice_batch_size: SliceBatch = None,
    modality: Modality = None,
    model: Model = None,
) -> Answer3D:
    """Find structures in a NIfTI volume (`.nii`, `.nii.gz`)."""
    async with read_form(request, here.service.settings) as form:
        file, words = _inputs(form, prompts)
        if file.suffix not in (".nii", ".nii.gz"):
            raise HTTPException(400, "Expected a NIfTI file (.nii or .nii.gz)")
        failure, batch = "3D NIfTI inference failed", slice_batch_size or 0
        return await _predict_3d(here, file, words, threshold, return_heatmap, failure, modality=modality, model=model, batch=batch)


@router.post("/predict-3d-dicom", openapi_extra=_BODY)
async def predict_3d_dicom(
    request: Request,
    here: Here,
    prompts: Prompts = None,
    threshold: Threshold = 0.5,
    return_heatmap: Heatmap = False,
    slice_batch_size: SliceBatch = None,
    modality: Modality = None,
    series_uid: SeriesUid = None,
    model: Model = None,
) -> Answer3D:
    """Find structures in a DICOM series, sent as a ZIP."""
    async with read_form(request, here.service.settings) as form:
        file, words = _inputs(form, prompts)
        if file.suffix != ".zip":
            raise HTTPException(400, "Expected a ZIP containing a DICOM series (with or without DICOMDIR)")
        failure, batch = "3D DICOM inference failed", slice_batch_size or 0
        return await _predict_3d(
            here, file, words, threshold, return_heatmap, failure, modality=modality, series_uid=series_uid, model=model, batch=batch
        )


@router.get("/fetch-npz")
async def fetch_npz(here: Here, name: str, key: str = "seg") -> Array:
    """The array in a result file, as base64."""
    if not name.endswith(".npz"):
        raise HTTPException(400, "Expected .npz filename")
    if "/" in name or "\\" in name or "\0" in name or ".." in name:
        raise HTTPException(403, "Access denied")
    path = await here.read(lambda: here.service.artifacts.path(name))
    array = await here.read(lambda: npz.read(path, key))
    if array is None:
        raise HTTPException(400, f"Key '{key[:40]}' not in NPZ")
    return Array(shape=list(array.shape), dtype=str(array.dtype), data_base64=await here.read(lambda: base64.b64encode(array.data).decode()))


@files.get("/files/{name}")
async def file(here: Here, name: str) -> FileResponse:
    """A result file (`.npz`)."""
    path = await here.read(lambda: here.service.artifacts.path(name))
    return FileResponse(path, media_type="application/octet-stream", filename=name)


def _inputs(form: Form, query: list[str] | None) -> tuple[Upload, list[str]]:
    file = form.file("file")
    if file is None:
        raise missing("file")
    words = [w.strip() for w in [*(query or []), *form.fields.get("prompts", [])] if w.strip()]
    if not words:
        raise HTTPException(400, "No prompts provided")
    return file, words


async def _known(answer: Awaitable[T], failure: str) -> T:
    """Inference, whose unforeseen failures carry the protocol's own words."""
    try:
        return await answer
    except (IsocenterError, MemoryError):
        raise
    except Exception as error:
        raise HTTPException(500, f"{failure}: internal error, see the server's log") from error


async def _predict_3d(
    here: Context,
    upload: Upload,
    words: list[str],
    threshold: float,
    heatmap: bool,
    failure: str,
    *,
    model: str | None,
    batch: int,
    **how: str | None,
) -> Answer3D:
    volume: Volume = await here.read(lambda: here.service.open(upload, **how))
    found: Found = await _known(here.infer(lambda: here.service.find(volume, words, threshold=threshold, model=model, batch=batch)), failure)
    results = await here.read(lambda: [_result_3d(here, f, found, volume, heatmap) for f in found.findings])
    return Answer3D(status="success", results=results)


def _mask_confidence(finding: Finding) -> float:
    inside = finding.probability[finding.mask != 0]
    return float(inside.mean()) / 255 if inside.size else 0.0


def _result_2d(finding: Finding, found: Found, heatmap: bool) -> Result2D:
    return Result2D(
        prompt=finding.prompt,
        description=finding.prompt,
        classification_confidence=finding.presence,
        mask_confidence=_mask_confidence(finding),
        mask_format="png",
        mask=base64.b64encode(picture.png(finding.mask[0] * 255)).decode(),
        heatmap=base64.b64encode(picture.png(finding.probability[0])).decode() if heatmap else None,
        model=found.provenance.model,
        version=found.provenance.version,
        weights_sha256=found.provenance.weights_sha256,
        notes=list(found.provenance.notes),
    )


def _result_3d(here: Context, finding: Finding, found: Found, volume: Volume, heatmap: bool) -> Result3D:
    artifacts = here.service.artifacts
    mask_name = artifacts.put("seg", npz.write({"seg": finding.mask}))
    heat_name = artifacts.put("prob", npz.write({"prob": finding.probability})) if heatmap else None
    if heat_name and here.service.settings.validate_heatmap:
        stored = npz.read(artifacts.path(heat_name), "prob")
        if stored is None or stored.dtype != "uint8" or stored.shape != volume.shape:
            raise HTTPException(500, "Heatmap artifact validation failed: key 'prob' is missing or not uint8")
    return Result3D(
        prompt=finding.prompt,
        description=finding.prompt,
        presence_confidence=finding.presence,
        mask_confidence=_mask_confidence(finding),
        mask_format="npz",
        mask_shape=list(finding.mask.shape),
        mask_url=f"/files/{mask_name}",
        heatmap_url=f"/files/{heat_name}" if heat_name else None,
        axis_order="zyx",
        affine=volume.grid.affine_ras.tolist(),
        spacing=list(volume.spacing_zyx),
        series_uid=volume.source.series_uid,
        model=found.provenance.model,
        version=found.provenance.version,
        weights_sha256=found.provenance.weights_sha256,
        notes=list(found.provenance.notes),
    )
