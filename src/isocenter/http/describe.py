"""What pictures look like to a network: vectors that can be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray

from isocenter.analysis.pictures import slice_picture
from isocenter.core.errors import LimitError, UsageError
from isocenter.core.model import Task
from isocenter.http import bodies
from isocenter.http.body import Form, read_form
from isocenter.http.context import Context, Here
from isocenter.http.errors import missing

router = APIRouter(prefix="/api/v1", tags=["Isocenter"])
#: Pictures in one request.
MOST = 64
_BODY = bodies.form_of(
    ["file"],
    file={"type": "array", "items": bodies.FILE, "description": f"PNG, JPEG, DICOM, or a slice of a scan; at most {MOST}."},
    model={**bodies.TEXT, "description": "A model whose task is `describe`; by default the first there is."},
    slice={"type": "integer", "description": "Which slice of scans, from 0; the middle one by default."},
    modality=bodies.TEXT,
)


@router.post("/describe", openapi_extra=_BODY)
async def describe(request: Request, here: Here) -> dict[str, Any]:
    """A vector of length one for each picture, in their order. 503 where no model that describes pictures is installed."""
    async with read_form(request, here.service.settings) as form:
        if not form.files:
            raise missing("file")
        if len(form.files) > MOST:
            raise LimitError(f"{len(form.files)} pictures in one request are too many", limit="pictures", value=MOST)
        registry, model = here.service.registry, form.text("model")[:128]
        spec = await here.read(lambda: registry.spec(model) if model else registry.first(Task.DESCRIBE))
        pictures = await here.read(lambda: _pictures(here, form))
        asked = await here.read(lambda: here.service.describe_soon(pictures, model=spec.id))
        vectors = await here.wait(asked)
    told = {"model": spec.id, "version": spec.version, "weights_sha256": spec.weights_sha256}
    return {**told, "dimensions": len(vectors[0]), "vectors": [[round(float(v), 7) for v in row] for row in vectors]}


def _pictures(here: Context, form: Form) -> list[NDArray[np.uint8]]:
    text = form.text("slice").strip()
    if text and not text.isdecimal():
        raise UsageError("slice is the number of a slice, from 0")
    index, modality = int(text[:9]) if text else None, form.text("modality")[:16] or None
    return [slice_picture(here.service.open(file, modality=modality), index) for file in form.files.values()]
