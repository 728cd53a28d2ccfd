"""MONAI Label's scribble models: lines in a label map beside the image, or in `params`; the answer has the image's true geometry."""

from __future__ import annotations

from typing import Any

from fastapi.responses import Response

from isocenter.core.errors import PromptError
from isocenter.core.model import ModelSpec
from isocenter.core.prompts import Box
from isocenter.core.segmentation import Segmentation
from isocenter.core.volume import Volume
from isocenter.http import monai_params as wire
from isocenter.http.body import Form
from isocenter.http.context import Context
from isocenter.http.multipart import Output, new_boundary, respond
from isocenter.io import write
from isocenter.io.upload import Upload


async def answer(here: Context, spec: ModelSpec, params: wire.Params, file: Upload, form: Form, output: Output | None) -> Response:
    """Scribbles as MONAI Label's clients send them: a label map beside the image, or lines in `params`."""
    volume = await here.read(lambda: here.service.open(file))
    label = form.file("label")
    boundary = new_boundary()

    def work() -> tuple[dict[str, Any], bytes]:
        prompts = params.prompts(volume.shape[0], flipped=volume.source.flipped)
        if label is not None:
            background, foreground = _scribble_values(params)
            prompts += here.service.drawn(label, volume, foreground=foreground, background=background)
        result = here.service.separate(volume, prompts, roi=_roi(params), options=params.options, model=spec.id)
        head = {"label_names": {"region": 1}, "latencies": dict(result.provenance.seconds), "model": spec.id, "notes": list(result.provenance.notes)}
        return head, b"" if output is Output.JSON else _true_geometry(result, volume, params, output)

    head, body = await here.infer(work)
    return respond(head, body, output, params.extension, boundary)


def _true_geometry(result: Segmentation, volume: Volume, params: wire.Params, output: Output | None) -> bytes:
    return write.encode(result, ".dcm" if output is Output.DICOM_SEG else params.extension, volume)


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
